"""Docstrings taken apart: paragraphs and indented blocks, then named sections such as `Args:` or `Source:`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Warns|Source|Differs|Example|Examples|Note): *(.*)")
ENTRY = re.compile(r"(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): (.*)")  # `groups, folding: text`


@dataclass(frozen=True)
class Docstring:
    """A docstring's text and its sections, each without the indentation it is written with."""

    text: str
    sections: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first paragraph on one line."""
        return " ".join(self.text.partition("\n\n")[0].split())

    def entries(self, section: str) -> dict[str, str]:
        """The names that a section such as `Args` describes, with their descriptions."""
        return entries(self.sections.get(section, ""))


def parse(docstring: str | None) -> Docstring:
    """Split a docstring into its text and its sections."""
    text: list[str] = []
    sections: dict[str, list[str]] = {}
    current = text
    for line in inspect.cleandoc(docstring or "").splitlines():
        if match := SECTION.fullmatch(line):
            current = sections.setdefault(match[1], [])
            line = match[2]
        elif current is not text and not line.strip() and "Example" not in sections:
            current.append("")
            continue
        elif current is not text and line[:1].strip() and current[-1:] == [""]:
            current = text  # a paragraph after a section belongs to the text
            current.append("")
        current.append(line)
    found = {name: _joined(lines) for name, lines in sections.items()}
    source, _, differs = found.get("Source", "").partition("Differs: ")  # on one line with the source
    if differs:
        found |= {"Source": source.strip(), "Differs": differs}
    return Docstring(_joined(text), found)


def _joined(lines: list[str]) -> str:
    return inspect.cleandoc("\n" + "\n".join(lines)).strip("\n")


def entries(text: str) -> dict[str, str]:
    """`name: description` entries whose continuation lines are indented; `a, b: text` describes both."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        if match := ENTRY.fullmatch(line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.startswith("  ") and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            names = []
    return found


def google_style(lines: list[str]) -> list[str]:
    """A docstring as napoleon reads it: sections on lines of their own, indented blocks as code."""
    docstring = parse("\n".join(lines))
    out: list[str] = []
    for indented, part in blocks(docstring.text):
        out += [*(["::", ""] if indented else []), *("    " * indented + line for line in part.splitlines()), ""]
    for name, text in docstring.sections.items():
        out += [f"{name}:", *(f"    {line}" for line in text.splitlines()), ""]
    return out


def blocks(text: str) -> Iterator[tuple[bool, str]]:
    """The paragraphs of a text, each with whether it is indented, which means code or a formula."""
    for part in re.split(r"\n\s*\n", text):
        if part.strip():
            yield part.startswith("    "), inspect.cleandoc("\n" + part)
