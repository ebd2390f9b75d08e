"""Batches for evaluation that are read once: equal to those that are read again, whatever a network does to them."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from experiment.datasets import kept_batches
from experiment.datasets.image_data import Batch
from experiment.datasets.kept_batches import KeptBatches
from experiment.datasets.python_samples import PairData
from experiment.random_streams import generator
from experiment.training.evaluation import evaluate

CPU = torch.device("cpu")
N = 10
X = torch.randn(N, 1, 3, 3, generator=generator("kept"))
Y = torch.randint(0, 4, (N,), generator=generator("kept labels"))


class Reads(PairData):
    """Counts the batches that are read."""

    count = 0

    def batches(self, batch_size: int, **more: object) -> Iterator[Batch]:
        for batch in super().batches(batch_size, **more):  # type: ignore[arg-type]
            self.count += 1
            yield batch


@pytest.fixture
def reads() -> Reads:
    return Reads("test", (X, Y), CPU)


def passed(images: KeptBatches, batch_size: int = 4, **more: object) -> list[Batch]:
    return list(images.batches(batch_size, **{"stream": None, **more}))  # type: ignore[arg-type]


def test_a_second_pass_reads_nothing_and_gives_the_same(reads: Reads) -> None:
    images = KeptBatches(reads, CPU)
    for (x, y), (again, labels) in zip(passed(images), passed(images), strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, labels)
    assert reads.count == 3
    assert len(images) == N
    assert images.input_shape == reads.input_shape
    assert torch.equal(images.take(torch.tensor([7]))[0], X[7:8])


def test_other_batches_and_training_are_read(reads: Reads) -> None:
    images = KeptBatches(reads, CPU)
    passed(images)
    assert [len(y) for _, y in passed(images, 5)] == [5, 5]
    assert reads.count == 3 + 2
    for epoch in range(2):
        passed(images, 5, stream=("train", epoch))
    assert reads.count == 5 + 4
    passed(images, 5)
    assert reads.count == 9, "a training pass does not displace what is kept"


def test_a_pass_that_is_left_early_keeps_nothing(reads: Reads) -> None:
    images = KeptBatches(reads, CPU)
    next(images.batches(4, stream=None))
    assert torch.equal(torch.cat([y for _, y in passed(images)]), Y)


def test_what_is_too_large_is_read_every_time(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    images = KeptBatches(reads, CPU)
    monkeypatch.setattr(kept_batches, "BYTES_ON_CPU", 4 * (9 * 4 + 8) + 1)  # one batch, but not two
    for _ in range(2):
        assert torch.equal(torch.cat([x for x, _ in passed(images)]), X)
    assert reads.count == 6


def test_a_network_that_writes_into_its_input_is_evaluated_alike(reads: Reads) -> None:
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(9, 4))
    images = KeptBatches(reads, CPU)
    first, second = (evaluate(network, images, device="cpu", batch_size=4) for _ in range(2))
    assert first == second
    assert reads.count == 3


def test_kept_batches_can_be_differentiated(reads: Reads) -> None:
    """They are made while an evaluation is in inference mode, whose tensors autograd refuses."""
    images, network = KeptBatches(reads, CPU), nn.Sequential(nn.Flatten(), nn.Linear(9, 4))
    evaluate(network, images, device="cpu", batch_size=4)
    for x, y in images.batches(4, stream=None, channels_last=True):
        nn.functional.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]
    assert reads.count == 3, "these were the kept ones"


def test_a_gpu_keeps_an_eighth_of_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (800, 1000))
    assert kept_batches._room_on(torch.device("cuda")) == 100
