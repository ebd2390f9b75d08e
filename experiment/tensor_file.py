"""Files of tensors and plain values that torch wrote, or whoever: read without executing anything in them.

What is promised in a file is compared with what is in it before memory is given to it: reading takes the size of the
file, and at most about `MOST_PICKLE_BYTES` times 80 for the Python values in it.
"""

from __future__ import annotations

import io
import os
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiment.errors import Damaged, StoreError, shortened
from experiment.escaping import one_line
from experiment.files import is_whole_archive

MOST_PICKLE_BYTES = 2**23  # of names, shapes and settings; a state_dict of 1,000 tensors has 200 kB of them
MOST_VIEWS = 16  # times the file: how much tensors that share memory may come to
_LEGACY_PICKLES = 5  # torch before 1.6: magic number, version, system, content, names of the storages
_PICKLE, _ZIP = "data.pkl", b"PK\x03\x04"


def read_tensors(path: Path) -> Any:
    """What a file of tensors and plain values holds, on the CPU.

    Raises: FileNotFoundError: there is none. Damaged: it is cut off, holds anything else, or promises more than it has.
        StoreError: the disk, or its permissions, refuse it.
    """
    if not path.exists() and not path.is_symlink():
        raise FileNotFoundError(path)
    if not path.is_file():
        raise Damaged(f"{path}: is not a regular file.")
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            is_archive = stream.read(4) == _ZIP
        if (is_archive or zipfile.is_zipfile(path)) and not is_whole_archive(path):  # torch does not look at checksums
            raise Damaged(f"{path}: damaged: its checksums are not those of what is in it.")
        _require_small(path)
        with warnings.catch_warnings():  # torch warns of pickles that it then refuses, or that are refused below
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
        _require_honest(content, size)
    except StoreError:
        raise
    except OSError as error:
        if error.errno is not None and error.filename is not None:  # the system says so, and not torch
            raise StoreError(f"{path}: cannot be read: {os.strerror(error.errno)}.") from error
        raise Damaged(_reason(path, error)) from error
    except Exception as error:  # MemoryError, TypeError, IndexError, ...: torch lists nowhere what it raises
        raise Damaged(_reason(path, error)) from error
    return content


def tensors_in(content: object) -> Iterator[Tensor]:
    """Every tensor in plain values, once, however often it is referred to."""
    seen: set[int] = set()
    todo = [content]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            todo.extend(value.values())
        elif isinstance(value, list | tuple | set):
            todo.extend(value)


def _reason(path: Path, error: Exception) -> str:
    reason = shortened(one_line(str(error).strip().partition("\n")[0]) or type(error).__name__)
    return f"{path}: not a file of weights, damaged, or holding more than plain data ({reason})."


def _require_small(path: Path) -> None:
    """Raises: ValueError: the pickled part is large, or asks for memory by a number."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickles = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == _PICKLE]
            if any(info.file_size > MOST_PICKLE_BYTES for info in pickles):
                raise ValueError(f"more than {MOST_PICKLE_BYTES:,} bytes of plain values")
            streams = [(io.BytesIO(archive.read(info)), 1) for info in pickles]
    else:
        with path.open("rb") as stream:
            streams = [(io.BytesIO(stream.read(MOST_PICKLE_BYTES)), _LEGACY_PICKLES)]
    for pickled, pickles_in_it in streams:
        for _ in range(pickles_in_it):
            for opcode, argument, _place in pickletools.genops(pickled):
                if isinstance(argument, str) and opcode.name != "BINUNICODE" and "bytearray" in argument:
                    raise ValueError("a bytearray, which no file of weights has")


def _require_honest(content: object, size: int) -> None:
    """Raises: ValueError: a tensor is not an ordinary one, or has more elements than the file holds."""
    storages: dict[int, int] = {}
    views = 0
    for tensor in tensors_in(content):
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError("a tensor that is not an ordinary one")
        storage, needed = tensor.untyped_storage(), tensor.numel() * tensor.element_size()
        if needed > storage.nbytes():
            raise ValueError("a tensor of more elements than are stored")
        storages[storage.data_ptr()] = storage.nbytes()
        views += needed
    if sum(storages.values()) > size or views > MOST_VIEWS * size:
        raise ValueError("tensors of more elements than the file holds")
