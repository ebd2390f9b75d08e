"""Inputs that are tuples or dictionaries train, evaluate and distil as the one tensor does that they were cut from."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment.datasets.python_samples import PairData
from experiment.errors import DataError, ExperimentError
from experiment.random_streams import generator, seeded
from experiment.training.evaluation import evaluate
from experiment.training.loop import TrainingLoop
from experiment.training.settings import DistillationSpec, TrainSettings

SETTINGS = TrainSettings(num_epochs=2, batch_size=16, optimizer_kwargs={"lr": 0.1, "momentum": 0.9})
X = torch.randn(70, 6, generator=generator("several", "x"))
Y = X.sum(1).gt(0).long() + 2 * X[:, 0].gt(0).long()
CUT: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda x: (x[:, :2], (x[:, 2:],)),
    "dict": lambda x: {"left": x[:, :2], "rest": (x[:, 2:],)},
}


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.hidden(x)).relu())
        return y


class Cut(Whole):
    """Of two arguments, as keywords or by position; it returns a dictionary, whose logits do not come first."""

    def forward(self, left: Tensor, rest: tuple[Tensor]) -> Any:
        logits = super().forward(torch.cat([left, *rest], dim=1))
        return {"hidden": logits[:, :1].detach(), "logits": logits}


def network(kind: type[Whole], name: str = "several") -> Whole:
    with seeded(name):
        return kind()


def outcome(kind: type[Whole], data: PairData, settings: TrainSettings) -> dict[str, Any]:
    made, teacher = network(kind), None if settings.distillation is None else network(kind, "teacher")
    loop = TrainingLoop(made, data, settings, valid=data, stream=("t",), device="cpu", teacher=teacher)
    records = [{**asdict(record), "seconds": 0} for record in loop.run()]
    return {"records": records, "state": made.state_dict(), "metrics": evaluate(made, data, device="cpu")}


@pytest.mark.parametrize("form", CUT)
@pytest.mark.parametrize(
    "changes",
    [
        {"distillation": DistillationSpec(2.0, 0.5), "early_stop_epoch": 1},
        {"precision": "bf16", "channels_last": True},
        {"compiled": True},
    ],
)
def test_the_parts_train_as_the_whole(form: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = torch.compile  # without kernels, whose building takes long
    monkeypatch.setattr(torch, "compile", lambda module, **more: compiler(module, backend="eager", **more))
    settings = replace(SETTINGS, **changes)
    whole = outcome(Whole, PairData("whole", (X, Y), torch.device("cpu")), settings)
    parts = outcome(Cut, PairData("parts", (CUT[form](X), Y), torch.device("cpu")), settings)
    assert len({record["loss"] for record in whole["records"]}) == 2
    assert parts["records"] == whole["records"]
    assert parts["metrics"] == whole["metrics"]
    assert all(torch.equal(value, whole["state"][name]) for name, value in parts["state"].items())


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (({"left": X, "rest": X[:9]}, Y), "must have one size. Got {left: (70, 6), rest: (9, 6)}"),
        (({"left": X}, Y[:9]), r"expected as many targets as inputs (70). Got 9"),
        ({"left": X, "label": Y}, "Got a mapping with the keys left, label"),
        (
            [({"left": X[0]}, 1), ({"left": X[0, :2]}, 1)],
            "expected inputs of one shape. Got {left: (2,)}, {left: (6,)}",
        ),
        ([({"left": X[0]}, 1), ({"right": X[0]}, 1)], "Got {left: (6,)}, {right: (6,)}"),
    ],
)
def test_data_that_do_not_fit_together_are_told(data: Any, told: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        PairData("train", data, torch.device("cpu")).first(2)
    assert str(caught.value).startswith("train: ")
    assert told in str(caught.value)


def test_labels_among_the_keywords_are_the_targets() -> None:
    data = PairData("train", {"left": X, "labels": Y}, torch.device("cpu"))
    x, y = data.take(torch.tensor([3, 5]))
    assert torch.equal(y, Y[[3, 5]])
    assert list(x) == ["left"]
    assert torch.equal(x["left"], X[[3, 5]])
    with pytest.raises(DataError, match="expected as many targets"):
        PairData("train", {"left": X, "labels": Y[:3]}, torch.device("cpu"))
