"""Metrics of regression and of many labels against scikit-learn; losses against torch's over the whole set."""

import math
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, r2_score, root_mean_squared_error
from torch import Tensor, nn

from experiment.errors import DataError
from experiment.random_streams import generator
from experiment.tasks import find_task
from experiment.training.factories import loss_weight, make_loss, mean_loss, summed


def figures(name: str, outputs: Tensor, y: Tensor, batch: int = 7) -> dict[str, float]:
    """Every metric, summed or joined over uneven batches."""
    found = {}
    for metric in find_task(name).metrics:
        parts = [metric.update(x, t) for x, t in zip(outputs.split(batch), y.split(batch), strict=True)]
        assert all(part.dtype == torch.float64 for part in parts)
        found[metric.name] = metric.compute(torch.cat(parts) if metric.joined else torch.stack(parts).sum(0))
    return found


@pytest.mark.parametrize("values", [1, 3])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_regression_as_scikit_learn(values: int, shift: float) -> None:
    made = generator("numbers", values)
    y = shift + torch.randn(50, values, generator=made) * torch.arange(1, values + 1)
    outputs = y + torch.randn(50, values, generator=made)
    expected = {"rmse": root_mean_squared_error(y.double().flatten(), outputs.double().flatten()),
                "r2": r2_score(y.double(), outputs.double())}  # fmt: skip
    assert figures("regression", outputs, y) == pytest.approx(expected, rel=1e-9)


def test_r2_of_constant_targets_is_scikit_learns() -> None:
    y = torch.tensor([[0.1, 0.1, 1.0], [0.1, 0.1, 2.0], [0.1, 0.1, 4.0]])
    outputs = torch.tensor([[0.1, 0.2, 1.0], [0.1, 0.2, 2.0], [0.1, 0.2, 5.0]])
    assert figures("regression", outputs, y, 2)["r2"] == pytest.approx(r2_score(y.double(), outputs.double()))


@pytest.mark.parametrize("levels", [2, 5, 1000])  # many equal outputs, some, none
def test_labels_as_scikit_learn(levels: int) -> None:
    made = generator("labels", levels)
    y = (torch.rand(60, 4, generator=made) < torch.tensor([0.5, 0.1, 0.9, 0.0])).float()  # the last never holds
    outputs = torch.randint(-levels, levels, (60, 4), generator=made) / levels + 0.4 * y
    expected = {
        "mean_average_precision": np.mean([average_precision_score(y[:, k], outputs[:, k]) for k in range(3)]),
        "f1": f1_score(y.bool(), outputs > 0, average="micro"),
    }
    assert figures("multilabel", outputs, y) == pytest.approx(expected, abs=1e-12)


def test_labels_without_a_ranking() -> None:
    y = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    outputs = torch.tensor([[math.nan, 1.0], [2.0, 1.0], [3.0, 1.0]])  # NaN ranks last
    assert figures("multilabel", outputs, y)["mean_average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert math.isnan(figures("multilabel", outputs, 0 * y)["mean_average_precision"])
    assert figures("multilabel", outputs - 9, 0 * y)["f1"] == 0


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_the_mean_loss_over_batches_is_that_of_the_whole_set(task: str) -> None:
    made = generator("losses", task)
    outputs, y = torch.randn(23, 4, generator=made), torch.randint(2, (23, 4), generator=made).float()
    for name in find_task(task).losses:
        for kwargs in ({}, {"pos_weight": [1.0, 2.0, 3.0, 4.0]} if name == "BCEWithLogitsLoss" else {}):
            loss = make_loss(name, kwargs)
            pairs = list(zip(outputs.split(5), y.split(5), strict=True))
            weights = [loss_weight(loss, t) for _, t in pairs]
            total = sum(summed(loss, loss(x, t), w) for (x, t), w in zip(pairs, weights, strict=True))
            whole = vars(nn)[name](**{key: torch.tensor(value) for key, value in kwargs.items()})(outputs, y)
            assert mean_loss(total, sum(weights)) == pytest.approx(float(whole), rel=1e-6)


@pytest.mark.parametrize(
    ("task", "target", "message"),
    [
        ("regression", [1.0, math.nan], "row 3: expected finite numbers as target. Got [1.0, nan]. Fill them in"),
        ("regression", "seven", "row 3: expected one number, or a list of numbers, as target. Got "),
        ("regression", torch.zeros(2, 2), "row 3: expected one number, or a list of numbers, as target."),
        ("multilabel", [0, 2, 1], "row 3: expected 0 or 1 for every label as target. Got [0.0, 2.0, 1.0]."),
    ],
)
def test_targets_are_checked(task: str, target: object, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        find_task(task).target("row 3", target)


def test_targets_in_memory_are_checked_with_their_row() -> None:
    regression, multilabel = find_task("regression"), find_task("multilabel")
    assert regression.target("x", 2).tolist() == [2.0]
    assert regression.target("x", np.array([1, 2])).dtype == torch.float32
    with pytest.raises(DataError, match=r"t: sample 1: expected finite numbers as target"):
        regression.check("t", 1, torch.tensor([[0.0], [math.inf]]))
    with pytest.raises(DataError, match=r"t: sample 1: expected 0 or 1 for every label"):
        multilabel.check("t", 2, torch.tensor([[0.0, 1.0], [0.5, 1.0]]))
    with pytest.raises(DataError, match=r"t: 2 numbers per target, but network.outputSize is 3. Set outputSize: 2."):
        multilabel.check("t", 3, torch.zeros(4, 2))
