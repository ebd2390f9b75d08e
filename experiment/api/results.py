"""Load the results and networks of an experiment. Its data, and torchvision with them, are not imported."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from experiment.config import Parameters, load
from experiment.errors import ConfigError, Damaged, StoreError
from experiment.files import RUN_AGAIN
from experiment.methods.base import keep_ratio
from experiment.methods.configure import find_method
from experiment.registry import is_import_path, suggestion
from experiment.report.results_table import TEXT
from experiment.run.disk.load_weights import first_names
from experiment.run.disk.network_file import original_of, read_weights, rebuild
from experiment.run.disk.parameters_file import owner_of, read_parameters, require_own
from experiment.run.disk.results_table import LATER_COLUMNS, SHARED_COLUMNS, read_table
from experiment.run.disk.safetensors_file import rebuilt
from experiment.run.disk.store import Store

if TYPE_CHECKING:
    import pandas as pd

MOST_NAMED = 5  # folders, in an error
ROUNDING = 0.01  # a keep ratio may be given as plots and tables show it


def load_results(path_or_param: str | Path, results: str | Path | None = None) -> pd.DataFrame:
    """The results of an experiment, one row per cell.

        frame = load_results("param/digits/prune/lenet5.yaml")
        frame[frame.status == "done"].groupby("label").top1.max()

    Args:
        path_or_param: a parameter file, an experiment's folder, or a results.csv.
        results: the folder of all results, for a parameter file. Default: `directories.results` of the file, else
            data/results.
    Returns: the columns of results.csv, fractions in [0, 1].
    Raises: StoreError: there are no results yet, they belong to another file, or the table is damaged.
    """
    path = _experiment_folder(path_or_param, results) / "results.csv"
    try:
        columns = [str(name) for name in read_table(path, nrows=0)]
        empty: Mapping[str, list[str]] = {name: [""] for name in columns if name not in TEXT}  # a label may be "nan"
        frame = read_table(path, dtype=dict.fromkeys(TEXT, "str"), keep_default_na=False, na_values=empty)
    except FileNotFoundError as error:
        raise StoreError(
            f"{path}: no results yet. Run the experiment first: python -m experiment.main PARAM; or pass results=, "
            f"the folder of all results, if they are elsewhere{_beside(path.parent)}"
        ) from error
    missing = [name for name in SHARED_COLUMNS if name not in (*columns, *LATER_COLUMNS)]
    if missing:
        raise Damaged(f"{path}: column {missing[0]} is missing. {RUN_AGAIN}")
    last = [name for name in SHARED_COLUMNS if name in columns][-1]
    measured = columns[: columns.index(last) + 1]  # before what else was requested
    words = [name for name in measured if name not in TEXT and frame[name].dtype.kind not in "biuf" and len(frame)]
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
    """A network of an experiment with its weights, in eval mode.

        small = load_network("param/digits/prune/lenet5.yaml", method="ALDS", keep=0.2)
        whole = load_network("param/digits/prune/lenet5.yaml", method="Reference")

    Args:
        path_or_param: a parameter file, an experiment's folder, a single `network.pt`, or an exported file of
            safetensors, which holds the deployed form.
        method: the method's name, or its label. `Reference` is the uncompressed network.
        keep: the keep ratio; the nearest is loaded, with a warning if it differs. Omit it for methods whose settings
            determine the size.
        net, repetition, variant, label: which cell, as in results.csv.
        network: the original network, for a file whose network is defined in your own code only.
        results: as for `load_results`.
    Returns: the network, on the CPU or on the device of `network`.
    Raises:
        StoreError: there is no such cell, or its file is damaged.
        ConfigError: several cells match, or none.
        CompressionError: `keep` is not a number in (0, 1], or `network` is no network.
    """
    path = Path(path_or_param)
    if path.suffix == ".safetensors":
        return rebuilt(path, network)
    if path.suffix == ".pt":
        return _rebuilt(path, network, tuple)
    if keep is not None:
        keep = keep_ratio(keep)
    for argument, number in (("net", net), ("repetition", repetition)):
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise ConfigError(f"{argument} must be a whole number, as in results.csv. Got {number!r}.")
    name = method or label
    if name is None:
        raise ConfigError("load_network needs a method or a label, such as method='ALDS' or method='Reference'.")
    folder = _experiment_folder(path_or_param, results)
    rows = load_results(folder / "results.csv")
    done = rows[rows["status"] == "done"]
    named = done
    if method is not None:  # plots and tables show the label
        by_label = done[done["label"] == method]
        named = by_label if len(by_label) else done[done["method"] == _method_name(method)]
    if label is not None:
        named = named[named["label"] == label]
    wanted = {"net": net, "repetition": repetition} | ({} if variant is None else {"variant": variant})
    rows = named
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    found = rows if keep is None else _nearest(rows, keep)
    found = found.drop_duplicates("cell")  # variants that differ in retraining only share their references
    if len(found) != 1:
        hint = _hint(found if len(found) else rows) or _excluding(named, wanted)
        hint = hint or suggestion(name, {*done["label"], *done["method"]}) or _hint(done)
        raise ConfigError(
            f"{folder}: {len(found)} finished cells match {name}, keep {keep}, net {net}, repetition "
            f"{repetition}, variant {variant!r}; expected one.{hint}"
        )
    cell = Store(folder).cell_folders().get(found.iloc[0]["cell"])
    if cell is None:
        raise StoreError(f"{folder}: the folder of cell {found.iloc[0]['cell']} is missing. Run the experiment again.")
    return _rebuilt(cell / "network.pt", network, lambda: [p.network.name for _, p in variants_of(path_or_param)])


def _nearest(rows: pd.DataFrame, keep: float) -> pd.DataFrame:
    """The rows with the nearest keep ratio. Warns: UserWarning: it differs."""
    rows = rows[rows["keep_target"].notna()]
    distance = (rows["keep_target"] - keep).abs()
    rows = rows[distance == distance.min()]
    if len(rows) and distance.min() > ROUNDING * keep:
        nearest = rows["keep_target"].iloc[0]
        warnings.warn(f"no cell has keep ratio {keep:g}: the nearest, {nearest:g}, is loaded", stacklevel=3)
    return rows


def _hint(choice: pd.DataFrame) -> str:
    cells = (f"{r.label} keep {r.keep_target:.4g} {r.variant}".strip() for r in choice.itertuples())
    found = ", ".join(cells).replace(" keep nan", "")  # methods that determine their size
    return f" Choose between: {found}." if found else ""


def _excluding(cells: pd.DataFrame, wanted: Mapping[str, object]) -> str:
    """What exists instead of the wanted values that no cell has, given those before."""
    hint = ""
    for column, value in wanted.items():
        known = list(dict.fromkeys(cells[column]))
        if value in known:
            cells = cells[cells[column] == value]
        elif known:
            shown = first_names(repr(each) if column == "variant" else f"{each:g}" for each in known)
            hint += f" There is {column} {shown} only." if len(known) == 1 else f" There are {column}s {shown} only."
    return hint


def _rebuilt(path: Path, network: nn.Module | None, own_names: Callable[[], Collection[str]]) -> nn.Module:
    specification, packed = read_weights(path)
    if network is None:
        network, _ = original_of(specification, path, own_names)
    return rebuild(network, specification, packed, path)


def variants_of(path_or_param: str | Path) -> list[tuple[str, Parameters]]:
    """Names and settings of the variants of a parameter file, or of an experiment's folder."""
    path = Path(path_or_param)
    if path.name == "results.csv":
        path = path.parent
    variants = read_parameters(path).variants if path.is_dir() else load(path).variants
    return [(variant.name, variant.parameters) for variant in variants]


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
