"""The size of the calibration set, and that its choice is the stream's alone."""

import torch

from experiment.datasets.calibration import calibration, calibration_size
from experiment.datasets.in_memory import MemoryImages, Prepared

# Output scalars a layer of the CIFAR ResNet-20 with 1x1 downsampling: METHODS gives their sum, 200,714, and |S| = 183.
RESNET20 = [16384] * 7 + [8192] * 7 + [4096] * 7 + [10]


def test_resnet20_needs_183_images() -> None:
    assert sum(RESNET20) == 200_714
    assert calibration_size(RESNET20, 5000, 1e-16) == 183


def test_at_most_half_of_the_validation_part() -> None:
    assert calibration_size(RESNET20, 101) == 51


def test_choice_depends_on_the_stream_alone() -> None:
    pixels = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1)
    labels = torch.arange(50)
    valid = MemoryImages(Prepared(pixels, ()), Prepared(pixels, ()), labels, torch.arange(10, 40))
    x, y = calibration(valid, 20, ("a", 0))
    again, _ = calibration(valid, 20, ("a", 0))
    other, _ = calibration(valid, 20, ("a", 1))
    assert torch.equal(x, again)
    assert not torch.equal(x, other)
    assert len(set(y.tolist())) == 20
    assert set(y.tolist()) <= set(range(10, 40))
    torch.testing.assert_close(x.flatten(), y / 255)
    more, _ = calibration(valid, 100, ("a", 0))
    assert len(more) == 30
