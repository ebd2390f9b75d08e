"""What a reader of report.html can do, in headless Chromium: hover, focus, hide labels, sort, filter, slide."""

import base64
import hashlib
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest

from experiment.report import write_report
from experiment.report.document import Document, Section, Table
from experiment.report.html import render_html
from experiment.report.plots import gallery

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (Debian: apt install chromium)")

HELPERS = """
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const press = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const type = (input, value) => { input.value = value; input.dispatchEvent(new Event("input")); };
const column = (table, place) => all(`tbody td:nth-child(${place})`, table).map(cell => cell.textContent);
const tip = () => document.querySelector("#tip").hidden ? null : document.querySelector("#tip").textContent;
const seen = label => all("[data-label]").filter(part => part.dataset.label === label)
  .map(part => part.getClientRects().length > 0);
"""


def ask(page: str, folder: Path, body: str) -> Any:
    """What the JavaScript function body returns in the page, which runs under its own policy."""
    script = f"""{{
      {HELPERS}
      const answer = document.createElement("pre"), run = () => {{ {body} }};
      answer.id = "answer";
      try {{ answer.textContent = JSON.stringify(run()); }} catch (error) {{ answer.textContent = error; }}
      document.body.append(answer);
    }}"""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src &#39;sha256-{digest}&#39; ", 1)
    file = folder / "page.html"
    file.write_text(page.replace("</body>", f"<script>{script}</script>\n</body>"))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=5000"]
    command = [str(BROWSER), *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    try:
        return json.loads(html.unescape(found[1]))
    except ValueError:
        pytest.fail(html.unescape(found[1]))


@pytest.fixture(scope="module")
def page(synthetic: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with two trade-offs and heat maps of three keep ratios and one method without any."""
    folder = tmp_path_factory.mktemp("report")
    rows = synthetic.grid(("ALDS", "<b>&"), nets=2, keeps=(0.5, 0.2, 0.05))
    rows += [synthetic.cell_row("P(.1)", net, 0.1) | {"keep_target": ""} for net in (0, 1)]
    synthetic.write_experiment(folder, rows, cells=True)

    def two_tradeoffs(source: Any, styles: Any) -> Any:
        wanted = ("tradeoff-top1-parameters", "tradeoff-loss-parameters")
        return (plot for plot in gallery.tradeoffs(source, styles) if plot.stem in wanted)

    return write_report(folder, [two_tradeoffs, gallery.layers]).html.read_text()


def test_points_are_told_on_hover_and_focus(page: str, tmp_path: Path) -> None:
    found = ask(page, tmp_path, """
      const plot = document.querySelector("figure.plot"), points = all(".point", plot), told = [];
      const stops = points.filter(point => point.tabIndex === 0);
      points[1].dispatchEvent(new PointerEvent("pointerenter"));
      told.push(tip());
      points[1].dispatchEvent(new PointerEvent("pointerleave"));
      told.push(tip());
      stops[0].focus();
      for (const key of ["ArrowRight", "ArrowDown", "ArrowUp"]) {
        told.push(tip());
        press(document.activeElement, key);
      }
      told.push(tip());
      press(document.activeElement, "Escape");
      told.push(tip());
      return { told, stops: stops.map(point => points.indexOf(point)), titles: all("svg title").length,
               name: points[0].getAttribute("aria-label"), role: points[0].getAttribute("role") };
    """)  # fmt: skip
    hover, left, first, right, down, up, escaped = found["told"]
    assert found["stops"] == [0], "one stop of the Tab key in a plot"
    assert [hover.splitlines()[0], left] == ["ALDS, keep ratio 0.2", None]
    assert [told.splitlines()[0] for told in (first, right, down, up)] == [
        "ALDS, keep ratio 0.5", "ALDS, keep ratio 0.2", "<b>&, keep ratio 0.5", "ALDS, keep ratio 0.05"
    ]  # fmt: skip
    assert escaped is None
    assert found["name"] == first
    assert re.search(r"\nNetworks: n0, n1\n", first)
    assert (found["titles"], found["role"]) == (0, "img"), "browsers would show titles beside the tip"


def test_legends_hide_labels_everywhere_and_bring_them_back(page: str, tmp_path: Path) -> None:
    found = ask(page, tmp_path, """
      const entries = all("figure.plot").map(plot => all("[role=button]", plot));
      const reset = all("figcaption button"), states = [];
      const note = () => states.push([seen("<b>&"), seen("ALDS"), entries.map(e => e[1].ariaPressed), reset[0].hidden,
                                      all(".point").filter(point => point.tabIndex === 0).length]);
      note();
      press(entries[0][1], "Enter"); note();
      entries[1][1].dispatchEvent(new MouseEvent("click", { bubbles: true })); note();
      press(entries[1][1], " "); press(entries[0][0], "Enter"); note();
      reset[1].click(); note();
      return { states, names: entries[0].map(entry => entry.ariaLabel), focus: document.activeElement.ariaLabel };
    """)  # fmt: skip
    assert found["names"] == ["ALDS", "<b>&", "P(.1)", "Reference (uncompressed)"]
    shown, hidden, again, both, back = found["states"]
    for hostile, alds, pressed, no_reset, stops in (shown, again, back):
        assert all(hostile)
        assert all(alds)
        assert (pressed, no_reset, stops) == (["true", "true"], True, 2)
    assert not any(hidden[0])
    assert all(hidden[1])
    assert hidden[2:] == [["false", "false"], False, 2]
    assert not any([*both[0], *both[1]])
    assert both[4] == 2, "what is hidden is no stop"
    assert found["focus"] == "ALDS", "the button that had the focus is gone"


def test_tables_sort_numbers_and_filter_rows(tmp_path: Path) -> None:
    columns = {
        "name": ["n10", "n9", "a", "b", "c", "d", "e", "f", "g", "h"],
        "plain": ["1,234", "–", "−0.47", "84.2 ± 0.3", "4.0×", "83.1 †", "95.1 (20.4×) †", "40.8 M", "+2", ""],  # noqa: RUF001
        "mixed": ["0.5", "set", "0.05", "5 min", "2 h", "40 s", "1e-05", "≤ 7", "2.9.1", "2.14.1"],
    }
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    table = Table(list(columns), [*rows, ["mean", "1", "1"]], footer=1)
    page = render_html(Document("tables", [Section("Tables", [table, Table(["a"], [["x"]])])]))
    found = ask(page, tmp_path, """
      const [table] = all("table"), buttons = all("th button", table), input = document.querySelector("input");
      const sorted = [], sort = place => { buttons[place].click(); sorted.push(column(table, place + 1)); };
      [0, 1, 1, 1, 2].forEach(sort);
      const order = all("th", table).map(header => header.ariaSort);
      const shown = words => { type(input, words); return [all("tbody tr", table).filter(row => !row.hidden).length,
                                                           document.querySelector("output").textContent]; };
      return { sorted, order, filters: ["", "1", "SET n9", "zzz"].map(shown), inputs: all("input").length,
               foot: document.querySelector("tfoot").textContent.trim(), scope: table.tHead.rows[0].cells[0].scope };
    """)  # fmt: skip
    names, up, down, none, mixed = found["sorted"]
    assert names == ["a", "b", "c", "d", "e", "f", "g", "h", "n9", "n10"]
    rising = ["−0.47", "+2", "4.0×", "83.1 †", "84.2 ± 0.3", "95.1 (20.4×) †", "1,234", "40.8 M"]  # noqa: RUF001
    assert up[:8] == rising
    assert down[:8] == rising[::-1]
    assert {*up[8:]} == {*down[8:]} == {"–", ""}, "what is missing is last in both directions"  # noqa: RUF001
    assert none == columns["plain"]
    assert mixed == ["1e-05", "0.05", "0.5", "≤ 7", "40 s", "5 min", "2 h", "2.9.1", "2.14.1", "set"]
    assert found["order"] == ["none", "none", "ascending"]
    assert found["filters"][0] == [10, "10 of 10 rows"]
    assert found["filters"][2:] == [[1, "1 of 10 rows"], [0, "No row matches. All 10 rows are hidden."]]
    assert 0 < found["filters"][1][0] < 10
    assert (found["inputs"], found["foot"], found["scope"]) == (1, "mean11", "col"), "short tables have no filter"


def test_a_slider_shows_the_layers_at_every_keep_ratio(page: str, tmp_path: Path) -> None:
    data = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', page)[0])
    found = ask(page, tmp_path, """
      const figure = document.querySelector("figure.layers"), slider = figure.querySelector("input"), states = [];
      for (let place = 0; place <= slider.max; place++) {
        type(slider, place);
        states.push({ title: figure.querySelector("output").textContent, spoken: slider.ariaValueText,
                      head: all("thead th", figure).map(cell => cell.textContent), cells: column(figure, 2),
                      names: all("tbody th", figure).map(cell => cell.textContent),
                      colors: all("tbody td", figure).map(cell => cell.style.backgroundColor) });
      }
      return { states, label: slider.labels[0].textContent, picture: figure.querySelector("img").offsetHeight };
    """)  # fmt: skip
    states = found["states"]
    assert [state["title"] for state in states] == ["0.5", "0.2", "0.05", "size set by the method"]
    assert [state["spoken"] for state in states] == [state["title"] for state in states]
    assert states[0]["head"] == ["Layer", "ALDS", "<b>&"]
    assert states[3]["head"] == ["Layer", "P(.1)"]
    for state, heat_map in zip(states, data["maps"], strict=True):
        assert state["names"] == data["layers"]
        shown = [float(cell) for cell in state["cells"]]
        assert shown == pytest.approx([row[0] for row in heat_map["kept"]], abs=0.5)
        assert len(set(state["colors"])) > 1
    assert (found["label"].strip(), found["picture"]) == ("Keep ratio", 0), "the table is in place of the picture"


class Server(http.server.BaseHTTPRequestHandler):
    """Remembers what a page asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    def log_message(self, *_: object) -> None: ...


def test_other_scripts_and_the_network_are_out_of_bounds(page: str, tmp_path: Path) -> None:
    """Even if markup came in by a label, the browser would not run it; without the policy, it would."""
    without = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    found = {}
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, text in (("policy", page), ("none", without)):
            image = f"<img src='http://127.0.0.1:{server.server_port}/{name}' onerror='document.title = 1'>"
            foreign = f"<script>document.title = 'foreign'</script>{image}"
            found[name] = ask(text.replace("<h1>", f"{foreign}<h1>"), tmp_path, "return document.title;")
        server.shutdown()
    assert Server.asked == ["/none"]
    assert found["none"] in ("foreign", "1")
    assert found["policy"] not in ("foreign", "1")
