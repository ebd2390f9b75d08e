"""Which weights are retrained: rewound, kept, or fresh random ones as a control of the same structure."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from experiment import load_network
from experiment.config import load
from experiment.layers.masks import bake_masks, named_masks
from experiment.main import main
from experiment.run.grid.cells import Chain
from experiment.run.grid.plan import Machine, plan_experiment
from experiment.run.workers.queue import Queue, open_work

FROZEN = {"lr": 0.0, "momentum": 0.0}  # retraining that leaves the weights where they start


def rows(folder: Path, name: str = "small") -> pd.DataFrame:
    return pd.read_csv(folder / f"data/results/{name}/results.csv")


def cell_keys(path: Path) -> list[str]:
    return [cell.key for cell in plan_experiment(load(path), Machine("cpu")).cells]


def weights(network: torch.nn.Module) -> dict[str, Tensor]:
    return dict(bake_masks(network).state_dict())


@pytest.mark.parametrize(
    ("mode", "rewind", "same_as"),
    [
        ("cascade", "weights", "cascade-rewind"),
        ("cascade", "none", "cascade"),
        ("cascade-rewind", "weights", "cascade-rewind"),
        ("cascade-rewind", "none", "cascade"),
        ("retrain", "weights", "retrain-rewind"),
        ("retrain-rewind", "none", "retrain"),
    ],
)
def test_what_a_mode_has_a_name_for_has_its_keys(
    write: Any, small: dict[str, Any], mode: str, rewind: str, same_as: str
) -> None:
    small["experiments"]["mode"] = same_as
    expected = cell_keys(write(small))
    small["experiments"] |= {"mode": mode, "rewind": rewind}
    assert cell_keys(write(small)) == expected


def test_every_other_choice_has_keys_of_its_own(write: Any, small: dict[str, Any]) -> None:
    found = []
    for mode in ("retrain", "cascade"):
        for rewind in ("weights", "random", "none"):
            small["experiments"] |= {"mode": mode, "rewind": rewind}
            found += cell_keys(write(small))[1:]
    assert len(set(found)) == len(found) == 6 * 4


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("method", ["WT", "FT", "SVD"])
def test_one_shot_the_structure_is_the_same_whatever_the_weights(
    write: Any, small: dict[str, Any], in_tmp: Path, method: str
) -> None:
    small["retraining"] = {"startEpoch": 0, "numEpochs": 1, "optimizerKwargs": FROZEN, "lrSchedulers": []}
    small["experiments"] |= {"methods": [method], "mode": "retrain"}
    small["experiments"]["spacing"][0]["values"] = [0.3]
    small["customizations"] = [
        {"key": ["experiments", "rewind"], "value": value} for value in ("weights", "random", "none")
    ]
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    folder = in_tmp / "data/results/small"
    rewound, fresh, kept = (
        load_network(folder, method=method, keep=0.3, variant=f"experiments.rewind={value}")
        for value in ("weights", "random", "none")
    )
    assert {n: t.shape for n, t in rewound.state_dict().items()} == {n: t.shape for n, t in fresh.state_dict().items()}
    masks = [named_masks(network) for network in (rewound, fresh, kept)]
    for name, mask in masks[0].items():
        assert torch.equal(mask, masks[1][name])
        assert torch.equal(mask, masks[2][name])
    for name, weight in weights(rewound).items():
        if name.endswith("weight"):
            assert not torch.equal(weight, weights(fresh)[name])
            assert not torch.equal(weight, weights(kept)[name])
    if method == "WT":
        (path,) = in_tmp.glob("data/trained_networks/*/rewind-0.pt")
        initial = torch.load(path, weights_only=True)
        for name, weight in weights(rewound).items():
            assert torch.equal(weight, initial[name] * masks[0].get(name, torch.tensor(True)))
    compressed = rows(in_tmp).query("method == @method")["top1_before_retraining"]
    assert compressed.nunique() == 1, "of what compression left, whatever weights are retrained"
    top1 = rows(in_tmp).set_index("variant")["top1"]
    assert top1["experiments.rewind=none"].min() > top1["experiments.rewind=random"].min()


@pytest.mark.usefixtures("no_plots", "quick_workers")
def test_in_a_cascade_the_control_has_the_structure_of_the_ticket(
    write: Any, small: dict[str, Any], in_tmp: Path
) -> None:
    small["retraining"] = {}
    small["experiments"] |= {"methods": ["WT", "FT"], "mode": "cascade-rewind"}
    small["experiments"]["spacing"][0]["values"] = [0.6, 0.3]
    small["customizations"] = [{"key": ["experiments", "rewind"], "value": value} for value in ("random", "weights")]
    assert main([str(write(small)), "-j", "2", "-q"]) == 0
    frame = rows(in_tmp)
    assert set(frame["status"]) == {"done"}
    assert len(list(in_tmp.glob("data/results/small/cells/*"))) == 1 + 2 * 2 * 2  # no ticket is computed twice
    for keep in (0.6, 0.3):
        for method in ("WT", "FT"):
            ticket, control = (
                load_network(
                    in_tmp / "data/results/small", method=method, keep=keep, variant=f"experiments.rewind={value}"
                )
                for value in ("weights", "random")
            )
            masks, own = named_masks(ticket), named_masks(control)
            assert masks.keys() == own.keys()
            assert all(torch.equal(mask, own[name]) for name, mask in masks.items())
            shapes = [{n: t.shape for n, t in network.state_dict().items()} for network in (ticket, control)]
            assert shapes[0] == shapes[1]


@pytest.mark.usefixtures("no_plots")
def test_the_control_alone_computes_its_tickets_beside_it(
    write: Any, small: dict[str, Any], in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small["retraining"] = {}
    small["experiments"] |= {"methods": ["WT"], "mode": "cascade", "rewind": "random"}
    path = write(small)
    assert main([str(path), "--plan"]) == 0
    assert "5 of 5 cells: 2 epochs of training, 8 of retraining" in capsys.readouterr().out
    assert main([str(path), "-j", "1", "-q"]) == 0
    assert len(rows(in_tmp)) == 3
    alone = rows(in_tmp).set_index("keep_target")["loss"]
    assert main([str(path), "-j", "1", "-q"]) == 0
    small["experiments"] = {k: v for k, v in small["experiments"].items() if k != "rewind"}
    small["customizations"] = [{"key": ["experiments", "rewind"], "value": value} for value in ("random", "weights")]
    assert main([str(write(small, "param/both.yaml")), "-j", "1", "-q"]) == 0
    both = rows(in_tmp, "both")
    both = both[both["variant"] == "experiments.rewind=random"].set_index("keep_target")["loss"]
    assert (alone == both).all()


def test_a_share_of_a_job_array_has_the_tickets_that_it_needs(write: Any, small: dict[str, Any]) -> None:
    small["retraining"] = {}
    small["experiments"] |= {"methods": ["WT"], "mode": "cascade"}
    small["customizations"] = [{"key": ["experiments", "rewind"], "value": value} for value in ("weights", "random")]
    plan = plan_experiment(load(write(small)), Machine("cpu"))
    work = open_work(0, plan, {}, share=(1, 2))
    assert [type(w.task).__name__ for w in work] == ["ReferenceTask", "Chain", "Chain"]
    queue, order = Queue(work), []
    while (taken := queue.take()) is not None:
        assert queue.take() is None, "nothing else may run before what it needs"
        order.append(taken.task)
        queue.finished(taken)
    assert isinstance(order[2], Chain)
    assert order[1] == order[2].tickets


@pytest.mark.usefixtures("no_plots")
def test_random_weights_are_those_of_net_and_repetition_and_get_the_whole_schedule(
    write: Any, small: dict[str, Any], in_tmp: Path
) -> None:
    small["retraining"] = {"startEpoch": 1, "optimizerKwargs": FROZEN, "lrSchedulers": []}
    small["experiments"] |= {"methods": ["WT"], "mode": "retrain", "rewind": "random"}
    small["experiments"] |= {"numNets": 2, "numRepetitions": 2}
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    frame = rows(in_tmp)
    assert set(frame[frame["method"] == "WT"]["epochs"]) == {2}
    folder, seen = in_tmp / "data/results/small", []
    for net in (0, 1):
        for repetition in (0, 1):
            found = [
                weights(load_network(folder, method="WT", keep=keep, net=net, repetition=repetition))
                for keep in (0.5, 0.1)
            ]
            for name in found[0]:
                both = (found[0][name] != 0) & (found[1][name] != 0)
                assert torch.equal(found[0][name][both], found[1][name][both])
            seen.append(found[0])
    for i, one in enumerate(seen):
        for other in seen[:i]:
            assert all(not torch.equal(one[n], other[n]) for n in one if n.endswith("weight"))


@pytest.mark.usefixtures("no_plots")
def test_a_ticket_that_fails_stops_the_controls_after_it(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    small["training"]["numEpochs"] = 3
    small["retraining"] = {"numEpochs": 1, "optimizerKwargs": {"lr": 1e20}}
    small["experiments"] |= {"methods": ["WT"], "mode": "cascade"}
    small["customizations"] = [{"key": ["experiments", "rewind"], "value": value} for value in ("weights", "random")]
    assert main([str(write(small)), "-j", "1", "-q"]) == 1
    frame = rows(in_tmp)
    control = frame[(frame["variant"] == "experiments.rewind=random") & (frame["method"] == "WT")]
    assert set(control["status"]) == {"failed"}
    assert control["error"].iloc[1].startswith("the previous cell of the cascade failed")


@pytest.mark.usefixtures("no_plots")
def test_the_plan_says_what_is_left_to_train(
    write: Any, small: dict[str, Any], in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def planned() -> str:
        assert main([str(write(small)), "--plan"]) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if "to do" in line)

    small["training"]["numEpochs"], small["experiments"]["methods"] = 3, ["WT"]
    methods = dict(small["experiments"])
    small["experiments"]["mode"] = "train"
    assert ": 3 epochs of training, 0 of retraining" in planned()
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    assert "0 of 1 cells: 0 epochs of training, 0 of retraining" in planned()
    small["experiments"] = methods
    assert "2 of 3 cells: 0 epochs of training (1 network already trained), 2 of retraining" in planned()
    small["experiments"]["mode"], small["retraining"] = "cascade-rewind", {"startEpoch": 1}
    assert "2 of 3 cells: 1 epoch of training, 4 of retraining" in planned(), "for the weights to rewind to"
    small["experiments"]["numNets"] = 2
    assert "5 of 6 cells: 4 epochs of training, 8 of retraining" in planned()
    (file,) = in_tmp.glob("data/trained_networks/*/network.pt")
    (file.parent / "rewind-1.pt").touch()
    assert "5 of 6 cells: 3 epochs of training (1 network already trained), 8 of retraining" in planned()
