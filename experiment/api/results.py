"""Load what experiments left behind, and test networks on their data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from experiment.config import Parameters, load
from experiment.datasets.calibration import calibration
from experiment.errors import ConfigError, Damaged, StoreError
from experiment.files import RUN_AGAIN
from experiment.layers.prepare_network import copied
from experiment.methods.configure import find_method
from experiment.registry import is_import_path
from experiment.run.cell.data import Data, transforms_of
from experiment.run.disk.network_file import original_of, read_weights, rebuild
from experiment.run.disk.parameters_file import PARAMETERS, owner_of, require_own, require_whole
from experiment.run.disk.store import COLUMNS, Store
from experiment.run.disk.tables import read_table
from experiment.training.loop import evaluate as evaluate_network

if TYPE_CHECKING:
    import pandas as pd

DATASETS_FOLDER = Path("data/datasets")
MOST_NAMED = 5  # folders, in an error
ROUNDING = 0.01  # a keep ratio may be given as plots and tables show it


def load_results(path_or_param: str | Path, results: str | Path | None = None) -> pd.DataFrame:
    """results.csv of an experiment.

    Args:
        path_or_param: a parameter file, an experiment's folder, or a results.csv.
        results: where experiments lie, for a parameter file; default: where the file says, else data/results.
    Raises: StoreError: there are no results yet, those that lie there are another file's, or the table is damaged.
    """
    path = _experiment_folder(path_or_param, results) / "results.csv"
    text = ("variant", "error", "cell", "method", "label", "status", "network", "dataset", "dataset_test", "hardware")
    try:
        columns = [str(name) for name in read_table(path, nrows=0)]
        empty: Mapping[str, list[str]] = {name: [""] for name in columns if name not in text}  # a label may be "nan"
        frame = read_table(path, dtype=dict.fromkeys(text, "str"), keep_default_na=False, na_values=empty)
    except FileNotFoundError as error:
        raise StoreError(
            f"{path}: no results yet. Run the experiment first: python -m experiment.main PARAM{_beside(path.parent)}"
        ) from error
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise Damaged(f"{path}: column {missing[0]} is missing. {RUN_AGAIN}")
    words = [name for name in COLUMNS if name not in text and frame[name].dtype.kind not in "biuf" and len(frame)]
    if words:
        raise Damaged(f"{path}: column {words[0]} must hold numbers. {RUN_AGAIN}")
    return frame


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
        method, label, keep, net, repetition, variant: which cell; `method` may be a label too. The nearest keep ratio
            is taken, with a warning where it is another; none for methods whose settings decide the size. `Reference`
            is the uncompressed network.
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
    if method is not None:  # what plots and tables show is the label
        by_label = rows[rows["label"] == method]
        rows = by_label if len(by_label) else rows[rows["method"] == _method_name(method)]
    for column, value in (("label", label), ("variant", variant)):
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
        copied(network).to(device), images, loss=p.training.loss, loss_kwargs=dict(p.training.loss_kwargs),
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


def _rebuilt(path: Path, network: nn.Module | None, own_names: Callable[[], Collection[str]]) -> nn.Module:
    specification, packed = read_weights(path)
    if network is None:
        network, _ = original_of(specification, path, own_names)
    return rebuild(network, specification, packed, path)


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
    file = load(path)
    place = file.results(None if results is None else Path(results))
    folder = place / file.name(place)
    require_own(folder, file.path)
    return folder


def _beside(folder: Path) -> str:
    """The results of the same file with overrides, and how to load them."""
    found = [place for place in sorted(folder.parent.glob(f"{folder.name}@*")) if (place / "results.csv").is_file()]
    if not found:
        return ""
    named = ", ".join(f"'{place}' (--set {' '.join(owner_of(place).overrides)})" for place in found[:MOST_NAMED])
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return (
        f". Beside it lie results with other settings; load them by their folder, load_results(FOLDER): {named}{more}"
    )


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
