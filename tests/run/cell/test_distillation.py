"""Distillation and penalties in whole experiments: keys, modes and methods, and what is refused at the start."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from experiment.config import load
from experiment.main import main
from experiment.run.cell import train_network
from experiment.run.grid.plan import Machine, plan_experiment
from experiment.training.loop import TrainingLoop

MEANT = {"distillation": {"alpha": 0.9}}


def cells(path: Path) -> tuple[str, str, set[str]]:
    """The keys of the reference network, of its row and of the compressed networks."""
    plan = plan_experiment(load(path), Machine("cpu"))
    return plan.references[0].reference.key, plan.cells[0].key, {cell.key for cell in plan.cells[1:]}


def test_distillation_and_penalties_of_retraining_change_its_cells_alone(write: Any, small: dict[str, Any]) -> None:
    plain = cells(write(small))
    seen = [plain[2]]
    for more in (
        {"distillation": {}},
        {"distillation": {"alpha": 0.5}},
        {"distillation": {"temperature": 2}},
        {"penalties": [{"l1": 0.1}]},
        {"penalties": [{"l1": 0.1, "how": "proximal"}]},
        {"penalties": [{"l1": 0.1, "layers": "fc1"}]},
    ):
        found = cells(write(small | {"retraining": {"numEpochs": 1} | more}))
        assert found[:2] == plain[:2]
        assert all(found[2].isdisjoint(others) for others in seen)
        seen.append(found[2])
    default = {"distillation": {"temperature": 4.0, "alpha": 0.7}}
    assert cells(write(small | {"retraining": {"numEpochs": 1} | default}))[2] == seen[1]
    for nothing in ({"distillation": None}, {"penalties": []}):
        assert cells(write(small | {"retraining": {"numEpochs": 1} | nothing})) == plain


def test_penalties_of_training_change_every_key(write: Any, small: dict[str, Any]) -> None:
    before = cells(write(small))
    small["training"]["penalties"] = [{"l2": 0.1}]
    after = cells(write(small))
    assert before[:2] != after[:2]
    assert before[2].isdisjoint(after[2])


@pytest.mark.parametrize("mode", ["retrain", "cascade", "retrain-rewind"])
def test_every_kind_of_network_learns_from_its_own_reference(
    write: Any, small: dict[str, Any], no_plots: None, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    small["experiments"] |= {"methods": ["WT", "FT", "SVD"], "mode": mode, "numNets": 2}
    small["experiments"]["spacing"] = [{"type": "manual", "values": [0.5, 0.2]}]
    small["retraining"] = {"startEpoch": 1} | MEANT
    told: list[tuple[Any, ...]] = []

    class Noted(TrainingLoop):
        def __init__(self, network: nn.Module, images: Any, settings: Any, **more: Any) -> None:
            super().__init__(network, images, settings, **more)
            self.weight = None if more["teacher"] is None else more["teacher"].state_dict()["fc1.weight"]
            if self.weight is not None:
                told.append((more["stream"][2], self.weight.clone(), settings.distillation))

        def __exit__(self, *error: Any) -> None:
            super().__exit__(*error)
            assert self.weight is None or torch.equal(self.weight, told[-1][1])

    monkeypatch.setattr(train_network, "TrainingLoop", Noted)
    assert main([str(write(small)), "-j", "1", "-q", "--device", "cpu", "--results", "r"]) == 0
    frame = pd.read_csv("r/small/results.csv")
    assert set(frame["status"]) == {"done"}
    assert len(told) == 12
    assert all(spec.alpha == 0.9 for _, _, spec in told)
    for net, folder in enumerate(sorted(Path("data/trained_networks").glob("lenet*"))):
        trained = torch.load(folder / "network.pt", weights_only=True)["state_dict"]["fc1.weight"]
        assert sum(n == net and torch.equal(weight, trained) for n, weight, _ in told) == 6
    assert pd.read_csv(next(Path("r/small/cells").glob("WT*")) / "history.csv")["loss"].notna().all()


def test_distilled_and_plain_cells_differ_and_share_the_reference(
    write: Any, small: dict[str, Any], no_plots: None
) -> None:
    small["customizations"] = [{"key": ["retraining", "distillation"], "value": v} for v in (None, {"alpha": 0.9})]
    small["experiments"]["methods"] = ["ALDS"]
    assert main([str(write(small)), "-j", "1", "-q", "--device", "cpu", "--results", "r"]) == 0
    assert len(list(Path("data/trained_networks").glob("lenet*"))) == 1
    frame = pd.read_csv("r/small/results.csv")
    plain, taught = (rows["loss"].to_numpy() for _, rows in frame[frame["method"] == "ALDS"].groupby("variant"))
    assert (plain != taught).all()


def test_proximal_zeros_reach_the_stored_network(write: Any, small: dict[str, Any], no_plots: None) -> None:
    penalty = {"layers": "fc1", "l1": 0.05, "how": "proximal"}
    small["retraining"] = {"numEpochs": 1, "optimizerKwargs": {"lr": 0.05}, "penalties": [penalty]}
    small["experiments"] |= {"methods": ["SVD"], "spacing": [{"type": "manual", "values": [0.5]}]}
    assert main([str(write(small)), "-j", "1", "-q", "--device", "cpu", "--results", "r"]) == 0
    state = torch.load(next(Path("r/small/cells").glob("SVD*")) / "network.pt", weights_only=True)["state_dict"]
    for factor in ("encoder", "decoder"):
        assert (state[f"fc1.{factor}.weight"] == 0).any()
        assert not (state[f"fc2.{factor}.weight"] == 0).any()


def test_a_pattern_that_names_no_layer_is_refused_at_the_start(
    write: Any, small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    small["training"]["penalties"] = [{"l2": 0.1}, {"layers": ["fc1", "conv*"], "l1": 0.1}]
    path = write(small)
    assert main([str(path), "-q", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert said.count("penalties[1].layers: no convolution or linear layer is named 'conv*'. There are fc1, fc2,") == 1
    assert "param/small.yaml:" in said
    assert not Path("data/trained_networks").exists()
