"""Mode gradual in the runner: the schedule, masks that only grow, interruptions, keys, and what is refused."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from small_results import histories, keys, table

from experiment import load_network
from experiment.config import load
from experiment.config.modes import gradual_steps
from experiment.errors import ConfigError
from experiment.main import main
from experiment.methods.base import Compressor
from experiment.training.checkpoint import Checkpoint

METHODS = ["WT", "FT", "SVD"]


def gradually(parameters: dict[str, Any]) -> dict[str, Any]:
    parameters["experiments"] |= {"mode": "gradual", "methods": METHODS}
    parameters["experiments"]["spacing"][0]["values"] = [0.1]
    return parameters | {"retraining": {"numEpochs": 4}, "gradual": {"endEpoch": 3}}


@pytest.fixture
def gradual(small: dict[str, Any]) -> dict[str, Any]:
    return gradually(small)


@pytest.fixture(scope="module")
def whole(small_parameters: dict[str, Any], run_once: Any) -> Path:
    """The folder of an uninterrupted run in one process."""
    return run_once(gradually(copy.deepcopy(small_parameters)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("end", "every", "start", "last", "expected"),
    [
        (3, 1, 0, 4, [(1, 1 / 3), (2, 2 / 3), (3, 1.0)]),
        (None, 1, 2, 8, [(3, 1 / 3), (4, 2 / 3), (5, 1.0)]),
        (7, 3, 0, 9, [(4, 1 / 2), (7, 1.0)]),
        (None, 1, 0, 1, [(0, 1.0)]),
    ],
)
def test_the_schedule_is_zhu_and_guptas(
    write: Any, small: dict[str, Any], end: int | None, every: int, start: int, last: int, expected: Any
) -> None:
    """Their formula is of sparsity: s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3, here with s_i = 0."""
    final = 0.9
    small["experiments"]["mode"] = "gradual"
    small |= {"retraining": {"startEpoch": start, "numEpochs": last}, "gradual": {"every": every}}
    small["gradual"] |= {} if end is None else {"endEpoch": end}
    (variant,) = load(write(small)).variants
    steps = gradual_steps(variant.parameters, 1 - final)
    assert [epoch for epoch, _ in steps] == [epoch for epoch, _ in expected]
    sparsity = [final + (0 - final) * (1 - progress) ** 3 for _, progress in expected]
    assert [1 - keep for _, keep in steps] == pytest.approx(sparsity)


def test_from_the_file_to_the_results(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole)
    frame = pd.read_csv("data/results/small/results.csv").set_index("method")
    assert set(frame["status"]) == {"done"}
    cells = frame.loc[METHODS]
    assert (cells["keep_parameters"] <= 0.1).all()
    assert (cells["keep_parameters"] > 0.08).all()
    assert (cells["epochs"] == 4).all()
    assert (cells["top1"] > cells["top1_before_retraining"]).all()
    for name, history in histories(whole).items():
        if not name.startswith("Reference"):
            assert list(history["epoch"]) == [0, 1, 2, 3]
    assert not list(whole.glob("data/**/.partial-*"))
    network = load_network("param/small.yaml", method="WT", keep=0.1)
    assert sum(int((p != 0).sum()) for p in network.parameters()) <= 0.1 * 266_610 + 410


@pytest.mark.usefixtures("no_plots")
def test_what_a_step_removed_stays_removed(
    write: Any, gradual: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradual["experiments"]["methods"] = ["WT"]
    made, compress = [], Compressor.compress

    def noted(self: Compressor, *args: Any, **more: Any) -> Any:
        made.append(compress(self, *args, **more))
        return made[-1]

    monkeypatch.setattr(Compressor, "compress", noted)
    assert main([str(write(gradual)), "-j", "1", "-q"]) == 0
    direct, *steps = made
    keeps = [step.count.parameters / 266_610 for step in steps]
    assert keeps == pytest.approx([0.1 + 0.9 * (2 / 3) ** 3, 0.1 + 0.9 * (1 / 3) ** 3, 0.1], abs=1e-3)
    masks = [torch.cat([m.flatten() for m in step.plan.masks.values()]) for step in steps]
    for before, after in itertools.pairwise(masks):
        assert not (after & ~before).any()
    last = torch.cat([m.flatten() for m in direct.plan.masks.values()])
    assert not torch.equal(last, masks[-1]), "the weights that training changed decide"


@pytest.mark.usefixtures("no_plots")
def test_interrupted_it_ends_with_the_same_results(
    write: Any, gradual: dict[str, Any], in_tmp: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an epoch, and after a step is saved, of every kind of structure."""
    save, saved = Checkpoint.save, []

    def interrupt(self: Checkpoint, state: dict[str, Any], **more: Any) -> None:
        save(self, state, **more)
        saved.append(state)
        if len(saved) in (1, 3, 6, 7, 12, 17, 18, 21):
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", interrupt)
    status = [main([str(write(gradual)), "-j", "1", "-q"]) for _ in range(9)]
    assert status == [130] * 8 + [0]
    assert len(saved) == 2 + 3 * (4 + 3), "no epoch is computed twice"
    pd.testing.assert_frame_equal(table(in_tmp), table(whole))
    expected = histories(whole)
    for name, history in histories(in_tmp).items():
        pd.testing.assert_frame_equal(history, expected[name])


def test_the_block_enters_keys_in_its_mode_alone(write: Any, gradual: dict[str, Any]) -> None:
    one = keys(write(gradual))
    gradual["gradual"] = {"endEpoch": 2}
    two = keys(write(gradual))
    gradual["experiments"]["mode"] = "retrain"
    retrain = keys(write(gradual))
    gradual["gradual"] = {}
    assert keys(write(gradual)) == retrain
    assert len({*one, *two, *retrain}) == 1 + 3 * 3


@pytest.mark.usefixtures("no_plots")
def test_controls_fixed_sizes_and_what_removes_nothing(write: Any, gradual: dict[str, Any], in_tmp: Path) -> None:
    gradual["retraining"]["numEpochs"] = 2
    gradual["gradual"] = {}
    gradual["experiments"] |= {"methods": ["WT", "Fake", "Quantize"], "spacing": [{"type": "manual", "values": [1.0]}]}
    assert main([str(write(gradual)), "-j", "1", "-q"]) == 0
    frame = pd.read_csv("data/results/small/results.csv").set_index("method")
    assert list(frame.loc[["WT", "Fake", "Quantize"], "epochs"]) == [0, 2, 2]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gradual": {"end": 3}}, "gradual.end: unknown key."),
        ({"gradual": {"endEpoch": 5}}, "gradual.endEpoch: must be above retraining.startEpoch (0) and at most"),
        ({"gradual": {"endEpoch": 3, "every": 4}}, "gradual.every: must be at most the 3 epochs from startEpoch to"),
        ({"gradual": {"every": 3}}, "gradual.every: must be at most the 2 epochs from startEpoch to endEpoch. Got 3"),
        ({"rewind": "weights"}, "experiments.rewind: has no effect in mode gradual"),
        ({"retrainIterations": 1}, "experiments.retrainIterations: has no effect in mode gradual"),
        ({"budget": {"flops": 0.5}}, "experiments.budget: mode gradual needs quantities without shares or amounts"),
    ],
)
def test_what_is_wrong_is_told(write: Any, gradual: dict[str, Any], change: dict[str, Any], told: str) -> None:
    (gradual if "gradual" in change else gradual["experiments"]).update(change)
    with pytest.raises(ConfigError) as caught:
        load(write(gradual))
    assert told in str(caught.value)
