"""The user's own modules: where they are, and a hash of their source. Nothing is executed here.

The hash of a module covers all modules that it imports, directly or not, from the same top-level package or, for
modules outside packages, from the same folder, including `__init__` files. Imports are read from the source: dynamic
imports (`importlib`), data files and installed packages are not covered.
"""

import ast
import hashlib
import importlib
import importlib.util
import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import machinery
from pathlib import Path

from experiment.errors import ConfigError

IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
OURS = __name__.partition(".")[0]
EXTRAS = {
    "transformers": "hf",
    "tokenizers": "hf",
    "safetensors": "hf",
    "timm": "timm",
    "mlflow": "mlflow",
}  # module -> extra that has it

_KINDS = (
    (machinery.SourceFileLoader, machinery.SOURCE_SUFFIXES),
    (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
)
_imported: dict[str, str] = {}  # module -> hash of its source when this process imported it


def missing_module(module: str) -> str:
    """The error about a module that cannot be found."""
    if module.partition(".")[0] in EXTRAS:
        return f"'{module}' is not installed: pip install '{OURS}[{EXTRAS[module.partition('.')[0]]}]'."
    return f"cannot find the module '{module}'. Is it installed, or in the working directory?"


def find_own_code() -> None:
    """Add the working directory to sys.path: installed scripts do not search it."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def source_hash(module: str) -> str:
    """A hash of the source of a module and of the user's modules that it imports.

    Raises: ConfigError: the module cannot be found.
    """
    found = hashlib.sha256()
    for name, path in sorted(sources_of(module).items()):
        found.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:16]


def sources_of(module: str) -> dict[str, Path]:
    """Name -> file of a module and of the user's modules that it imports; for an installed module, its own file only.

    Raises: ConfigError: the module cannot be found.
    """
    find_own_code()
    importlib.invalidate_caches()  # a file may be new
    own = _file(module)
    if own is None:
        raise ConfigError(missing_module(module))
    top, home = module.partition(".")[0], _home(module)
    found = {module: own} if home is None else {}
    waiting = [] if home is None else list(_with_parents(module))
    while waiting:
        name = waiting.pop()
        path = None if name in found else _file(name)
        if path is None or (name.partition(".")[0] != top and _home(name) != home):
            continue
        found[name] = path
        waiting += _imports(path.read_bytes(), name if path.stem == "__init__" else name.rpartition(".")[0])
    return found


def forget_changed(module: str) -> None:
    """Remove a user's module from sys.modules if its source has changed since the last call.

    Call it when keys are computed from the source on disk, so that a notebook does not run older code under them.
    Modules are not reloaded while cells are computed.
    """
    if _home(module) is None or _file(module) is None:
        return
    now = source_hash(module)
    if _imported.get(module, now) != now:
        for name in sources_of(module):
            sys.modules.pop(name, None)
    _imported[module] = now


def code_in(settings: object) -> Iterator[str]:
    """The user's modules that are named in plain settings, as `package.module:name`.

    Text of that form that names no existing module (`linear:decay`) is ignored.
    """
    if isinstance(settings, str):
        name = settings.partition(":")[0]
        find_own_code()
        if IMPORT_PATH.fullmatch(settings) and name.partition(".")[0] not in (OURS, "torch") and _file(name):
            yield name
    elif isinstance(settings, Mapping):
        yield from (name for value in settings.values() for name in code_in(value))
    elif isinstance(settings, list | tuple):
        yield from (name for value in settings for name in code_in(value))


def _file(module: str) -> Path | None:
    """The file of a module, or None. Parent packages are not imported."""
    spec = _spec(module)
    path = None if spec is None or spec.origin is None else Path(spec.origin)
    return path if path is not None and path.is_file() else None


def _spec(module: str) -> machinery.ModuleSpec | None:
    top, *below = module.split(".")
    try:
        spec = machinery.PathFinder.find_spec(top) or importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):  # modules without a spec, such as `__main__`
        return None
    name = top
    for part in below:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        finders = (machinery.FileFinder(folder, *_KINDS) for folder in list(spec.submodule_search_locations))
        spec = next((found for finder in finders if (found := finder.find_spec(name)) is not None), None)
    return spec


def _home(module: str) -> Path | None:
    """The folder that contains a user's module or its top-level package; None for installed modules."""
    top = module.partition(".")[0]
    spec = None if top == OURS else _spec(top)
    places = [] if spec is None else [*(spec.submodule_search_locations or ()), spec.origin or ""]
    place = next((Path(os.path.abspath(place)) for place in places if os.path.exists(place)), None)
    return None if place is None or _is_installed(place.parent) else place.parent


def _is_installed(folder: Path) -> bool:
    return folder.name in ("site-packages", "dist-packages") or folder.resolve() in _installed()


@lru_cache(maxsize=1)
def _installed() -> frozenset[Path]:
    """The folders of installed packages and of the standard library."""
    names = ("purelib", "platlib", "stdlib", "platstdlib")
    folders = [*(sysconfig.get_path(name) for name in names), *site.getsitepackages(), site.getusersitepackages()]
    return frozenset(Path(folder).resolve() for folder in folders)


def _with_parents(module: str) -> Iterator[str]:
    parts = module.split(".")
    return (".".join(parts[: i + 1]) for i in range(len(parts)))


@lru_cache(maxsize=256)
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """The modules that a source may import; for `from a import b` both `a` and `a.b`."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # compiled or faulty: reported when it is imported
        return ()
    names: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(dict.fromkeys(alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names.update(dict.fromkeys([base, *(f"{base}.{alias.name}" for alias in node.names)]))
    return tuple(each for name in names if name and not name.startswith(".") for each in _with_parents(name))
