"""Calibration data as users pass them to `compress`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from experiment.datasets.check_samples import described
from experiment.errors import CompressionError
from experiment.methods.base import Calibration

_DATA = "a tensor of inputs, a pair of tensors (inputs, targets), or a loader of such batches"


def calibration_of(data: Iterable[Any] | Tensor | None) -> Calibration | None:
    """Calibration data in one of the forms that `compress` accepts.

    Raises: CompressionError: they have another form, are empty, or their shapes differ.
    """
    if data is None:
        return None
    if isinstance(data, Tensor):
        return _checked(data, None)
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        batches_of_one_kind = data[0].dim() > 1 and data[0].shape[1:] == data[1].shape[1:]
        return _checked(torch.cat(list(data))) if batches_of_one_kind else _checked(data[0], data[1])
    if not isinstance(data, Iterable) or isinstance(data, Dataset | Mapping) or hasattr(data, "__array__"):
        raise CompressionError(f"data: expected {_DATA}. Got {described(data)}.")
    batches = [batch if isinstance(batch, tuple | list) else (batch,) for batch in data]
    if not batches:
        raise CompressionError("data: the loader gave no batch.")
    for i, batch in enumerate(batches):
        if not 1 <= len(batch) <= 2 or len(batch) != len(batches[0]) or not all(isinstance(p, Tensor) for p in batch):
            came = described(batch[0]) if len(batch) == 1 else f"({', '.join(described(part) for part in batch[:4])})"
            raise CompressionError(f"data: expected {_DATA}. Batch {i} of the loader is {came}.")
        if any(p.shape[1:] != q.shape[1:] or not p.dim() for p, q in zip(batch, batches[0], strict=True)):
            raise CompressionError(
                f"data: expected inputs of one shape and one target per sample. Batch {i} is "
                f"{' and '.join(described(part) for part in batch)}, the first one "
                f"{' and '.join(described(part) for part in batches[0])}. Resize or pad them."
            )
    inputs, *targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return _checked(inputs, *targets)


def _checked(inputs: Tensor, targets: Tensor | None = None) -> Calibration:
    """Raises: CompressionError: there are no samples, targets do not belong to the inputs, or inputs are raw pixels."""
    if not inputs.dim() or not len(inputs):
        raise CompressionError(f"data: expected {_DATA}, with at least one sample. Got {described(inputs)}.")
    if inputs.dtype in (torch.uint8, torch.uint16):
        raise CompressionError(
            f"data: expected inputs as the network takes them, floats normalised as for training. Got {inputs.dtype} "
            "pixels. Pass data.float() / 255, normalised as for training."
        )
    if targets is not None and (not targets.dim() or len(targets) != len(inputs)):
        raise CompressionError(
            f"data: expected one target per sample, for {len(inputs)} inputs. Got {described(targets)}."
        )
    return Calibration(inputs, targets)
