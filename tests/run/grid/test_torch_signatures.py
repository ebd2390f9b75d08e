"""The arguments that a plan knows are those that torch's and torchvision's classes take."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from experiment.datasets.transform_names import TRANSFORMS
from experiment.main import main
from experiment.run.grid.torch_signatures import signature
from experiment.training import schedule
from experiment.training.names import LOSSES, OPTIMIZERS, SCHEDULERS

CLASSES: dict[str, tuple[tuple[str, ...], Any, int]] = {
    "optimizer": (OPTIMIZERS, vars(torch.optim), 1),
    "scheduler": (SCHEDULERS, schedule._SCHEDULERS, 1),
    "loss": (LOSSES, vars(nn), 0),
    "transform": (TRANSFORMS, vars(v2), 0),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_the_source_tells_what_the_imported_class_tells(kind: str) -> None:
    names, classes, skipped = CLASSES[kind]
    for name in names:
        parameters = list(inspect.signature(classes[name]).parameters.values())[skipped:]
        read = signature(kind, name)
        assert read is not None, name
        assert read.known == tuple(p.name for p in parameters), name
        assert read.required == tuple(p.name for p in parameters if p.default is p.empty), name


def test_what_a_source_does_not_tell_is_left_to_the_run() -> None:
    assert signature("loss", "NoSuchLoss") is None
    assert signature("transform", "Lambda") is None, "its *types"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.optimizerKwargs.lr", "fast"),
        ("training.optimizerKwargs.betas", [0.9, "slow"]),
        ("training.lossKwargs.label_smoothing", "some"),
        ("training.lrSchedulers[0].kwargs.milestones", ["late"]),
    ],
)
def test_a_plan_refuses_text_where_a_class_takes_none(
    write: Any, small: dict[str, Any], capsys: Any, key: str, value: Any
) -> None:
    small["training"] |= {"optimizer": "Adam", "optimizerKwargs": {"lr": 0.1}, "lossKwargs": {"reduction": "sum"}}
    path = write(small)
    assert main([str(path), "--plan", "--set", f"{key}={value}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"--set {key}: {key}: ")
    assert "takes no text here. Got '" in line


def place(path: Any, text: str) -> str:
    """`file:line` of the only line that holds the text."""
    (line,) = (i for i, row in enumerate(path.read_text().splitlines(), 1) if text in row)
    return f"{path.relative_to(path.parents[1])}:{line}"


def test_a_plan_refuses_arguments_that_nothing_takes(write: Any, small: dict[str, Any], capsys: Any) -> None:
    small["training"] |= {
        "optimizer": "SGD",
        "optimizerKwargs": {"lr": 0.1, "momentm": 0.9},
        "lossKwargs": {"smoothing": 0.1, "weight": [1.0, 2.0]},
        "lrSchedulers": [{"type": "StepLR", "kwargs": {"gama": 0.5}}, {"type": "MultiStepLR"}],
        "transformsTrain": [{"type": "RandomCrop", "kwargs": {"size": 8, "paddin": 1}}],
    }
    small["retraining"] |= {"optimizerKwargs": {"nesterof": True}}
    path = write(small)
    assert main([str(path), "--plan"]) == 2
    said = capsys.readouterr().err.splitlines()
    for text, start in (
        ("momentm", "training.optimizerKwargs.momentm: SGD has no such argument. Did you mean 'momentum'?"),
        ("smoothing", "training.lossKwargs.smoothing: CrossEntropyLoss has no such argument."),
        ("weight:", "training.lossKwargs.weight: must hold one number for each of the 10 outputs. Got 2."),
        ("gama", "training.lrSchedulers[0].kwargs.gama: StepLR has no such argument. Did you mean 'gamma'?"),
        (
            "paddin:",
            "training.transformsTrain[0].kwargs.paddin: RandomCrop has no such argument. Did you mean 'padding'",
        ),
        ("nesterof", "retraining.optimizerKwargs.nesterof: SGD has no such argument. Did you mean 'nesterov'?"),
        ("MultiStepLR", "training.lrSchedulers[1]: MultiStepLR needs milestones."),
    ):
        (found,) = (line for line in said if start in line)
        assert found.startswith(f"{place(path, text)}: {start}")
    assert len(said) == 8


def test_a_customization_is_blamed_where_it_stands(write: Any, small: dict[str, Any], capsys: Any) -> None:
    small["customizations"] = [
        {"key": ["training", "optimizerKwargs"], "value": {"lr": 0.1}},
        {"key": ["training", "optimizerKwargs"], "value": {"lr": 0.1, "momentm": 0.9}},
    ]
    path = write(small)
    assert main([str(path), "--plan"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{place(path, 'momentm')}: training.optimizerKwargs.momentm: ")
