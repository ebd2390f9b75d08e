"""Training and evaluation on a GPU: every number format, compiled, continued, and in little memory."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment.datasets.batch_transforms import compile_steps
from experiment.datasets.in_memory import MemoryImages, Prepared
from experiment.datasets.python_samples import PairData
from experiment.random_streams import generator, seeded
from experiment.training.evaluation import evaluate
from experiment.training.loop import EpochRecord, TrainingLoop
from experiment.training.settings import TrainSettings

pytestmark = pytest.mark.gpu

PLAIN = TrainSettings(num_epochs=3, batch_size=32, optimizer_kwargs={"lr": 0.1, "momentum": 0.9})
WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
    "channels-last": {"channels_last": True},
    "bf16, channels-last": {"precision": "bf16", "channels_last": True},
    "compiled": {"compiled": True},
    "CUDA graphs": {"compiled": "reduce-overhead", "precision": "bf16"},
    "Adam": {"optimizer": "Adam", "optimizer_kwargs": {"lr": 0.01}},
}


def images(count: int, device: torch.device) -> MemoryImages:
    """Images whose class is the brightest quarter."""
    labels = torch.randint(0, 4, (count,), generator=generator("labels", count))
    pixels = torch.randint(0, 120, (count, 3, 8, 8), dtype=torch.uint8, generator=generator("pixels", count))
    for i, label in enumerate(labels.tolist()):
        top, left = 4 * (label // 2), 4 * (label % 2)
        pixels[i, :, top : top + 4, left : left + 4] += 120
    operations = compile_steps([("RandomCrop", {"size": 8, "padding": 1}), ("ToTensor", {})], (3, 8, 8))
    assert operations is not None
    pixels, labels = pixels.to(device), labels.to(device)
    return MemoryImages(Prepared(pixels, tuple(operations)), Prepared(pixels, ()), labels)


def make_network() -> nn.Module:
    with seeded("network"):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Dropout(0.1), nn.Linear(128, 4),
        )  # fmt: skip


def trained(device: torch.device, settings: TrainSettings, count: int = 400) -> tuple[nn.Module, list[EpochRecord]]:
    network = make_network()
    loop = TrainingLoop(
        network, images(count, device), settings, valid=images(100, device), stream=("t",), device=device
    )
    return network, loop.run()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_training_learns(way: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "fp16" and device.type == "cpu":
        pytest.skip("fp16 needs a GPU")
    if device.type == "cpu":  # building kernels takes long there
        compiler = torch.compile
        monkeypatch.setattr(torch, "compile", lambda model, **more: compiler(model, backend="aot_eager"))
    _, records = trained(device, replace(PLAIN, **WAYS[way]))
    assert records[-1].valid["top1"] > 0.9
    assert records[-1].loss < records[0].loss


def test_training_follows_that_on_a_cpu(device: torch.device) -> None:
    """The same order and augmentation; dropout draws on the device."""
    plain = replace(PLAIN, num_epochs=1, optimizer_kwargs={"lr": 0.01})
    _, expected = trained(torch.device("cpu"), plain)
    _, found = trained(device, plain)
    assert found[0].images == expected[0].images
    assert found[0].loss == pytest.approx(expected[0].loss, rel=0.05)


def test_continued_training_ends_alike(device: torch.device, tmp_path: Path) -> None:
    whole, _ = trained(device, PLAIN)
    network = make_network()
    data: tuple[Any, ...] = (images(400, device), PLAIN)
    more: dict[str, Any] = {"valid": images(100, device), "stream": ("t",), "device": device}
    loop = TrainingLoop(network, *data, **more, checkpoint=tmp_path / "checkpoint")
    with loop:
        next(loop.epochs())
        loop.save_checkpoint()
    again = make_network()
    records = TrainingLoop(again, *data, **more, checkpoint=tmp_path / "checkpoint").run()
    assert len(records) == PLAIN.num_epochs
    for (name, value), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(other, value, msg=lambda text, name=name: f"{name}: {text}")


def test_longer_epochs_wait_no_more_often(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("counts what waits for a GPU")
    settings = replace(PLAIN, num_epochs=1, precision="fp16")
    few, many = 0, 0
    for count in (320, 320, 960):  # the first one warms up
        with counted_waits() as waits:
            trained(device, settings, count)
        few, many = many, len(waits)
    assert 0 < few == many


@contextmanager
def counted_waits() -> Iterator[list[Any]]:
    """The warnings of torch about calls that wait for the GPU."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        waits: list[Any] = []
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
            waits += [w for w in found if "synchroniz" in str(w.message)]


class Wide(nn.Module):
    """Needs 32 MiB per image; on a CPU it says that there is no room for more than 16 images."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cuda and len(x) > 16:
            raise torch.OutOfMemoryError("too many images")
        wide = x.flatten(1)[:, :1, None].expand(-1, -1, 2**23 if x.is_cuda else 8).contiguous()
        return self.fc(wide.mean(2))  # type: ignore[no-any-return]


def test_evaluation_takes_batches_that_fit(device: torch.device) -> None:
    x, y = torch.randn(512, 1, 2, 2, generator=generator("x")), torch.randint(0, 4, (512,), generator=generator("y"))
    with seeded("wide"):
        network = Wide().to(device)
    data = PairData("test", (x, y), device)
    expected = evaluate(network, data, device=device, batch_size=16)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**31) / total)  # 64 images
    try:
        found = evaluate(network, data, device=device)
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert found.values == expected.values
    assert found.loss == pytest.approx(expected.loss)
