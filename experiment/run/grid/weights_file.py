"""The files that a network starts from: where they are, and the hash of their content. Without torch."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiment.datasets.file_stamp import hash_of
from experiment.errors import Damaged, StoreError, kind_of, plural, shortened
from experiment.files import read_json

DATASETS_FOLDER = Path("data/datasets")
INDEX, ONE_FILE = "model.safetensors.index.json", "model.safetensors"  # in folders that transformers writes


@dataclass(frozen=True)
class GivenWeights:
    """A file of weights, with the hash of its content when the cells were planned."""

    path: Path
    content: str


def find_given(name: str, datasets: Path) -> GivenWeights | None:
    """The file of `network.weights`: absolute, from the working directory, or in the folder of datasets.

    A folder stands for the safetensors file in it, or else, as in transformers, for the index of its shards.

    Raises: StoreError: the file cannot be read, or the index is damaged.
    """
    for place in (Path(name).absolute(), datasets.absolute() / name):
        for path in (place, place / ONE_FILE, place / INDEX):
            if os.path.isfile(path):  # False for names that no file can have
                return GivenWeights(path, given_hash(path))
    return None


def given_hash(path: Path) -> str:
    """The hash of a file of weights; of an index, that of its shards, too, as far as they exist.

    Raises: StoreError: a file cannot be read, or the index is damaged.
    """
    if path.suffix != ".json":
        return content_hash(path)
    shards = [path.parent / name for name in shard_names(path)]
    parts = [content_hash(part) for part in (path, *shards) if os.path.isfile(part)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def shard_names(index: Path) -> list[str]:
    """The files that an index of shards names, as `save_pretrained` writes it.

    Raises: StoreError: it is damaged, or names files elsewhere.
    """
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        got = f"It is {kind_of(places)}." if places else "It has none."
        raise Damaged(f"{index}: expected the index of safetensors files, with a weight_map from names to files. {got}")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise Damaged(f"{index}: names a shard {shortened(repr(name))}. Expected a safetensors file beside it.")
    return sorted(set(places.values()))


def folder_hash(settings: Mapping[str, Any]) -> str | None:
    """The hash of the folder that `network.settings.config` names, written by transformers; None without one."""
    folder = settings.get("config")
    if not isinstance(folder, str) or not os.path.isdir(folder):
        return None
    files = sorted(path for path in Path(folder).iterdir() if path.suffix in (".json", ".safetensors"))
    return hashlib.sha256("\n".join(f"{path.name} {content_hash(path)}" for path in files).encode()).hexdigest()[:16]


def datasets_folder(values: Mapping[str, Any], command_line: Path | None) -> Path:
    """The folder of datasets: from the command line, else from the file (plain values), else the default."""
    directories = values.get("directories")
    given = directories.get("training_data") if isinstance(directories, Mapping) else None
    return command_line or (Path(given) if isinstance(given, str) and given else DATASETS_FOLDER)


def missing_shard(index: Path) -> str | None:
    """The error about a shard that an index names and that is not beside it; None if all are there.

    Raises: StoreError: the index is damaged.
    """
    names = shard_names(index)
    missing = next((name for name in names if not (index.parent / name).is_file()), None)
    return missing and (
        f"{index}: names the shard '{shortened(missing)}', which is not beside it. Expected all {len(names)} shards: "
        "copy it there, or download it again."
    )


def missing_text(name: str, datasets: Path) -> str | None:
    """The error about a file or shard that does not exist, or a folder without weights; None if all are there.

    Raises: StoreError: a file cannot be read, or the index is damaged.
    """
    if found := find_given(name, datasets):
        return missing_shard(found.path) if found.path.suffix == ".json" else None
    for folder in (Path(name).absolute(), datasets.absolute() / name):
        if os.path.isdir(folder):
            have = f"has {plural(len(list(folder.glob('*.safetensors'))), '.safetensors file')}"
            return f"the folder {folder} {have}, but no {INDEX} and no {ONE_FILE}. Add either, or name a single file."
    places = "" if Path(name).is_absolute() else f" in {Path.cwd()} or {datasets.absolute()}"
    expected = (
        "a state_dict as written by torch.save(net.state_dict(), path), a safetensors file, or a folder of shards"
    )
    return f"no file '{shortened(name)}'{places}. Expected {expected} with its {INDEX}."


def content_hash(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file; cached by size and time of change.

    Raises: StoreError: it cannot be read.
    """
    try:
        status = path.stat()
        return _hash(path.resolve(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}.") from error


@lru_cache(maxsize=64)
def _hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as stream:
        return hash_of(stream)[:16]
