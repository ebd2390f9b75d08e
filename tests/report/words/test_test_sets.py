"""Several test sets in a report: potentials by hand, excess error, and all other sections about the first one."""

from pathlib import Path
from typing import Any

import pytest

from experiment.report import LabelStyles, read_source, write_report
from experiment.report.plots import gallery
from experiment.report.plots.test_sets import excess_errors, noise_levels, plot_noise
from experiment.report.words.test_sets import comparable_rows, potential_per_test_set

TOP1 = {  # test set -> of the reference; label -> at keep 0.5, 0.1
    "clean": (0.9, {"WT": (0.899, 0.895), "FT": (0.893, 0.5)}),
    "<fog> & 5": (0.6, {"WT": (0.601, 0.58), "FT": (0.55, 0.3)}),
    "noise": (0.3, {"WT": (0.29, 0.2), "FT": (0.31, 0.299)}),
}


@pytest.fixture
def rows(synthetic: Any) -> list[dict[str, Any]]:
    found = []
    for label in (None, "WT", "FT"):
        for keep in (0.5, 0.1) if label else (1.0,):
            for test, (reference, networks) in TOP1.items():
                row = synthetic.cell_row(label, 0, keep, epochs=1) if label else synthetic.reference_row(0)
                top1 = networks[label][keep == 0.1] if label else reference
                noise = {"noise_agreement_0.5": keep, "noise_distance_0.5": 1 - keep, "noise_excess_error_0.5": 0.01}
                own = {"dataset_test": test, "top1": top1, "top1_reference": reference, "keep_parameters": keep}
                found.append(row | own | noise)
    return found


def test_every_test_set_has_its_potential_and_other_sections_the_first_one(
    tmp_path: Path, synthetic: Any, rows: list[dict[str, Any]]
) -> None:
    folder = synthetic.write_experiment(tmp_path / "results" / "several", rows)
    source = read_source(folder)
    assert set(source.results["dataset_test"]) == {"clean"}
    assert len(source.every_test) == 3 * len(source.results)
    table = potential_per_test_set(source.every_test, 0.005)
    assert table.index.tolist() == list(TOP1)
    assert table["WT"].tolist() == pytest.approx([0.9, 0.5, 0])
    assert table["FT"].tolist() == pytest.approx([0, 0, 0.9])
    assert potential_per_test_set(source.every_test, 0.02)["WT"].tolist() == pytest.approx([0.9, 0.9, 0.5])
    excess = excess_errors(source.every_test).set_index(["label", "keep_target"])["excess"]
    assert excess["WT", 0.5] == pytest.approx((-0.001 + 0.01) / 2 - 0.001)
    assert excess["FT", 0.1] == pytest.approx((0.3 + 0.001) / 2 - 0.4)
    assert noise_levels(source.results) == ["0.5"]
    assert len(plot_noise(source.results, "0.5", LabelStyles()).axes) == 3

    report = write_report(folder, [gallery.test_sets])
    assert [path.stem for path in report.plots[::2]] == ["potential-test-sets", "excess-error"]
    text = report.markdown.read_text()
    section = text.partition("## Prune potential per test set")[2].partition("## Plots")[0]
    assert "| mean | 46.7 | 30.0 |" in section
    assert "| worst | 0.0 | 0.0 |" in section
    assert "| noise | 0.0 | 90.0 |" in section
    assert "<fog>" not in report.html.read_text()
    assert text.count("Prune potential per test set") == 1


def test_a_sweep_of_test_sets_is_compared_over_its_variants(synthetic: Any, rows: list[dict[str, Any]]) -> None:
    swept = synthetic.frame([row | {"variant": f"experiments.datasetTest={row['dataset_test']}"} for row in rows])
    assert len(comparable_rows(swept)) == len(swept)
    assert potential_per_test_set(swept, 0.005)["WT"].tolist() == pytest.approx([0.9, 0.5, 0])
    assert len(excess_errors(swept)) == 4
    both = synthetic.frame([row | {"variant": name} for name in ("", "b") for row in rows])
    assert set(comparable_rows(both)["variant"]) == {""}


def test_one_test_set_needs_no_such_section(tmp_path: Path, synthetic: Any) -> None:
    folder = synthetic.write_experiment(tmp_path / "results" / "one", synthetic.grid(("WT",), nets=1, keeps=(0.5,)))
    assert "per test set" not in write_report(folder, [gallery.test_sets, gallery.noise]).markdown.read_text()
