"""What an experiment is called: the folder of its results below that of all results."""

from __future__ import annotations

from pathlib import Path

from experiment.config.includes import packaged_param
from experiment.files import safe_name, short_hash

OWN_FILES = {  # what an experiment's folder holds itself: no experiment below it may be called so
    "cells", "plots", "results.csv", "parameters.yaml", "environment.json", "data.json", "report.md",
    "report.html", "table.tex",
}  # fmt: skip


def experiment_name(path: Path, results: Path) -> str:
    """The name of a parameter file's experiment, such as `cifar/prune/resnet20`: a relative path, safe everywhere.

    It depends on where the file and the results lie, never on the working directory. It is the file's path below the
    folder that holds the results (the one with `data/results` in it), without `param` and the ending. A file elsewhere
    is called by its path below the nearest `param` or, where there is none, by its own name and a hash of its folder.
    What a part loses in becoming safe stands behind it as a hash after `~`, which no other part contains.

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
    """The folder of the project that the results belong to."""
    return results.parents[1] if results.parts[-2:] == ("data", "results") else results.parent


def _safe_path(parts: tuple[str, ...]) -> str:
    reserved = (f"{safe_name(part)}~{short_hash(part)}" if part.lower() in OWN_FILES else "" for part in parts)
    return "/".join(other or safe_name(part) for part, other in zip(parts, reserved, strict=True))
