"""Compress a network of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from experiment.datasets.samples import described
from experiment.errors import CompressionError, ConfigError
from experiment.layers.plan import Plan, State
from experiment.measure import Count, count
from experiment.methods.base import Calibration, Compressed, Compressor, Quantity, make_method
from experiment.methods.configure import is_fixed_size, make_settings
from experiment.methods.find import find_method
from experiment.methods.table import layer_rows
from experiment.run.names import recalibration_fault
from experiment.run.weights import save_weights
from experiment.streams import generator

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CompressionResult:
    """A compressed network and what was done to it.

    Attributes:
        network: of plain torch layers, ready to train, save, export; masked weights are held at zero by a
            parametrization (`experiment.layers.masks.bake_masks(network)` gives a copy with ordinary zeros).
        layers: one row a compressible layer: layer, kind, parameters_before, parameters, flops_before, flops, and what
            the method decided (rank, groups, folding, relative_error, relative_error_exact | kept | channels).
        parameters, flops: of the whole compressed network (elements; multiply-adds of one sample).
        keep_parameters, keep_flops: the shares kept of the original's.
        plan: the decisions as plain data.
    """

    network: nn.Module
    layers: pd.DataFrame
    parameters: int
    flops: int
    keep_parameters: float
    keep_flops: float
    plan: Plan = field(repr=False)


def compress(
    net: nn.Module,
    method: str,
    *,
    keep: float | None = None,
    example: Tensor,
    data: Iterable[Any] | Tensor | None = None,
    budget: Quantity = "parameters",
    seed: int = 0,
    recalibrate: bool = False,
    **settings: Any,
) -> CompressionResult:
    """Compress a network; `net` itself is unchanged.

    Args:
        net: any module; its Conv2d and Linear layers are found, on whatever device they are.
        method: a label (`ALDS`), one of torchprune's class names (`ALDSNet`) or an import path of your own.
        keep: share to keep of what `budget` counts, in (0, 1]; never exceeded. Left out where the settings decide the
            size, such as a density.
        example: an input batch: its first sample traces the network.
        data: calibration data for the methods that need them: a tensor of inputs, a pair (inputs, targets), or a
            loader of such pairs.
        recalibrate: whether BatchNorm statistics are re-estimated on `data` after compression, which helps a network
            that is not retrained.
        settings: the method's own.
    Raises:
        CompressionError: InfeasibleBudget where the method cannot reach that size; missing data.
        ConfigError: an unknown method or setting.
    """
    return next(
        compress_many(
            net, method, keeps=[keep], example=example, data=data, budget=budget, seed=seed,
            recalibrate=recalibrate, **settings,
        )
    )  # fmt: skip


def compress_many(
    net: nn.Module,
    method: str,
    *,
    keeps: Sequence[float | None],
    example: Tensor,
    data: Iterable[Any] | Tensor | None = None,
    budget: Quantity = "parameters",
    seed: int = 0,
    recalibrate: bool = False,
    **settings: Any,
) -> Iterator[CompressionResult]:
    """Like `compress` for several keep ratios, one result each, the analysis done once. Arguments as there."""
    _check_call(net, method, keeps, example)
    entry = find_method(method)
    if isinstance(entry, str):
        raise ConfigError(entry)
    if budget not in ("parameters", "flops"):
        raise ConfigError(f"budget must be 'parameters' or 'flops'. Got {budget!r}.")
    if isinstance(settings.get("settings"), dict):
        given = ", ".join(f"{name}={value!r}" for name, value in settings["settings"].items())
        raise ConfigError(f"settings are given as keywords here: compress(net, {method!r}, ..., {given}).")
    if recalibrate and (fault := recalibration_fault(entry)):
        raise ConfigError(fault)
    chosen = make_settings(entry, settings)
    _check_keeps(entry.label, keeps, fixed=is_fixed_size(chosen))
    made = make_method(entry, chosen)
    state = State(net, example[:1])
    original = _count_original(net, state.example)
    compressor = Compressor(
        made, state, original, _calibration(data), generator("method", seed), recalibrated=recalibrate
    )
    for keep in keeps:
        yield result_of(original, compressor.compress(1.0 if keep is None else keep, budget))


def result_of(original: Count, compressed: Compressed) -> CompressionResult:
    """A compressed network with its sizes, beside the count of the original."""
    import pandas as pd

    return CompressionResult(
        network=compressed.network,
        layers=pd.DataFrame(layer_rows(original, compressed)),
        parameters=compressed.count.parameters,
        flops=compressed.count.flops,
        keep_parameters=compressed.count.parameters / original.parameters,
        keep_flops=compressed.count.flops / original.flops,
        plan=compressed.plan,
    )


def _count_original(net: nn.Module, example: Tensor) -> Count:
    try:
        original = count(net, example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise CompressionError(
            f"example: the network cannot be run on its first sample, a tensor of shape {tuple(example.shape)} on "
            f"{example.device}: {reason}. Pass a batch of inputs as the network takes them."
        ) from error
    if original.flops == 0:
        raise CompressionError("there is nothing to compress: `example` passes through no convolution or linear layer.")
    return original


def save_network(result: CompressionResult, path: str | Path) -> None:
    """Write a compressed network, as plain data, for `load_network(path, network=the_original)` to rebuild.

    Args:
        result: what `compress` returned, or `LC.result`.
    """
    if not isinstance(result, CompressionResult):
        came = type(result).__name__
        raise CompressionError(f"save_network takes what compress returned, or the result of an LC. Got a {came}.")
    save_weights(Path(path), result.network, result.plan, None)


_DATA = "a tensor of inputs, a pair of tensors (inputs, targets), or a loader of such batches"


def _calibration(data: Iterable[Any] | Tensor | None) -> Calibration | None:
    if data is None:
        return None
    if isinstance(data, Tensor):
        return _checked(data, None)
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return _checked(data[0], data[1])
    if not isinstance(data, Iterable) or isinstance(data, Dataset) or hasattr(data, "__array__"):
        raise CompressionError(
            f"data: expected a tensor of inputs, a pair of tensors (inputs, targets), or a loader of such pairs. "
            f"Got a {type(data).__name__}."
        )
    if isinstance(data, Mapping):
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
                f"data: expected inputs of one shape and one target a sample. Batch {i} is "
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
            "pixels: pass data.float() / 255, normalised likewise."
        )
    if targets is not None and (not targets.dim() or len(targets) != len(inputs)):
        raise CompressionError(
            f"data: expected one target a sample, for {len(inputs)} inputs. Got {described(targets)}."
        )
    return Calibration(inputs, targets)


def _check_call(net: object, method: object, keeps: object, example: object) -> None:
    """Raises: ConfigError: an argument is of another type than it must be."""
    problems = []
    if not isinstance(net, nn.Module):
        problems.append(f"net must be a torch.nn.Module. Got {_named(net)}.")
    if not isinstance(method, str):
        problems.append(f"method must be text: a label or an import path. Got {_named(method)}.")
    if not isinstance(keeps, Sequence) or isinstance(keeps, str):
        problems.append(f"keeps must be a list of keep ratios. Got {_named(keeps)}.")
    if not isinstance(example, Tensor) or not len(example):
        what = "an empty one" if isinstance(example, Tensor) else _named(example)
        problems.append(f"example must be a tensor, a batch of one input at least. Got {what}.")
    if problems:
        raise ConfigError(problems)


def _named(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _check_keeps(label: str, keeps: Sequence[float | None], *, fixed: bool) -> None:
    """Raises: ConfigError: a keep ratio is missing, or has no effect."""
    if not fixed and None in keeps:
        raise ConfigError(f"{label} needs keep, the share to keep, in (0, 1]: compress(net, {label!r}, keep=0.5, ...).")
    if fixed and (idle := [keep for keep in keeps if keep not in (None, 1)]):
        raise ConfigError(f"keep has no effect: the settings of {label} decide the size. Leave it out. Got {idle[0]}.")
