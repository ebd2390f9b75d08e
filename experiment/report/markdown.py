"""A report as Markdown."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from experiment.escaping import lines as visible
from experiment.escaping import markdown
from experiment.report.document import Block, Code, Document, Items, Picture, Section, Table


def render_markdown(document: Document, folder: Path) -> str:
    """The document as GitHub-flavoured Markdown; links to pictures are relative to `folder`."""
    lines = ["<!-- format 1 -->", f"# {markdown(document.title)}", ""]
    for section in document.sections:
        lines += _section(section, folder)
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section, folder: Path) -> Iterator[str]:
    yield from (f"{'###' if section.folded else '##'} {markdown(section.title)}", "")
    for block in section.blocks:
        yield from _block(block, folder)
        yield ""


def _block(block: Block, folder: Path) -> Iterator[str]:
    if isinstance(block, Items):
        yield from (f"- **{markdown(term)}**: {markdown(meaning)}" for term, meaning in block.items)
    elif isinstance(block, Table):
        yield _row(map(markdown, block.header))
        yield _row("---" if place == 0 or block.words else "---:" for place in range(len(block.header)))
        yield from (_row(map(markdown, row)) for row in block.rows)
    elif isinstance(block, Picture):
        path = block.path.relative_to(folder)
        pdf = path.with_suffix(".pdf").as_posix()
        yield f"![{markdown(block.caption)}](<{path.as_posix()}>)"
        yield ""
        yield f"{markdown(block.caption)} ([PDF](<{pdf}>))"
    elif isinstance(block, Code):
        yield from (f"```{block.language}", visible(block.text), "```")
    else:
        yield markdown(block.text)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
