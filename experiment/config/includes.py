"""Look-up of parameter files, and their includes merged into one tree."""

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiment.config.value_tree import KeyPath, Node, Problem, merge, refuse_giant
from experiment.config.yaml_file import read_yaml
from experiment.errors import ConfigError, shortened

OPEN_KEYS = {
    "settings", "kwargs", "stepKwargs", "optimizerKwargs", "lossKwargs", "tune", "network_names", "network_colors"
}  # fmt: skip


def packaged_param() -> Path:
    """The folder of the packaged parameter files: in the installed package, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_param"
    return inside if inside.is_dir() else package.parent / "param"


def shown_path(path: Path) -> str:
    """A path as shown in error messages: relative if it is below the working directory."""
    whole, here = Path(os.path.abspath(path)), Path.cwd()
    return whole.relative_to(here).as_posix() if whole.is_relative_to(here) else str(whole)


def find_parameter_file(name: str) -> Path:
    """A parameter file by its path: from the working directory, else among the packaged files.

    Raises: ConfigError: there is none; the error lists the places searched and a similar name, if there is one.
    """
    path, tried = _find(name, (Path.cwd(), packaged_param()))
    if path is not None:
        return path
    if any(os.path.isdir(place) for place in tried):
        raise ConfigError(f"{name}: is a folder. Expected a parameter file (.yaml). {_files_in(tried)}".rstrip())
    where = ", ".join(shortened(shown_path(place)) for place in tried)
    raise ConfigError(f"{shortened(name)}: no such parameter file. Searched: {where}.{_near_file(name)}")


def _files_in(places: Iterable[Path]) -> str:
    names = [file.name for place in places if os.path.isdir(place) for file in sorted(place.glob("*.yaml"))]
    return f"It contains {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}." if names else ""


def _near_file(name: str) -> str:
    """A similar name among the packaged files and those in the same folder."""
    files = [f"param/{file.relative_to(packaged_param()).as_posix()}" for file in packaged_param().rglob("*.yaml")]
    beside = Path(name).parent
    if os.path.isdir(beside):
        files += [(beside / file.name).as_posix() for file in beside.glob("*.yaml")]
    wanted = name if name.endswith(".yaml") else f"{name}.yaml"
    near = difflib.get_close_matches(wanted, files, n=1, cutoff=0.7)
    return f" Did you mean '{near[0]}'?" if near else ""


def _find(name: str, folders: Sequence[Path]) -> tuple[Path | None, list[Path]]:
    if Path(name).is_absolute():
        tried = [Path(name)]
    else:
        tried = [folder / name for folder in folders]
        inner = name.removeprefix("./").removeprefix("param/")
        if inner != name:  # `param/x.yaml` also means the packaged x.yaml
            tried.append(packaged_param() / inner)
    tried = list(dict.fromkeys(tried))
    return next((place for place in tried if os.path.isfile(place)), None), tried


@dataclass
class Reader:
    """Reads a parameter file with its includes, each file once.

    Attributes:
        problems: errors so far.
        incomplete: an include could not be read, and missing keys may be in it.
        files: the files read, in order, as shown in error messages.
    """

    problems: list[Problem] = field(default_factory=list)
    incomplete: bool = False
    files: list[str] = field(default_factory=list)
    _whole: dict[Path, Node] = field(default_factory=dict)

    def read(self, path: Path) -> Node:
        """The tree of a file with its includes.

        Raises: ConfigError: the file itself cannot be read. Errors in includes are added to `problems`.
        """
        root = self._read(path, (path.resolve(),))
        refuse_giant(root)
        return root

    def _read(self, path: Path, chain: tuple[Path, ...]) -> Node:
        resolved = path.resolve()
        if resolved not in self._whole:
            shown = shown_path(path)
            self.files.append(shown)
            self._whole[resolved] = self._expand(read_yaml(path, shown, self.problems), path.parent, chain, ())
        return self._whole[resolved]

    def _expand(self, node: Node, folder: Path, chain: tuple[Path, ...], at: KeyPath) -> Node:
        """Resolve the includes of a mapping and below it, except in lists and in free mappings such as `settings`."""
        if not isinstance(node.value, dict) or (at and at[-1] in OPEN_KEYS):
            return node
        own = {key: self._expand(v, folder, chain, (*at, key)) for key, v in node.value.items() if key != "file"}
        top = Node(own, node.place)
        if "file" not in node.value:
            return top
        base = self._include(node.value["file"], folder, chain, (*at, "file"))
        return top if base is None else merge(base, top)

    def _include(self, name: Node, folder: Path, chain: tuple[Path, ...], at: KeyPath) -> Node | None:
        try:
            path = _located(name.value, folder, chain)
            return self._read(path, (*chain, path.resolve()))
        except ConfigError as error:
            self.incomplete = True
            self.problems.extend(Problem(name.place, at, text) for text in error.problems)
            return None


def _located(name: object, folder: Path, chain: tuple[Path, ...]) -> Path:
    """The file to include. Raises: ConfigError: it does not exist, or it includes itself."""
    if not isinstance(name, str):
        raise ConfigError("must be the path of a YAML file to include.")
    path, tried = _find(name, (folder, Path.cwd(), packaged_param()))
    if path is None:
        places = ", ".join(shown_path(place) for place in tried)
        raise ConfigError(f"no such file '{name}'. Searched: {places}.{_near_file(name)}")
    if path.resolve() in chain:
        cycle = (*chain[chain.index(path.resolve()) :], path.resolve())
        raise ConfigError(f"the file includes itself: {' -> '.join(shown_path(p) for p in cycle)}.")
    return path
