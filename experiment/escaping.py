"""Escaping of text for its targets: terminal, CSV, JSON, LaTeX, HTML, Markdown and matplotlib.

Labels, file names and error messages may contain anything. Characters that a target cannot show are written as escapes
(`\\x1b`, `\\udce9`); characters that it would interpret are quoted in its own syntax.
"""

import csv
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

LONGEST = 2_000  # characters of an error message
FORMULA = "=+-@"  # spreadsheets interpret fields that begin with one of these as formulas

_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029"  # and lone surrogates
_DIRECTION = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # they change the direction of text
_NO_TEXT = re.compile(f"[{_CONTROL}]")
_UNSEEN = re.compile(f"[{_CONTROL}{_DIRECTION}]")
_UNSEEN_OR_BREAK = re.compile(f"[\t\n{_CONTROL}{_DIRECTION}]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}

_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip
_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi omega"
)
_WORDS = (
    f"{_GREEK} {_GREEK.title()} cdot times pm mp leq geq le ge neq approx sim infty ell to ldots dots star ast dagger"
)
_FONTS = "mathrm mathbf mathit mathcal mathsf mathtt hat tilde bar vec sqrt frac"
_FORMULA_PART = re.compile(
    r"\\(?:"
    + "|".join([*_WORDS.split(), *_FONTS.split()])
    + r")(?![A-Za-z])|\\[,;: %&#_{}]|[A-Za-z0-9 ^_{}()\[\]+\-*/=<>.,:;!|']"
)
_MARKDOWN = re.compile(r"([\\`*<>|\[\]~$&]|(?<![^\W_])_|_(?![^\W_]))")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def unfit(text: str) -> str | None:
    """The first control character or lone surrogate of a text, escaped; tabs and line ends do not count."""
    found = _NO_TEXT.search(text)
    return None if found is None else _escape(found)


def look(text: str) -> str:
    """A normal form of text that is equal for texts that look alike in a table."""
    seen = (c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return " ".join("".join(seen).split())


def is_number(text: str) -> bool:
    """Whether a text reads as a number, such as 1e-3, -4 or nan."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def one_line(text: str) -> str:
    """Escape all invisible characters, including line ends."""
    return _UNSEEN_OR_BREAK.sub(_escape, text)


def lines(text: str) -> str:
    """Escape all invisible characters except tabs and line ends; line ends become `\\n`."""
    return _UNSEEN.sub(_escape, text.replace("\r\n", "\n").replace("\r", "\n"))


def message(text: str) -> str:
    """An error message for the terminal: one line of at most about LONGEST characters."""
    shown = one_line(text)
    if len(shown) <= LONGEST:
        return shown
    return f"{shown[: LONGEST * 2 // 3]} [...] {shown[-LONGEST // 4 :]}"


def say(text: str, file: TextIO | None = None) -> None:
    """Print one escaped line, by default on the standard output."""
    print(one_line(text), file=sys.stdout if file is None else file)


def reason(text: str) -> str:
    """The reason why a cell failed, for tables: a spreadsheet does not interpret it as a formula."""
    shown = lines(text)
    return f"error: {shown}" if shown.startswith(tuple(FORMULA)) else shown


def csv_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A CSV file with a header. pandas reads text back unchanged, except for escaped control characters."""
    written: list[str] = []

    class Rows:
        def write(self, line: str) -> None:
            written.append(line.removesuffix("\r\n") + "\n")

    # csv quotes the characters of its line terminator; pandas also ends rows at a lone \r
    writer = csv.DictWriter(Rows(), columns, lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _csv_value(value) for name, value in row.items()})
    return "".join(written)


def _csv_value(value: Any) -> Any:
    return re.sub("(?!\r)" + _NO_TEXT.pattern, _escape, value) if isinstance(value, str) else value


def json_text(value: Any, indent: int | None = None, *, sort_keys: bool = False) -> str:
    """JSON in ASCII. Lone surrogates, which many parsers reject, are escaped as text."""
    return json.dumps(_json_value(value), indent=indent, sort_keys=sort_keys)


def _json_value(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", _escape, value)
    if isinstance(value, Mapping):
        return {_json_value(key): _json_value(part) for key, part in value.items()}
    return [_json_value(part) for part in value] if isinstance(value, list | tuple) else value


def latex(text: str) -> str:
    """LaTeX that prints the text literally."""
    return re.sub(r"[\\~^&%$#_{}<>|]", lambda match: _LATEX.get(match[0], "\\" + match[0]), one_line(text))


def latex_formulas(text: str) -> str | None:
    """LaTeX for text in which `$...$` is mathematics; None if that is not a plain formula.

    Plain formulas consist of letters, digits, operators, sub- and superscripts, Greek letters, a few symbols, accents
    and fonts. They cannot define, read or write anything.
    """
    parts = text.split("$")
    if len(parts) % 2 == 0 or not all(map(_is_formula, parts[1::2])):
        return None
    return "".join(f"${part}$" if place % 2 else latex(part) for place, part in enumerate(parts))


def _is_formula(text: str) -> bool:
    rest, depth = text, 0
    while rest:
        part = _FORMULA_PART.match(rest)
        if part is None:
            return False
        depth += (part[0] == "{") - (part[0] == "}")
        if depth < 0:
            return False
        rest = rest[part.end() :]
    return bool(text.strip()) and depth == 0


def html(value: Any) -> Any:
    """jinja2's `finalize`: escape invisible characters of text before jinja2 escapes HTML; markup is left unchanged."""
    return lines(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def markdown(text: str) -> str:
    """Text on one line, with Markdown's special characters escaped."""
    return _MARKDOWN.sub(lambda match: _ENTITIES.get(match[0], "\\" + match[0]), one_line(" ".join(text.split())))


def plot(text: str) -> str:
    """Text that matplotlib can draw; mathematics that it cannot parse is shown literally."""
    from matplotlib.mathtext import MathTextParser

    text = lines(text)
    if "$" in text:
        try:
            MathTextParser("path").parse(text)
        except ValueError:
            text = re.sub(r"(?<!\\)\$", r"\\$", text)
    return f" {text}" if text.startswith("_") else text  # matplotlib hides names with a leading underscore


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
