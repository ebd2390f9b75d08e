"""The rank study, run as a user runs it: what it draws and prints is what the files say."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiment.report.plots import figure as figures

REWIND = ("experiments.rewind=none", "experiments.rewind=random")
DROPOUT = ("network.settings.dropout=0.5", "network.settings.dropout=0.0")
RANKS = {0.6: 100, 0.5: 20, 0.45: 5}
TOP1 = {100: 0.9, 20: 0.898, 5: 0.6}


@pytest.fixture
def drawn(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the script; returns name -> figure, and what was printed. Nothing is saved."""
    found: dict[str, Any] = {}

    def keep(figure: Any, stem: Path) -> list[Path]:
        found[stem.name] = figure
        return figures.plot_files(stem)

    def draw() -> tuple[dict[str, Any], str]:
        monkeypatch.setattr(figures, "save_figure", keep)
        return found, run("rank_study", "--results", str(tmp_path))

    return draw


def write_tables(folder: Path, rows: list[Any], file: str, table: Any) -> None:
    """Write a CSV file into every cell's folder."""
    for row in rows:
        place = folder / "cells" / f"{row['label']}-n{row['net']}-{row['cell']}"
        place.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(table(row)).to_csv(place / file, index=False)


def ranks_of(row: Any) -> list[dict[str, Any]]:
    """Two layers whose ranks fall, faster in the second variant, and higher by two points in the second network."""
    steps = (90, 80, 30 if row["variant"] == DROPOUT[1] else 70)
    return [
        {"epoch": e, "layer": name, "effective_rank": full * (r + 2 * row["net"]) / 100, "full_rank": full}
        for e, r in enumerate(steps) for name, full in (("fc1", 100), ("fc2", 10))
    ]  # fmt: skip


def names_of(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_ranks_in_training_and_retraining(drawn: Any, synthetic: Any, tmp_path: Path) -> None:
    rows = synthetic.grid(("WT", "FT"), nets=2, keeps=(0.5, 0.2))
    write_tables(synthetic.write_experiment(tmp_path / "e", rows), rows, "ranks.csv", ranks_of)
    found, printed = drawn()
    assert set(found) == {"ranks-training", "ranks-retraining"}
    mean, *layers = found["ranks-training"].axes[0].get_lines()
    for line in (mean, *layers):
        assert list(line.get_ydata()) == pytest.approx([91, 81, 71])
    assert names_of(found["ranks-training"]) == ["mean over layers", "fc1", "fc2"]
    panels = found["ranks-retraining"].axes
    assert [axes.get_title() for axes in panels] == ["WT", "FT"]
    assert [len(axes.get_lines()) for axes in panels] == [2, 2]
    assert names_of(found["ranks-retraining"]) == ["0.5", "0.2"]
    assert "71.0" in printed


def test_many_layers_become_a_band(drawn: Any, synthetic: Any, tmp_path: Path) -> None:
    rows = [synthetic.reference_row(0)]
    table = [
        {"epoch": e, "layer": f"layer{i}", "effective_rank": r, "full_rank": 10}
        for i in range(40)
        for e, r in enumerate((i / 10, i / 5))
    ]
    write_tables(synthetic.write_experiment(tmp_path / "e", rows), rows, "ranks.csv", lambda row: table)
    (axes,) = drawn()[0]["ranks-training"].axes
    assert len(axes.get_lines()) == len(axes.collections) == 1
    assert axes.get_lines()[0].get_ydata() == pytest.approx([19.5, 39])


@pytest.mark.parametrize("shared", [False, True])
def test_variants_that_train_networks_of_their_own_share_a_plot(
    drawn: Any, synthetic: Any, tmp_path: Path, shared: bool
) -> None:
    rows = [
        synthetic.reference_row(net, variant) | ({"cell": synthetic.key(net)} if shared else {})
        for variant in DROPOUT
        for net in (0, 1)
    ]
    write_tables(synthetic.write_experiment(tmp_path / "e", rows), rows, "ranks.csv", ranks_of)
    found, _ = drawn()
    assert ("ranks-variants" in found) != shared
    for axes in [] if shared else found["ranks-variants"].axes:
        slow, fast = axes.get_lines()
        assert list(slow.get_ydata()) == pytest.approx([91, 81, 71])
        assert list(fast.get_ydata()) == pytest.approx([91, 81, 31])
    assert shared or names_of(found["ranks-variants"]) == ["dropout=0.5", "dropout=0.0"]


def one_layer(synthetic: Any, folder: Path, layers: tuple[str, ...], variants: tuple[str, ...] = ("",)) -> None:
    """SVD and RSVD of two networks, which factor these layers; with random weights they lose a point more."""
    rows = []
    for variant in variants:
        for row in synthetic.grid(("SVD", "RSVD"), nets=2, keeps=tuple(RANKS), variant=variant):
            if row["method"] == "Reference":
                row |= {"top1": 0.9, "cell": synthetic.key("shared", row["net"])}
            else:
                row["top1"] = TOP1[RANKS[row["keep_target"]]] + (row["net"] - 0.5) / 100
                row["top1"] -= 0.01 if variant.endswith("random") else 0
            rows.append(row)

    def table(row: Any) -> list[dict[str, Any]]:
        rank = RANKS[row["keep_target"]]
        own = {"rank": rank, "relative_error_exact": 1 / rank,
               "relative_error": (9 if row["label"] == "RSVD" else 1) / rank}  # fmt: skip
        whole = {"rank": "", "relative_error": 0, "relative_error_exact": 0}
        return [{"layer": name, **(own if name in layers else whole)} for name in ("fc1", "fc2", "fc3")]

    synthetic.write_experiment(folder, rows)
    write_tables(folder, [row for row in rows if row["method"] != "Reference"], "layers.csv", table)


def test_accuracy_and_error_against_the_rank_of_one_layer(drawn: Any, synthetic: Any, tmp_path: Path) -> None:
    one_layer(synthetic, tmp_path / "e", ("fc2",))
    found, printed = drawn()
    accuracy, errors = found["onelayer"].axes
    svd, rsvd, whole = accuracy.get_lines()
    for line in (svd, rsvd):
        assert line.get_xydata() == pytest.approx(np.array([[5, 60], [20, 89.8], [100, 90]]))
    assert list(whole.get_ydata()) == pytest.approx([90, 90])
    curves = [line.get_ydata() for line in errors.get_lines()]
    assert curves == [pytest.approx([0.2, 0.05, 0.01])] * 2 + [pytest.approx([1.8, 0.45, 0.09])]
    assert names_of(found["onelayer"]) == ["SVD", "RSVD", "RSVD: bound of the error", "Reference (uncompressed)"]
    assert "89.8" in printed


def test_variants_share_the_plot_and_errors_are_drawn_once(drawn: Any, synthetic: Any, tmp_path: Path) -> None:
    one_layer(synthetic, tmp_path / "e", ("fc2",), REWIND)
    accuracy, errors = drawn()[0]["onelayer"].axes
    assert len(accuracy.get_lines()) == 5
    assert len(errors.get_lines()) == 3
    assert accuracy.get_lines()[2].get_ydata() == pytest.approx([59, 88.8, 89])


def test_several_factored_layers_have_no_plot(refused: Any, synthetic: Any, tmp_path: Path) -> None:
    one_layer(synthetic, tmp_path / "e", ("fc1", "fc2"))
    assert "No ranks found" in refused("rank_study", "--results", str(tmp_path))
