"""Pydantic's errors as sentences, each with the key to blame and the place where its value was written."""

from collections.abc import Iterator
from typing import Any

from pydantic_core import ErrorDetails

from experiment.config.keep_ratios import SPACINGS
from experiment.config.schema.training import CONFLICT
from experiment.config.setting_paths import description, keys_by_block, known_keys, suggested_key
from experiment.config.value_tree import KeyPath, Kind, Node, Problem, nearest
from experiment.registry import suggestion

_EXPECTED = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping (key: value)",
    "dataclass_type": "must be a mapping (key: value)",
    "model_type": "must be a mapping (key: value)",
    "model_attributes_type": "must be a mapping (key: value)",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must not contain spaces or line breaks",
    "too_short": "must not be empty",
    "too_long": "is too long",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
}
_NAME_OR_MAPPING = ("dataset", "datasetTest", "methods")


def problems(errors: list[ErrorDetails], root: Node) -> Iterator[Problem]:
    """Each error as a problem of the file.

    Skips errors about values that were rejected while reading, and about missing keys that are present but misspelt.
    """
    located = [(_path(error, root), error) for error in caused_by_user(errors)]
    misspelt = {(*path[:-1], suggested_key(path)) for path, error in located if error["type"] == "extra_forbidden"}
    for path, error in located:
        node = nearest(root, path)
        kind = error["type"]
        if node.broken or (kind == "missing" and path in misspelt):
            continue
        which: Kind = "missing" if kind == "missing" else "unknown" if kind == "extra_forbidden" else "value"
        yield Problem(node.place, path, _sentence(error, path, node), which)


def caused_by_user(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Errors without those that follow from others: a list is not empty because its elements are wrong."""
    return [error for error in errors if error["type"] != "too_short" or not error["input"]]


def expectation(error: ErrorDetails) -> str:
    """The expected and the actual value, in one sentence."""
    context, got = error.get("ctx", {}), error["input"]
    if error["type"] == CONFLICT:
        return error["msg"]
    if error["type"] == "literal_error":
        return _choice(context["expected"].replace(" or ", ", "), got)
    if error["type"] == "missing":
        return "is required and missing."
    return f"{_EXPECTED.get(error['type'], error['msg']).format(**context)}. Got {show(got)}."


def _path(error: ErrorDetails, root: Node) -> KeyPath:
    """The path of the key to blame: pydantic's, without the block type that it inserts for a union of blocks."""
    path: list[int | str] = []
    node: Node | None = root
    for part in error["loc"]:
        value = node.value if node is not None else None
        if isinstance(value, dict) and "type" in value and part == value["type"].value and part not in value:
            continue
        path.append(part)
        if isinstance(value, dict):
            node = value.get(str(part))
        else:
            node = value[part] if isinstance(value, list) and isinstance(part, int) else None
    return (*path, "type") if error["type"] == "union_tag_invalid" else tuple(path)


def _unknown_key(parent: KeyPath, key: str) -> str:
    """The error about a key that does not exist in its block: a suggestion, or the keys that exist."""
    known = known_keys(parent)
    if key in known:  # of another block that is allowed here
        return "does not apply to this type. Remove it."
    if near := suggestion(key, known):
        return f"unknown key.{near}"
    homes = [name for name, keys in keys_by_block().items() if key in keys and (name,) != parent]
    if homes:
        return f"unknown key. It belongs in {' or '.join(homes)}."
    if key == "file":
        return "unknown key. A file can only be included from within a parameter file."
    return f"unknown key. Known keys: {', '.join(known)}."


def _sentence(error: ErrorDetails, path: KeyPath, node: Node) -> str:
    kind, context, got = error["type"], error.get("ctx", {}), error["input"]
    if kind == "missing":
        what = description(path).removesuffix(".")
        return f"is required and missing ({what})." if what else "is required and missing."
    if kind == "extra_forbidden":
        return _unknown_key(path[:-1], str(path[-1]))
    if kind == "union_tag_invalid":
        return _choice(context["expected_tags"], context["tag"])
    if kind == "union_tag_not_found":
        return f"needs a `type`, one of {', '.join(SPACINGS)}."
    is_keep = "spacing" in path and path[-1] not in ("numIntervals", "values")
    if is_keep and kind in ("greater_than", "less_than_equal"):
        return f"must be in (0, 1]. Got {show(got)}."
    if kind == "model_type" and any(key in _NAME_OR_MAPPING for key in path[-2:]):
        return f"must be a name or a mapping {{name: ..., settings: ...}}. Got {show(got)}."
    return expectation(error) + _hint(path, kind, got, node)


def _hint(path: KeyPath, kind: str, got: Any, node: Node) -> str:
    if node.bare == "None":
        return " Write null for no value."
    if kind == "list_type" and isinstance(got, str | int | float):
        dotted = path[-1] == "key" and "." in str(got)
        return f" Write [{str(got).replace('.', ', ')}]." if dotted else f" Write [{got}] for a list of one."
    if kind == "string_type" and node.bare:
        return f' Write "{node.bare}" in quotes for text.'
    return ""


def _choice(listed: str, got: Any) -> str:
    parts = [part.strip() for part in listed.split(",")]
    choices = [part.strip("'") if "'" in part else part.lower() for part in parts]  # true, as in YAML
    near = _near(got, choices) if isinstance(got, str) else ""
    return f"must be one of {', '.join(choices)}. Got {show(got)}.{near}"


def _near(got: str, choices: list[str]) -> str:
    if got in choices:  # true or false as text
        return " Write it without quotes."
    begun = [choice for choice in choices if choice.startswith(got)]
    return suggestion(begun[0] if len(begun) == 1 else got, choices)


def show(value: Any) -> str:
    """A value in an error message, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        keys = ", ".join(map(str, list(value)[:4])) + (", ..." if len(value) > 4 else "")
        return f"a mapping ({keys})" if value else "{}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
