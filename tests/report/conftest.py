"""What tests of reports share: the maker of synthetic experiments, and one whose report is written."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load_synthetic() -> ModuleType:
    """The module beside this file, whatever folder the tests run from."""
    spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).with_name("synthetic.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    return load_synthetic()


@pytest.fixture(scope="session")
def written(synthetic: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A retrained experiment with a failed and an infeasible cell, and its report: (folder, Report)."""
    from experiment.report import write_report

    rows = synthetic.grid(("ALDS", "WT"), nets=2, keeps=(0.5, 0.2, 0.05), epochs=3)
    rows += [
        synthetic.broken_row("FT", 0, 0.05, "infeasible", "budget cannot be met: the smallest network has 30,000"),
        synthetic.broken_row("SVD", 1, 0.5, "failed", "loss is NaN | in <b>epoch 1</b>"),
    ]
    folder = tmp_path_factory.mktemp("data") / "results" / "cifar" / "prune" / "resnet20"
    synthetic.write_experiment(folder, rows, cells=True)
    return folder, write_report(folder)
