"""The maker of synthetic experiments, and one report that several tests read."""

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from experiment.report import LabelStyles, Source, write_report
from experiment.report.plots import gallery


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The module beside this file, whatever folder the tests run from."""
    spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).with_name("synthetic.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_tradeoff(source: Source, styles: LabelStyles) -> Iterator[gallery.Plot]:
    return itertools.islice(gallery.tradeoffs(source, styles), 1)


@pytest.fixture(scope="session")
def written(synthetic: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A retrained experiment with a failed and an infeasible cell, and its report with two plots: (folder, Report)."""
    rows = synthetic.grid(("ALDS", "WT"), nets=2, keeps=(0.5, 0.2, 0.05), epochs=3)
    rows += [
        synthetic.broken_row("FT", 0, 0.05, "infeasible", "budget cannot be met: the smallest network has 30,000"),
        synthetic.broken_row("SVD", 1, 0.5, "failed", "loss is NaN | in <b>epoch 1</b>"),
    ]
    folder = tmp_path_factory.mktemp("data") / "results" / "cifar" / "prune" / "resnet20"
    synthetic.write_experiment(folder, rows, cells=True)
    return folder, write_report(folder, [first_tradeoff, gallery.layers])
