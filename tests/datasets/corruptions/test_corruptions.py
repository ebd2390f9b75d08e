"""Corruptions against independent formulations: statistics of noise, PIL's own JPEG and boxes, explicit kernels."""

import colorsys
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.nn import functional

from experiment.datasets.corruptions import CORRUPTIONS
from experiment.datasets.corruptions.apply import corrupt, corrupt_input, corrupted
from experiment.datasets.corruptions.constants import level_of
from experiment.datasets.corruptions.textures import motion_blur, plasma
from experiment.datasets.raw_images import Pixels, Source
from experiment.errors import DataError

Pixel = NDArray[np.uint8]

# Mean absolute distortion (of 255) by the reference implementation at severities 1 to 5, on 100 images of CIFAR-10
# (32 pixels), for corruptions whose mean distortion depends little on the image. Tolerance: 6 %, and half a
# level, because the reference truncates values.
PUBLISHED = {
    "gaussian_noise": (7.99, 11.91, 15.80, 17.69, 19.54),
    "impulse_noise": (1.30, 2.52, 3.86, 6.42, 8.98),
    "brightness": (10.19, 20.74, 30.90, 40.51, 57.51),
    "fog": (10.61, 21.75, 27.90, 32.10, 38.83),
    "frost": (29.75, 45.09, 48.83, 45.60, 42.29),
    "snow": (10.80, 23.83, 24.95, 36.63, 52.37),
}
# The constants of these do not rise with severity throughout: the reference's distortion falls, too.
NOT_MONOTONE = {"frost", "saturate", "elastic_transform", "spatter", "glass_blur"}


def photograph(side: int, which: int = 0) -> Pixel:
    picture = Image.fromarray(load_sample_image(("china.jpg", "flower.jpg")[which]))
    return np.array(picture.crop((100, 0, 500, 400)).resize((side, side), Image.Resampling.BICUBIC))


def distortion(image: Pixel, corruption: str, severity: int, times: int) -> float:
    made = [corrupt(image, corruption, severity, seed).astype(float) for seed in range(times)]
    return float(np.mean([np.abs(one - image).mean() for one in made]))


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_every_size_and_colour(corruption: str) -> None:
    for shape in ((32, 32, 3), (28, 28, 1), (64, 48, 3), (7, 5, 3), (1, 1, 1), (130, 150, 3)):
        image = np.ascontiguousarray(photograph(224)[: shape[0], : shape[1], : shape[2]])
        before = image.copy()
        if corruption == "saturate" and shape[2] == 1:
            with pytest.raises(DataError, match="no effect on grey images"):
                corrupt(image, corruption, 3, 0)
            continue
        made, again, other = (corrupt(image, corruption, 3, seed) for seed in (5, 5, 6))
        assert made.shape == image.shape
        assert made.dtype == np.uint8
        assert (made == again).all()
        assert (image == before).all()
        if shape == (32, 32, 3):
            assert (made != image).any()
            drawn = corruption not in {
                "defocus_blur", "gaussian_blur", "zoom_blur", "brightness", "contrast", "saturate", "pixelate",
                "jpeg_compression",
            }  # fmt: skip
            assert (made != other).any() == drawn


@pytest.mark.parametrize("side", [32, 64, 224])
def test_distortion_grows_with_severity(side: int) -> None:
    for corruption in set(CORRUPTIONS) - NOT_MONOTONE:
        grown = [distortion(photograph(side), corruption, s, {32: 6, 64: 3, 224: 1}[side]) for s in (1, 2, 3, 4, 5)]
        assert all(a <= 1.03 * b for a, b in itertools.pairwise(grown)), (corruption, side, grown)
        assert grown[4] > 1.2 * grown[0], (corruption, side, grown)


def test_constants_go_by_the_nearest_published_size() -> None:
    assert [level_of("gaussian_noise", 5, side)[0] for side in (1, 32, 45, 46, 64, 119, 120, 500)] == [
        0.10, 0.10, 0.10, 0.18, 0.18, 0.18, 0.38, 0.38,
    ]  # fmt: skip


def test_noise_has_the_published_moments() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)  # of 224 pixels' constants, far from both limits
    x = grey[0, 0, 0] / 255
    for corruption, severity, deviation in (
        ("gaussian_noise", 1, 0.08), ("speckle_noise", 1, 0.15 * x), ("shot_noise", 1, (x / 60) ** 0.5),
    ):  # fmt: skip
        made = corrupt(grey, corruption, severity, 0) / 255
        assert made.mean() == pytest.approx(x, abs=0.002)
        assert made.std() == pytest.approx(deviation, rel=0.02)
    made = corrupt(grey, "impulse_noise", 5, 0)
    assert (made == 0).mean() == pytest.approx(0.27 / 2, rel=0.03)
    assert (made == 255).mean() == pytest.approx(0.27 / 2, rel=0.03)
    assert set(np.unique(made)) == {0, 128, 255}


def test_digital_corruptions_are_pils_and_the_definitions() -> None:
    image = photograph(32)
    picture = Image.fromarray(image)
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=58)
    assert (corrupt(image, "jpeg_compression", 3, 0) == np.asarray(Image.open(packed))).all()
    small = picture.resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    assert (corrupt(image, "pixelate", 5, 0) == np.asarray(small)).all()
    mean = image.reshape(-1, 3).mean(axis=0)
    flat = np.clip((image - mean) * 0.4 + mean, 0, 255)
    assert np.abs(corrupt(image, "contrast", 3, 0) - flat).max() <= 0.51
    for corruption, change in (
        ("brightness", lambda h, s, v: (h, s, min(v + 0.15, 1))),
        ("saturate", lambda h, s, v: (h, min(s * 2.5 + 0.2, 1), v)),
    ):
        made = corrupt(image, corruption, 3 if corruption == "brightness" else 5, 0)
        hsv = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p))) for p in image.reshape(-1, 3) / 255]
        assert np.abs(made.reshape(-1, 3) - 255 * np.array(hsv)).max() <= 0.51
    assert (corrupt(np.array([[[90, 90, 90]]], np.uint8), "saturate", 5, 0) == [[[90, 72, 72]]]).all()


def test_blurs_are_convolutions_with_the_published_kernels() -> None:
    image = photograph(128)
    x = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[:, None] / 255
    steps = torch.arange(-12, 13, dtype=torch.float64)
    line = torch.exp(-(steps**2) / (2 * 3**2))
    gaussian = torch.outer(line, line)
    disk = (steps[None] ** 2 + steps[:, None] ** 2 <= 3**2).double()  # severity 1; its soft edge is exp(-50)
    for corruption, severity, kernel, mode in (
        ("gaussian_blur", 3, gaussian, "replicate"), ("defocus_blur", 1, disk, "reflect"),
    ):  # fmt: skip
        padded = functional.pad(x, (12, 12, 12, 12), mode=mode)
        wanted = functional.conv2d(padded, (kernel / kernel.sum())[None, None])[:, 0].permute(1, 2, 0)
        assert np.abs(corrupt(image, corruption, severity, 0) - 255 * wanted.numpy()).max() <= 0.6


def test_motion_blur_spreads_a_point_along_a_line() -> None:
    point = np.zeros((41, 41, 1), np.float32)
    point[20, 20] = 1
    weights = np.exp(-(np.arange(13) ** 2) / 8)
    weights /= weights.sum()
    level = motion_blur(point, 6, 2, 0)[20, :, 0]
    assert level[8:21] == pytest.approx(weights[::-1], abs=2e-4)
    assert motion_blur(point, 6, 2, -90)[20:33, 20, 0] == pytest.approx(weights, abs=2e-4)
    slanted = motion_blur(point, 6, 2, 30)[..., 0]
    rows, columns = np.nonzero(slanted)
    assert np.allclose((20 - rows), (20 - columns) * np.tan(np.pi / 6), atol=1)
    assert slanted.sum() == pytest.approx(1, abs=1e-3)


def test_fractals_are_rougher_with_a_smaller_decay() -> None:
    def roughness(decay: float) -> float:
        fields = [plasma((32, 48), decay, np.random.default_rng(seed)) for seed in range(20)]
        assert all(field.shape == (32, 48) and field.min() >= 0 and field.max() <= 1 for field in fields)
        return float(np.mean([np.abs(np.diff(field)).mean() / field.std() for field in fields]))

    assert roughness(1.2) > 2 * roughness(1.75) > 2 * roughness(3)


def test_zoomed_and_shifted_pixels_stay_those_of_the_image() -> None:
    """On a horizontal ramp, a blur or displacement of pixels changes values by the distance that pixels move."""
    ramp = np.broadcast_to(np.arange(224, dtype=np.uint8)[None, :, None], (224, 224, 3)).copy()
    inner = np.s_[60:-60, 60:-60]
    for corruption, farthest in (("zoom_blur", 60 * 0.3), ("glass_blur", 2.0), ("elastic_transform", 40.0)):
        for severity in (1, 2, 3):
            moved = corrupt(ramp, corruption, severity, 0)[inner].astype(int) - ramp[inner]
            assert 0 < np.abs(moved).max() <= farthest * severity, (corruption, severity)


@pytest.fixture(scope="module")
def photographs() -> list[Pixel]:
    """Sixty images of CIFAR-10."""
    folder = Path(__file__).parents[3] / "data" / "datasets" / "CIFAR10-jpeg" / "test"
    files = sorted(folder.glob("*/*"))
    return [np.asarray(Image.open(path).convert("RGB")) for path in files[:: len(files) // 60][:60]]


@pytest.mark.data
@pytest.mark.parametrize("corruption", PUBLISHED)
def test_mean_distortion_is_the_references(corruption: str, photographs: list[Pixel]) -> None:
    times = 5 if corruption == "frost" else 1  # one of five textures is drawn for every image
    for severity, wanted in enumerate(PUBLISHED[corruption], start=1):
        made = [
            np.abs(corrupt(x, corruption, severity, 100 * time + i).astype(float) - x).mean()
            for time in range(times)
            for i, x in enumerate(photographs)
        ]
        assert abs(np.mean(made) - wanted) <= 0.5 + 0.06 * wanted


def test_parts_of_datasets_are_corrupted_alike_in_memory_and_one_by_one() -> None:
    images = torch.from_numpy(np.stack([photograph(32, i % 2) for i in range(4)])).permute(0, 3, 1, 2).contiguous()
    labels = torch.arange(4)
    memory = corrupted(Source(Pixels(images, labels), 4), "shot_noise", None, "test").items
    lazy = corrupted(Source([(Image.fromarray(photograph(32, i % 2)), i) for i in range(4)], 4), "shot_noise", None,
                     "test").items  # type: ignore[arg-type]  # fmt: skip
    assert isinstance(memory, Pixels)
    assert memory.labels.tolist() == [*range(4)] * 5
    assert len(lazy) == len(memory) == 20
    for i in (19, 0, 7):
        picture, label = lazy[i]
        assert label == i % 4
        assert (np.asarray(picture) == np.asarray(memory[i][0])).all()
    single = corrupted(Source(Pixels(images, labels), 4), "shot_noise", 2, "test").items
    assert (single.images == memory.images[4:8]).all()  # type: ignore[union-attr]
    other = corrupted(Source(Pixels(images, labels), 4), "shot_noise", 2, "train").items
    assert (other.images != memory.images[4:8]).any()  # type: ignore[union-attr]
    assert not (memory.images[0] == memory.images[2]).all()  # the same photograph under another index


def test_types_of_inputs_are_kept_and_others_refused() -> None:
    image = photograph(32)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    made = corrupt_input(tensor, "fog", 3, 1)
    assert isinstance(made, torch.Tensor)
    assert (made.permute(1, 2, 0).numpy() == corrupt(image, "fog", 3, 1)).all()
    grey = corrupt_input(Image.fromarray(image[..., 0]), "fog", 3, 1)
    assert isinstance(grey, Image.Image)
    assert grey.mode == "L"
    for wrong in (tensor.float(), "text", {"x": tensor}):
        with pytest.raises(DataError, match="corruptions apply to PIL images and uint8 tensors"):
            corrupt_input(wrong, "fog", 3, 1)
    with pytest.raises(DataError, match="grey and RGB images. Got 2 channels"):
        corrupt(image[..., :2], "fog", 3, 1)
