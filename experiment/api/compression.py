"""Compress a network of one's own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from experiment.datasets.check_samples import described
from experiment.errors import CompressionError, ConfigError
from experiment.layers.build import build
from experiment.layers.forward_pass import evaluating
from experiment.layers.plan import Plan, State
from experiment.layers.prepare_network import prepared
from experiment.measure import Count, count
from experiment.methods.base import (
    Calibration,
    Compressed,
    Compressor,
    Quantity,
    keep_ratio,
    make_method,
    shortfall,
)
from experiment.methods.configure import configure
from experiment.methods.reach import OutOfReach
from experiment.methods.table import layer_rows
from experiment.progress import bars, showing
from experiment.random_streams import generator
from experiment.registry import MethodEntry
from experiment.run.disk.network_file import save_weights
from experiment.run.grid.lookup import recalibration_fault

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger("experiment")


@dataclass(frozen=True, repr=False)
class CompressionResult:
    """A compressed network and what was done to it.

    Attributes:
        network: of plain torch layers, ready to train, save, export. It is in eval mode, whatever mode the original is
            in: call `network.train()` before you train it. Masked weights are held at zero by a parametrization
            (`experiment.layers.masks.bake_masks(network)` gives a copy with ordinary zeros).
        layers: one row a layer: layer, kind, parameters_before, parameters, flops_before, flops, and what the method
            decided (rank, groups, folding, relative_error, relative_error_exact | kept | channels). What the method has
            to leave alone is of kind `unreachable`, and a warning names it. A row `(other)` has what the network
            multiplies outside its layers, such as attention's products.
        parameters, flops: of the whole compressed network (elements; multiply-adds of one sample).
        keep_parameters, keep_flops: the shares kept of the original's.
        parameters_before, flops_before: of the original.
        plan: the decisions as plain data.
        method: the method's label.
    """

    network: nn.Module
    layers: pd.DataFrame
    parameters: int
    flops: int
    keep_parameters: float
    keep_flops: float
    parameters_before: int
    flops_before: int
    plan: Plan
    method: str

    def __repr__(self) -> str:
        return (
            f"{self.method}: {self.parameters:,} of {self.parameters_before:,} parameters "
            f"({100 * self.keep_parameters:.1f} %), {_millions(self.flops)} of {_millions(self.flops_before)} MFLOPs "
            f"({100 * self.keep_flops:.1f} %)"
        )


def compress(
    net: nn.Module,
    method: str,
    /,
    *,
    keep: float | None = None,
    example: Tensor,
    data: Iterable[Any] | Tensor | None = None,
    budget: Quantity = "parameters",
    seed: int = 0,
    recalibrate: bool = False,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> CompressionResult:
    """Compress a network; `net` itself is unchanged.

    Args:
        net: any module; its layers are found, on whatever device they are. `torch.compile`, DataParallel and DDP are
            taken off; weights that weight_norm, spectral_norm or another parametrization computes become parameters.
            What a mask of this program or of torch.nn.utils.prune holds at zero stays zero and counts as gone: `keep`
            is a share of what is left. What cannot be compressed (TorchScript, quantized layers, ...) is refused.
        method: a label (`ALDS`), one of torchprune's class names (`ALDSNet`) or an import path of your own.
        keep: share to keep of what `budget` counts, in (0, 1]; never exceeded. Left out where the settings decide the
            size, such as a density.
        example: an input batch: its first sample traces the network.
        data: calibration data for the methods that need them: a tensor of inputs, a pair (inputs, targets), or a
            loader of such pairs.
        recalibrate: whether BatchNorm statistics are re-estimated on `data` after compression, which helps a network
            that is not retrained.
        progress: whether a bar shows, on a terminal and in notebooks, how far work of more than two seconds is.
        settings, more: the method's own settings, as a mapping or as keywords: `error="exact"`. Those that are called
            like an argument above can only stand in the mapping.
    Returns: the compressed network, in eval mode, and its sizes.
    Warns: UserWarning: the network has less than half of what was asked for.
    Raises:
        CompressionError: InfeasibleBudget where the method cannot reach that size; missing data; a network of a kind
            that cannot be compressed, such as TorchScript.
        ConfigError: an unknown method or setting.
    """
    return next(
        compress_many(
            net, method, keeps=[keep], example=example, data=data, budget=budget, seed=seed,
            recalibrate=recalibrate, progress=progress, settings=settings, **more,
        )
    )  # fmt: skip


def compress_many(
    net: nn.Module,
    method: str,
    /,
    *,
    keeps: Sequence[float | None],
    example: Tensor,
    data: Iterable[Any] | Tensor | None = None,
    budget: Quantity = "parameters",
    seed: int = 0,
    recalibrate: bool = False,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> Iterator[CompressionResult]:
    """Like `compress` for several keep ratios, one result each, the analysis done once. Arguments as there.

    The arguments are checked at once; the networks are computed when they are asked for.
    """
    _check_call(net, method, keeps, example)
    spec = configure(method, _merged(settings or {}, more))
    entry = spec.entry
    if budget not in ("parameters", "flops"):
        raise ConfigError(f"budget must be 'parameters' or 'flops'. Got {budget!r}.")
    if recalibrate and (fault := recalibration_fault(entry)):
        raise ConfigError(fault)
    _check_keeps(entry.label, keeps, fixed=spec.fixed_size)
    ratios = [None if keep is None else keep_ratio(keep) for keep in keeps]
    made = make_method(entry, spec.settings)
    whole = prepared(net)
    example = example.detach()
    others = example[1:] if len(example) > 1 else None
    state = State(whole.network, example[:1], whole.masks, samples=others)
    original = _count_original(state)
    calibration = _calibration(data)
    if calibration is not None:
        _check_inputs("data", state.network, calibration.inputs[:1].to(example))

    def results() -> Iterator[CompressionResult]:
        with showing(bars(progress)):
            compressor = Compressor(
                made, state, original, calibration, generator("method", seed), recalibrated=recalibrate
            )
        for i, keep in enumerate(ratios):
            with showing(bars(progress)):
                compressed = compressor.compress(1.0 if keep is None else keep, budget)
            if not i:  # an error has the same text
                _warn_of_rest(entry, compressed.out_of_reach, ratios if budget == "parameters" else ())
            result = result_of(entry.label, original, compressed)
            reached = result.keep_parameters if budget == "parameters" else result.keep_flops
            if keep is not None and not spec.fixed_size and (text := shortfall(keep, reached, budget)):
                warnings.warn(f"{entry.label}: {text}.", stacklevel=2)
            yield result

    return results()


def _warn_of_rest(entry: MethodEntry, rest: OutOfReach, keeps: Sequence[float | None]) -> None:
    if rest.modules:
        _log.warning("%s: %s", entry.label, rest.told(entry.kind) + rest.rest(keeps))


def _merged(settings: object, more: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from a mapping and from keywords. Raises: ConfigError: no mapping, or a setting in both."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"settings must be a mapping from a setting's name to its value. Got {_named(settings)}.")
    if twice := [name for name in settings if name in more]:
        raise ConfigError(f"{twice[0]}: is given in `settings` and as a keyword. Give it once.")
    return {**settings, **more}


def _millions(flops: int) -> str:
    return f"{flops / 1e6:,.3g}" if flops < 1e9 else f"{flops / 1e6:,.0f}"


def result_of(label: str, original: Count, compressed: Compressed) -> CompressionResult:
    """A compressed network with its sizes, beside the count of the original."""
    import pandas as pd

    return CompressionResult(
        network=compressed.network,
        layers=pd.DataFrame(layer_rows(original, compressed)),
        parameters=compressed.count.parameters,
        flops=compressed.count.flops,
        keep_parameters=compressed.count.parameters / original.parameters,
        keep_flops=compressed.count.flops / original.flops,
        parameters_before=original.parameters,
        flops_before=original.flops,
        method=label,
        plan=compressed.plan,
    )


def _count_original(state: State) -> Count:
    net, example = state.network, state.example
    _check_inputs("example", net, example)
    original = count(build(net, Plan(masks=state.masks)) if state.masks else net, example)
    if original.flops == original.other_flops:
        raise CompressionError("there is nothing to compress: `example` passes through no convolution or linear layer.")
    return original


def _check_inputs(argument: str, net: nn.Module, sample: Tensor) -> None:
    """Raises: CompressionError: the network cannot be run on the first sample of an argument."""
    try:
        with evaluating(net):
            net(sample)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise CompressionError(
            f"{argument}: the network cannot be run on its first sample, a tensor of shape {tuple(sample.shape)} on "
            f"{sample.device}: {reason}. Pass a batch of inputs as the network takes them."
        ) from error


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
        batches_of_one_kind = data[0].dim() > 1 and data[0].shape[1:] == data[1].shape[1:]
        return _checked(torch.cat(list(data))) if batches_of_one_kind else _checked(data[0], data[1])
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
    if fixed and any(keep is not None and keep_ratio(keep) != 1 for keep in keeps):
        raise ConfigError(f"keep has no effect: the settings of {label} decide the size. Leave it out.")
