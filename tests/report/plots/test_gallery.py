"""File names of plots: nothing that tells two apart is lost, and a mix of hardware is told."""

from pathlib import Path
from typing import Any

import pytest

from experiment.files import MOST_LETTERS, safe_name
from experiment.report import LabelStyles, read_source
from experiment.report.plots.figure import new_figure
from experiment.report.plots.gallery import Plot, plots_of
from experiment.report.words.about import what_was_run

LONG = "x" * 100


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("WT (layer)", "WT_layer_"),
        ("a b", "a_b"),
        (LONG, f"{LONG}y"),
        ("重み", "剪定"),
        (".a", "a"),
        ("", "_"),
        ("/", "\\"),
    ],
)
def test_different_texts_have_different_names(one: str, other: str) -> None:
    names = {safe_name(one), safe_name(other)}
    assert len(names) == 2
    assert all(0 < len(name) <= MOST_LETTERS and not set(name) & set('/\\ :*?"<>|') for name in names)


def test_plots_have_files_of_their_own(synthetic: Any, tmp_path: Path) -> None:
    synthetic.write_experiment(tmp_path, synthetic.grid(("WT",), nets=1, keeps=(0.5,)))
    source = read_source(tmp_path)
    stems = ("compare-log-x", "compare-log-X", "compare-log-x", "compare")
    kind = lambda *_: (Plot(stem, "", lambda: new_figure(1)[0]) for stem in stems)  # noqa: E731
    found = [plot.stem for plot in plots_of(source, LabelStyles(), [kind])]
    assert found == ["compare-log-x", "compare-log-X~2", "compare-log-x~3", "compare"]


@pytest.mark.parametrize(
    ("hardware", "told"),
    [
        (["AVX2", "AVX512", "AVX2"], "mixed: 2 cells on AVX2, 1 cells on AVX512. "),
        (["AVX2", "AVX2", ""], None),
        (["", "", ""], None),
    ],
)
def test_a_report_says_where_hardware_is_mixed(
    synthetic: Any, tmp_path: Path, hardware: list[str], told: str | None
) -> None:
    rows = synthetic.grid(("WT",), nets=1, keeps=(0.5, 0.2))
    for row, kind in zip(rows, hardware, strict=True):
        row["hardware"] = kind
    synthetic.write_experiment(tmp_path, rows)
    (items,) = what_was_run(read_source(tmp_path)).blocks
    said = dict(items.items).get("Hardware")  # type: ignore[union-attr]
    assert said is None if told is None else said.startswith(told)
