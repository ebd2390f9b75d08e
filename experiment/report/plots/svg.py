"""A figure as SVG to embed in HTML: text stays text, and the points of curves have titles that name their cells."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from experiment.report.plots.marks import read_mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS, PIXELS = 72, 96  # per inch: of SVG, of CSS
LEGIBLE = 800  # pixels; wider figures shrink to this on narrow screens, then scroll
RADIUS = 5  # of the area of a point that answers to the mouse
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_USED = re.compile(r'(?:url\(|href=")#(\w+)')
_FONT = re.compile(r"font-family: 'DejaVu Sans'(?:,[^;]*)?(?:; |$)")  # the page names it once


def svg_of(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element for HTML; "" if none of its artists has a mark.

    Artists with a mark have its label in `data-label`, those in legends in `data-entry`. Equal figures give equal text.

    Args:
        figure: a figure that `save_figure` has laid out.
        name: keeps the ids of several figures on a page apart.
    """
    if not any(read_mark(artist.get_gid()) for artist in figure.findobj()):
        return ""
    text = _drawn(figure, name)
    root, used = ElementTree.fromstring(text), set(_USED.findall(text))
    root.remove(root[0])  # a style sheet, which would apply to the whole page
    _tidy(root, used, "data-label")
    width = round(figure.get_figwidth() * PIXELS)
    shape = {"width": f"{width}", "style": f"min-width: {min(width, LEGIBLE)}px", "viewBox": root.attrib["viewBox"]}
    root.attrib = {**shape, "role": "group"}
    root.extend(_curves(figure))
    return ElementTree.tostring(root, encoding="unicode")


def _drawn(figure: Figure, name: str) -> str:
    """What matplotlib writes; `savefig` draws twice."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file, dpi, no_facts = io.StringIO(), figure.dpi, dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # labels in other scripts
        FigureCanvasSVG(figure).print_svg(file, metadata=no_facts)  # type: ignore[no-untyped-call]
    figure.dpi = dpi
    return _NOT_XML.sub("\ufffd", file.getvalue())


def _tidy(part: Element, used: set[str], place: str) -> None:
    """Drop namespaces, blanks and ids that nothing refers to, and move labels from ids to the attribute `place`."""
    name = part.attrib.pop("id", "")
    part.tag, part.tail, part.text = part.tag.rpartition("}")[2], None, None if len(part) else part.text
    part.attrib = {key.rpartition("}")[2]: _FONT.sub("", value) for key, value in part.attrib.items()}
    if name in used:
        part.set("id", name)
    for label in read_mark(name)[:1]:
        part.set(place, label)
    if name.startswith(("xtick", "ytick")):
        part.set("aria-hidden", "true")  # a screen reader would read a heap of numbers
    for child in part:
        _tidy(child, used, "data-entry" if name.startswith("legend") else place)


def _curves(figure: Figure) -> Iterator[Element]:
    """For every curve, a group of transparent circles on its visible points, with titles."""
    for axes in figure.axes:
        for line in axes.lines if axes.get_visible() else ():
            label, *points = read_mark(line.get_gid()) or [""]
            if not points:
                continue
            names = {"aria-label": f"{label} {axes.get_title()}".strip(), "data-label": label}
            group = Element("g", {"class": "points", "role": "group", **names})
            values: Any = line.get_xydata()
            for data, (x, y), text in zip(values, line.get_transform().transform(values), points, strict=True):
                inside = math.isfinite(x + y) and axes.bbox.padded(1).contains(x, y)
                if inside or not line.get_clip_on():
                    _add_point(group, figure, x, y, _title(axes, data[0], data[1], text))
            yield group


def _title(axes: Axes, x: float, y: float, text: str) -> str:
    """The first line of `text`, the value on the y axis with its name, the rest of `text`, and that on the x axis."""
    name, *more = text.split("\n")
    panels = axes.figure.axes  # the first and the last may name the axes of all
    titles = axes.get_ylabel() or panels[0].get_ylabel(), axes.get_xlabel() or panels[-1].get_xlabel()
    figure, place = (" ".join(title.removesuffix(", logarithmic").split()) for title in titles)
    return "\n".join([name, f"{figure}: {y:.4g}", *more, *([f"{place}: {x:.4g}"] if place else [])])


def _add_point(group: Element, figure: Figure, x: float, y: float, title: str) -> None:
    """`x` and `y` are pixels of the figure from its lower left."""
    right, down = POINTS * x / figure.dpi, POINTS * (figure.get_figheight() - y / figure.dpi)
    place = {"cx": f"{right:.1f}", "cy": f"{down:.1f}", "r": f"{RADIUS}"}
    SubElement(SubElement(group, "circle", {"class": "point", "role": "img", **place}), "title").text = title
