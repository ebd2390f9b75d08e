"""The torch-free lists agree with torchvision, and are torch-free."""

import subprocess
import sys

import pytest
from torchvision import datasets
from torchvision.transforms import v2

from experiment.datasets import DATASETS, OTHERS
from experiment.datasets.transform_names import SEGMENTATION, TORCHVISION, TRANSFORMS
from experiment.datasets.transforms import make_transform
from experiment.registry import resolve

# Needed arguments of the transforms that have some.
ARGUMENTS: dict[str, dict[str, object]] = {
    "CenterCrop": {"size": 8},
    "GaussianBlur": {"kernel_size": 3},
    "Normalize": {"mean": [0.5], "std": [0.5]},
    "Pad": {"padding": 2},
    "RandomAdjustSharpness": {"sharpness_factor": 2},
    "RandomAffine": {"degrees": 10},
    "RandomCrop": {"size": 8},
    "RandomPosterize": {"bits": 4},
    "RandomResize": {"min_size": 8, "max_size": 12},
    "RandomResizedCrop": {"size": 8},
    "RandomRotation": {"degrees": 10},
    "RandomShortestSize": {"min_size": 8},
    "RandomSolarize": {"threshold": 128},
    "Resize": {"size": 8},
    "SegRandomHorizontalFlip": {"flip_prob": 0.5},
    "SegRandomResize": {"min_size": 8},
    "ScaleJitter": {"target_size": [8, 8]},
    "ConvertImageDtype": {"dtype": "float32"},
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform_is_torchvisions_and_can_be_made(name: str) -> None:
    assert name in (SEGMENTATION if name.startswith("Seg") else vars(v2))
    same = SEGMENTATION.get(name, name).split()[0].rstrip(".")
    assert callable(make_transform(name, ARGUMENTS.get(name, ARGUMENTS.get(same, {}))))


def test_names_are_sorted_and_unique() -> None:
    assert list(TRANSFORMS) == sorted({*TORCHVISION, *SEGMENTATION})
    assert list(TORCHVISION) == sorted(set(TORCHVISION))


def test_every_dataset_has_a_loader() -> None:
    assert all(callable(resolve(entry.target)) for entry in DATASETS.values())
    plain = {n: e for n, e in DATASETS.items() if e.task == "classification" and OTHERS not in e.target}
    torchvisions = set(plain) - {"Digits"}
    assert torchvisions <= set(vars(datasets))


def test_registry_needs_no_torch() -> None:
    code = "import sys, experiment.datasets, experiment.datasets.transform_names; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
