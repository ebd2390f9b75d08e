"""The parts of a report, independent of Markdown and HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Items:
    """A list of terms and their explanations."""

    items: Sequence[tuple[str, str]]
    kind: str = "items"


@dataclass(frozen=True)
class Table:
    """A table of plain text. All columns but the first are right-aligned, unless `words` is set.

    The last `footer` rows summarize the others: in HTML, they stay last when rows are sorted.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False
    footer: int = 0
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """A plot: `path` is its PNG, next to a PDF of the same name.

    Attributes:
        svg: the plot for HTML, where points name their cells; "" to show the PNG there, too.
        heat_maps: what `plots.layers.heat_maps` returns, for the slider of the page.
    """

    path: Path
    caption: str
    svg: str = ""
    heat_maps: Mapping[str, Any] | None = None
    kind: str = "picture"


@dataclass(frozen=True)
class Code:
    """Code, by default Python."""

    text: str
    language: str = "python"
    kind: str = "code"


Block = Text | Items | Table | Picture | Code


@dataclass(frozen=True)
class Section:
    """A heading and its content; in HTML, `folded` sections open on a click."""

    title: str
    blocks: Sequence[Block]
    folded: bool = False


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    sections: Sequence[Section]
