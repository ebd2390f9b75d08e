"""What a report consists of, whether it becomes Markdown or HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Items:
    """A list; an item of two parts is a term and what it means."""

    items: Sequence[tuple[str, str]]
    kind: str = "items"


@dataclass(frozen=True)
class Table:
    """Cells of plain text; columns from the second on are numbers unless `words` is set."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """A plot: `path` is its PNG; a PDF of the same name stands beside it."""

    path: Path
    caption: str
    kind: str = "picture"


@dataclass(frozen=True)
class Code:
    """A few lines of Python."""

    text: str
    kind: str = "code"


Block = Text | Items | Table | Picture | Code


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it; `folded` ones open on a click where the format can do that."""

    title: str
    blocks: Sequence[Block]
    folded: bool = False


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    sections: Sequence[Section]
