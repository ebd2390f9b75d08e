"""The Python interface: compress a network of one's own, and load what experiments left behind."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from experiment.config import Parameters, load
from experiment.datasets.calibration import calibration
from experiment.deploy import quantize_int8 as quantize_int8
from experiment.deploy import serialized_bytes as serialized_bytes
from experiment.errors import CompressionError, ConfigError, StoreError
from experiment.files import require_whole_lines
from experiment.layers.plan import Plan, State
from experiment.layers.pruned_state import load_pruned_state as load_pruned_state
from experiment.layers.pruned_state import pruned_state as pruned_state
from experiment.measure import Count, count
from experiment.methods.base import Calibration, Compressor, Quantity, make_method
from experiment.methods.find import find_method
from experiment.methods.settings import is_fixed_size, make_settings
from experiment.methods.table import layer_rows
from experiment.registry import is_import_path
from experiment.run.data import Data, transforms_of
from experiment.run.names import recalibration_fault
from experiment.run.parameters import PARAMETERS, require_whole
from experiment.run.store import Store
from experiment.run.weights import original_of, read_weights, rebuild, save_weights
from experiment.streams import generator
from experiment.training.loop import evaluate as evaluate_network

if TYPE_CHECKING:
    import pandas as pd

DATASETS_FOLDER = Path("data/datasets")
RESULTS_FOLDER = Path("data/results")
ROUNDING = 0.01  # a keep ratio may be given as plots and tables show it


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
    plan: Plan


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
        import pandas as pd

        compressed = compressor.compress(1.0 if keep is None else keep, budget)
        yield CompressionResult(
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
    """Write a compressed network, as plain data, for `load_network(path, network=the_original)` to rebuild."""
    save_weights(Path(path), result.network, result.plan, None)


def load_results(path_or_param: str | Path, results: str | Path | None = None) -> pd.DataFrame:
    """results.csv of an experiment.

    Args:
        path_or_param: a parameter file, an experiment's folder, or a results.csv.
        results: where experiments lie, for a parameter file; default: where the file says, else data/results.
    Raises: StoreError: there are no results yet.
    """
    import pandas as pd

    path = _experiment_folder(path_or_param, results) / "results.csv"
    if not path.is_file():
        raise StoreError(f"{path}: no results yet. Run the experiment first: python -m experiment.main PARAM")
    require_whole_lines(path)
    text = ("variant", "error", "cell", "method", "label", "status", "network", "dataset", "dataset_test")
    columns = [str(name) for name in pd.read_csv(path, nrows=0)]
    empty: Mapping[str, list[str]] = {name: [""] for name in columns if name not in text}  # a label may be "nan"
    return pd.read_csv(path, dtype=dict.fromkeys(text, "str"), keep_default_na=False, na_values=empty)


def load_network(
    path_or_param: str | Path,
    *,
    method: str | None = None,
    keep: float | None = None,
    net: int = 0,
    repetition: int = 0,
    variant: str | None = None,
    label: str | None = None,
    network: nn.Module | None = None,
    results: str | Path | None = None,
) -> nn.Module:
    """A compressed network with its weights, in eval mode, on the CPU (or where `network` is).

    Args:
        path_or_param: a parameter file or an experiment's folder, or a single `network.pt`.
        method, label, keep, net, repetition, variant: which cell; the nearest keep ratio is taken, with a warning where
            it is another; none for methods whose settings decide the size. `Reference` is the uncompressed network.
        network: the original network, for a file whose network only your own code can make.
    Raises: StoreError: no such cell, or its file is damaged. ConfigError: the choice is not unique.
    """
    path = Path(path_or_param)
    if path.suffix == ".pt":
        return _rebuilt(path, network, tuple)
    folder = _experiment_folder(path_or_param, results)
    rows = load_results(folder)
    done = rows[rows["status"] == "done"]
    rows = done[(done["net"] == net) & (done["repetition"] == repetition)]
    for column, value in (("method", _method_name(method)), ("label", label), ("variant", variant)):
        if value is not None:
            rows = rows[rows[column] == value]
    if method is None and label is None:
        raise ConfigError("load_network needs the method or the label, such as method='ALDS' or method='Reference'.")
    there = rows
    if keep is not None:
        rows = rows[rows["keep_target"].notna()]
    if keep is not None and len(rows):
        distance = (rows["keep_target"] - keep).abs()
        rows = rows[distance == distance.min()]
        nearest = float(rows["keep_target"].iloc[0])
        if abs(nearest - keep) > ROUNDING * keep:
            warnings.warn(f"no cell has keep ratio {keep:g}: the nearest, {nearest:g}, is loaded", stacklevel=2)
    rows = rows.drop_duplicates("cell")  # variants that only retrain otherwise share their references
    if len(rows) != 1:
        choice = rows if len(rows) else there if len(there) else done
        found = ", ".join(f"{r.label} keep {r.keep_target:.4g} {r.variant}".strip() for r in choice.itertuples())
        found = found.replace(" keep nan", "")  # a size of its own
        raise ConfigError(
            f"{folder}: {len(rows)} finished cells match {method or label}, keep {keep}, net {net}, repetition "
            f"{repetition}, variant {variant!r}; expected one. {f'Choose between: {found}.' if found else ''}".rstrip()
        )
    cell = Store(folder).index().get(rows.iloc[0]["cell"])
    if cell is None:
        raise StoreError(
            f"{folder}: results.csv names cell {rows.iloc[0]['cell']}, but its folder is gone. Run it again."
        )
    return _rebuilt(cell / "network.pt", network, lambda: _network_names(path_or_param))


def evaluate(
    path_or_param: str | Path,
    network: nn.Module,
    data: str | Path | None = None,
    *,
    variant: str | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """Loss, top-1 and top-5 (fractions) of a network on the test data of an experiment.

    Args:
        path_or_param: a parameter file or an experiment's folder.
        network: is not changed, nor moved.
        data: where datasets lie; default: where the file says, else data/datasets.
        variant: the element of a sweep, needed where elements are tested on different data.
    Raises: DataError: the dataset is missing or damaged. ConfigError: no such variant, or several to choose from.
    """
    p = _parameters(path_or_param, variant)
    images = Data(Path(data or p.directories.training_data or DATASETS_FOLDER), device).test(p)
    metrics = evaluate_network(
        copy.deepcopy(network).to(device), images, loss=p.training.loss, loss_kwargs=dict(p.training.loss_kwargs),
        device=torch.device(device), precision="fp32",
    )  # fmt: skip
    return {"loss": metrics.loss, "top1": metrics.top1, "top5": metrics.top5}


def calibration_inputs(
    path_or_param: str | Path, data: str | Path | None = None, *, size: int = 256, variant: str | None = None
) -> Tensor:
    """Images of the validation part of an experiment's dataset, as its networks are fed them: never test data.

    Args:
        path_or_param, data, variant: as for `evaluate`.
        size: how many, at most.
    Returns: (size, channels, height, width), on the CPU.
    """
    p = _parameters(path_or_param, variant)
    valid = Data(Path(data or p.directories.training_data or DATASETS_FOLDER), "cpu").splits(p, p.training).valid
    return calibration(valid, min(size, len(valid)), ("calibration_inputs", p.seed))[0]


def _calibration(data: Iterable[Any] | Tensor | None) -> Calibration | None:
    if data is None:
        return None
    if isinstance(data, Tensor):
        return Calibration(data)
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return Calibration(data[0], data[1])
    if not isinstance(data, Iterable) or isinstance(data, Dataset) or hasattr(data, "__array__"):
        raise CompressionError(
            f"data: expected a tensor of inputs, a pair of tensors (inputs, targets), or a loader of such pairs. "
            f"Got a {type(data).__name__}."
        )
    batches = [batch if isinstance(batch, tuple | list) else (batch,) for batch in data]
    if not batches:
        raise CompressionError("data: the loader gave no batch.")
    inputs = torch.cat([batch[0] for batch in batches])
    targets = torch.cat([batch[1] for batch in batches]) if all(len(batch) > 1 for batch in batches) else None
    return Calibration(inputs, targets)


def _check_keeps(label: str, keeps: Sequence[float | None], *, fixed: bool) -> None:
    """Raises: ConfigError: a keep ratio is missing, or has no effect."""
    if not fixed and None in keeps:
        raise ConfigError(f"{label} needs keep, the share to keep, in (0, 1]: compress(net, {label!r}, keep=0.5, ...).")
    if fixed and (idle := [keep for keep in keeps if keep not in (None, 1)]):
        raise ConfigError(f"keep has no effect: the settings of {label} decide the size. Leave it out. Got {idle[0]}.")


def _rebuilt(path: Path, network: nn.Module | None, own_names: Callable[[], Collection[str]]) -> nn.Module:
    specification, state = read_weights(path)
    if network is None:
        network, _ = original_of(specification, path, own_names)
    return rebuild(network, specification, state, path)


def _network_names(path_or_param: str | Path) -> list[str]:
    """The networks of an experiment, as its parameter file calls them."""
    return [variant.parameters.network.name for variant in load(_parameter_file(path_or_param)).variants]


def _parameter_file(path_or_param: str | Path) -> Path:
    """A parameter file, or the one in an experiment's folder."""
    path = Path(path_or_param)
    if path.name == "results.csv":
        path = path.parent
    if path.is_dir():
        path /= PARAMETERS
        require_whole(path)
    return path


def _experiment_folder(path_or_param: str | Path, results: str | Path | None) -> Path:
    path = Path(path_or_param)
    if path.is_dir():
        return path
    if path.name == "results.csv":
        return path.parent
    if path.suffix not in (".yaml", ".yml"):
        raise StoreError(
            f"{path}: expected a parameter file (.yaml) or an experiment's folder; there is no such folder."
        )
    from experiment.run.plan import slug_path

    file = load(path)
    return Path(results or file.parameters.directories.results or RESULTS_FOLDER) / slug_path(file.name)


def _method_name(method: str | None) -> str | None:
    """A method as the column `method` names it: its label, or the import path of the user's own."""
    entry = None if method is None or is_import_path(method) else find_method(method)
    return method if entry is None or isinstance(entry, str) else entry.label


def _parameters(path_or_param: str | Path, variant: str | None) -> Parameters:
    path = _parameter_file(path_or_param)
    variants = load(path).variants
    chosen = [v.parameters for v in variants if variant is None or v.name == variant]
    tests = {repr((p.network.dataset, p.experiments.dataset_test, transforms_of(p.training))) for p in chosen}
    if len(tests) != 1:
        names = ", ".join(repr(v.name) for v in variants)
        raise ConfigError(f"{path}: which variant? Got {variant!r}. Choose between: {names}.")
    return chosen[0]
