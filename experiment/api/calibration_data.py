"""Calibration data as users pass them to `compress`."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from experiment.errors import CompressionError
from experiment.inputs import (
    ATTENTION_MASK,
    LABELS,
    Inputs,
    as_inputs,
    attended,
    batch_size,
    in_words,
    join,
    same_form,
    tensors,
    without_labels,
)
from experiment.methods.base import Calibration

_DATA = (
    "inputs (a tensor, or a dictionary of tensors), a pair (inputs, targets), or a loader of such batches; "
    "inputs may also be a tuple in a pair"
)


def calibration_of(data: Iterable[Any] | Inputs | None, example: Inputs | None = None) -> Calibration | None:
    """Calibration data in one of the forms that `compress` accepts.

    A tuple of as many tensors as the example has is inputs, as the example is.

    A dictionary, such as a tokenizer's output, holds inputs by keyword; its `labels` are the targets.

    Raises: CompressionError: they have another form, are empty, or their shapes differ.
    """
    if data is None:
        return None
    if isinstance(example, tuple) and isinstance(data, tuple) and same_form(data, example):
        return _checked(data)
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        batches_of_one_kind = data[0].dim() > 1 and data[0].shape[1:] == data[1].shape[1:]
        if isinstance(data, tuple) and not data[1].is_floating_point():  # of tokens, say, and the next ones
            batches_of_one_kind = False
        return _checked(torch.cat(list(data))) if batches_of_one_kind else _checked(data[0], data[1])
    if _is_batch(data) and not (isinstance(data, list) and _is_batch(data[0])):
        return _checked(*_parts(data))
    if not isinstance(data, Iterable) or isinstance(data, Dataset | Mapping) or hasattr(data, "__array__"):
        raise CompressionError(f"data: expected {_DATA}. Got {in_words(data)}.")
    return _joined(list(data))


def _is_batch(value: object) -> bool:
    """Whether a value is inputs, or a pair of inputs and targets, rather than a loader."""
    if isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[1], Tensor):
        return _is_inputs(value[0])
    return isinstance(value, Tensor | Mapping) and _is_inputs(value)


def _is_inputs(value: object) -> bool:
    if isinstance(value, tuple | list):
        return bool(value) and all(isinstance(part, Tensor) or part is None or _is_inputs(part) for part in value)
    if isinstance(value, Mapping):
        return any(isinstance(part, Tensor) for part in value.values())
    return isinstance(value, Tensor)


def _parts(batch: Any) -> tuple[Any, Tensor | None]:
    """Inputs and targets of one batch."""
    if isinstance(batch, Mapping):
        return without_labels(batch) if isinstance(batch.get(LABELS), Tensor) else (dict(batch), None)
    if isinstance(batch, tuple | list):
        return (batch[0], batch[1]) if len(batch) == 2 else (batch[0], None)
    return batch, None


def _joined(batches: list[Any]) -> Calibration:
    """The batches of a loader as one."""
    if not batches:
        raise CompressionError("data: the loader gave no batch.")
    for i, batch in enumerate(batches):
        alone = isinstance(batch, tuple | list) and len(batch) == 1 and _is_inputs(batch[0])
        if not (alone or _is_batch(batch)):
            came = in_words(batch)
            if isinstance(batch, tuple | list):
                came = f"({', '.join(in_words(part) for part in batch[:4])})"
            raise CompressionError(f"data: expected {_DATA}. Batch {i} of the loader is {came}.")
    pairs = [_parts(batch) for batch in batches]
    for i, pair in enumerate(pairs):
        if not same_form(pair, pairs[0]) or not all(tensor.dim() for tensor in tensors(pair)):
            texts = [" and ".join(in_words(part) for part in p if part is not None) for p in (pair, pairs[0])]
            raise CompressionError(
                f"data: expected inputs of one shape and one target per sample. Batch {i} is {texts[0]}, the first "
                f"one {texts[1]}. Resize or pad them."
            )
    return _checked(*join(pairs))


def _checked(inputs: Any, targets: Tensor | None = None) -> Calibration:
    """Raises: CompressionError: there are no samples, targets do not belong to the inputs, or inputs are raw pixels."""
    if not tensors(inputs) or not batch_size(inputs):
        raise CompressionError(f"data: expected at least one sample. Got {in_words(inputs)}.")
    inputs = as_inputs(inputs, "data")
    mask = attended(inputs)
    if mask is not None and not mask.any():
        raise CompressionError(f"data: expected tokens that count. Got 0 everywhere in '{ATTENTION_MASK}'.")
    for tensor in tensors(inputs):
        if tensor.dtype in (torch.uint8, torch.uint16):
            raise CompressionError(
                "data: expected inputs as the network takes them, floats normalised as for training. Got "
                f"{tensor.dtype} pixels. Pass data.float() / 255, normalised as for training."
            )
    if targets is not None and (not targets.dim() or len(targets) != batch_size(inputs)):
        raise CompressionError(
            f"data: expected one target per sample, for {batch_size(inputs)} inputs. Got {in_words(targets)}."
        )
    return Calibration(inputs, targets)
