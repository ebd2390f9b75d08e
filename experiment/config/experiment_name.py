"""The name of an experiment, which is the path of its folder below that of all results."""

from pathlib import Path

from experiment.config.includes import packaged_param
from experiment.files import safe_name, short_hash

OWN_FILES = {  # in an experiment's folder: reserved names for experiments below it
    "cells", "plots", "results.csv", "parameters.yaml", "environment.json", "data.json", "report.md",
    "report.html", "table.tex",
}  # fmt: skip


def experiment_name(path: Path, results: Path) -> str:
    """The name of a parameter file's experiment, for instance `cifar/prune/resnet20`: a portable relative path.

    It depends on the paths of the file and of the results, never on the working directory. It is the file's path below
    the project's folder (the one that contains `data/results`), without `param` and the suffix. A file outside of it is
    named by its path below the nearest `param` or, without one, by its own name and a hash of its folder. A part whose
    characters had to be replaced gets a hash after `~`.

    Args:
        results: the folder of all results.
    """
    whole = path.resolve()
    whole = whole.with_name(whole.name.removesuffix(".yaml").removesuffix(".yml"))
    home, packaged = _home(results.resolve()), packaged_param().resolve()
    if whole.is_relative_to(packaged):
        return _safe_path(whole.relative_to(packaged).parts)
    if whole.is_relative_to(home):
        *folders, name = whole.relative_to(home).parts
        return _safe_path((*(folder for folder in folders if folder != "param"), name))
    *folders, name = whole.parts
    if "param" in folders:
        return _safe_path((*folders[len(folders) - folders[::-1].index("param") :], name))
    return f"{_safe_path((name,))}~{short_hash(str(whole.parent))}"


def _home(results: Path) -> Path:
    """The project's folder."""
    return results.parents[1] if results.parts[-2:] == ("data", "results") else results.parent


def _safe_path(parts: tuple[str, ...]) -> str:
    reserved = (f"{safe_name(part)}~{short_hash(part)}" if part.lower() in OWN_FILES else "" for part in parts)
    return "/".join(other or safe_name(part) for part, other in zip(parts, reserved, strict=True))
