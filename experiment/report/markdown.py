"""A report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from experiment.report.document import Block, Code, Document, Items, Picture, Section, Table

_SPECIAL = re.compile(r"([\\`*<>|\[\]])")


def render_markdown(document: Document, folder: Path) -> str:
    """The document as GitHub-flavoured Markdown; pictures are linked relative to `folder`."""
    lines = ["<!-- format 1 -->", f"# {escape(document.title)}", ""]
    for section in document.sections:
        lines += _section(section, folder)
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """Text on one line with Markdown's special characters taken literally."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("\\>", "&gt;")


def _section(section: Section, folder: Path) -> Iterator[str]:
    yield from (f"{'###' if section.folded else '##'} {escape(section.title)}", "")
    for block in section.blocks:
        yield from _block(block, folder)
        yield ""


def _block(block: Block, folder: Path) -> Iterator[str]:
    if isinstance(block, Items):
        yield from (f"- **{escape(term)}**: {escape(text)}" for term, text in block.items)
    elif isinstance(block, Table):
        yield _row(block.header)
        yield _row(["---" if place == 0 or block.words else "---:" for place in range(len(block.header))], raw=True)
        yield from (_row(row) for row in block.rows)
    elif isinstance(block, Picture):
        path = block.path.relative_to(folder)
        pdf = path.with_suffix(".pdf").as_posix()
        yield f"![{escape(block.caption)}](<{path.as_posix()}>)"
        yield ""
        yield f"{escape(block.caption)} ([PDF](<{pdf}>))"
    elif isinstance(block, Code):
        yield from ("```python", block.text, "```")
    else:
        yield escape(block.text)


def _row(cells: object, raw: bool = False) -> str:
    assert isinstance(cells, (list, tuple))
    return "| " + " | ".join(cell if raw else escape(cell) for cell in cells) + " |"
