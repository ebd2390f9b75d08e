"""Checkpoint files: a killed computation continues from its last one."""

import hashlib
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from experiment.errors import Damaged, StoreError, log
from experiment.files import is_whole_archive, set_aside, write_whole
from experiment.inputs import mapped
from experiment.tensor_file import read_tensors

FORMAT = 2
MAX_SHARE = 0.05  # of the run time may be spent on writing optional checkpoints


class Checkpoint:
    """A file of tensors and plain values, read only by the computation that wrote it.

    Args:
        path: None to keep no file.
        about: what identifies the computation, compared by its `repr`.
        replaces: whether a file that is damaged or belongs to another computation is renamed and replaced.
    """

    def __init__(self, path: Path | None, about: object, *, replaces: bool = True) -> None:
        self._path, self._replaces = path, replaces
        self._fingerprint = hashlib.sha256(repr((FORMAT, about)).encode()).hexdigest()
        self._saved_at, self._seconds_to_save = time.monotonic(), 0.0
        self._unsaved: dict[str, object] | None = None

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last; None without a file.

        Raises: StoreError: the file belongs to another computation and may not be replaced.
        """
        if self._path is None or not self._path.exists():
            return None
        saved = read_checkpoint(self._path)
        if saved is not None and saved.get("fingerprint") == self._fingerprint:
            return saved
        if not self._replaces:
            what = "is damaged or not a checkpoint" if saved is None else "is the checkpoint of something else"
            raise StoreError(
                f"{self._path}: {what}; expected one of the same network, data, compression and settings. "
                "Remove it, or use another path."
            )
        place = set_aside(self._path)
        log.warning("%s is damaged or the checkpoint of something else; renamed to %s.", self._path, place.name)
        return None

    def save(self, state: Mapping[str, object], *, optional: bool = False) -> None:
        """Write the file atomically.

        Args:
            optional: keep a copy in memory instead if the last file is too recent for the time that writing takes.
        """
        if self._path is None:
            return
        if optional and self._seconds_to_save > MAX_SHARE * (time.monotonic() - self._saved_at):
            self._unsaved = mapped(dict(state), lambda tensor: tensor.detach().to("cpu", copy=True))
            return
        started = time.monotonic()
        save_tensors(self._path, {**state, "fingerprint": self._fingerprint})
        self._saved_at, self._unsaved = time.monotonic(), None
        self._seconds_to_save = self._saved_at - started

    def save_rest(self) -> None:
        """Write the state that is kept in memory, if there is one."""
        if self._unsaved is not None:
            self.save(self._unsaved)


def save_tensors(path: Path, state: Mapping[str, object]) -> None:
    """Write tensors, as ones of the CPU, and plain values for `torch.load(weights_only=True)`, atomically."""
    buffer = io.BytesIO()  # torch reports a full disk as RuntimeError if it writes the file itself
    torch.save(mapped(dict(state), lambda tensor: tensor.detach().cpu()), buffer)
    write_whole(path, buffer.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint file; None if it is damaged."""
    try:
        loaded = read_tensors(path) if is_whole_archive(path) else None
    except (FileNotFoundError, Damaged):
        return None
    return loaded if isinstance(loaded, dict) else None
