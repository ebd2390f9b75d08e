"""Compression experiments: prune, decompose, retrain, and an honest trade-off at the end.

The public names are imported when they are first used, so that `import experiment` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiment.api import (
        CompressionResult,
        calibration_inputs,
        compress,
        compress_many,
        evaluate,
        load_network,
        load_pruned_state,
        load_results,
        pruned_state,
        quantize_int8,
        save_network,
        serialized_bytes,
    )
    from experiment.lc.search import search_keep
    from experiment.lc_api import LC

__all__ = [
    "LC",
    "CompressionResult",
    "calibration_inputs",
    "compress",
    "compress_many",
    "evaluate",
    "load_network",
    "load_pruned_state",
    "load_results",
    "pruned_state",
    "quantize_int8",
    "save_network",
    "search_keep",
    "serialized_bytes",
]

_ELSEWHERE = {"LC": "experiment.lc_api", "search_keep": "experiment.lc.search"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return vars(importlib.import_module(_ELSEWHERE.get(name, "experiment.api")))[name]
    raise AttributeError(f"module 'experiment' has no attribute '{name}'")
