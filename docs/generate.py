"""The generated parts of the documentation: what the program itself knows about its keys, methods and data.

A page asks for one with a comment, `<!-- generate: methods lowrank -->`, which the build replaces by Markdown.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from docstrings import Docstring, blocks, entries, parse
from method_facts import Facts, facts
from pydantic import TypeAdapter

import experiment
from experiment import main
from experiment.datasets import DATASETS
from experiment.methods import METHODS, TORCHPRUNE_NAMES
from experiment.networks import NETWORKS
from experiment.registry import MethodEntry, resolve

DOCS = Path(__file__).resolve().parent
MARKER = re.compile(r"<!-- generate: (.*?) -->")
Schema = Mapping[str, Any]

RANGES = {"ge": "at least", "minimum": "at least", "gt": "above", "exclusiveMinimum": "above"} | {
    "le": "at most", "maximum": "at most", "lt": "below", "exclusiveMaximum": "below"
}  # fmt: skip
WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


def expanded(page: str) -> str:
    """A page with every marker replaced by what it asks for."""

    def text(match: re.Match[str]) -> str:
        what, *arguments = match[1].split()
        return GENERATED[what](*arguments)

    return MARKER.sub(text, page)


# Markdown -----------------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """Plain text as Markdown, what stands in backticks left alone."""
    parts = re.split(r"(``?[^`]+``?|https?://[^\s,;)]+[^\s,;).])", " ".join(text.split()))
    return "".join(
        f"<{part}>" if part.startswith("http") else part if part[:1] == "`" else re.sub(r"([\\*_<>\[\]|$#~^])", r"\\\1", part)
        for part in parts
    )


def prose(text: str) -> Iterator[str]:
    """A docstring's paragraphs as Markdown; indented ones are formulas."""
    for indented, part in blocks(text):
        yield f"```text\n{part}\n```" if indented else escaped(part)


def code(value: object) -> str:
    """A value as YAML within backticks."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("...\n")
    return f"`{text.strip()}`"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


# JSON schema --------------------------------------------------------------------------------------------------------


def kind(schema: Schema, blocks_of: Mapping[str, str]) -> str:
    """The type and range of a value in words; a block links to the section that describes it."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return blocks_of.get(name, "block")
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return _alternatives([f"`{value}`" for value in schema["enum"]])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            found = [kind(part, blocks_of) for part in schema[key]]
            return _alternatives(list(dict.fromkeys(word for word in found if word != "null")))
    if schema.get("type") == "array":
        items = schema.get("items") or {}
        parts = schema.get("prefixItems")
        return f"list of {len(parts)}: {kind(parts[0], blocks_of)}" if parts else f"list of: {kind(items, blocks_of)}"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"mapping from names to: {kind(values, blocks_of)}" if isinstance(values, dict) else "mapping"
    limits = [f"{word} {schema[key]:g}" for key, word in RANGES.items() if key in schema]
    return ", ".join([WORDS.get(schema.get("type", ""), "anything"), *limits])


def _alternatives(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def parameter_schema() -> dict[str, Any]:
    """What `python -m experiment.main --schema` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        main.main(["--schema"])
    found: dict[str, Any] = json.loads(text.getvalue())
    return found


# The parameter file -------------------------------------------------------------------------------------------------


def parameter_blocks() -> dict[str, tuple[str, Schema]]:
    """Every block of a parameter file: its name in the schema, its dotted path and its schema, from the outside in."""
    schema = parameter_schema()
    found: dict[str, tuple[str, Schema]] = {"Parameters": ("", schema)}
    queue = ["Parameters"]
    while queue:
        path, block = found[queue.pop(0)]
        for key, value in block["properties"].items():
            for name, listed in _references(value):
                full = schema["$defs"][name]
                full = next((part for part in full.get("anyOf", ()) if "properties" in part), full)
                if name not in found and "properties" in full:
                    found[name] = (f"{path}{key}{'[]' if listed else ''}.", full)
                    queue.append(name)
    return found


def _references(schema: Schema, listed: bool = False) -> Iterator[tuple[str, bool]]:
    if "$ref" in schema:
        yield schema["$ref"].rpartition("/")[2], listed
    for key in ("anyOf", "oneOf"):
        for part in schema.get(key, ()):
            yield from _references(part, listed)
    if isinstance(schema.get("items"), dict):
        yield from _references(schema["items"], True)


def parameter_file() -> str:
    """All keys of a parameter file, block by block."""
    found = parameter_blocks()
    links = {name: f"[block](#block-{name.lower()})" for name in found}
    sections = []
    for name, (path, block) in found.items():
        inherited = found["Training"][1]["properties"] if name == "Retraining" else {}
        keys = {k: v for k, v in block["properties"].items() if k == "file" or k not in inherited}
        types = block["properties"].get("type", {})
        title = f"`{path.rstrip('.')}`" if path else "The whole file"
        if "enum" in types or "const" in types:
            title += f": {kind(types, {})}"
        lines = [f"(block-{name.lower()})=\n## {title}", escaped(block.get("description", ""))]
        if inherited:
            lines.append("It has all keys of [`training`](#block-training), whose values are the defaults, and:")
        required = block.get("required", ())
        lines += [_key(path, key, value, key in required, types, links) for key, value in keys.items()]
        sections.append("\n\n".join(lines))
    return "\n\n".join(sections)


def _key(path: str, key: str, schema: Schema, required: bool, types: Schema, links: Mapping[str, str]) -> str:
    default = "Required." if required else "Optional."
    if "default" in schema and schema["default"] is not None:
        default = f"Default: {code(schema['default'])}."
    words = kind(schema, links)
    facts = f"*Type:* {words}. {default}"
    shown = [f"`{line}`" for line in example_of(f"{path}{key}", types)]
    if shown:
        facts += f" *Example:* {shown[0]}"
    return f"`{path}{key}`\n: {escaped(schema.get('description', ''))}\n\n  {facts}"


def examples() -> list[Any]:
    """The documents of `examples.yaml`, each a whole parameter file."""
    return list(yaml.safe_load_all((DOCS / "examples.yaml").read_text(encoding="utf-8")))


def example_of(path: str, types: Schema) -> list[str]:
    """Where the examples give a key a value: `key: value`, as they would stand in a file."""
    kinds = set(types.get("enum", ())) | ({types["const"]} if "const" in types else set())
    found = []
    for document in examples():
        for value in _values(document, path.split("."), kinds):
            found.append(code({path.rpartition(".")[2]: value})[2:-2])
    return found


def _values(node: Any, path: list[str], kinds: set[str]) -> Iterator[Any]:
    key = path[0].removesuffix("[]")
    if not isinstance(node, dict) or key not in node or (len(path) == 1 and kinds and node.get("type") not in kinds):
        return
    if len(path) == 1:
        yield node[key]
        return
    for part in node[key] if path[0].endswith("[]") else [node[key]]:
        yield from _values(part, path[1:], kinds)


# Methods ------------------------------------------------------------------------------------------------------------


def methods(*kinds: str) -> str:
    """The methods of the given kinds: a table of them, then one section each."""
    chosen = [entry for entry in METHODS.values() if entry.kind in kinds]
    known = {entry.label: facts(entry) for entry in chosen}
    rows = [
        [f"[`{e.label}`](#{anchor(e.label)})", escaped(texts(e)[0].summary) + preset(e), known[e.label].needs]
        for e in chosen
    ]
    overview = table(["method", "what stays", "needs"], rows)
    return "\n\n".join([overview, *(method(entry, known[entry.label]) for entry in chosen)])


def anchor(label: str) -> str:
    """The anchor of a method's section."""
    return "method-" + re.sub(r"\W+", "-", label.lower().replace("+", " plus")).strip("-")


def texts(entry: MethodEntry) -> list[Docstring]:
    """What describes a method: its implementation and, where that is shared with others, its settings first."""
    settings, implementation = parse(entry.settings.__doc__), parse(resolve(entry.target).__doc__)
    shared = sum(other.target == entry.target for other in METHODS.values()) > 1
    return [settings, implementation] if shared else [implementation]


def preset(entry: MethodEntry) -> str:
    """The settings whose defaults a method changes, in parentheses."""
    given = getattr(entry, "preset", {})
    return f" ({', '.join(f'`{name}`: {code(value)}' for name, value in given.items())})" if given else ""


def method(entry: MethodEntry, known: Facts) -> str:
    """One method: what it does, where it comes from, its settings, what it needs and what it gives."""
    shown = texts(entry)
    aliases = [alias for alias, label in TORCHPRUNE_NAMES.items() if label == entry.label]
    lines = [f"({anchor(entry.label)})=\n## {entry.label}", *(part for text in shown for part in prose(text.text))]
    about = {
        "Settings differ": preset(entry),
        "Source": escaped("; ".join(text.sections["Source"] for text in shown if "Source" in text.sections)),
        "Differs": escaped("; ".join(text.sections["Differs"] for text in shown if "Differs" in text.sections)),
        "Needs": known.needs,
        "Gives": known.gives,
        "In torchprune": ", ".join(f"`{alias}`" for alias in aliases),
        "Implementation": f"`{entry.target}`",
    }
    lines += [table(["", ""], [[f"**{name}**", text] for name, text in about.items() if text])]
    lines += [f"```python\n{known.call}\n```"]
    rows = list(_setting_rows(entry))
    lines.append(table(["setting", "type", "default", "meaning"], rows) if rows else "It has no settings.")
    return "\n\n".join(lines)


def _setting_rows(entry: MethodEntry) -> Iterator[list[str]]:
    schema = TypeAdapter(entry.settings).json_schema()
    given = getattr(entry, "preset", {})
    described = setting_texts(entry.settings)
    for name, value in schema.get("properties", {}).items():
        default = given.get(name, value.get("default", {}))
        shown = "required" if name in schema.get("required", ()) and name not in given else code(default)
        block = {key: f"`{{{', '.join(part['properties'])}}}`" for key, part in schema.get("$defs", {}).items()}
        yield [f"`{name}`", kind(value, block), shown.replace("`null`", "none"), escaped(described.get(name, ""))]


def setting_texts(settings: type) -> dict[str, str]:
    """What each setting means: from the class, its bases and, for those that several share, the modules they are in."""
    found: dict[str, str] = {}
    for cls in reversed(settings.__mro__[:-1]):
        shared = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
        shared = "\n".join(line.removeprefix("    ") for line in shared.splitlines() if line.startswith("    "))
        found |= entries(shared)
    for cls in reversed(settings.__mro__[:-1]):
        found |= parse(cls.__doc__).entries("Attributes")
    return found


# Networks, datasets, the Python interface -----------------------------------------------------------------------------


def networks() -> str:
    """A table of the registered networks."""
    rows = []
    for entry in NETWORKS.values():
        factory = resolve(entry.target)
        assert callable(factory)
        parameters = list(inspect.signature(factory).parameters.values())[2:]
        settings = ", ".join(f"`{p.name}` ({p.default})" for p in parameters)
        doc = parse(factory.__doc__)
        rows.append([f"`{entry.name}`", escaped(doc.summary), settings, escaped(doc.sections.get("Source", ""))])
    return table(["name", "", "settings", "source"], rows)


def datasets() -> str:
    """A table of the registered datasets."""
    rows = []
    for entry in DATASETS.values():
        shape = " x ".join(map(str, entry.input_shape)) if entry.input_shape else "yours"
        train = f"{entry.num_train:,}" if entry.num_train else "yours"
        rows.append([f"`{entry.name}`", str(entry.num_classes or "yours"), shape, train])
    return table(["name", "classes", "channels x height x width", "training images"], rows)


def api() -> str:
    """All public names, documented from their docstrings."""
    lines = [".. currentmodule:: experiment"]
    for name in experiment.__all__:
        if inspect.isclass(getattr(experiment, name)):
            lines += ["", f".. autoclass:: {name}", "   :members:", "   :member-order: bysource"]
        else:
            lines += ["", f".. autofunction:: {name}"]
    return "```{eval-rst}\n" + "\n".join(lines) + "\n```"


GENERATED: dict[str, Callable[..., str]] = {
    "parameter-file": parameter_file,
    "methods": methods,
    "networks": networks,
    "datasets": datasets,
    "api": api,
}
