"""Batched transforms against torchvision's own, applied image by image with the same places and flips."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from experiment.datasets.batch_transforms import Affine, Crop, Flip, compile_steps, split_once
from experiment.datasets.image_data import Step
from experiment.random_streams import generator

MEAN, STD = [0.49, 0.48, 0.45], [0.2, 0.3, 0.25]
COLOURS = torch.randint(0, 256, (64, 3, 12, 10), dtype=torch.uint8, generator=generator("colours"))


def run(steps: list[Step], images: Tensor, seed: int = 0) -> tuple[Tensor, list[Tensor | None]]:
    """The batched operations, and what they drew."""
    c, h, w = images.shape[1:]
    operations = compile_steps(steps, (c, h, w))
    assert operations is not None
    shape, draws, x = (c, h, w), [], images
    for i, operation in enumerate(operations):
        draws.append(operation.draw(len(images), shape, generator("test", seed, i)))
        shape = operation.shape(shape)
        x = operation.apply(x, draws[-1])
        assert tuple(x.shape[1:]) == shape
    return x, draws


@pytest.mark.parametrize("as_one", [False, True], ids=["pad then crop", "crop with padding"])
@pytest.mark.parametrize(
    "padding", [{"padding": 4}, {"padding": [1, 2, 3, 4], "fill": 7}, {"padding": 2, "padding_mode": "reflect"}]
)
def test_cifar_augmentation(as_one: bool, padding: dict[str, object]) -> None:
    size = [11, 9]
    front: list[Step] = (
        [("RandomCrop", {"size": size, **padding})] if as_one else [("Pad", padding), ("RandomCrop", {"size": size})]
    )
    steps: list[Step] = [
        *front,
        ("RandomHorizontalFlip", {}),
        ("ToTensor", {}),
        ("Normalize", {"mean": MEAN, "std": STD}),
    ]
    x, (_, places, flips, _) = run(steps, COLOURS)
    assert places is not None
    assert flips is not None
    for i, image in enumerate(COLOURS):
        expected = functional.pad(image, **padding)  # type: ignore[arg-type]
        expected = functional.crop(expected, int(places[i, 0]), int(places[i, 1]), *size)
        expected = functional.horizontal_flip(expected) if flips[i] else expected
        expected = functional.normalize(functional.to_dtype(expected, torch.float32, scale=True), MEAN, STD)
        torch.testing.assert_close(x[i], expected, rtol=1e-5, atol=1e-6)
    assert 0 < int(flips.sum()) < len(COLOURS)


def test_order_is_kept() -> None:
    """Padding after normalisation is with zeros of the normalised image, before it with black."""
    normalize: Step = ("Normalize", {"mean": [0.5], "std": [0.5]})
    image = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    after, _ = run([("ToTensor", {}), normalize, ("Pad", {"padding": 1})], image)
    before, _ = run([("Pad", {"padding": 1}), ("ToTensor", {}), normalize], image)
    assert float(after[0, 0, 0, 0]) == 0
    assert float(before[0, 0, 0, 0]) == pytest.approx(-1)
    assert float(after[0, 0, 1, 1]) == pytest.approx(1) == float(before[0, 0, 1, 1])


def test_normalising_floats_leaves_the_images_alone() -> None:
    x = torch.rand(2, 3, 4, 4, generator=generator("floats"))
    before = x.clone()
    y, _ = run([("Normalize", {"mean": MEAN, "std": STD})], x)
    assert torch.equal(x, before)
    torch.testing.assert_close(y, functional.normalize(x, MEAN, STD))


def test_two_normalisations_are_one_operation() -> None:
    step: Step = ("Normalize", {"mean": MEAN, "std": STD})
    operations = compile_steps([("ToTensor", {}), step, ("Normalize", {"mean": [0.1], "std": [2.0]})], (3, 4, 4))
    assert operations is not None
    assert len(operations) == 1
    assert isinstance(operations[0], Affine)
    expected = functional.normalize(
        functional.normalize(functional.to_dtype(COLOURS, torch.float32, scale=True), MEAN, STD), [0.1] * 3, [2.0] * 3
    )
    torch.testing.assert_close(operations[0].apply(COLOURS, None), expected, rtol=1e-5, atol=1e-6)


def test_a_second_to_tensor_does_nothing() -> None:
    """As in torchvision, where floats are not scaled: both transformsTrain and transformsFinal may name it."""
    once, _ = run([("ToTensor", {})], COLOURS)
    twice, _ = run([("ToTensor", {}), ("RandomVerticalFlip", {"p": 0.0}), ("ToTensor", {})], COLOURS)
    assert torch.equal(once, twice)


def test_every_place_is_equally_likely() -> None:
    places = Crop(3, 3).draw(9000, (1, 5, 5), generator("places"))
    counts = torch.zeros(3, 3)
    for top, left in places.tolist():  # type: ignore[union-attr]
        counts[top, left] += 1
    assert counts.sum() == 9000
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 26.1  # chi-squared, 8 degrees of freedom, p = 0.001


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_flips_with_probability(p: float) -> None:
    share = Flip(p, -1).draw(4000, (1, 2, 2), generator("flips")).double().mean()  # type: ignore[union-attr]
    assert abs(float(share) - p) < 0.03


def test_vertical_flip() -> None:
    x, _ = run([("RandomVerticalFlip", {"p": 1.0})], COLOURS)
    assert torch.equal(x, COLOURS.flip(-2))


@pytest.mark.parametrize(
    "step",
    [
        ("RandomRotation", {"degrees": 10}),
        ("RandomCrop", {"size": 20}),  # larger than the image: torchvision's error, not ours
        ("RandomCrop", {"size": 8, "pad_if_needed": True}),
        ("Resize", {"size": 8}),  # not done once, for it comes after chance
        ("Normalize", {"mean": [0.5, 0.5], "std": [0.5, 0.5]}),
    ],
)
def test_other_transforms_are_left_to_torchvision(step: Step) -> None:
    assert compile_steps([step], (3, 12, 10)) is None


def test_sizes_up_to_the_last_resize_are_done_once() -> None:
    resize, crop, pad = ("Resize", {"size": 9}), ("CenterCrop", {"size": 8}), ("Pad", {"padding": 1})
    assert split_once([pad, resize, crop]) == ([pad, resize], [crop])
    flip: Step = ("RandomHorizontalFlip", {})
    assert split_once([flip, resize]) == ([], [flip, resize])
    assert split_once([pad, crop]) == ([], [pad, crop])
