"""The JSON schema of a parameter file, for editors that complete and check YAML while it is written."""

from __future__ import annotations

from typing import Any

from experiment.config.schema.parameter_file import Parameters

_INCLUDE = {"type": "string", "description": "Another YAML file: read first, then what stands here goes on top of it."}
_INCLUDABLE = ("Network", "Training", "Retraining", "Experiments", "Coresets", "Directories")
_SHORT = ("NamedSettings", "MethodRef")


def json_schema() -> dict[str, Any]:
    """The schema of a file as it is written: includes are allowed, and nothing is required that an include may give."""
    schema = Parameters.model_json_schema(by_alias=True)
    schema["title"] = "experiment parameter file"
    definitions = schema["$defs"]
    for block in (schema, *(definitions[name] for name in _INCLUDABLE)):
        block.pop("required", None)
        block["properties"]["file"] = _INCLUDE
    for name in _SHORT:
        full = definitions[name]
        definitions[name] = {"description": full["description"], "anyOf": [{"type": "string", "minLength": 1}, full]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
