"""Nasty text on its way to every target."""

import io
import json
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pandas as pd
import pytest

from experiment import escaping

NASTY = (
    "plain", " leading and trailing ", "", "a,b", 'say "x"', "a\nb", "a\rb", "10%\r\n20% done", "\x1b[31mred\x1b[0m",
    "\x1b]0;title\a", "nul\0byte", "\x7f\x9b31m", "caf\udce9.png", "\ud800", "tab\there", "a\u2028b", "\u202egnp.exe",
    "=1+1", "+ALDS", "-BN", "@sum", "=cmd|' /C calc'!A0", "$x$", "$", "$x", r"$\immediate\write18{id}$",
    r"\end{tabular}", "100% & #1 {x_1} ~^<>|", "<script>alert(1)</script>", "&lt;", "_a_ *b* `c` [d](e) |",
    "~~x~~", "日本語", "é", "🙂",
    "NA", "nan", "None", "1e5", "x" * 5000, "\\", "\\x1b",
)  # fmt: skip


def controls(shown: str) -> set[str]:
    """What a terminal may act on."""
    return {c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")}


@pytest.mark.parametrize("nasty", NASTY)
def test_csv_comes_back_from_pandas_as_it_was(nasty: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [{"a": nasty, "b": 1.5}, {"a": "next", "b": None}]
    path.write_bytes(escaping.csv_table(["a", "b"], rows).encode())
    frame = pd.read_csv(path, dtype={"a": str}, keep_default_na=False)
    expected = re.sub("[\0\x07\x1b\x7f\x9b\ud800-\udfff\u2028]", lambda c: escaping.one_line(c[0]), nasty)
    assert frame["a"].tolist() == [expected, "next"]
    assert len(path.read_bytes().decode()) > 0


@pytest.mark.parametrize("nasty", NASTY)
def test_a_terminal_gets_one_line_without_controls(nasty: str) -> None:
    stream = io.StringIO()
    escaping.say(nasty, stream)
    assert stream.getvalue().endswith("\n")
    assert not controls(stream.getvalue()[:-1])
    assert "\u202e" not in stream.getvalue()
    stream.getvalue().encode()
    assert not controls(escaping.message(nasty))
    assert len(escaping.message(nasty)) <= escaping.LONGEST


@pytest.mark.parametrize("nasty", NASTY)
def test_a_stored_reason_is_no_formula(nasty: str) -> None:
    stored = escaping.reason(nasty)
    assert not stored.startswith(tuple("=+-@\r"))
    assert controls(stored) <= {"\n", "\t"}
    assert escaping.reason(stored) == stored


@pytest.mark.parametrize("nasty", NASTY)
def test_json_is_read_by_every_parser(nasty: str) -> None:
    written = escaping.json_text({"key": [nasty, 1, None]}, indent=1)
    assert written.isascii()
    back = json.loads(written)["key"][0]
    back.encode()
    assert back == nasty or re.search("[\ud800-\udfff]", nasty)


@pytest.mark.parametrize("nasty", NASTY)
def test_latex_has_no_command_of_the_texts(nasty: str) -> None:
    written = escaping.latex(nasty)
    assert not controls(written)
    known = r"\\textbackslash\{\}|\\text(asciitilde|asciicircum|less|greater|bar)\{\}|\\[&%$#_{}]"
    assert not re.search(r"[\\~^&%$#_{}<>|]", re.sub(known, "", written))


@pytest.mark.parametrize(
    "formula", ["$x$", r"$\alpha^{2}_i$ and $\frac{1}{2}$", "ALDS$^+$", r"$\mathrm{SVD}\;\leq 3$", "no formula, 5%"]
)
def test_plain_formulas_stay(formula: str) -> None:
    written = escaping.latex_formulas(formula)
    assert written is not None
    assert written.replace(r"\%", "%") == formula


@pytest.mark.parametrize(
    "formula",
    [r"$\immediate\write18{id}$", r"$\input{x}$", "$x", "$x}$ {", "$}{$", r"$\end{tabular}$", "$a\nb$", "$%$",
     r"$\text{\input x}$", r"$\alphabet$", "$$", "$^^5cinput$ $", r"$\csname input\endcsname$", "$a&b$",
     "$~$", r"$\\$", "$\x1b$"],
)  # fmt: skip
def test_other_formulas_are_none(formula: str) -> None:
    assert escaping.latex_formulas(formula) is None


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("nasty", NASTY)
def test_html_and_markdown_show_the_text_and_nothing_else(nasty: str) -> None:
    environment = jinja2.Environment(autoescape=True, finalize=escaping.html)
    page = environment.from_string("<p>{{ x }}</p>").render(x=nasty)
    page.encode()
    seen = Seen()
    seen.feed(page)
    assert seen.tags == ["p"]
    assert seen.text == escaping.lines(nasty)
    shown = escaping.markdown(nasty)
    assert not controls(shown)
    shown.encode()
    assert not re.search(r"(?<!\\)(\\\\)*[|<>`\[\]$*]", re.sub(r"\\.", "", shown))


@pytest.mark.parametrize("nasty", [n for n in NASTY if len(n) < 1000])
def test_matplotlib_draws_it(nasty: str) -> None:
    from matplotlib.mathtext import MathTextParser

    shown = escaping.plot(nasty)
    assert controls(shown) <= {"\n", "\t"}
    assert escaping.plot(shown) == shown
    MathTextParser("path").parse(shown)  # raises what drawing would


def test_labels_that_look_alike() -> None:
    for other in (" WT", "WT ", "W\u200bT", "\uff37\uff34", "WT\u00a0", "\ufeffWT"):
        assert escaping.look(other) == escaping.look("WT")
    assert escaping.look("wt") != escaping.look("WT")


def test_everything_that_is_written_passes_here() -> None:
    """No module prints, makes JSON or CSV files, or escapes for a target by itself."""
    hashed = (
        "data.py",
        "random_streams.py",
        "keys.py",
        "parameters_file.py",
    )  # JSON is hashed, or has file names as is
    root = Path(escaping.__file__).parent
    for path in root.rglob("*.py"):
        source = re.sub(r'"""(.|\n)*?"""', "", path.read_text())  # docstrings have examples
        if path.name not in ("escaping.py", *hashed):
            own = re.search(r"(?<![\w.\"])print\(.*|json\.dumps?\(.*|csv\.(Dict)?[wW]riter\(.*|\.to_csv\(.*", source)
            assert own is None, f"{path}: {own}"
