"""Variants in one picture, and accuracy against latency and bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiment.errors import ConfigError
from experiment.report import LabelStyles, Report, plot_cost, plot_variants, read_source
from experiment.report.plots.compare_variants import MOST_CURVES, can_compare, comparisons
from experiment.report.plots.gallery import plots_of
from experiment.report.results_table import tidy
from experiment.report.words.settings import all_settings
from experiment.report.words.titles import mode_in_words, variant_in_words

REWIND = ("experiments.rewind=weights", "experiments.rewind=random")


def lottery(synthetic: Any, methods: tuple[str, ...] = ("WT",), variants: tuple[str, ...] = REWIND) -> list[Any]:
    """Variants that share their reference networks; the later a variant, the lower its curve."""
    rows = []
    for place, variant in enumerate(variants):
        for row in synthetic.grid(methods, nets=2, keeps=(0.5, 0.2, 0.1), epochs=3, variant=variant):
            if row["method"] == "Reference":
                row["cell"] = synthetic.key("shared", row["net"])
            else:
                row["top1"] -= place / 100
            rows.append(row)
    return rows


def lines(figure: Any) -> dict[str, Any]:
    """Name in the legend -> the curve of the first panel with its look."""
    legend = figure.legends[0]
    names = [text.get_text() for text in legend.get_texts()]
    drawn = {
        (line.get_color(), line.get_marker()): line for line in figure.axes[0].get_lines() if len(line.get_xdata()) > 2
    }
    handles = zip(names, legend.legend_handles, strict=True)
    return {name: drawn.get((handle.get_color(), handle.get_marker())) for name, handle in handles}


def test_each_variant_is_a_curve_of_its_means(synthetic: Any) -> None:
    rows = lottery(synthetic)
    found = lines(plot_variants(synthetic.frame(rows), scale="log", styles=LabelStyles({"WT": "magnitude"})))
    assert list(found) == ["magnitude, rewound weights", "magnitude, random weights", "Reference (uncompressed)"]
    for name, variant in zip(list(found)[:2], REWIND, strict=True):
        cells = [row for row in rows if row["variant"] == variant and row["method"] == "WT"]
        for place, keep in enumerate((0.5, 0.2, 0.1)):
            own = [row for row in cells if row["keep_target"] == keep]
            assert found[name].get_ydata()[place] == pytest.approx(100 * np.mean([row["top1"] for row in own]))
            assert found[name].get_xdata()[place] == pytest.approx(
                100 * np.mean([row["keep_parameters"] for row in own])
            )


def test_the_variants_of_a_label_stand_together_in_the_legend(synthetic: Any) -> None:
    found = lines(plot_variants(synthetic.frame(lottery(synthetic, ("WT", "FT")))))
    words = ["rewound weights", "random weights"]
    assert list(found)[:4] == [f"{label}, {word}" for label in ("WT", "FT") for word in words]
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in found.values() if line}) == 4


def test_values_with_commas_do_not_part_the_variants_of_a_label(synthetic: Any) -> None:
    values = ("null", "{temperature: 4, alpha: 1}")
    variants = tuple(f"retraining.distillation={value}" for value in values)
    found = lines(plot_variants(synthetic.frame(lottery(synthetic, ("WT", "FT"), variants))))
    assert list(found)[:4] == [f"{label}, distillation={value}" for label in ("WT", "FT") for value in values]


def test_only_variants_of_the_same_networks_are_compared(synthetic: Any) -> None:
    assert can_compare(synthetic.frame(lottery(synthetic)))
    others = synthetic.frame(synthetic.sweep(("WT",), nets=1, setting="training.batchSize"))
    assert not can_compare(others), "each variant trained networks of its own"
    assert not can_compare(synthetic.frame(synthetic.grid(("WT",), nets=1)))
    with pytest.raises(ConfigError, match="at least two variants of the same reference networks"):
        plot_variants(others)


def test_too_many_curves_become_a_picture_a_label(synthetic: Any) -> None:
    def labels(methods: tuple[str, ...], count: int) -> list[str]:
        variants = tuple(f"retraining.batchSize={place}" for place in range(count))
        return [label for label, _ in comparisons(synthetic.frame(lottery(synthetic, methods, variants)))]

    assert labels(("WT", "FT"), 2) == [""]
    assert labels(("WT", "FT"), 8) == ["WT", "FT"]
    assert labels(("WT",), MOST_CURVES + 1) == []


def lottery_source(synthetic: Any, folder: Path, rows: list[Any]) -> Any:
    return read_source(synthetic.write_experiment(folder, rows, parameters=modes("cascade-rewind")))


def modes(mode: str, rewind: str | None = None, variants: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """A parameter file of these modes, with one customization per pair."""
    experiments = {"mode": mode, "methods": ["WT"], "spacing": [{"type": "manual", "values": [0.5]}]}
    return {
        "retraining": {"startEpoch": 91},
        "experiments": experiments | ({} if rewind is None else {"rewind": rewind}),
        "customizations": [{"key": ["experiments", key], "value": value} for key, value in variants],
    }


def test_a_report_shows_the_comparison_first(synthetic: Any, tmp_path: Path) -> None:
    source = lottery_source(synthetic, tmp_path / "lottery", lottery(synthetic))
    plots = list(plots_of(source, LabelStyles()))
    assert plots[0].stem == "compare-top1-parameters-log"
    assert "rewound weights, random weights" in plots[0].caption
    report = Report([Path(f"{plot.stem}.png") for plot in plots], *[tmp_path] * 4)
    assert [path.name for path in report.main_plots] == ["compare-top1-parameters-log.png"]


def test_the_title_of_a_comparison_has_the_least_and_the_most_retraining(synthetic: Any, tmp_path: Path) -> None:
    rows = lottery(synthetic, variants=("retraining.startEpoch=3", "retraining.startEpoch=1"))
    for row in rows:
        row["epochs"] = 0 if row["method"] == "Reference" else 4 - int(row["variant"][-1])
    plot = next(plots_of(lottery_source(synthetic, tmp_path / "sweep", rows), LabelStyles()))
    title = plot.draw()._suptitle.get_text()  # type: ignore[attr-defined]
    assert "cascade with rewinding, 1 to 3 epochs of retraining" in title.replace("\n", " ")


@pytest.mark.parametrize(
    ("mode", "rewind", "words"),
    [
        ("retrain", None, "one-shot"),
        ("retrain-rewind", None, "one-shot with rewinding"),
        ("cascade-rewind", "none", "cascade"),
        ("cascade", "random", "cascade with random weights"),
    ],
)
def test_modes_in_words(synthetic: Any, tmp_path: Path, mode: str, rewind: str | None, words: str) -> None:
    source = read_source(synthetic.write_experiment(tmp_path / "e", [], parameters=modes(mode, rewind)))
    assert mode_in_words([source.parameters]) == words


def test_modes_of_variants_and_what_they_have_in_common(synthetic: Any, tmp_path: Path) -> None:
    pairs = [("rewind", "weights"), ("rewind", "random"), ("mode", "retrain")]
    names = [f"experiments.{key}={value}" for key, value in pairs]
    rows = [row for name in names for row in synthetic.grid(("WT",), nets=1, keeps=(0.5,), variant=name)]
    folder = synthetic.write_experiment(tmp_path / "e", rows, parameters=modes("cascade", variants=pairs))
    source = read_source(folder)
    each = [mode_in_words([source.settings_of(name)]) for name in names]
    assert each == ["cascade with rewinding", "cascade with random weights", "one-shot"]
    assert mode_in_words([source.settings_of(name) for name in names[:2]]) == "cascade"
    assert mode_in_words(all_settings(source)) == ""


def test_variants_in_words() -> None:
    assert variant_in_words("experiments.rewind=none") == "kept weights"
    assert variant_in_words("training.optimizerKwargs.lr=0.1") == "lr=0.1"
    assert variant_in_words("") == "unchanged"


def measured(synthetic: Any) -> list[Any]:
    rows = synthetic.grid(("ALDS", "WT"), nets=2, keeps=(0.5, 0.2, 0.1))
    for row in rows:
        keep = row["keep_target"]
        times = {f"latency_ms_b{b}": b * keep * (1 + row["net"]) for b in (1, 64)}
        row |= times | {f"latency_iqr_ms_b{b}": 0.1 * b for b in (1, 64)} | {"latency_device": "cpu (x), 1 thread"}
        row |= {"bytes_bitmask": 2 * row["bytes_values"], "bytes_csr": 3 * row["bytes_values"], "sparse_format": "csr"}
    return rows


def test_accuracy_against_latency_is_the_mean_over_networks(synthetic: Any) -> None:
    rows = measured(synthetic)
    figure = plot_cost(synthetic.frame(rows), "latency_ms_b64")
    curve = lines(figure)["ALDS"]
    cells = [[row for row in rows if row["label"] == "ALDS" and row["keep_target"] == keep] for keep in (0.5, 0.2, 0.1)]
    assert list(curve.get_xdata()) == pytest.approx([np.mean([row["latency_ms_b64"] for row in c]) for c in cells])
    assert list(curve.get_ydata()) == pytest.approx([100 * np.mean([row["top1"] for row in c]) for c in cells])
    assert figure.axes[0].get_xlabel() == "Latency at batch size 64 (ms)"
    assert "cpu (x), 1 thread" in figure._suptitle.get_text()
    figure = plot_cost(synthetic.frame(rows), "bytes_file")
    assert figure.axes[0].get_xlabel() == "network.pt on disk (kB)"
    sizes = [np.mean([row["bytes_file"] for row in c]) / 1000 for c in cells]
    assert list(lines(figure)["ALDS"].get_xdata()) == pytest.approx(sizes)


def test_a_report_has_costs_if_they_were_measured(synthetic: Any, tmp_path: Path) -> None:
    for name, rows in (("e", measured(synthetic)), ("f", synthetic.grid(("WT",), nets=1))):
        source = read_source(synthetic.write_experiment(tmp_path / name, rows))
        found = {plot.stem for plot in plots_of(source, LabelStyles()) if plot.stem.startswith(("cost-", "compare-"))}
        measured_costs = {"cost-latency_ms_b1", "cost-latency_ms_b64", "cost-bytes_file"} if name == "e" else set()
        assert found == {"cost-seconds", *measured_costs}


def test_columns_that_are_not_there_are_refused(synthetic: Any) -> None:
    frame = tidy(synthetic.frame(measured(synthetic)))
    assert frame["latency_ms_b1"].dtype == np.float64
    with pytest.raises(ConfigError, match=r"must be latency_ms_b<batch> or one of bytes_dense"):
        plot_cost(frame, "top1")
    with pytest.raises(ConfigError, match="no column latency_ms_b7"):
        plot_cost(frame, "latency_ms_b7")
