"""The values of single samples against figures of whole test sets, and against the jackknife by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.datasets.python_samples import PairData
from experiment.errors import ConfigError
from experiment.random_streams import generator
from experiment.tasks import TASKS, find_task
from experiment.tasks.task import Metric
from experiment.training.evaluation import evaluate
from experiment.training.factories import make_loss
from experiment.training.sample_figures import SampleFigures

N, K = 131, 5
Z = torch.randn(N, K, generator=generator("outputs"))
Y = torch.randint(0, K, (N,), generator=generator("labels"))


def values_of(metric: Metric, z: Tensor, y: Tensor, batch: int = 64) -> "np.ndarray[tuple[int], np.dtype[np.generic]]":
    samples = SampleFigures(metric)
    samples.observe(0, z, z, y, make_loss("CrossEntropyLoss", {}))
    samples.restart()
    for start in range(0, len(z), batch):
        part = slice(start, start + batch)
        samples.observe(start, z[part], z[part], y[part], make_loss("CrossEntropyLoss", {}))
    found = samples.values()
    assert found is not None
    return found


def test_accuracy_is_whether_each_sample_is_right() -> None:
    found = values_of(find_task("classification").primary, Z, Y)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, (Z.argmax(1) == Y).numpy())


def test_perplexity_is_the_jackknife() -> None:
    metric = find_task("language_modelling").primary
    z, y = torch.randn(40, K, 7, generator=generator("z")), torch.randint(0, K, (40, 7), generator=generator("y"))
    losses = nn.functional.cross_entropy(z.double(), y, reduction="none").mean(1).numpy()
    whole = np.exp(losses.mean())
    without = np.array([np.exp(np.delete(losses, i).mean()) for i in range(40)])
    found = values_of(metric, z, y)
    np.testing.assert_allclose(found, 40 * whole - 39 * without, rtol=1e-4)
    assert found.dtype == np.float32


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_mean_is_the_figure_but_for_the_bias_of_the_jackknife(name: str) -> None:
    task = find_task(name)
    outputs, y = torch.randn(60, 3, generator=generator("o")), torch.randint(0, 3, (60,), generator=generator("t"))
    if name in ("multilabel", "regression", "text_regression"):
        y = torch.randint(0, 2, (60, 3), generator=generator("t")).float()
    if task.primary.joined:
        samples = SampleFigures(task.primary)
        samples.observe(0, outputs, outputs, y, make_loss(task.losses[0], {}))
        assert samples.values() is None, "no sums of samples"
        return
    figure = task.primary.figure(task.primary.update(outputs, y))
    assert values_of(task.primary, outputs, y).mean() == pytest.approx(figure, rel=0.05)


def test_an_undefined_figure_has_no_values() -> None:
    metric = Metric("m", "m", lambda z, y: torch.stack([z.sum(), z.sum() * 0]).double(), lambda s: float(s[0] / s[1]),
                    unit="value")  # fmt: skip
    samples = SampleFigures(metric)
    samples.observe(0, Z, Z, Y, make_loss("CrossEntropyLoss", {}))
    assert samples.values() is None


def test_batches_of_an_evaluation() -> None:
    x = torch.randn(N, 1, 3, 3, generator=generator("x"))
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, K))
    samples = SampleFigures(find_task("classification").primary)
    found = evaluate(network, PairData("test", (x, Y), torch.device("cpu")), device="cpu", batch_size=50,
                     observers=[samples])  # fmt: skip
    values = samples.values()
    assert values is not None
    assert values.mean() == pytest.approx(found.values["top1"])


@pytest.mark.parametrize("name", [name for name in TASKS if find_task(name).primary.mappable])
def test_all_samples_at_once_or_one_by_one(name: str) -> None:
    metric = find_task(name).primary
    z, y = torch.randn(40, 3, 7, generator=generator("z")), torch.randint(0, 3, (40, 7), generator=generator("y"))
    if name == "classification":
        z, y = z[:, :, 0], y[:, 0]
        z[5, 1] = torch.nan  # a wrong answer
    elif name == "regression":
        z, y = z[:, :, 0], torch.randn(40, 3, generator=generator("y"))
    one_by_one = values_of(replace(metric, mappable=False), z, y)
    np.testing.assert_allclose(values_of(metric, z, y), one_by_one, rtol=1e-6)


def test_a_metric_that_reads_values_is_not_mappable() -> None:
    metric = Metric("m", "m", lambda z, y: torch.stack([z[y > 0].sum(), y.sum()]).double(), lambda s: float(s[0]),
                    unit="value", mappable=True)  # fmt: skip
    with pytest.raises(ConfigError, match="metric m: cannot score outputs of shape"):
        metric.try_out(Z, Y)
