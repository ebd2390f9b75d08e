"""The methods of a family, from the registry and from the docstrings of settings and implementations."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

from pydantic import TypeAdapter

from experiment.methods import METHODS, TORCHPRUNE_NAMES
from experiment.registry import MethodEntry, resolve
from generator.docstrings import Docstring, entries, parse
from generator.markdown import code, escaped, prose, table, type_in_words
from generator.method_facts import Facts, facts


def methods(*kinds: str) -> str:
    """The methods of the given kinds: a table of them, then a section for each."""
    chosen = {entry: facts(entry) for entry in METHODS.values() if entry.kind in kinds}
    rows = [
        [f"[`{entry.label}`](#{anchor(entry)})", escaped(_docstrings(entry)[0].summary) + _preset(entry), known.needs]
        for entry, known in chosen.items()
    ]
    overview = table(["method", "what stays", "needs"], rows)
    return "\n\n".join([overview, *(_section(entry, known) for entry, known in chosen.items())])


def anchor(entry: MethodEntry) -> str:
    """The anchor of a method's section."""
    return "method-" + re.sub(r"\W+", "-", entry.label.lower().replace("+", " plus")).strip("-")


def _docstrings(entry: MethodEntry) -> list[Docstring]:
    """What describes a method: a function of its own or, if several methods share a class, its settings first."""
    settings, implementation = entry.settings, resolve(entry.target)
    described = [settings, implementation] if inspect.isclass(implementation) else [implementation]
    return [parse(source.__doc__) for source in described]


def _context(entry: MethodEntry) -> str:
    """What the methods that are functions of the same module have in common: the module's first paragraph."""
    module, _, _ = entry.target.partition(":")
    functions = {other.target for other in METHODS.values() if other.target.startswith(f"{module}:")}
    alone = len(functions) == 1 or inspect.isclass(resolve(entry.target))
    return "" if alone else parse(sys.modules[module].__doc__).summary


def _preset(entry: MethodEntry) -> str:
    """The settings whose defaults a method changes, in parentheses."""
    given = getattr(entry, "preset", {})
    return f" ({', '.join(f'`{name}`: {code(_plain(value))}' for name, value in given.items())})" if given else ""


def _section(entry: MethodEntry, known: Facts) -> str:
    docstrings = _docstrings(entry)
    aliases = [f"`{alias}`" for alias, label in TORCHPRUNE_NAMES.items() if label == entry.label]
    about = {
        "Preset": _preset(entry).strip(" ()"),
        "Source": _joined(docstrings, "Source"),
        "Differs": _joined(docstrings, "Differs"),
        "Needs": known.needs,
        "Gives": known.gives,
        "In torchprune": ", ".join(aliases),
        "Implementation": f"`{entry.target}`",
    }
    settings = list(_setting_rows(entry))
    return "\n\n".join(
        [
            f"({anchor(entry)})=\n## {entry.label}",
            *prose("\n\n".join([_context(entry), *(docstring.text for docstring in docstrings)])),
            table(["", ""], [[f"**{name}**", text] for name, text in about.items() if text]),
            f"```python\n{known.call}\n```",
            table(["setting", "type", "default", "meaning"], settings) if settings else "It has no settings.",
        ]
    )


def _joined(docstrings: list[Docstring], section: str) -> str:
    return " ".join(escaped(docstring.sections[section]) for docstring in docstrings if section in docstring.sections)


def _setting_rows(entry: MethodEntry) -> Iterator[list[str]]:
    schema = TypeAdapter(entry.settings).json_schema()
    blocks = {name: f"`{{{', '.join(block['properties'])}}}`" for name, block in schema.get("$defs", {}).items()}
    given = {name: _plain(value) for name, value in getattr(entry, "preset", {}).items()}
    described = setting_texts(entry.settings)
    for name, value in schema.get("properties", {}).items():
        default = given.get(name, value.get("default", {}))
        required = name in schema.get("required", ()) and name not in given
        shown = "required" if required else "none" if default is None else code(default)
        yield [f"`{name}`", type_in_words(value, blocks), shown, escaped(described.get(name, ""))]


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def setting_texts(settings: type) -> dict[str, str]:
    """What each setting means: from the class and its bases, and from their modules for those that classes share."""
    classes = settings.__mro__[-2::-1]
    found: dict[str, str] = {}
    for module in (inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "") for cls in classes):
        found |= entries("\n".join(line[4:] for line in module.splitlines() if line.startswith("    ")))
    for cls in classes:
        found |= parse(cls.__doc__).entries("Attributes")
    return found
