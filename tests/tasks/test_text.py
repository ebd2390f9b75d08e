"""Metrics of texts and of language models against scikit-learn, scipy and formulas written out here."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor

from experiment.errors import CompressionError, DataError
from experiment.random_streams import generator
from experiment.tasks import find_task
from experiment.tasks.language_modelling import IGNORED
from experiment.tasks.task import Task


def figures(task: Task, outputs: Tensor, y: Tensor, batch: int = 7) -> dict[str, float]:
    """Every metric, summed or joined over uneven batches."""
    found = {}
    for metric in task.metrics:
        parts = [metric.update(x, t) for x, t in zip(outputs.split(batch), y.split(batch), strict=True)]
        assert all(part.dtype == torch.float64 for part in parts)
        found[metric.name] = metric.compute(torch.cat(parts) if metric.joined else torch.stack(parts).sum(0))
    return found


@pytest.mark.parametrize("classes", [2, 3, 9])
def test_classes_as_scikit_learn(classes: int) -> None:
    made = generator("classes", classes)
    y = torch.randint(classes - (classes == 9), (50,), generator=made)  # of nine, one never occurs
    outputs = torch.randn(50, classes, generator=made) + 0.8 * torch.eye(classes)[y]
    outputs[:, classes - 1] -= 9.0 * (classes == 9)
    predicted = outputs.argmax(1)
    expected = {
        "top1": accuracy_score(y, predicted),
        "mcc": matthews_corrcoef(y, predicted),
        "f1": f1_score(y, predicted) if classes == 2 else f1_score(y, predicted, average="macro"),
    }
    for name in ("text_classification", "text_classification_mcc", "text_classification_f1"):
        assert figures(find_task(name), outputs, y) == pytest.approx(expected, abs=1e-12)
    assert [find_task(f"text_classification{x}").primary.name for x in ("", "_mcc", "_f1")] == ["top1", "mcc", "f1"]


def test_answers_that_are_nan_are_wrong() -> None:
    outputs, y = torch.tensor([[1.0, 0.0], [math.nan, 0.0], [0.0, 1.0], [0.0, math.nan]]), torch.tensor([0, 0, 1, 1])
    found = figures(find_task("text_classification"), outputs, y)
    assert found["top1"] == 0.5
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["mcc"] == pytest.approx(matthews_corrcoef([0, 0, 1, 1], [0, 2, 1, 2]))


def test_mcc_of_one_class_is_zero() -> None:
    outputs = torch.tensor([[1.0, 0.0]] * 6)
    found = figures(find_task("text_classification"), outputs, torch.tensor([0, 1, 0, 1, 0, 0]))
    assert (found["mcc"], found["f1"]) == (0.0, 0.0)


@pytest.mark.parametrize("levels", [4, 1000])
def test_correlations_as_scipy(levels: int) -> None:
    made = generator("numbers", levels)
    y = torch.randint(levels, (60, 1), generator=made).float()
    outputs = (y + levels * torch.rand(60, 1, generator=made)).mul(4 / levels).round().div(4) + 1e4
    found = figures(find_task("text_regression"), outputs, y)
    a, b = outputs[:, 0].double().numpy(), y[:, 0].double().numpy()
    expected = {"pearson": stats.pearsonr(a, b).statistic, "spearman": stats.spearmanr(a, b).statistic}
    assert found == pytest.approx(expected, abs=1e-12)


def test_correlation_with_a_constant_is_zero_and_with_nan_undefined() -> None:
    task, y = find_task("text_regression"), torch.arange(9.0)[:, None]
    assert figures(task, torch.full((9, 1), 0.1), y) == {"pearson": 0.0, "spearman": 0.0}
    assert all(math.isnan(value) for value in figures(task, y.where(y != 3, math.nan), y).values())


def test_perplexity_by_hand() -> None:
    """Predictions of a table of probabilities: the perplexity is the inverse geometric mean of those of the targets."""
    task, made = find_task("language_modelling"), generator("table")
    table = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    x = torch.randint(3, (23, 5), generator=made)
    y = torch.randint(3, (23, 5), generator=made)
    y[-1, 2:] = IGNORED
    raw = torch.from_numpy(np.log(table)).float()[x]  # (N, T, V)
    chances = [table[x[i, j], y[i, j]] for i in range(23) for j in range(5) if y[i, j] != IGNORED]
    best = [table[x[i, j]].argmax() == y[i, j] for i in range(23) for j in range(5) if y[i, j] != IGNORED]
    found = figures(task, task.outputs(raw), y)
    assert found["perplexity"] == pytest.approx(math.prod(1 / p ** (1 / len(chances)) for p in chances), rel=1e-6)
    assert found["token_top1"] == pytest.approx(np.mean(best))
    assert task.outputs({"logits": raw}).shape == (23, 3, 5)
    with pytest.raises(CompressionError, match=r"scores of every token.*float32 tensor of shape 23 x 3"):
        task.outputs(raw[:, 0])


@pytest.mark.parametrize("target", [[1, 2], np.array([1, 2], np.int16), torch.tensor([1, 2], dtype=torch.uint8)])
def test_tokens_of_any_kind(target: object) -> None:
    made = find_task("language_modelling").target("here", target)
    assert made.dtype == torch.int64
    assert made.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("task", "target", "message"),
    [
        ("language_modelling", torch.tensor([0.5]), "a.csv:3: expected the next token .* Got a torch.float32 tensor"),
        ("language_modelling", 4, "a.csv:3: expected the next token .* Got the int 4"),
        ("language_modelling", ["a"], "a.csv:3: expected the next token .* Got a list of 1"),
        ("text_regression", math.nan, "a.csv:3: expected finite numbers as target. Got .nan"),
        ("text_regression", "good", "a.csv:3: expected one number, or a list .* Got the text 'good'"),
        ("text_classification", 1.5, "a.csv:3: expected one class number as target. Got the float 1.5"),
    ],
)
def test_wrong_targets_are_named(task: str, target: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_task(task).target("a.csv:3", target)


def test_targets_beyond_the_outputs_are_named() -> None:
    tokens = torch.tensor([[0, 4, IGNORED], [1, 5, 2]])
    find_task("language_modelling").check("a.txt", 6, tokens)
    with pytest.raises(DataError, match=r"a\.txt: token id 5 beyond the vocabulary at position 1; expected 0 to 4 "):
        find_task("language_modelling").check("a.txt", 5, tokens)
    with pytest.raises(DataError, match="outputSize is 3. Set outputSize: 1"):
        find_task("text_regression").check("a.tsv", 3, torch.zeros(2, 1))
