"""Text on its way out: one function for each target that it is written to.

Labels, file names and messages of others' code may hold anything. What a target cannot show, or would take for a
command, is written as an escape (`\\x1b`, `\\udce9`), or taken literally in the target's own way.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

LONGEST = 2_000  # characters of an error message
FORMULA = "=+-@"  # a spreadsheet takes a field that begins with one of these for a formula

_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029"  # and lone surrogates: no text at all
_DIRECTION = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the order in which what follows is shown
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
    """The first control character or lone surrogate of a text (tabs and line ends are none), as an escape."""
    found = _NO_TEXT.search(text)
    return None if found is None else _escape(found)


def look(text: str) -> str:
    """What a reader can tell a text by: equal for two that look alike in a table."""
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
    """Text with everything that cannot be seen escaped, line ends too."""
    return _UNSEEN_OR_BREAK.sub(_escape, text)


def lines(text: str) -> str:
    """Text with everything that cannot be seen escaped, but for tabs and line ends, which are all `\\n`."""
    return _UNSEEN.sub(_escape, text.replace("\r\n", "\n").replace("\r", "\n"))


def message(text: str) -> str:
    """An error for the terminal: one line, of bounded length."""
    shown = one_line(text)
    if len(shown) <= LONGEST:
        return shown
    return f"{shown[: LONGEST * 2 // 3]} [...] {shown[-LONGEST // 4 :]}"


def say(text: str, file: TextIO | None = None) -> None:
    """Print one line, on the standard output if nothing else is said."""
    print(one_line(text), file=sys.stdout if file is None else file)


def reason(text: str) -> str:
    """Why a cell has failed, as it is stored and put into tables: never taken for a formula."""
    shown = lines(text)
    return f"error: {shown}" if shown.startswith(tuple(FORMULA)) else shown


def csv_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A CSV file with a header; text comes back from pandas as it is, but for what is no text, which is escaped."""
    written: list[str] = []

    class Rows:
        def write(self, line: str) -> None:
            written.append(line.removesuffix("\r\n") + "\n")

    # the module quotes the characters of its line end: this one, for pandas ends rows at a lone \r too
    writer = csv.DictWriter(Rows(), columns, lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _csv_value(value) for name, value in row.items()})
    return "".join(written)


def _csv_value(value: Any) -> Any:
    return re.sub("(?!\r)" + _NO_TEXT.pattern, _escape, value) if isinstance(value, str) else value


def json_text(value: Any, indent: int | None = None, *, sort_keys: bool = False) -> str:
    """JSON in ASCII that every parser reads: a lone surrogate, which many refuse, is escaped as text."""
    return json.dumps(_json_value(value), indent=indent, sort_keys=sort_keys)


def _json_value(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", _escape, value)
    if isinstance(value, Mapping):
        return {_json_value(key): _json_value(part) for key, part in value.items()}
    return [_json_value(part) for part in value] if isinstance(value, list | tuple) else value


def latex(text: str) -> str:
    """Text that LaTeX sets as it is: no command, no formula."""
    return re.sub(r"[\\~^&%$#_{}<>|]", lambda match: _LATEX.get(match[0], "\\" + match[0]), one_line(text))


def latex_formulas(text: str) -> str | None:
    """The same for text in which `$...$` is mathematics; None where that is not a plain formula.

    Letters, digits, operators, sub- and superscripts, Greek letters, a few symbols, accents and fonts: nothing that
    defines, reads or writes.
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
    """What a template prints, before it is escaped for HTML (jinja2's `finalize`); markup stays as it is."""
    return lines(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def markdown(text: str) -> str:
    """Text on one line with Markdown's special characters taken literally."""
    return _MARKDOWN.sub(lambda match: _ENTITIES.get(match[0], "\\" + match[0]), one_line(" ".join(text.split())))


def plot(text: str) -> str:
    """Text that matplotlib can draw: mathematics that it cannot read is shown as it is written."""
    from matplotlib.mathtext import MathTextParser

    text = lines(text)
    if "$" in text:
        try:
            MathTextParser("path").parse(text)
        except ValueError:
            text = re.sub(r"(?<!\\)\$", r"\\$", text)
    return f" {text}" if text.startswith("_") else text  # matplotlib leaves names with a leading underscore out


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
