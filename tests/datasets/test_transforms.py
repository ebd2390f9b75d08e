"""Transforms by name: errors, and what a pipeline gives."""

import pickle
from typing import Any

import pytest
import torch
from torchvision.transforms.v2 import functional

from experiment.datasets.image_data import Transforms
from experiment.datasets.transforms import check_transforms, make_pipeline, make_transform
from experiment.errors import ConfigError
from experiment.random_streams import generator

IMAGE = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)


def test_a_pipeline_gives_floats_in_the_unit_interval() -> None:
    for steps in ([], [("ToTensor", {})], [("PILToTensor", {})]):
        x = make_pipeline(steps)(functional.to_pil_image(IMAGE))
        assert type(x) is torch.Tensor
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, IMAGE / 255)


def test_float_tensors_are_not_scaled() -> None:
    x = torch.full((3, 4, 4), 7.0)
    assert torch.equal(make_pipeline([("ToTensor", {})])(x), x)


def test_uint8_tensors_are_scaled() -> None:
    torch.testing.assert_close(make_pipeline([("ToTensor", {})])(IMAGE), IMAGE / 255)


def test_pipelines_can_be_sent_to_workers() -> None:
    pipeline = pickle.loads(pickle.dumps(make_pipeline([("Resize", {"size": 3}), ("ToTensor", {})])))
    assert pipeline(IMAGE).shape == (3, 3, 3)


def test_words_for_interpolation() -> None:
    pixels = torch.randint(0, 256, (3, 9, 9), dtype=torch.uint8, generator=generator("pixels"))
    image = functional.to_pil_image(pixels)
    nearest = make_pipeline([("Resize", {"size": 4, "interpolation": "nearest"})])(image)
    bilinear = make_pipeline([("Resize", {"size": 4, "interpolation": "BILINEAR"})])(image)
    assert not torch.equal(nearest, bilinear)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("RandomCorp", {}, "unknown transform 'RandomCorp'. Did you mean 'RandomCrop'?"),
        ("Lambda", {}, "unknown transform 'Lambda'."),
        ("Pad", {"pading": 4}, "pading: Pad has no such argument. Did you mean 'padding'?"),
        ("Pad", {}, "Pad refuses its arguments {}: missing 1 required positional argument: 'padding'"),
        ("RandomHorizontalFlip", {"p": 2}, "RandomHorizontalFlip refuses its arguments {'p': 2}: "),
        ("Resize", {"size": 4, "interpolation": "bilinaer"}, "Did you mean 'bilinear'?"),
        ("ConvertImageDtype", {"dtype": "int"}, "unknown dtype 'int'"),
        ("Normalize", {"mean": [0.5, 0.5], "std": [0.5, 0]}, "std must be above 0"),
        ("Normalize", {"mean": [0.5], "std": [-0.5]}, "std must be above 0"),
        ("Normalize", {"mean": [0.5] * 2, "std": [0.5] * 3}, "mean has 2 values, std 3. Expected one or as many as ch"),
        ("Normalize", {"mean": 0.5, "std": 0.5}, "mean must be a list of numbers, one or one per channel, such as [0."),
        ("Normalize", {"mean": [0.5], "std": []}, "std must be a list of numbers"),
        ("Normalize", {"mean": ["a"], "std": [1]}, "mean must be a list of numbers"),
        ("ToTensor", {"scale": True}, "ToTensor takes no arguments"),
    ],
)
def test_errors(name: str, arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_transform(name, arguments)
    assert text in str(caught.value)


def test_all_problems_at_once() -> None:
    transforms = Transforms(
        train=(("RandomCorp", {}),), test=(("CenterCrop", {}),), final=(("Normalize", {"mean": [0], "std": [1]}),)
    )
    problems = check_transforms(transforms)
    assert [p.split(":")[0] for p in problems] == [
        "transformsTrain[0]",
        "transformsTest[0]",
        "transformsTrain, transformsFinal",
        "transformsTest, transformsFinal",
    ]
    assert check_transforms(Transforms()) == []


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Resize", {"size": "x"}),
        ("RandomCrop", {"size": "x"}),
        ("RandomSolarize", {"threshold": "some", "p": 0.0}),
        ("RandAugment", {"magnitude": 300}),
        ("TrivialAugmentWide", {"num_magnitude_bins": "all"}),
        ("GaussianNoise", {"sigma": "much"}),
    ],
)
def test_values_that_only_show_when_applied_are_found_before_data_are_read(
    name: str, arguments: dict[str, Any]
) -> None:
    state = torch.get_rng_state()
    (problem,) = check_transforms(Transforms(train=((name, arguments),)))
    assert problem.startswith(f"transformsTrain[0]: {name} cannot compute with {arguments}: ")
    assert "\n" not in problem
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "step", [("Normalize", {"mean": [0.3], "std": [0.3]}), ("RandomCrop", {"size": 99}), ("Grayscale", {})]
)
def test_what_fits_other_images_than_the_one_tried_is_left_to_the_data(step: tuple[str, dict[str, Any]]) -> None:
    assert check_transforms(Transforms(test=(("ToTensor", {}), step))) == []
