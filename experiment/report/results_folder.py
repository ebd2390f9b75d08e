"""Where a report's facts come from: the files of one experiment's folder, read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.errors import ConfigError, Damaged, StoreError, described
from experiment.files import RUN_AGAIN, read_json
from experiment.run.disk.read_table import read_table

if TYPE_CHECKING:
    from pandas import DataFrame

    from experiment.run.grid.data_facts import DataFacts

TEXT = ("dataset", "dataset_test", "network", "variant", "method", "label", "status", "error", "cell", "hardware")
NUMBERS = (
    "net", "repetition", "keep_target", "parameters", "flops", "flops_unmasked", "keep_parameters", "keep_flops",
    "bytes_dense", "bytes_values", "bytes_sparse", "bytes_file", "loss", "top1", "top5", "top1_before_retraining",
    "top1_reference", "parameters_reference", "flops_reference", "epochs", "seconds_compress", "seconds_retrain",
)  # fmt: skip
EXTRA_NUMBERS = re.compile(r"latency_(iqr_)?ms_b\d+(_reference)?|bytes_bitmask|bytes_csr")  # where asked for
TIDY = "tidy"  # in the attrs of tables: their columns when they were made so
REQUIRED = ("network", "label", "net", "status")
REFERENCE = "Reference"
FLOAT32 = 4  # bytes of an unquantized weight


@dataclass(frozen=True)
class Source:
    """What one experiment's folder says.

    Attributes:
        folder: the folder itself.
        name: the folder below `results` (`cifar/prune/resnet20`), else its own name.
        results: results.csv as `tidy` leaves it.
        parameters: parameters.yaml as plain data; empty where there is none.
        environment: environment.json as plain data; empty where there is none.
        data: what data.json says of every dataset; empty where there is none.
    """

    folder: Path
    name: str
    results: DataFrame
    parameters: Mapping[str, Any]
    environment: Mapping[str, Any]
    data: Sequence[DataFacts] = ()

    @property
    def has_top5(self) -> bool:
        """Whether top-5 accuracy says anything: of five classes or fewer it is always 1."""
        classes = self.setting("network", "outputSize")
        known = isinstance(classes, int)
        return bool(self.results["top5"].notna().any()) and not (known and classes <= 5)

    def setting(self, *key: str) -> Any:
        """A value of parameters.yaml by its key path; None where it, or a mapping above it, is missing."""
        value: Any = self.parameters
        for part in key:
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def read_source(folder: Path) -> Source:
    """Read an experiment's folder; one in which no cell has finished yet gives an empty table.

    Raises: StoreError: the folder is no experiment's, or a file in it is damaged.
    """
    folder = Path(folder)
    require_experiment(folder)
    from experiment.run.grid.data_facts import read_data_record  # only here: pydantic comes with it

    return Source(
        folder=folder,
        name=_name(folder),
        results=read_results(folder / "results.csv"),
        parameters=_read_parameters(folder),
        environment=_read_json(folder / "environment.json"),
        data=read_data_record(folder).data,
    )


def require_experiment(folder: Path) -> None:
    """Raises: StoreError: the folder is no experiment's."""
    if not any((folder / name).is_file() for name in ("results.csv", "parameters.yaml")):
        raise StoreError(
            f"{folder}: holds neither results.csv nor parameters.yaml. Expected an experiment's folder, such as "
            "data/results/cifar/prune/resnet20."
        )


def read_results(path: Path) -> DataFrame:
    """results.csv, text columns as text (never NaN), number columns as numbers; empty where the file is missing."""
    import pandas as pd

    try:
        frame = read_table(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        return tidy(pd.DataFrame(columns=list(REQUIRED)))
    missing = [column for column in REQUIRED if column not in frame]
    if missing:
        raise StoreError(f"{path}: column {missing[0]} is missing. {RUN_AGAIN}")
    return tidy(frame)


def tidy(results: DataFrame) -> DataFrame:
    """A copy with every column of results.csv, of the right type: what is missing is "" or NaN, infinities are NaN.

    Raises: StoreError: a column without which nothing can be said is missing.
    """
    import numpy as np
    import pandas as pd

    missing = [column for column in REQUIRED if column not in results]
    if missing:
        raise StoreError(f"results: column {missing[0]} is missing. Expected the columns of results.csv.")
    if results.attrs.get(TIDY) == tuple(results.dtypes.items()):  # rows of a table that was made tidy here
        return results.reset_index(drop=True)
    frame = results.copy()
    for column in TEXT:
        given = frame[column].astype(object) if column in frame else pd.Series("", frame.index, dtype=object)
        frame[column] = given.where(given.notna(), "").astype(str)
    for column in (*NUMBERS, *filter(EXTRA_NUMBERS.fullmatch, map(str, frame))):
        values = pd.to_numeric(frame[column], errors="coerce") if column in frame else np.nan
        frame[column] = pd.Series(values, index=frame.index, dtype=float).replace([np.inf, -np.inf], np.nan)
    frame["method"] = frame["method"].where(frame["method"] != "", frame["label"])
    frame["keep_flops_unmasked"] = frame["flops_unmasked"] / frame["flops_reference"]
    frame["keep_bytes"] = frame["bytes_values"] / (FLOAT32 * frame["parameters_reference"])
    frame.attrs[TIDY] = tuple(frame.dtypes.items())
    return frame.reset_index(drop=True)


def read_cells(folder: Path, cells: DataFrame, file: str, columns: Sequence[str]) -> DataFrame:
    """These columns of the CSV `file` (layers.csv, history.csv) of every row of `cells`, one under the other.

    Each row carries its cell's variant, method, label, net, repetition and keep_target. Cells without the file are
    left out.
    """
    import pandas as pd
    from pandas.api.types import is_numeric_dtype

    from experiment.run.disk.manifest import intact_file, warn_of_damage
    from experiment.run.disk.store import Store  # only here: it brings the schema of parameter files with it

    frames = []
    carried = ["variant", "method", "label", "net", "repetition", "keep_target"]
    folders = Store(folder).cell_folders()
    for row in cells[[*carried, "cell"]].to_dict("records"):
        place = folders.get(str(row["cell"]))
        path = None if place is None else intact_file(place, file)
        if path is not None:
            try:
                frame = pd.read_csv(path, usecols=lambda name: name in columns)
            except (ValueError, OSError):  # pandas' parser errors are ValueErrors
                warn_of_damage(path)
                continue
            if any(name != "layer" and not is_numeric_dtype(frame[name]) for name in frame):
                warn_of_damage(path)
            elif len(frame):
                frames.append(frame.assign(**{name: row[name] for name in carried}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=carried)


def find_experiments(targets: Sequence[str | Path] = (), results: Path | None = None) -> list[Path]:
    """The folders of experiments that `targets` name: parameter files, experiments' folders, or folders above those.

    Args:
        targets: nothing for every experiment below `results`.
        results: the folder of all results; by default data/results in the working directory, else beside the package.

    Raises: ConfigError: a target names no experiment with results, or those where its results would lie are another
        file's; all of those are reported together.
    """
    given, results = results, results or default_results()
    if not targets:
        return _experiments_below(results)
    found: dict[Path, None] = {}
    problems = []
    for target in targets:
        try:
            folders = _folders_of(Path(target), results, given)
        except StoreError as error:
            problems.append(str(error))
            continue
        if not folders:
            problems.append(
                f"{target}: no results found for it (looked below {results}). Expected a parameter file that has been "
                "run, or a folder with results.csv."
            )
        found.update(dict.fromkeys(folders))
    if problems:
        raise ConfigError(problems)
    return list(found)


def default_results() -> Path:
    """data/results in the working directory if there is one, else the one beside the package's source."""
    here = Path("data/results")
    return here if here.is_dir() else Path(__file__).resolve().parents[2] / "data" / "results"


def _folders_of(target: Path, results: Path, given: Path | None) -> list[Path]:
    if target.is_dir():
        return _experiments_below(target)
    if (results / target).is_dir():
        return _experiments_below(results / target)
    if target.suffix not in (".yaml", ".yml"):
        return []
    from experiment.config import load  # only here: reading a folder needs no configuration
    from experiment.run.disk.parameters_file import require_own

    file = load(target)
    if given is None and file.parameters.directories.results:
        results = file.results()
    folder = results / file.name(results)
    require_own(folder, file.path)
    return [f for f in (folder, *sorted(folder.parent.glob(f"{folder.name}@*"))) if (f / "results.csv").is_file()]


def _experiments_below(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("results.csv"))


def _name(folder: Path) -> str:
    parts = folder.resolve().parts
    if "results" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("results")
        return "/".join(parts[last + 1 :]) or folder.name
    return folder.resolve().name


def _read_parameters(folder: Path) -> Mapping[str, Any]:
    from experiment.run.disk.parameters_file import PARAMETERS, read_parameters  # only here, as above

    return read_parameters(folder / PARAMETERS)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        data = read_json(path)
    except FileNotFoundError:
        return {}
    except Damaged as error:
        raise Damaged(f"{error} {RUN_AGAIN}") from error
    if not isinstance(data, Mapping):
        raise Damaged(f"{path}: must hold a mapping. Got {described(data)}. {RUN_AGAIN}")
    return data
