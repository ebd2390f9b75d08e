"""A small real experiment (scikit-learn's digits) that the tests of the runner vary."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiment.report import Report

SMALL: dict[str, Any] = {
    "network": {"name": "lenet300_100", "dataset": "Digits", "outputSize": 10},
    "training": {
        "batchSize": 64,
        "numEpochs": 2,
        "optimizer": "SGD",
        "optimizerKwargs": {"lr": 0.05, "momentum": 0.9},
        "lrSchedulers": [{"type": "MultiStepLR", "stepKwargs": {"milestones": [1]}, "kwargs": {"gamma": 0.1}}],
        "transformsTrain": [{"type": "RandomCrop", "kwargs": {"size": 28, "padding": 2}}],
        "transformsFinal": [{"type": "ToTensor"}, {"type": "Normalize", "kwargs": {"mean": [0.3], "std": [0.3]}}],
    },
    "retraining": {"numEpochs": 1},
    "experiments": {
        "methods": ["WT", "SVD"],
        "mode": "retrain",
        "numNets": 1,
        "spacing": [{"type": "manual", "values": [0.5, 0.1]}],
    },
}

Write = Callable[..., Path]


@pytest.fixture
def small() -> dict[str, Any]:
    """The parameters of the small experiment, to be changed at will."""
    return copy.deepcopy(SMALL)


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(in_tmp: Path) -> Write:
    """Write parameters to a file (default: param/small.yaml) and return its path."""

    def write_parameters(parameters: dict[str, Any], name: str = "param/small.yaml") -> Path:
        path = in_tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(parameters))
        return path

    return write_parameters


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without drawing, for tests that look at results alone: drawing takes longer than computing."""

    def write_nothing(folder: Path) -> Report:
        return Report([], folder / "report.md", folder / "report.html", folder / "table.tex")

    monkeypatch.setattr("experiment.report.write_report", write_nothing)
