"""Effective ranks in training, variant by variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiment.report import read_source, write_report
from experiment.report.plots.ranks_by_variant import plot_rank_variants, ranks_of_variants, variants_seen

VARIANTS = ("network.settings.dropout=0.5", "network.settings.dropout=0.0")


def written(synthetic: Any, folder: Path, *, shared: bool = False) -> Path:
    """Two networks a variant, with two layers whose ranks fall, faster in the second variant."""
    rows = [
        synthetic.reference_row(net, variant) | ({"cell": synthetic.key(net)} if shared else {})
        for variant in VARIANTS
        for net in (0, 1)
    ]
    synthetic.write_experiment(folder, rows)
    for row in rows:
        steps = (90, 80, 70 if row["variant"] == VARIANTS[0] else 30)
        table = [
            {"epoch": e, "layer": name, "effective_rank": full * (r + 2 * row["net"]) / 100, "full_rank": full}
            for e, r in enumerate(steps) for name, full in (("fc1", 100), ("fc2", 10))
        ]  # fmt: skip
        place = folder / "cells" / f"Reference-n{row['net']}-{row['cell']}"
        place.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(table).to_csv(place / "ranks.csv", index=False)
    return folder


def test_a_panel_a_layer_and_a_line_a_variant(synthetic: Any, tmp_path: Path) -> None:
    ranks = ranks_of_variants(read_source(written(synthetic, tmp_path / "own")))
    figure = plot_rank_variants(ranks)
    assert [axes.get_title() for axes in figure.axes] == ["fc1", "fc2"]
    for axes in figure.axes:
        slow, fast = axes.get_lines()
        assert list(slow.get_ydata()) == pytest.approx([91, 81, 71])
        assert list(fast.get_ydata()) == pytest.approx([91, 81, 31])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dropout=0.5", "dropout=0.0"]
    assert variants_seen(ranks).endswith("dropout=0.5 71.0 % (71.0 %), dropout=0.0 31.0 % (31.0 %).")


def test_variants_of_the_same_networks_have_no_such_plot(synthetic: Any, tmp_path: Path) -> None:
    assert ranks_of_variants(read_source(written(synthetic, tmp_path / "shared", shared=True))).empty
    synthetic.write_experiment(tmp_path / "none", [synthetic.reference_row(0, variant) for variant in VARIANTS])
    assert ranks_of_variants(read_source(tmp_path / "none")).empty


def test_it_is_part_of_the_report(synthetic: Any, tmp_path: Path) -> None:
    folder = written(synthetic, tmp_path / "own")
    write_report(folder)
    assert "plots/ranks-variants.png" in (folder / "report.md").read_text()
