"""Compress your own network: `compress`, `compress_many`, `save_network`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from experiment.api.calibration_data import calibration_of
from experiment.config.schema.budget import Budget
from experiment.errors import CompressionError, ConfigError, kind_of, log
from experiment.inputs import Inputs, as_inputs, batch_size, first, mapped, moved_like, take
from experiment.layers.build import build
from experiment.layers.forward_pass import forward_of
from experiment.layers.masks import bake_masks
from experiment.layers.plan import Plan, State
from experiment.layers.prepare_network import plain_copy, prepared
from experiment.layers.pretrained_files import watch_saving
from experiment.layers.unfused.replace import join_state
from experiment.measure import Count, count
from experiment.measure.latency_model import LatencyTable
from experiment.methods.base import Amount, Compressed, Compressor, keep_ratio, make_method
from experiment.methods.configure import configure
from experiment.methods.layer_table import layer_rows
from experiment.methods.meter import Meter
from experiment.methods.real_budgets import compress_within, shortfall
from experiment.progress import bars, showing
from experiment.random_streams import generator
from experiment.run.disk.network_file import save_weights
from experiment.run.grid.methods import recalibration_fault
from experiment.tensor_file import load_tensors

if TYPE_CHECKING:
    import pandas as pd

BudgetForm = str | Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class CompressionResult:
    """A compressed network and a description of what was done to it.

    Attributes:
        network: made of plain torch layers, ready to train, save and export. It is in eval mode, whatever mode the
            original is in: call `network.train()` before you train it. A parametrization keeps masked weights at zero;
            `bake(result, net)` is a copy of the original with ordinary zeros.
        layers: one row per layer: layer, kind, parameters_before, parameters, flops_before, flops, and what the method
            decides (rank, groups, folding, relative_error, relative_error_exact | kept | channels). Layers that the
            method cannot compress are of kind `unreachable`. The row `(other)` counts what the network multiplies
            outside its layers, such as the products in attention.
        parameters: elements of the whole compressed network.
        flops: multiply-adds of one sample's forward pass through it.
        keep_parameters, keep_flops: shares of the original's parameters and FLOPs, in (0, 1].
        parameters_before, flops_before: of the original.
        plan: what the method decided, as plain data.
        method: the method's label.
        amounts: quantity -> limit, predicted and measured value (latency in milliseconds) of what the budget limits.
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
    amounts: Mapping[str, Amount] = field(default_factory=dict)

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
    example: Inputs,
    data: Iterable[Any] | Inputs | None = None,
    budget: BudgetForm = "parameters",
    seed: int = 0,
    recalibrate: bool = False,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> CompressionResult:
    """Compress a network. `net` is unchanged.

        result = compress(net, "ALDS", keep=0.5, example=torch.randn(1, 3, 32, 32))
        result.network(images)      # half of the parameters
        print(result.layers)        # what became of each layer

    Args:
        net: any module, on any device; its layers are found. `torch.compile`, DataParallel and DDP wrappers are
            removed; weights that weight_norm, spectral_norm or another parametrization computes become parameters.
            Weights masked by this package or by torch.nn.utils.prune stay zero and count as removed: `keep` is a share
            of what is left.
        method: a label (`ALDS`), one of torchprune's class names (`ALDSNet`) or the import path of your own method.
        keep: share to keep of what `budget` counts, in (0, 1]; never exceeded. Omit it if the settings determine the
            size, for example by a density.
        example: a batch of inputs: a tensor, a tuple of positional arguments or a dictionary of keyword arguments, such
            as a tokenizer's output. Its first sample is used to trace the network and to count FLOPs.
        data: calibration data for methods that need them: inputs, a pair (inputs, targets), or a loader of such pairs.
        budget: what `keep` limits: `parameters`, `flops`, `bytes`, `latency` or `memory`, several of them, or a mapping
            to shares and amounts: `{"latency": "12 ms", "bytes": "400 kB", "batch": 1}`, where `keep` may be omitted.
            Latency is measured on the network's device, with torch's present number of threads.
        seed: of the method's own random draws.
        recalibrate: re-estimate BatchNorm statistics on `data` after compression, which helps a network that is not
            retrained.
        progress: show a progress bar for work of more than two seconds, in terminals and notebooks.
        settings, more: the method's settings, as a mapping or as keywords: `error="exact"`. Use the mapping for a
            setting that has the name of an argument above.
    Returns: the compressed network, in eval mode, with its sizes.
    Warns: UserWarning: the network is less than half as large as requested.
    Raises:
        CompressionError: data are missing, or the network cannot be compressed (TorchScript, quantized layers).
            InfeasibleBudget, a subclass, if the method cannot make the network that small.
        ConfigError: unknown method or setting.
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
    keeps: Sequence[float | None] = (None,),
    example: Inputs,
    data: Iterable[Any] | Inputs | None = None,
    budget: BudgetForm = "parameters",
    seed: int = 0,
    recalibrate: bool = False,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> Iterator[CompressionResult]:
    """Compress a network to several sizes; the expensive analysis runs once.

        for result in compress_many(net, "SVD", keeps=[0.8, 0.5, 0.2], example=x):
            print(result, accuracy(result.network))

    Args:
        keeps: keep ratios, one result each; may be omitted where `keep` may be. All other arguments are those of
            `compress`.
    Returns: an iterator over results. The arguments are checked at once, each network is computed when it is needed.
    Raises: as `compress`.
    """
    _check_call(net, method, keeps, example)
    spec = configure(method, _merged(settings or {}, more))
    entry = spec.entry
    limited = Budget.read(budget)
    if recalibrate and (fault := recalibration_fault(entry)):
        raise ConfigError(fault)
    _check_keeps(entry.label, keeps, fixed=spec.fixed_size, complete=limited.complete)
    ratios = [None if keep is None else keep_ratio(keep) for keep in keeps]
    made = make_method(entry, spec.settings)
    whole = prepared(net)
    example = mapped(as_inputs(example), Tensor.detach)
    others = take(example, slice(1, None)) if batch_size(example) > 1 else None
    state = State(whole.network, first(example), whole.masks, samples=others, unfused=whole.unfused)
    original = _count_original(state)
    calibration = calibration_of(data, example)
    if calibration is not None:
        forward_of("data", state.network, moved_like(first(calibration.inputs), example))

    table = LatencyTable(None, torch.get_num_threads())
    meter = None if limited.counted is not None else Meter(state.network, state.example, limited, table)

    def results() -> Iterator[CompressionResult]:
        with showing(bars(progress)):
            compressor = Compressor(
                made, state, original, calibration, generator("method", seed), recalibrated=recalibrate
            )
        for i, keep in enumerate(ratios):
            with showing(bars(progress)):
                compressed = compress_within(compressor, 1.0 if keep is None else keep, limited, meter)
            rest = compressed.out_of_reach
            if not i and (told := rest.told(entry.kind)):  # an error has the same text
                log.warning("%s: %s", entry.label, told + rest.rest(ratios if limited.counted == "parameters" else ()))
            if keep is not None and limited.counted and not spec.fixed_size:
                compressed = replace(compressed, amounts=_counted(limited.counted, keep, original, compressed.count))
            result = result_of(entry.label, original, compressed)
            free = spec.fixed_size or spec.has_price
            if keep is not None and not free and (text := shortfall(keep, compressed, original, limited)):
                warnings.warn(f"{entry.label}: {text}.", stacklevel=2)
            yield result
            del compressed, result  # before the next network takes memory, if the caller has dropped this one

    return results()


def _merged(settings: object, more: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from a mapping and from keywords."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"settings must be a mapping from a setting's name to its value. Got {kind_of(settings)}.")
    if twice := [name for name in settings if name in more]:
        raise ConfigError(f"{twice[0]}: is given both in `settings` and as a keyword. Remove one of them.")
    return {**settings, **more}


def _counted(name: Literal["parameters", "flops"], keep: float, original: Count, found: Count) -> dict[str, Amount]:
    """The amounts of a budget that is met by the plan alone."""
    value = found.parameters if name == "parameters" else found.flops_unmasked
    return {name: Amount(keep * getattr(original, name), value, value)}


def _millions(flops: int) -> str:
    return f"{flops / 1e6:,.3g}" if flops < 1e9 else f"{flops / 1e6:,.0f}"


def result_of(label: str, original: Count, compressed: Compressed) -> CompressionResult:
    """The result of compressing a network of which `original` is the count."""
    import pandas as pd

    return CompressionResult(
        network=watch_saving(compressed.network),
        layers=pd.DataFrame(layer_rows(original, compressed)),
        parameters=compressed.count.parameters,
        flops=compressed.count.flops,
        keep_parameters=compressed.count.parameters / original.parameters,
        keep_flops=compressed.count.flops / original.flops,
        parameters_before=original.parameters,
        flops_before=original.flops,
        method=label,
        plan=compressed.plan,
        amounts=compressed.amounts,
    )


def _count_original(state: State) -> Count:
    net, example = state.network, state.example
    if empty := [name for name, parameter in net.named_parameters() if parameter.is_meta]:
        raise CompressionError(
            f"the network is on the device meta, without values: '{empty[0]}' and {len(empty) - 1} more parameters. "
            "Materialise it first: net.to_empty(device='cpu'); net.load_state_dict(state)."
        )
    forward_of("example", net, example)
    original = count(build(net, Plan(masks=state.masks)) if state.masks else net, example)
    if original.flops == original.other_flops:
        raise CompressionError(
            "there is nothing to compress: `example` does not pass through any convolution or linear layer."
        )
    return original


def save_network(result: CompressionResult, path: str | Path) -> None:
    """Save a compressed network as plain data, without pickled code.

        save_network(result, "small.pt")
        small = load_network("small.pt", network=net)      # `net` is the original network

    Args:
        result: what `compress` returned, or `LC.result`.
        path: the file to write.
    Raises: CompressionError: `result` is something else, or `path` is a folder.
    """
    if Path(path).is_dir():
        raise CompressionError(f"{path}: is a folder. Expected the file to write, such as {Path(path) / 'small.pt'}.")
    _check_result(result)
    save_weights(Path(path), result.network, result.plan, None)


def bake(result: CompressionResult, net: nn.Module) -> nn.Module:
    """A copy of the original network with masks as ordinary zeros and quantized weights as rounded numbers.

        bake(compress(net, "WT", keep=0.5, example=x), net).save_pretrained("small")

    Its modules are those of the original, also where equivalents of plain layers have taken their place, and nothing
    holds the zeros in training. `result.network` is the one to train.

    Args:
        result: what `compress` returned for masks or quantization, or `LC.result`.
        net: the original network; not modified.
    Returns: a network in eval mode, on the device of `net`.
    Raises: CompressionError: the result has another structure than `net`, such as factors or fewer channels.
    """
    _check_result(result)
    plan = result.plan
    if plan.factors or plan.kept or plan.skipped or plan.biases:
        raise CompressionError(
            f"{result.method}: its network has other layers than the original, which cannot hold its weights. "
            "Use save_network and load_network."
        )
    baked = plain_copy(net)
    try:
        load_tensors(baked, join_state(bake_masks(result.network).state_dict(), plan.unfused))
    except RuntimeError as error:
        raise CompressionError(f"net is not the network that was compressed: {error}") from error
    return baked.eval()


def _check_result(result: object) -> None:
    if not isinstance(result, CompressionResult):
        raise CompressionError(f"expected what compress returned, or the result of an LC. Got {kind_of(result)}.")


def _check_call(net: object, method: object, keeps: object, example: object) -> None:
    """Raises: ConfigError: an argument has the wrong type."""
    problems = []
    if not isinstance(net, nn.Module):
        problems.append(f"net must be a torch.nn.Module. Got {kind_of(net)}.")
    if not isinstance(method, str):
        problems.append(f"method must be text: a label or an import path. Got {kind_of(method)}.")
    if not isinstance(keeps, Sequence) or isinstance(keeps, str):
        problems.append(f"keeps must be a list of keep ratios. Got {kind_of(keeps)}.")
    try:
        as_inputs(example)
    except CompressionError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError(problems)


def _check_keeps(label: str, keeps: Sequence[float | None], *, fixed: bool, complete: bool) -> None:
    """Raises: ConfigError: a keep ratio is missing or has no effect."""
    if not fixed and not complete and None in keeps:
        call = f"compress(net, {label!r}, keep=0.5, ...)"
        raise ConfigError(f"{label} needs keep, the share to keep, in (0, 1]: {call}, or a share or amount in budget.")
    if fixed and any(keep is not None and keep_ratio(keep) != 1 for keep in keeps):
        raise ConfigError(f"keep has no effect: the settings of {label} determine the size. Omit it.")
