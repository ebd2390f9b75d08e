"""Content hashes of what determines an outcome: the names under which results are found again.

Everything that changes the numbers enters; what only shows or places them (labels, metrics, test batches, paths) does
not; values left at their defaults are left out, so that a new setting renames nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from experiment.registry import is_import_path
from experiment.user_code import code_in, source_hash

FORMAT_VERSION = 1  # of every file that this package writes


def digest(payload: object) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the canonical JSON of `payload`."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


MADE = 10  # digits of a cell's key that tell how its network was made; the others tell what it was tested on


def cell_key(made: str, test: Mapping[str, Any] | None) -> str:
    """The key of a cell: cells with the same network, tested on other data, have the same first digits.

    Args:
        made: the digest of all that made the network.
        test: on which data it is tested, where that needs saying.
    """
    return made if test is None else made[:MADE] + digest([made, test])[MADE:]


def named(name: str, version: int | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """How a network, dataset or method enters a key: with its version, or with the hash of the user's source."""
    entry: dict[str, Any] = {"name": name, "settings": dict(settings)}
    if is_import_path(name):
        entry["source"] = source_hash(name.partition(":")[0])
    else:
        entry["version"] = version
    return entry | sources_in(entry["settings"])


def sources_in(settings: object) -> dict[str, Any]:
    """How code of the user's that settings name enters a key: changed code is another network, dataset or method."""
    sources = {module: source_hash(module) for module in code_in(settings)}
    return {"sources": sources} if sources else {}


def settings_without_defaults(settings: object) -> dict[str, Any]:
    """The fields of a settings dataclass that differ from their defaults."""
    found = {}
    for f in fields(settings):  # type: ignore[arg-type]
        value = vars(settings)[f.name]
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if value != default:
            found[f.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """A setting as JSON has it: settings within settings without their defaults."""
    if is_dataclass(value):
        return settings_without_defaults(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
