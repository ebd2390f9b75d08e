"""What a network takes and returns: pytrees of tensors, and the one place that passes them to it.

The inputs of a network are a tensor (its one argument), a tuple or list (positional arguments) or a mapping (keyword
arguments, such as the output of a Hugging Face tokenizer). Every tensor in them with a dimension has the batch as its
first one, of one size. Other values, such as None, numbers and tensors without dimensions, are passed on as they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from experiment.errors import CompressionError, kind_of
from experiment.registry import InputForm, InputShape

Inputs = Any
"""A pytree of tensors with one leading batch dimension: Tensor | tuple[Inputs, ...] | dict[str, Inputs] | other."""

LABELS = "labels"  # the keyword of targets in Hugging Face's datasets
ATTENTION_MASK = "attention_mask"  # the keyword of Hugging Face's networks: 1 for tokens, 0 for padding
_SCORED = ("logits", "out", "last_hidden_state", "prediction_logits")  # in this order, in outputs that are mappings


def as_inputs(value: object, argument: str = "example") -> Inputs:
    """Inputs in plain containers: dictionaries instead of other mappings, tuples instead of lists.

        as_inputs(tokenizer(["a text"], return_tensors="pt"))    # {"input_ids": (1, 3), "attention_mask": (1, 3)}

    Args:
        argument: the name of the argument that holds them, for the error.
    Raises: CompressionError: there is no tensor in them, a batch is empty, or their batch sizes differ.
    """
    plain = _plain(value)
    parts = [tensor for tensor in tensors(plain) if tensor.dim()]
    if not parts:
        came = described(plain) if tensors(plain) else kind_of(value)
        if isinstance(value, Mapping):
            came = "{" + ", ".join(f"{key}: {kind_of(item)}" for key, item in value.items()) + "}"
            came += '. A tokenizer returns tensors with return_tensors="pt"' if value else ""
        raise CompressionError(
            f"{argument}: expected a tensor with a batch dimension, or a tuple or dictionary of such tensors. "
            f"Got {came}."
        )
    sizes = {len(tensor) for tensor in parts}
    if len(sizes) > 1:
        raise CompressionError(
            f"{argument}: the first dimension of every tensor is the batch, so it must have one size. "
            f"Got {described(plain)}."
        )
    if sizes == {0}:
        raise CompressionError(f"{argument}: expected at least one input. Got an empty batch, {described(plain)}.")
    if any(bool(tensor.isnan().any()) for tensor in parts if tensor.is_floating_point() and not tensor.is_meta):
        raise CompressionError(f"{argument}: expected numbers. Got NaN in {described(plain)}.")
    return plain


def call_network(network: nn.Module | Callable[..., Any], inputs: Inputs) -> Any:
    """What the network returns for these inputs."""
    if isinstance(inputs, Mapping):
        return network(**inputs)
    if isinstance(inputs, tuple | list):
        return network(*inputs)
    return network(inputs)


def tensors(inputs: Inputs) -> list[Tensor]:
    """All tensors in the inputs."""
    return [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def batch_size(inputs: Inputs) -> int:
    """The number of samples; 0 without tensors."""
    return next((len(tensor) for tensor in tensors(inputs) if tensor.dim()), 0)


def take(inputs: Inputs, index: slice | Tensor | Sequence[int]) -> Inputs:
    """The samples at these indices, as a batch."""
    return over_samples(inputs, lambda tensor: tensor[index])


def first(inputs: Inputs, number: int = 1) -> Inputs:
    """A batch of the first samples."""
    return take(inputs, slice(number))


def split(inputs: Inputs, size: int) -> Iterator[Inputs]:
    """The inputs in batches of at most `size` samples."""
    for start in range(0, batch_size(inputs), max(1, size)):
        yield take(inputs, slice(start, start + max(1, size)))


def join(batches: Sequence[Inputs]) -> Inputs:
    """One batch of the samples of several batches with the same structure.

    Raises: RuntimeError, ValueError: their structures or shapes differ.
    """
    flat, structures = zip(*(tree_flatten(batch) for batch in batches), strict=True)
    if any(structure != structures[0] for structure in structures):
        raise ValueError(f"the batches have different structures: {structures[0]} and others.")
    joined = [
        torch.cat(parts) if isinstance(parts[0], Tensor) and parts[0].dim() else parts[0]
        for parts in zip(*flat, strict=True)
    ]
    return tree_unflatten(joined, structures[0])


def stack(samples: Sequence[Inputs]) -> Inputs:
    """A batch of samples without a batch dimension.

    Raises: ValueError: their structures or shapes differ; the message says how.
    """
    if all(isinstance(sample, Tensor) and sample.shape == samples[0].shape for sample in samples):
        return torch.stack(tuple(samples))
    flat, structures = zip(*(tree_flatten(sample) for sample in samples), strict=True)
    parts = list(zip(*flat, strict=False))
    same = all(structure == structures[0] for structure in structures)
    if not same or any(len({x.shape for x in leaves if isinstance(x, Tensor)}) > 1 for leaves in parts):
        raise ValueError(", ".join(sorted({_described(sample) for sample in samples})[:3]))
    stacked = [torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0] for leaves in parts]
    return tree_unflatten(stacked, structures[0])


def form_of(inputs: Inputs) -> InputForm:
    """The form of one sample of a batch.

    Raises: CompressionError: the inputs hold something else than tensors.
    """
    if isinstance(inputs, Tensor):
        return InputShape(inputs.shape[1:], tokens=not inputs.is_floating_point())
    if isinstance(inputs, Mapping):
        return {key: form_of(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(form_of(value) for value in inputs)
    raise CompressionError(f"inputs of a dataset must be tensors, in tuples or dictionaries. Got {kind_of(inputs)}.")


def as_form(shape: InputForm | tuple[int, ...]) -> InputForm:
    """A form from a shape that may be a plain tuple of integers."""
    if isinstance(shape, tuple) and not isinstance(shape, InputShape) and all(isinstance(side, int) for side in shape):
        return InputShape(cast(tuple[int, ...], shape))
    return cast(InputForm, shape)


def example_of(form: InputForm, make: Callable[[InputShape], Tensor]) -> Inputs:
    """Inputs of a form, each tensor made from its shape, or of ones where its keyword says that it is a mask."""
    if isinstance(form, InputShape):
        return make(form)
    if isinstance(form, Mapping):
        made = {key: example_of(value, make) for key, value in form.items()}
        return {key: torch.ones_like(x) if "mask" in key and isinstance(x, Tensor) else x for key, x in made.items()}
    return tuple(example_of(value, make) for value in form)


def arranged(inputs: Inputs, *, channels_last: bool) -> Inputs:
    """The inputs with images, tensors of four dimensions, in channels-last memory format if it is asked for."""
    if not channels_last:
        return inputs
    return mapped(inputs, lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x)


def moved(
    inputs: Inputs, device: torch.device | str, dtype: torch.dtype | None = None, *, non_blocking: bool = False
) -> Inputs:
    """The inputs on a device; floating-point ones in this dtype. Integers keep theirs."""

    def move(leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device, dtype if leaf.is_floating_point() else None, non_blocking=non_blocking)

    return tree_map(move, inputs)


def moved_like(inputs: Inputs, example: Inputs) -> Inputs:
    """The inputs on the device of an example, floating-point ones in its dtype."""
    return moved(inputs, device_of(example), floating_dtype(example))


def device_of(inputs: Inputs) -> torch.device:
    """The device of the first tensor."""
    return next((tensor.device for tensor in tensors(inputs)), torch.device("cpu"))


def floating_dtype(inputs: Inputs) -> torch.dtype | None:
    """The dtype of the first floating-point tensor; None if all are integers."""
    return next((tensor.dtype for tensor in tensors(inputs) if tensor.is_floating_point()), None)


def mapped(inputs: Inputs, change: Callable[[Tensor], Any]) -> Any:
    """The inputs with every tensor changed."""
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, inputs)


def same_form(inputs: Inputs, others: Inputs) -> bool:
    """Whether both have the same structure, and their samples the same shapes."""
    (leaves, structure), (other_leaves, other_structure) = tree_flatten(inputs), tree_flatten(others)
    return structure == other_structure and all(
        isinstance(a, Tensor) == isinstance(b, Tensor) and (not isinstance(a, Tensor) or a.shape[1:] == b.shape[1:])
        for a, b in zip(leaves, other_leaves, strict=True)
    )


def attended(inputs: Inputs) -> Tensor | None:
    """Which tokens of a batch are no padding, from `attention_mask` among keywords: (B, N) bool; None without it."""
    mask = inputs.get(ATTENTION_MASK) if isinstance(inputs, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def described(inputs: Inputs) -> str:
    """The inputs in words: `a tensor of shape (8, 3, 32, 32)`, `{input_ids: (8, 16) int64}`."""
    if isinstance(inputs, Tensor):
        return f"a tensor of shape {tuple(inputs.shape)}"
    return _described(inputs)


def in_words(value: object) -> str:
    """A value in a few words: its type, shape or length, never its repr."""
    if isinstance(value, Tensor) or (hasattr(value, "shape") and hasattr(value, "dtype")):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        shape = " x ".join(map(str, value.shape))
        if not shape:
            return f"a {value.dtype} {kind} of value {float(torch.as_tensor(value)):g}"
        return f"a {value.dtype} {kind} of shape {shape}"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {', '.join(map(str, list(value)[:5]))[:100]}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, int | float):
        return f"the {type(value).__name__} {value:g}"
    return "None" if value is None else kind_of(value)


def as_numbers(target: Any) -> Tensor | None:
    """A number, or an array, an image or a list of numbers, as a plain tensor; None for anything else."""
    try:
        if not isinstance(target, Tensor) and (hasattr(target, "__array__") or hasattr(target, "__array_interface__")):
            target = np.array(target)
        found = torch.as_tensor(target).as_subclass(Tensor)
    except (TypeError, ValueError, RuntimeError):
        return None
    return None if found.is_complex() else found


def without_labels(sample: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The inputs and the targets of a sample or batch of Hugging Face's."""
    return {key: value for key, value in sample.items() if key != LABELS}, sample[LABELS]


def output_tensors(output: object) -> list[Tensor]:
    """The tensors in what a network returns: one tensor, or nested mappings, lists, tuples and dataclasses."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in output_tensors(value)]
    if isinstance(output, list | tuple):
        return [tensor for value in output for tensor in output_tensors(value)]
    if is_dataclass(output) and not isinstance(output, type):
        return [tensor for field in fields(output) for tensor in output_tensors(getattr(output, field.name))]
    return []


def scored(output: object) -> Tensor:
    """The tensor that a loss or metric reads: the output itself, its `logits` or `out`, or its first tensor.

    Raises: CompressionError: the output has no tensor.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for key in _SCORED:
            if isinstance(output.get(key), Tensor):
                found: Tensor = output[key]
                return found
    every = output_tensors(output)
    if not every:
        raise CompressionError(f"the network must return tensors. It returned {kind_of(output)}.")
    return every[0]


def over_samples(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The inputs with every tensor that has a batch dimension changed."""
    return mapped(inputs, lambda tensor: change(tensor) if tensor.dim() else tensor)


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_plain(item) for item in value)
    return value


def _described(inputs: Inputs) -> str:
    if isinstance(inputs, Tensor):
        kind = "" if inputs.is_floating_point() else f" {str(inputs.dtype).removeprefix('torch.')}"
        return f"{tuple(inputs.shape)}{kind}"
    if isinstance(inputs, Mapping):
        return "{" + ", ".join(f"{key}: {_described(value)}" for key, value in inputs.items()) + "}"
    if isinstance(inputs, tuple | list):
        return "(" + ", ".join(_described(value) for value in inputs) + ")"
    return repr(inputs) if isinstance(inputs, int | float | bool | None) else kind_of(inputs)
