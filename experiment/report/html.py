"""A report as one HTML file that needs nothing else: pictures inline, no requests, every text escaped."""

from __future__ import annotations

import base64
from pathlib import Path

from experiment.report.document import Document
from experiment.text import html

TEMPLATES = Path(__file__).parent / "templates"


def render_html(document: Document) -> str:
    """The document as HTML; the PNGs of its pictures are read and embedded."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=html,
    )
    return environment.get_template("report.html").render(document=document, embedded=_embedded)


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
