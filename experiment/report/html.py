"""A report as one HTML file that needs nothing else: pictures inline, no requests, every text escaped."""

from __future__ import annotations

import base64
from pathlib import Path

from experiment.escaping import html
from experiment.report.document import Document
from experiment.report.plots.figure import DPI

PIXELS_AN_INCH = 96  # of a page, by CSS
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
    return environment.get_template("report.html").render(document=document, embedded=_embedded, width=_width)


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _width(path: Path) -> int:
    """Of a PNG in pixels of a page: one scale for all pictures, so that their fonts are of one size."""
    pixels = int.from_bytes(path.read_bytes()[16:20], "big")
    return round(pixels / DPI * PIXELS_AN_INCH)
