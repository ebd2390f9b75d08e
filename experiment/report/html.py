"""A report as one self-contained HTML file: pictures are embedded, all text is escaped."""

import base64
from pathlib import Path

from experiment.escaping import html
from experiment.report.document import Document
from experiment.report.plots.figure import DPI

PIXELS_PER_INCH = 96  # CSS
TEMPLATES = Path(__file__).parent / "templates"


def render_html(document: Document) -> str:
    """The document as HTML, with the PNGs of its pictures."""
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
    """The width of a PNG in CSS pixels: all pictures have the same scale, so that their fonts have the same size."""
    pixels = int.from_bytes(path.read_bytes()[16:20], "big")
    return round(pixels / DPI * PIXELS_PER_INCH)
