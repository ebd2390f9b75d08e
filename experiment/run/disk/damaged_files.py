"""Manifests: the size and CRC-32 of every file of a folder, by which damage is detected. Does not import torch."""

from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

from pydantic import BaseModel, ValidationError

from experiment.errors import StoreError, log
from experiment.escaping import json_text
from experiment.files import MAX_JSON_BYTES, read_file, write_whole
from experiment.run.grid.data_facts import Count
from experiment.run.grid.keys import FORMAT_VERSION

MANIFEST = "files.json"  # of a trained network; the manifest of a cell is part of its result.json
RESULT = "result.json"
EXAMPLES = "examples.npz"  # predictions for a few test images
SAMPLES = "samples.npz"  # the primary metric of every test sample


class FileRecord(BaseModel):
    """What the manifest says about one file. torch's archives contain checksums of their own and have no `crc32`."""

    bytes: Count
    crc32: Count | None = None


Files = Mapping[str, FileRecord]


class _Manifest(BaseModel):
    files: dict[str, FileRecord]


def manifest_of(folder: Path) -> dict[str, dict[str, int]]:
    """The manifest of the files in a folder, as plain values."""
    manifest = {}
    for path in sorted(folder.iterdir()):
        manifest[path.name] = {"bytes": path.stat().st_size}
        if path.suffix != ".pt":
            manifest[path.name]["crc32"] = crc32(path.read_bytes())
    return manifest


def write_manifest(folder: Path) -> None:
    """Write the manifest of a folder into it."""
    content = {"format": FORMAT_VERSION, "files": manifest_of(folder)}
    write_whole(folder / MANIFEST, json_text(content, indent=1) + "\n")


def read_manifest(path: Path) -> dict[str, FileRecord]:
    """The manifest in a JSON file; empty if the file is missing or damaged."""
    try:
        return _Manifest.model_validate_json(read_file(path, MAX_JSON_BYTES)).files
    except (FileNotFoundError, StoreError, ValidationError):
        return {}


def damaged_file(folder: Path, files: Files) -> Path | None:
    """The first file that differs from the manifest. Files that were removed are not damaged."""
    for name, record in files.items():
        path = folder / Path(name).name  # never a path out of the folder
        if not path.is_file():
            continue
        if path.stat().st_size != record.bytes:
            return path
        if record.crc32 is not None and crc32(path.read_bytes()) != record.crc32:
            return path
    return None


def read_intact(cell_folder: Path, name: str) -> bytes | None:
    """The content of a file of a cell's folder, or None if it is missing or damaged. Damage is logged."""
    path = cell_folder / name
    try:
        content = read_file(path)
    except FileNotFoundError:
        return None
    except StoreError:
        warn_of_damage(path)
        return None
    record = read_manifest(cell_folder / RESULT).get(name)
    if record is None or (record.bytes == len(content) and record.crc32 in (None, crc32(content))):
        return content
    warn_of_damage(path)
    return None


def warn_of_damage(path: Path) -> None:
    """Log that a file is damaged and ignored."""
    log.warning("%s is damaged and is ignored. Run the experiment again to recompute it.", path)
