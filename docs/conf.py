"""The documentation site: `make docs` builds it, strictly, into docs/_build/html."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

from generator import docstrings, expanded  # noqa: E402

project = "experiment"
author = "the authors of experiment"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["_build", "tutorials"]  # tutorials/*.py become pages under gallery/

# Pages are Markdown. A link to a heading is #slug-of-the-heading, also in another page: page.md#slug.
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

# Every reference must exist. What other projects define is not looked up, so that the build needs no network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|pd|pandas|np|numpy|pathlib|collections|typing)\..*"),
    ("py:.*", r"Tensor|Path|Callable|Mapping|Sequence|Iterable|Iterator|Collection|Any|Literal|optional"),
    ("py:class", r"Plan|Amount|Mapping\[str|Precision|Pair|experiment\.(layers|lc|tasks)\..*"),  # internal
    ("py:exc", r".*"),  # `Raises:` names exceptions without their module
]
suppress_warnings = ["config.cache"]  # sphinx-gallery is configured with an object that cannot be pickled

html_theme = "furo"
html_title = "experiment"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_copyright = False

default_role = "code"  # docstrings write names in single backticks
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
napoleon_custom_sections = [("Source", "returns_style"), ("Differs", "returns_style")]

# Tutorials are executed when the site is built; one that fails fails the build.
sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py",
    "ignore_pattern": r"__init__\.py",
    "within_subsection_order": "sphinx_gallery.sorting.FileNameSortKey",
    "abort_on_example_error": True,
    "min_reported_time": 10_000,
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "write_computation_times": False,
}


def _expand_page(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = expanded(source[0])


def _prepare_docstring(app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]) -> None:
    lines[:] = docstrings.google_style(lines)
    if what == "property":  # napoleon takes the words before a colon in its first line for a type
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> None:
    app.connect("source-read", _expand_page)
    app.connect("autodoc-process-docstring", _prepare_docstring, priority=100)  # before napoleon
