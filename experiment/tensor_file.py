"""Reading files of tensors and plain values, from any source, without executing anything in them.

Sizes that a file claims are compared with its content before memory is allocated: reading takes memory of the size of
the file, and at most about 80 times `MAX_PICKLE_BYTES` for its Python values.
"""

import io
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiment.errors import Damaged, StoreError, shortened
from experiment.escaping import one_line
from experiment.files import is_whole_archive

MAX_PICKLE_BYTES = 2**23  # names, shapes and settings; a state_dict of 1,000 tensors has 200 kB
MAX_VIEWS = 16  # size of all tensors that share memory, in sizes of the file
_LEGACY_PICKLES = 5  # torch before 1.6: magic number, version, system, content, names of the storages
_OF_TORCH = "WeightsUnpickler error:"  # what was wrong comes after it
_ESCAPE_CODES = re.compile(r"\x1b\[[0-9;]*m")  # which torch writes into errors
_PICKLE, _ZIP = "data.pkl", b"PK\x03\x04"


def read_array(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[Any]] | None:
    """A numpy array in a file, memory-mapped; None if it is missing or damaged."""
    try:
        found: np.ndarray[tuple[int, ...], np.dtype[Any]] = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found  # copy on write, as torch wants


def read_tensors(path: Path) -> Any:
    """The tensors and plain values in a file, on the CPU.

    Raises: FileNotFoundError. Damaged: the file is truncated, contains anything else, or claims sizes that it does not
        have. StoreError: the system does not permit reading it.
    """
    if not path.exists() and not path.is_symlink():
        raise FileNotFoundError(path)
    if not path.is_file():
        raise Damaged(f"{path}: is not a regular file.")
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            is_archive = stream.read(4) == _ZIP
        if (is_archive or zipfile.is_zipfile(path)) and not is_whole_archive(path):  # torch does not verify checksums
            raise Damaged(f"{path}: is damaged: its checksums do not match its content.")
        _require_small(path)
        with warnings.catch_warnings():  # torch warns about pickles that it refuses
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
        _require_true_sizes(content, size)
    except StoreError:
        raise
    except OSError as error:
        if error.errno is not None and error.filename is not None:  # raised by the system, not by torch
            raise StoreError(f"{path}: cannot be read: {os.strerror(error.errno)}.") from error
        raise Damaged(_reason(path, error)) from error
    except Exception as error:  # MemoryError, TypeError, IndexError, ...: torch documents no complete list
        raise Damaged(_reason(path, error)) from error
    return content


def tensors_in(content: object) -> Iterator[Tensor]:
    """Every tensor in nested plain values, once."""
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


def load_tensors(network: nn.Module, state: Mapping[str, Tensor], assign: bool = False) -> None:
    """torch's `load_state_dict` for a plain dictionary, which does not hold the versions of the network's modules.

    Without them torch takes the state for one of an old release, which torchvision's MNASNet refuses.
    """
    versioned = network.state_dict()  # the dictionary that carries them
    versioned.clear()
    versioned.update(state)
    network.load_state_dict(versioned, assign=assign)


def _reason(path: Path, error: Exception) -> str:
    text = str(error)
    if "unsupported global" in text.lower():  # torch advises to execute the file
        unread = "a whole module or other Python objects, which are not unpickled"
        return f"{path}: holds {unread}. Save net.state_dict() instead."
    text = _ESCAPE_CODES.sub("", text.partition(_OF_TORCH)[2] or text).strip().partition("\n")[0]
    reason = shortened(one_line(text) or type(error).__name__)
    return f"{path}: is not a weights file, is damaged, or contains more than plain data ({reason})."


def _require_small(path: Path) -> None:
    """Raises: ValueError: the pickled part is large, or would allocate memory of a size that it claims."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickles = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == _PICKLE]
            if any(info.file_size > MAX_PICKLE_BYTES for info in pickles):
                raise ValueError(f"more than {MAX_PICKLE_BYTES:,} bytes of plain values")
            streams = [(io.BytesIO(archive.read(info)), 1) for info in pickles]
    else:
        with path.open("rb") as stream:
            streams = [(io.BytesIO(stream.read(MAX_PICKLE_BYTES)), _LEGACY_PICKLES)]
    for pickled, pickles_in_it in streams:
        for _ in range(pickles_in_it):
            for opcode, argument, _place in pickletools.genops(pickled):
                if isinstance(argument, str) and opcode.name != "BINUNICODE" and "bytearray" in argument:
                    raise ValueError("a bytearray, which weights never contain")


def _require_true_sizes(content: object, size: int) -> None:
    """Raises: ValueError: a tensor is not a plain one, or has more elements than the file contains."""
    storages: dict[int, int] = {}
    views = 0
    for tensor in tensors_in(content):
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError("a tensor that is not a plain one")
        storage, needed = tensor.untyped_storage(), tensor.numel() * tensor.element_size()
        if needed > storage.nbytes():
            raise ValueError("a tensor with more elements than are stored")
        storages[storage.data_ptr()] = storage.nbytes()
        views += needed
    if sum(storages.values()) > size or views > MAX_VIEWS * size:
        raise ValueError("tensors with more elements than the file contains")
