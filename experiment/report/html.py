"""A report as one self-contained HTML file: pictures and a script are embedded, all text is escaped."""

import base64
import hashlib
from pathlib import Path

from experiment.escaping import html, json_text
from experiment.report.document import Document
from experiment.report.plots.figure import DPI

PIXELS_PER_INCH = 96  # CSS
TEMPLATES = Path(__file__).parent / "templates"


def render_html(document: Document) -> str:
    """The document as HTML, with its pictures and its script. Browsers run no other script in it, and load nothing."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=html,
    )
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html").render(
        document=document, embedded=_embedded, width=_width, script=Markup(script), policy=_policy(script),
        data=lambda value: Markup(json_text(value).replace("<", r"\u003c")),
    )  # fmt: skip


def _policy(script: str) -> str:
    """A content security policy: styles and embedded pictures, no network, and no script but this one."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _width(path: Path) -> int:
    """The width of a PNG in CSS pixels: all pictures have the same scale, so that their fonts have the same size."""
    pixels = int.from_bytes(path.read_bytes()[16:20], "big")
    return round(pixels / DPI * PIXELS_PER_INCH)
