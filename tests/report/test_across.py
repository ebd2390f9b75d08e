"""Several experiments together: only where network, data, metric and reference networks agree."""

from pathlib import Path
from typing import Any

import pytest

from experiment.errors import ConfigError
from experiment.report import compare_experiments, read_source, write_catalogue
from experiment.report.across import comparable, parts_of, together, why_not

Rows = list[dict[str, Any]]


def write(synthetic: Any, results: Path, name: str, rows: Rows, **parameters: Any) -> Path:
    return Path(synthetic.write_experiment(results / name, rows, parameters=parameters))


@pytest.fixture
def results(synthetic: Any, tmp_path: Path) -> Path:
    """Two experiments that agree, one with a network of its own, one with another metric, and a damaged one."""
    folder = tmp_path / "results"
    grid = synthetic.grid(("WT",), 2, (0.5, 0.1))
    write(synthetic, folder, "a", grid)
    write(synthetic, folder, "b", [*synthetic.grid(("FT",), 2, (0.5, 0.1)), synthetic.cell_row("WT", 0, 0.2)])
    retrained = [row | {"cell": row["cell"][::-1]} for row in grid]
    training = synthetic.parameters_of()["training"] | {"batchSize": 32, "numEpochs": 190}
    write(synthetic, folder, "c", retrained, training=training)
    write(synthetic, folder, "d", [row | {"dataset": "MNIST", "dataset_test": "MNIST"} for row in grid])
    write(synthetic, folder, "e", grid)
    (folder / "e" / "results.csv").write_text("label\n1")
    return folder


def test_groups(results: Path) -> None:
    parts = parts_of([read_source(results / name) for name in "abcd"])
    assert [[part.name for part in group] for group in comparable(parts)] == [["a", "b"], ["c"], ["d"]]
    a, b, c, d = parts
    assert why_not(a, b) == ""
    assert why_not(a, d) == "dataset differs: CIFAR10 and MNIST"
    assert why_not(a, c) == "reference networks differ: training.batchSize 128 and 32, training.numEpochs 182 and 190"
    with pytest.raises(ConfigError, match=r"^a and c: cannot be compared, reference networks differ"):
        together([a, c])


def test_rows_together(results: Path) -> None:
    """Each reference network once, and labels that two experiments have are told apart."""
    rows = together(parts_of([read_source(results / name) for name in "ab"]))
    assert list(rows["label"].drop_duplicates()) == ["Reference", "WT (a)", "FT", "WT (b)"]
    assert (rows["label"] == "Reference").sum() == 2
    assert len(rows) == 2 + 4 + 4 + 1


def test_console(results: Path) -> None:
    found = compare_experiments([results / "a", results / "b"], results)
    assert found.plot.read_bytes()[:4] == b"\x89PNG"
    lines = [line for line in found.text.splitlines() if line.startswith("| 0.")]
    assert [line[:6] for line in lines] == ["| 0.5 ", "| 0.1 "], "keep ratios of at least two methods"
    assert all("WT (a)" in line and "FT" in line for line in lines)
    with pytest.raises(ConfigError, match="at least two experiments"):
        compare_experiments([results / "a"], results)


def test_networks_that_only_one_experiment_has_are_said_to_be_left_out(results: Path, synthetic: Any) -> None:
    both = compare_experiments([results / "a", results / "b"], results)
    assert "All methods have the same networks" in both.text
    write(synthetic, results, "f", synthetic.grid(("FT",), 1, (0.5, 0.1)))
    found = compare_experiments([results / "a", results / "f"], results)
    assert "Compared are the networks that all methods have, 1 of 2, on the same test samples" in found.text


def test_catalogue(results: Path) -> None:
    html, markdown = write_catalogue(results)
    text = markdown.read_text()
    assert [line.split(" | ")[0] for line in text.splitlines() if " | a/report.html |" in line] == ["| a"]
    assert "## resnet20 on CIFAR10: a, b" in text
    assert "| a | c | reference networks differ: training.batchSize 128 and 32" in text
    assert "| d |" not in text.partition("## Not compared")[2].partition("## ")[0], "other data: no reason needed"
    assert "| e | " in text.partition("## Not readable")[2]
    assert html.read_text().count("data:image/png;base64,") == 1
