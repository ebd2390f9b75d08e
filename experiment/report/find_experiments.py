"""Find the results folders of experiments."""

from collections.abc import Sequence
from pathlib import Path

from experiment.config import load
from experiment.errors import ConfigError, StoreError
from experiment.run.disk.parameters_file import require_own


def find_experiments(
    targets: Sequence[str | Path] = (), results: Path | None = None, *, overridden: bool = True
) -> list[Path]:
    """The folders of all experiments with results that the targets select.

    Args:
        targets: parameter files, folders of experiments, or folders above those; by default everything in `results`.
        results: the folder of all results; by default data/results in the working directory, else the one beside the
            package.
        overridden: whether parameter files also select their runs with `--set`, whose folders are NAME@...

    Raises: ConfigError: a target selects nothing, or its folder holds the results of another parameter file. All
        problems are reported together.
    """
    given, results = results, results or default_results()
    if not targets:
        return _experiments_below(results)
    found: dict[Path, None] = {}
    problems = []
    for target in targets:
        try:
            folders = _folders_of(Path(target), results, given, overridden)
        except StoreError as error:
            problems.append(str(error))
            continue
        if not folders:
            problems.append(
                f"{target}: no results found in {results}. Expected a parameter file that has been run, or a folder "
                "that contains results.csv."
            )
        found.update(dict.fromkeys(folders))
    if problems:
        raise ConfigError(problems)
    return list(found)


def default_results() -> Path:
    """data/results in the working directory if it exists, else the one beside the package's source."""
    here = Path("data/results")
    return here if here.is_dir() else Path(__file__).resolve().parents[2] / "data" / "results"


def _folders_of(target: Path, results: Path, given: Path | None, overridden: bool) -> list[Path]:
    for folder in (target, results / target):
        if folder.is_dir():
            return _experiments_below(folder)
    if target.suffix not in (".yaml", ".yml"):
        return []
    file = load(target)
    if given is None and file.parameters.directories.results:
        results = file.results()
    folder = results / file.name(results)
    require_own(folder, file.path)
    others = sorted(folder.parent.glob(f"{folder.name}@*")) if overridden else []
    return [f for f in (folder, *others) if (f / "results.csv").is_file()]


def _experiments_below(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("results.csv"))
