"""All keys of a parameter file, from its schema; each example comes from `examples.yaml`."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from experiment import main
from experiment.config import Parameters
from generator.markdown import code, escaped, type_in_words

EXAMPLES = Path(__file__).resolve().parent.parent / "examples.yaml"
LONGEST_EXAMPLE = 100  # characters; longer ones are whole blocks, whose keys have examples of their own
Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A block of a parameter file.

    Attributes:
        name: of its schema.
        path: of its keys: empty, or ending in a dot, such as `experiments.spacing[].`.
        also: other keys that hold such a block.
    """

    name: str
    path: str
    schema: Schema
    required: tuple[str, ...]
    also: list[str] = field(default_factory=list)

    @property
    def kinds(self) -> list[str]:
        """The values of its key `type`, if that tells it from other blocks at the same path."""
        kind = self.schema["properties"].get("type", {})
        return kind.get("enum") or ([kind["const"]] if "const" in kind else [])

    @property
    def short_title(self) -> str:
        """Its path or, of several blocks at the same path, its kinds."""
        return ", ".join(self.kinds) or self.path.rstrip(".")

    @property
    def title(self) -> str:
        """Its path and its kinds, as Markdown."""
        kinds = ", ".join(f"`{kind}`" for kind in self.kinds)
        return (f"`{self.path.rstrip('.')}`" if self.path else "The whole file") + (f": {kinds}" if kinds else "")


def parameter_file() -> str:
    """Every block with all of its keys."""
    found = sections()
    links = {name: f"[`{s.short_title}`](#block-{name.lower()})" for name, s in found.items()}
    documents = list(yaml.safe_load_all(EXAMPLES.read_text(encoding="utf-8")))
    return "\n\n".join(_section(section, found, links, documents) for section in found.values())


def sections() -> dict[str, Section]:
    """Every block, from the outside in, by the name of its schema."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        main.main(["--schema"])
    schema = json.loads(text.getvalue())
    strict = Parameters.model_json_schema(
        by_alias=True
    )  # the schema for editors requires nothing that an include may give
    found = {"Parameters": Section("Parameters", "", schema, tuple(strict["required"]))}
    queue = list(found.values())
    while queue:
        outer = queue.pop(0)
        for key, value in outer.schema["properties"].items():
            for name, suffix in _references(value):
                options = schema["$defs"][name].get("anyOf", [schema["$defs"][name]])
                block = next((option for option in options if "properties" in option), None)
                path = f"{outer.path}{key}{suffix}"
                if name in found and outer.name != "Retraining":
                    found[name].also.append(path)
                elif block and name not in found:
                    required = tuple(strict["$defs"][name].get("required", ()))
                    found[name] = Section(name, f"{path}.", block, required)
                    queue.append(found[name])
    return found


def _references(schema: Schema, suffix: str = "") -> Iterator[tuple[str, str]]:
    """The schemas that a value may be of, each with `[]` if it is an element of a list."""
    if "$ref" in schema:
        yield schema["$ref"].rpartition("/")[2], suffix
    for option in [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
        yield from _references(option, suffix)
    if isinstance(schema.get("items"), dict):
        yield from _references(schema["items"], "[]")


def _section(section: Section, found: Mapping[str, Section], links: Mapping[str, str], documents: list[Any]) -> str:
    keys: dict[str, Any] = section.schema["properties"]
    lines = [f"(block-{section.name.lower()})=\n## {section.title}", escaped(section.schema.get("description", ""))]
    if section.also:
        lines.append(f"The same keys are in {', '.join(f'`{path}`' for path in section.also)}.")
    if section.name == "Retraining":
        lines.append("It has all keys of [`training`](#block-training). A key that is not given is taken from there.")
        keys = {key: value for key, value in keys.items() if key not in found["Training"].schema["properties"]}
    for key, schema in keys.items():
        nested = [found[name] for name, _ in _references(schema) if name in found]
        described = schema.get("description") or (nested[0].schema.get("description", "") if nested else "")
        default = schema.get("default")
        facts = [f"*{type_in_words(schema, links)}.*"]
        if key in section.required:
            facts.append("Required.")
        elif default not in (None, {}, [], ""):
            facts.append(f"Default: {code(default)}.")
        facts += [f"Example: {example}" for example in _examples(documents, section, key)][:1]
        lines.append(f"`{section.path}{key}`\n: {escaped(described)}\n\n  {' '.join(facts)}")
    return "\n\n".join(lines)


def _examples(documents: list[Any], section: Section, key: str) -> Iterator[str]:
    for document in documents:
        for block in _blocks_at(document, section.path.split(".")[:-1]):
            if key in block and (not section.kinds or block.get("type") in section.kinds):
                text = code({key: block[key]})
                if len(text) < LONGEST_EXAMPLE:
                    yield f"`{text[2:-2]}`"


def _blocks_at(node: Any, path: list[str]) -> Iterator[dict[str, Any]]:
    if not path:
        yield from [node] if isinstance(node, dict) else []
    elif isinstance(node, dict) and (inner := node.get(path[0].removesuffix("[]"))):
        for element in inner if path[0].endswith("[]") else [inner]:
            yield from _blocks_at(element, path[1:])
