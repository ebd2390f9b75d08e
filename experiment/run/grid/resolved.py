"""What a training block comes to on a kind of device: what `auto` becomes, and what of it decides numbers."""

from __future__ import annotations

from typing import Any, Literal

from experiment.config import Parameters, Search, Training, base_mode, epochs_of, retraining, rewinding
from experiment.datasets import DATASETS

Precision = Literal["fp32", "bf16", "fp16"]

# What training's metrics and test batches do is show, not decide.
SHOWN_ONLY = {"test_batch_size"}
UNUSED_BY_LC = {"num_epochs", "start_epoch", "lr_schedulers", "early_stop_epoch"}
RESOLVED = {"enable_amp", "precision", "channels_last"}
SEARCH_VERSION = 1  # rises when the same samples would be judged otherwise, or others be made


def resolved_precision(training: Training, auto: Precision) -> Precision:
    """The number format of training.

    Args:
        auto: what `precision: auto` becomes on this machine unless AMP is off. On a GPU the fastest format that its
            hardware computes in; on a CPU float32, since bfloat16 need not be faster there.
    """
    if training.precision != "auto":
        return training.precision
    return auto if training.enable_amp else "fp32"


def resolved_channels_last(training: Training, kind: str, auto: Precision) -> bool:
    """Where nothing is said: on CPUs always, on GPUs with the narrow formats that their matrix units take.

    On a CPU convolutions train 1.3 to 1.5 times as fast; without convolutions it makes no difference.
    """
    if training.channels_last is not None:
        return training.channels_last
    return kind == "cpu" or resolved_precision(training, auto) != "fp32"


def training_key(training: Training, kind: str, auto: Precision) -> dict[str, Any]:
    """What of a training block decides the reference network."""
    return _key(training, kind, auto, SHOWN_ONLY | {"start_epoch"}) | {"num_epochs": training.num_epochs}


def planned_epochs(p: Parameters) -> int:
    """Epochs that every cell is retrained for, as far as that can be said without the data."""
    entry = DATASETS.get(p.network.dataset.name)
    return epochs_of(p, None if entry is None else entry.num_train)


def retraining_key(p: Parameters, kind: str, auto: Precision, epochs: int) -> dict[str, Any]:
    """What of the retraining block decides what it makes of a compressed network."""
    if epochs == 0:
        return {"epochs": 0}
    if p.experiments.mode == "lc":
        how = p.lc.model_dump(mode="json", exclude_defaults=True)
        return _key(retraining(p), kind, auto, SHOWN_ONLY | UNUSED_BY_LC) | {"lc": how}
    return _key(retraining(p), kind, auto, SHOWN_ONLY) | {"epochs": epochs}


def mode_key(p: Parameters) -> dict[str, str]:
    """The mode by torchprune's name, whichever setting says so; only what these have no name for is told beside it."""
    which, base = rewinding(p.experiments), base_mode(p.experiments)
    if which == "random":
        return {"mode": base, "rewind": which}
    return {"mode": f"{base}-rewind" if which == "weights" else base}


def search_key(search: Search | None) -> dict[str, Any]:
    """What decides the keep ratio of a cell, where it is searched."""
    if search is None:
        return {}
    return {"search": {"version": SEARCH_VERSION} | search.model_dump(mode="json", exclude_defaults=True)}


def _key(training: Training, kind: str, auto: Precision, left_out: set[str]) -> dict[str, Any]:
    key = training.model_dump(mode="json", exclude_defaults=True, exclude=left_out | RESOLVED)
    key["precision"] = resolved_precision(training, auto)
    return key | ({"channels_last": True} if resolved_channels_last(training, kind, auto) else {})
