"""Loss and accuracies against numpy, and honest figures for networks that answer nothing."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.datasets.in_memory import MemoryImages, Prepared
from experiment.errors import ConfigError, DataError
from experiment.random_streams import generator
from experiment.training.evaluation import evaluate

CPU = torch.device("cpu")


class Table(nn.Module):
    """The logits that belong to an image, whose only pixel tells its number."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[(x.flatten() * 255).round().long()]


def make_data(labels: Tensor) -> MemoryImages:
    prepared = Prepared(torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1), ())
    return MemoryImages(prepared, prepared, labels)


LOGITS = torch.randn(53, 10, generator=generator("logits"))
LABELS = torch.randint(0, 10, (53,), generator=generator("labels"))


def reference(logits: Tensor, labels: Tensor, k: int) -> tuple[float, float, float]:
    z, y = logits.double().numpy(), labels.numpy()
    rows = np.arange(len(y))
    losses = np.log(np.exp(z).sum(axis=1)) - z[rows, y]
    rank = (z > z[rows, y][:, None]).sum(axis=1)
    return float(losses.mean()), float((rank < 1).mean()), float((rank < k).mean())


@pytest.mark.parametrize("batch_size", [1, 10, 53, 200])
def test_against_numpy(batch_size: int) -> None:
    metrics = evaluate(Table(LOGITS), make_data(LABELS), device=CPU, batch_size=batch_size)
    loss, top1, top5 = reference(LOGITS, LABELS, 5)
    assert metrics.loss == pytest.approx(loss, rel=1e-5)
    assert (metrics.values["top1"], metrics.values["top5"], metrics.samples) == (
        pytest.approx(top1),
        pytest.approx(top5),
        53,
    )


class Small(Table):
    """A device that holds `most` images at a time."""

    def __init__(self, most: int) -> None:
        super().__init__(LOGITS)
        self.most, self.seen = most, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("too many images")
        return super().forward(x)


def test_batches_are_halved_until_they_fit() -> None:
    network = Small(20)
    metrics = evaluate(network, make_data(LABELS), device=CPU, batch_size=50)
    assert network.seen == [50, 25, 12, 12, 12, 12, 5]
    assert metrics == evaluate(Table(LOGITS), make_data(LABELS), device=CPU, batch_size=12)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(Small(0), make_data(LABELS), device=CPU)


@pytest.mark.parametrize("batch_size", [10, 53])
def test_sum_as_reduction_is_a_mean_all_the_same(batch_size: int) -> None:
    metrics = evaluate(
        Table(LOGITS), make_data(LABELS), loss_kwargs={"reduction": "sum"}, device=CPU, batch_size=batch_size
    )
    assert metrics.loss == pytest.approx(reference(LOGITS, LABELS, 5)[0], rel=1e-5)


@pytest.mark.parametrize("batch_size", [7, 64])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_give_the_weighted_mean_of_all_images(batch_size: int, smoothing: float) -> None:
    """Class 3 is ignored, so that whole batches weigh less than others; torch's mean over everything is the truth."""
    arguments = {"weight": [float(5**c) for c in range(10)], "ignore_index": 3, "label_smoothing": smoothing}
    found = evaluate(Table(LOGITS), make_data(LABELS), loss_kwargs=arguments, device=CPU, batch_size=batch_size)
    weight = torch.tensor(arguments["weight"]).double()
    whole = nn.CrossEntropyLoss(weight, ignore_index=3, label_smoothing=smoothing)(LOGITS.double(), LABELS)
    assert found.loss == pytest.approx(float(whole), rel=1e-6)


def test_a_batch_of_ignored_labels_alone_counts_nothing() -> None:
    labels = LABELS.sort().values
    arguments = {"ignore_index": int(labels[0])}
    found = evaluate(Table(LOGITS), make_data(labels), loss_kwargs=arguments, device=CPU, batch_size=2)
    whole = nn.CrossEntropyLoss(**arguments)(LOGITS.double(), labels)
    assert found.loss == pytest.approx(float(whole), rel=1e-6)


def test_few_classes() -> None:
    labels = LABELS % 3
    metrics = evaluate(Table(LOGITS[:, :3]), make_data(labels), device=CPU)
    assert metrics.values["top1"] == pytest.approx(reference(LOGITS[:, :3], labels, 5)[1])
    assert metrics.values["top5"] == 1


def test_nan_is_wrong_not_right() -> None:
    """argmax of NaN is the first NaN: a ruined network must not be credited with it."""
    logits = torch.full_like(LOGITS, math.nan)
    metrics = evaluate(Table(logits), make_data(torch.zeros(53, dtype=torch.int64)), device=CPU)
    assert math.isnan(metrics.loss)
    assert (metrics.values["top1"], metrics.values["top5"]) == (0, 0)


def test_the_same_answer_everywhere_is_one_guess() -> None:
    labels = torch.arange(50) % 10
    metrics = evaluate(Table(torch.zeros(50, 10)), make_data(labels), device=CPU)
    assert metrics.values["top1"] == pytest.approx(0.1)
    assert metrics.values["top5"] == pytest.approx(0.5)


def test_network_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 10), nn.BatchNorm1d(10), nn.Dropout(0.5)).train()
    network[2].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = evaluate(network, make_data(LABELS), device=CPU)
    assert first == evaluate(network, make_data(LABELS), device=CPU)  # no dropout, no statistics
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not network[2].training
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_precision_and_memory_format() -> None:
    seen: list[tuple[torch.dtype, bool]] = []

    class Probe(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            seen.append((y.dtype, x.is_contiguous(memory_format=torch.channels_last)))
            return y

    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator("pixels"))
    prepared = Prepared(pixels, ())
    data = MemoryImages(prepared, prepared, torch.arange(6) % 4)
    network = nn.Sequential(Probe(3, 4, 8), nn.Flatten())
    exact = evaluate(network, data, device=CPU, channels_last=False)
    faster = evaluate(network, data, device=CPU)
    rounded = evaluate(network, data, device=CPU, precision="bf16", channels_last=True)
    assert seen == [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)]
    assert faster.loss == pytest.approx(exact.loss, rel=1e-5)
    assert rounded.loss == pytest.approx(exact.loss, rel=0.02)
    assert network[0].weight.is_contiguous()


def test_weights_that_lie_channels_last_stay_so() -> None:
    data = MemoryImages(*[Prepared(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), ())] * 2, torch.arange(6) % 4)
    network = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()).to(memory_format=torch.channels_last)
    evaluate(network, data, device=CPU)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device"):
        evaluate(Table(LOGITS), make_data(LABELS), device=CPU, precision="fp16")
    with pytest.raises(DataError, match="no images"):
        evaluate(Table(LOGITS), make_data(LABELS[:0]), device=CPU)
