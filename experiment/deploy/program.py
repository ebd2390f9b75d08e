"""A network in the form in which it leaves torch: plain layers, a fixed graph, any batch size."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property, wraps
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from experiment.errors import CompressionError, first_line
from experiment.inputs import Inputs, batch_size, first, mapped, moved, take
from experiment.layers.forward_pass import forward_of
from experiment.layers.prepare_network import plain_copy
from experiment.layers.quantized_weights import named_dtypes


@dataclass(frozen=True)
class Deployed:
    """What the writers of all formats need.

    Attributes:
        network: plain layers in eval mode on the CPU, masks and rounding applied.
        example: two inputs.
        calibration: inputs by which int8 formats choose their scales.
        specification: how this program rebuilds the network, as in network.pt.
        dtypes: the types of rounded weights, by name.
    """

    network: nn.Module
    example: Inputs
    calibration: Inputs | None = None
    specification: Mapping[str, Any] | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def output(self) -> Any:
        """What the network returns for the example, in plain containers."""
        return plain_output(forward_of("example", self.network, self.example))

    @cached_property
    def module(self) -> nn.Module:
        """The network, made to return plain containers if it returns others."""
        returned = type(forward_of("example", self.network, self.example))
        return self.network if returned in (Tensor, dict, tuple) else _PlainOutput(self.network).eval()

    @cached_property
    def program(self) -> ExportedProgram:
        """The graph of torch.export."""
        return exported(self.module, self.example)

    @cached_property
    def onnx(self) -> Any:
        """The program of torch's ONNX exporter."""
        named = batches_of(self.example, "batch")  # the name in the file; torch's own are s31, s77
        output = ["output"] if isinstance(self.output, Tensor) else None
        return torch.onnx.export(self.program, dynamo=True, verbose=False, dynamic_shapes=named, output_names=output)


def deployed(network: nn.Module, example: Inputs, **more: Any) -> Deployed:
    """The deployed form of a network, which is unchanged.

    Args:
        example: a batch of inputs.
        more: other attributes of `Deployed`.
    """
    two = moved(mapped(first(example, 2), Tensor.detach), "cpu")
    two = two if batch_size(two) > 1 else take(two, [0, 0])
    dtypes = named_dtypes(network)
    return Deployed(plain_copy(network).cpu().eval().requires_grad_(False), two, dtypes=dtypes, **more)


def exported(network: nn.Module, example: Inputs, most: int | None = None) -> ExportedProgram:
    """The graph of torch.export for batches of any size.

    Args:
        network: plain layers in eval mode.
        example: at least two inputs.
        most: largest batch; None for any.
    Raises: CompressionError: torch cannot trace the network, or its graph depends on the size of the batch.
    """
    batch = torch.export.Dim("batch", min=1, max=most)
    named = example if isinstance(example, dict) else {}
    positional = () if named else example if isinstance(example, tuple) else (example,)
    try:
        with redirect_stderr(StringIO()):  # where torch prints the graph of a network that it cannot trace
            return torch.export.export(network, positional, named, dynamic_shapes=batches_of(example, batch))
    except Exception as error:  # torch documents no complete list
        why = f"{type(error).__name__}: {first_line(error)}"
        raise CompressionError(f"torch.export cannot trace the network for batches of any size: {why}") from error


def batches_of(example: Inputs, batch: Any) -> Any:
    """The dynamic shapes of inputs: `batch` for the first dimension of every tensor."""
    inputs = example if isinstance(example, dict | tuple) else (example,)
    return mapped(inputs, lambda tensor: {0: batch} if tensor.dim() else {})


def plain_output(output: Any) -> Any:
    """What a network returns as tensors in dictionaries and tuples, without anything else."""
    if isinstance(output, Mapping):
        return {str(key): plain_output(value) for key, value in output.items() if _has_tensors(value)}
    if isinstance(output, list | tuple):
        return tuple(plain_output(value) for value in output if _has_tensors(value))
    if is_dataclass(output) and not isinstance(output, type):
        return plain_output({f.name: getattr(output, f.name) for f in fields(output)})
    return output


def _has_tensors(value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple):
        return any(map(_has_tensors, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, Tensor) or is_dataclass(value)


class _PlainOutput(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # with the signature of the network's, by which torch.export assigns dynamic shapes
        vars(self)["forward"] = wraps(network.forward)(lambda *args, **named: plain_output(network(*args, **named)))
