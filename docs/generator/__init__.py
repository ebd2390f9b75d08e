"""The generated parts of the documentation: what the program itself knows about its keys, methods and data.

A page asks for one with a line such as `<!-- generate: methods lowrank -->`, which the build replaces by Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from generator.methods import methods
from generator.parameter_file import parameter_file
from generator.registries import api, datasets, networks, tasks

MARKER = re.compile(r"^<!-- generate: (.*) -->$", re.MULTILINE)
PARTS: dict[str, Callable[..., str]] = {
    "parameter-file": parameter_file,
    "methods": methods,
    "networks": networks,
    "datasets": datasets,
    "tasks": tasks,
    "api": api,
}


def expanded(page: str) -> str:
    """A page with every marker replaced by the part that it asks for."""

    def text(match: re.Match[str]) -> str:
        part, *arguments = match[1].split()
        return PARTS[part](*arguments)

    return MARKER.sub(text, page)
