"""Plain text, values and JSON schemas as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from generator.docstrings import blocks

VERBATIM = re.compile(r"(``?[^`]+``?|https?://[^\s,;)]+[^\s,;).])")
OPTION = re.compile(r"(?<![\S`])(--\w[\w-]*)")  # else it would begin with a dash
SPECIAL = re.compile(r"([\\*_<>\[\]|$#~^])")
RANGES = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"} | {
    "minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"
}  # fmt: skip
WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


def escaped(text: str) -> str:
    """Plain text as Markdown; what is in backticks and options are code, and addresses become links."""
    parts = VERBATIM.split(OPTION.sub(r"`\1`", " ".join(text.split())))
    parts[0::2] = [SPECIAL.sub(r"\\\1", part) for part in parts[0::2]]
    parts[1::2] = [f"<{part}>" if part.startswith("http") else part for part in parts[1::2]]
    return "".join(parts)


def prose(text: str) -> Iterator[str]:
    """The paragraphs of a docstring as Markdown; indented ones are formulas."""
    for indented, part in blocks(text):
        yield f"```text\n{part}\n```" if indented else escaped(part)


def code(value: object) -> str:
    """A value as YAML in backticks."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("...\n")
    return f"`{text.strip()}`"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def type_in_words(schema: Mapping[str, Any], blocks: Mapping[str, str]) -> str:
    """The type and range that a JSON schema allows.

    Args:
        blocks: what to write for a reference to another schema, by its name.
    """
    if "$ref" in schema:
        return blocks.get(schema["$ref"].rpartition("/")[2], "block")
    if "const" in schema or "enum" in schema:
        return _either([f"`{value}`" for value in schema.get("enum", [schema.get("const")])])
    if options := schema.get("anyOf") or schema.get("oneOf"):
        words = [type_in_words(option, blocks) for option in options]
        return _either(list(dict.fromkeys(word for word in words if word != "null")))
    if fixed := schema.get("prefixItems"):
        return f"list of {len(fixed)}: {type_in_words(fixed[0], blocks)}"
    if schema.get("type") == "array":
        return f"list of: {type_in_words(schema.get('items', {}), blocks)}"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"mapping from names to: {type_in_words(values, blocks)}" if isinstance(values, dict) else "mapping"
    limits = [f"{word} {schema[key]:g}" for key, word in RANGES.items() if key in schema]
    return ", ".join([WORDS.get(schema.get("type", ""), "any value"), *limits])


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
