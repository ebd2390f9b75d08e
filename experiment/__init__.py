"""Compression experiments: prune, decompose, quantize, retrain, and compare the trade-offs.

Public names are imported on first use, so that `import experiment` does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiment.api.compression import CompressionResult, bake, compress, compress_many, save_network
    from experiment.api.evaluation import calibration_inputs, evaluate
    from experiment.api.export import export_network
    from experiment.api.learn_compress import LC
    from experiment.api.results import load_network, load_results
    from experiment.deploy.int8 import quantize_int8, serialized_bytes
    from experiment.layers.torch_prune_state import load_pruned_state, pruned_state
    from experiment.lc.keep_search import search_keep
    from experiment.tasks.task import Metric, Task

__all__ = [
    "LC", "CompressionResult", "Metric", "Task", "bake", "calibration_inputs", "compress", "compress_many", "evaluate",
    "export_network", "load_network", "load_pruned_state", "load_results", "pruned_state", "quantize_int8",
    "save_network", "search_keep", "serialized_bytes",
]  # fmt: skip

_HOMES = {
    "experiment.api.compression": ("CompressionResult", "bake", "compress", "compress_many", "save_network"),
    "experiment.api.evaluation": ("calibration_inputs", "evaluate"),
    "experiment.api.export": ("export_network",),
    "experiment.api.learn_compress": ("LC",),
    "experiment.api.results": ("load_network", "load_results"),
    "experiment.deploy.int8": ("quantize_int8", "serialized_bytes"),
    "experiment.layers.torch_prune_state": ("load_pruned_state", "pruned_state"),
    "experiment.lc.keep_search": ("search_keep",),
    "experiment.tasks.task": ("Metric", "Task"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return vars(importlib.import_module(home))[name]
    raise AttributeError(f"module 'experiment' has no attribute '{name}'")
