"""The files of a report: whole, self-contained, escaped, and possible at every stage of an experiment."""

import base64
import gc
import hashlib
import itertools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from experiment.errors import StoreError
from experiment.report import LabelStyles, Report, Source, read_source, up_to_date, write, write_report
from experiment.report.document import Document, Items, Picture, Section
from experiment.report.html import render_html
from experiment.report.plots.figure import LEGEND_WIDTH, PANEL_WIDTH, new_figure, save_figure
from experiment.report.plots.gallery import Plot, plots_of
from experiment.report.words import about, findings
from experiment.run.grid.data_facts import DataFacts, remember_data

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def stems(folder: Path) -> list[str]:
    """The plots that a report of this experiment has; nothing is drawn."""
    return [plot.stem for plot in plots_of(read_source(folder), LabelStyles())]


def empty(source: Source, styles: LabelStyles) -> Iterator[Plot]:
    """A kind of plots that takes no time."""
    yield Plot("empty", "", lambda: new_figure(1)[0])


def test_plots_have_a_pdf_and_a_png_and_are_shown_in_both_reports(written: Any) -> None:
    folder, report = written
    assert [path.name for path in report.plots] == [
        f"{stem}.{ending}" for stem in ("tradeoff-top1-parameters", "layers") for ending in ("pdf", "png")
    ]
    text, html = report.markdown.read_text(), report.html.read_text()
    for path in report.plots:
        assert path.stat().st_size > 1000
        assert f"<{path.relative_to(folder).as_posix()}>" in text
    assert html.count("data:image/png;base64,") == html.count("<svg ") == 1  # the trade-off is drawn by the browser
    assert [path.name for path in report.main_plots] == ["tradeoff-top1-parameters.png"]
    assert set(stems(folder)) == {
        "tradeoff-top1-parameters", "tradeoff-top1-flops", "tradeoff-top1-flops_unmasked",
        "tradeoff-top1-parameters-log", "tradeoff-top1_before_retraining-parameters", "tradeoff-loss-parameters",
        "tradeoff-loss-flops", "tradeoff-top5-parameters", "tradeoff-top5-flops", "layers", "training", "retraining",
        "cost-seconds",
    }  # fmt: skip


class Tags(HTMLParser):
    """Collects tags with their attributes, and checks that they nest."""

    void = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_html_is_one_whole_file_without_requests(written: Any) -> None:
    html = written[1].html.read_text()
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    assert {tag for tag, _ in tags.found}.isdisjoint({"link", "iframe", "b", "parsererror"})
    assert [attrs.get("type") for tag, attrs in tags.found if tag == "script"] == ["application/json", None]
    assert not [name for _, attrs in tags.found for name in attrs if name.startswith("on")]
    sources = [str(attrs.get("src") or attrs.get("href")) for _, attrs in tags.found if {"src", "href"} & set(attrs)]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search("https?:", re.sub(r"base64,[^\"]*", "", html))
    assert "&lt;b&gt;epoch 1&lt;/b&gt;" in html
    assert re.search(r"<tfoot>\s*<tr><td>mean ± std</td>", html)
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [str(attrs["content"]) for _, attrs in tags.found if "http-equiv" in attrs]
    assert policy.split("; ") == [
        "default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'"
    ]  # fmt: skip


def test_garbage_is_collected_again_after_a_report_that_fails(synthetic: Any, tmp_path: Path) -> None:
    folder = synthetic.write_experiment(tmp_path / "e", synthetic.grid(("WT",), nets=1, keeps=(0.5,)))
    seen = []

    def broken(source: Source, styles: LabelStyles) -> Iterator[Plot]:
        seen.append(gc.isenabled())
        raise StoreError("broken")
        yield

    with pytest.raises(StoreError, match="broken"):
        write_report(folder, [broken])
    assert seen == [False]
    assert gc.isenabled()


def test_data_of_heat_maps_do_not_end_their_script(tmp_path: Path) -> None:
    save_figure(new_figure(1)[0], tmp_path / "plot")
    label = "</script><b>&<!--\u2028"
    picture = Picture(tmp_path / "plot.png", "", heat_maps={"labels": [label]})
    page = render_html(Document("a", [Section("Plots", [picture])]))
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page)
    assert json.loads(data) == {"labels": [label]}
    assert "<" not in data


def test_the_markdown_has_what_a_reader_needs(written: Any) -> None:
    folder, report = written
    text = report.markdown.read_text()
    for needed in (
        "# cifar/prune/resnet20", "**Mode**: one-shot",
        "optimizer=SGD(lr=0.1, momentum=0.9)", "**Retraining**: 3 epochs",
        "14 done, 1 infeasible, 1 failed", "resnet20 n1", "mean ± std", "loss ≤ 0.5 points", "packages.torch",
        "2.14.1", "git_commit", "Bytes of the smallest networks", "multiply-adds", f"folder = '{folder.as_posix()}'",
        "the smallest network has 30,000",
    ):  # fmt: skip
        assert needed in text, needed
    assert re.search(r"network = load_network\(folder, method='(ALDS|WT)', keep=0\.\d+, net=[01]\)", text)
    assert re.search(r"reference = load_network\(folder, method='Reference', net=[01]\)", text)
    assert r"loss is NaN \| in &lt;b&gt;epoch 1&lt;/b&gt;" in text
    lines = text.splitlines()
    for above, line in itertools.pairwise(lines):  # every table has as many cells in every row
        if above.startswith("|") and line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", above)) == len(re.findall(r"(?<!\\)\|", line)), line


def test_the_tables_numbers_are_the_results(written: Any, synthetic: Any) -> None:
    text = written[1].markdown.read_text()
    cells = [synthetic.cell_row("ALDS", net, 0.2, 3) for net in (0, 1)]
    kept = sum(cell["keep_parameters"] for cell in cells) / 2
    top1 = [100 * cell["top1"] for cell in cells]
    spread = abs(top1[0] - top1[1]) / 2**0.5
    row = next(line for line in text.splitlines() if line.startswith("| 0.2 |") and "5.0" in line)
    assert f"| {100 * kept:.2f} | {1 / kept:.1f}× |" in row  # noqa: RUF001
    assert f"{sum(top1) / 2:.2f} ± {spread:.2f}" in row


def test_a_report_that_is_up_to_date_is_left_alone(synthetic: Any, tmp_path: Path) -> None:
    folder = synthetic.write_experiment(tmp_path / "e", synthetic.grid(("ALDS",), nets=1, keeps=(0.5, 0.4)))
    first = write_report(folder, [empty])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.p*")}
    assert write_report(folder, [empty]) == first
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.p*")} == before
    contents = {path: path.read_bytes() for path in [*first.plots, first.markdown, first.html, first.table]}
    first.table.unlink()
    assert write_report(folder, [empty]) == first
    assert {path: path.read_bytes() for path in contents} == contents
    stamp = folder / "plots" / up_to_date.NAME
    stamp.write_bytes(stamp.read_bytes()[:-9])
    assert write_report(folder, [empty]) == first
    assert {path: path.read_bytes() for path in contents} == contents
    synthetic.write_experiment(folder, synthetic.grid(("ALDS",), nets=1, keeps=(0.5, 0.4, 0.3)))
    write_report(folder, [empty])
    assert first.markdown.read_bytes() != contents[first.markdown]
    assert not [path for path in folder.rglob("*") if "partial" in path.name]
    assert write_report(folder, []).plots == []


@pytest.mark.parametrize("classes", [5, 6])
def test_data_and_top5(synthetic: Any, tmp_path: Path, classes: int) -> None:
    network = {"name": "resnet20", "dataset": "pets:make", "outputSize": classes}
    rows = synthetic.grid(("WT",), nets=2, keeps=(0.5,))
    folder = synthetic.write_experiment(tmp_path / "pets", rows, parameters={"network": network})
    facts = DataFacts(
        dataset="pets", root="/data/pets", training=900, validation=100, test=2000, num_classes=classes,
        classes=[f"pet {i}" for i in range(classes)], warnings=["inputs have mean 33", "no test input is of class 1"],
    )  # fmt: skip
    remember_data(folder, data=[facts])
    source = read_source(folder)
    (items,) = about.what_was_run(source).blocks
    assert isinstance(items, Items)
    assert ("Data", "900 training, 100 validation, 2,000 test inputs, from /data/pets") in items.items
    assert ("Classes", f"{classes}: pet 0, pet 1, pet 2, pet 3, pet 4{', ...' if classes > 5 else ''}") in items.items
    assert [text for name, text in items.items if name == "Warning"] == facts.warnings
    (section,) = findings.every_keep_ratio(source, LabelStyles())
    assert ("Top-5 (%)" in section.blocks[0].header) == (classes > 5)  # type: ignore[union-attr]
    assert any("top5" in stem for stem in stems(folder)) == (classes > 5)


def test_a_report_removes_its_own_plots_alone(synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of earlier reports, finished or not; whatever else a stamp may name."""
    folder = synthetic.write_experiment(tmp_path / "e", synthetic.grid(("ALDS",), nets=1, keeps=(0.5, 0.4)))
    (folder / "plots").mkdir()
    mine = [folder / "plots" / name for name in ("training-notes.png", "layers_of_my_paper.pdf", "tradeoff-top1.png")]
    for path in (*mine, tmp_path / "outside.png"):
        path.write_bytes(b"")
    first = write_report(folder, [empty])

    def other(source: Source, styles: LabelStyles) -> Iterator[Plot]:
        yield Plot("layers", "", lambda: new_figure(1)[0])

    def killed(document: object, folder: Path) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(write, "render_markdown", killed)
        with pytest.raises(KeyboardInterrupt):
            write_report(folder, [other])
    assert list((folder / "plots").glob("layers.*"))
    assert write_report(folder, [empty]) == first
    assert not list((folder / "plots").glob("layers.*"))
    stamp_file = folder / "plots" / up_to_date.NAME
    content = json.loads(stamp_file.read_text())
    stamp_file.write_text(json.dumps(content | {"plots": ["../../outside.png"], "made_from": ""}))
    write_report(folder, [empty])
    assert all(path.exists() for path in (*mine, tmp_path / "outside.png", *first.plots))


def test_of_two_writers_the_later_one_has_the_last_word(synthetic: Any, tmp_path: Path) -> None:
    """The first is held up while it draws; meanwhile a cell finishes, and another process comes to write a report."""
    folder = synthetic.write_experiment(tmp_path / "e", synthetic.grid(("ALDS",), nets=1, keeps=(0.5,)))
    drawing, go_on, order = threading.Event(), threading.Event(), []

    def held_up(source: Source, styles: LabelStyles) -> Iterator[Plot]:
        order.append(len(source.results))
        if len(order) == 1:
            drawing.set()
            assert go_on.wait(60)
        return empty(source, styles)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(write_report, folder, [held_up])
        assert drawing.wait(60)
        synthetic.write_experiment(folder, synthetic.grid(("ALDS", "WT"), nets=1, keeps=(0.5,)))
        second = pool.submit(write_report, folder, [held_up])
        assert not wait([second], timeout=0.3).done, "two write at once"
        go_on.set()
        reports = [first.result(60), second.result(60)]
    assert order == [2, 3], "the second one reads when the first is done"
    assert all(path.is_file() for report in reports for path in report.plots)
    assert up_to_date.stamped_plots(folder, up_to_date.made_from(folder, [held_up])) == reports[1].plots


def test_a_report_is_of_one_moment(synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is replaced between the look at it and the reading of it is read once more."""
    folder = synthetic.write_experiment(tmp_path / "e", synthetic.grid(("ALDS",), nets=1, keeps=(0.5,)))
    read, seen = write.read_source, []

    def replaced(place: Path) -> Any:
        seen.append(read(place))
        if len(seen) == 1:
            synthetic.write_experiment(folder, synthetic.grid(("ALDS", "WT"), nets=1, keeps=(0.5,)))
        return seen[-1]

    monkeypatch.setattr(write, "read_source", replaced)
    report = write_report(folder, [empty])
    assert [len(source.results) for source in seen] == [2, 3]
    assert up_to_date.stamped_plots(folder, up_to_date.made_from(folder, [empty])) == report.plots


def test_any_stage_of_an_experiment(synthetic: Any, tmp_path: Path) -> None:
    cells = synthetic.grid(("ALDS",), nets=1, keeps=(0.5, 0.4))[1:]
    stages = {
        "nothing": [],
        "references alone": [synthetic.reference_row(0)],
        "all failed": [synthetic.broken_row("FT", net, 0.5, "failed", "") for net in (0, 1)],
        "no reference row": cells,
        "one cell": [synthetic.reference_row(0), cells[0]],
        "equal sizes": [synthetic.reference_row(0), *({**cell, "keep_parameters": 0.5} for cell in cells)],
        "own density": [synthetic.reference_row(0), cells[0] | {"keep_target": "", "label": "P(.5)", "method": "P"}],
        "losses that are not finite": [cells[0] | {"loss": "inf"}, cells[1] | {"loss": "nan", "top5": ""}],
    }
    for stage, rows in stages.items():
        folder = synthetic.write_experiment(tmp_path / stage, rows)
        report = write_report(folder, [])
        for path in (report.markdown, report.html, report.table):
            assert not re.search(r"\b(nan|inf|None|NaN)\b", path.read_text()), path
        for plot in plots_of(read_source(folder), LabelStyles()):
            plot.draw().draw_without_rendering()
        compressed = any(row["status"] == "done" and row["method"] != "Reference" for row in rows)
        assert ("No compressed network is finished." in report.markdown.read_text()) != compressed
        assert bool(stems(folder)) == compressed


def test_a_sweep_has_one_plot_per_variant_and_a_summary(synthetic: Any, tmp_path: Path) -> None:
    rows = [
        row
        for start in (0, 182)
        for row in synthetic.grid(("ALDS",), 1, (0.5, 0.2), 182 - start, f"retraining.startEpoch={start}")
    ]
    folder = synthetic.write_experiment(tmp_path / "e", rows)
    names = stems(folder)
    assert {f"tradeoff-top1-parameters-retraining.startEpoch={start}" for start in (0, 182)} <= set(names)
    report = Report([Path(f"{name}.png") for name in names], *[folder] * 4)
    assert [path.stem for path in report.main_plots] == ["sweep-parameters"]
    assert "| Variant | Parameters removed (%) |" in write_report(folder, []).markdown.read_text()


def test_a_foreign_folder_and_damaged_files_are_named(synthetic: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"has no parameters.yaml"):
        write_report(tmp_path)
    for file, content, message in (
        ("results.csv", "a,b\n1,2\n", "column network is missing"),
        ("results.csv", "", "is not a table"),
        ("parameters.yaml", "a: [\n...\n", "not valid YAML"),
        ("parameters.yaml", "a: [", "not valid YAML"),
        ("parameters.yaml", "a: 1\n...\n", "does not hold the resolved settings"),
        ("environment.json", "{", "is not valid JSON"),
        ("environment.json", "[]", "must hold a mapping"),
    ):
        folder = synthetic.write_experiment(tmp_path / "e", [])
        (folder / file).write_text(content)
        with pytest.raises(StoreError, match=message):
            write_report(folder)


def test_importing_reports_is_cheap() -> None:
    heavy = {"torch", "pandas", "matplotlib", "jinja2", "numpy"}
    code = f"import sys, experiment.report; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_drawing_leaves_no_global_state(synthetic: Any, tmp_path: Path) -> None:
    code = (
        f"import sys, importlib.util as u; s = u.spec_from_file_location('synthetic', {synthetic.__file__!r});"
        "m = u.module_from_spec(s); s.loader.exec_module(m);"
        "from pathlib import Path; from experiment.report import plot_tradeoff;"
        "from experiment.report.plots.figure import save_figure; import matplotlib;"
        "settings = lambda: {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if not k.startswith('backend')};"
        "before = settings(); save_figure(plot_tradeoff(m.frame(m.grid(('ALDS',), 1))), Path(sys.argv[1]) / 'a');"
        "assert settings() == before; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)


def test_keep_ratios_fall_whatever_the_order_of_the_file(synthetic: Any, tmp_path: Path) -> None:
    folder = tmp_path / "data/results/small"
    synthetic.write_experiment(folder, synthetic.grid(("WT",), nets=1, keeps=(0.5, 0.05, 0.3)))
    (section,) = findings.every_keep_ratio(read_source(folder), LabelStyles())
    (table,) = section.blocks
    assert [row[0] for row in table.rows] == ["0.5", "0.3", "0.05"]  # type: ignore[union-attr]


def test_pictures_of_a_page_have_one_scale(tmp_path: Path) -> None:
    pictures = []
    for columns in (1, 2):
        save_figure(new_figure(columns)[0], tmp_path / f"plot{columns}")
        pictures.append(Picture(tmp_path / f"plot{columns}.png", f"{columns}"))
    page = render_html(Document("pages", [Section("Plots", pictures)]))
    widths = [int(width) for width in re.findall(r'<img width="(\d+)"', page)]
    assert widths == [round(96 * (columns * PANEL_WIDTH + LEGEND_WIDTH)) for columns in (1, 2)]
