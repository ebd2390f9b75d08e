"""A training on disk after an epoch, so that it continues where it was killed."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.optim import Optimizer

from experiment.errors import Damaged
from experiment.files import is_whole_archive, set_aside, write_whole
from experiment.random_streams import Part
from experiment.tensor_file import read_tensors
from experiment.training.settings import TrainSettings

log = logging.getLogger(__name__)

FORMAT = 1
MAX_SHARE = 0.05  # of the time, spent on writing


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """One epoch as it went.

    Attributes:
        learning_rate: at the epoch's last step.
        loss, top1: on the training batches as they came, augmented. valid_...: after the epoch, None without that part.
        images: trained on. seconds: training and validation.
    """

    epoch: int
    learning_rate: float
    loss: float
    top1: float
    valid_loss: float | None
    valid_top1: float | None
    valid_top5: float | None
    images: int
    seconds: float


@dataclasses.dataclass
class Progress:
    """What has been reached: the epochs run, and the best state on the validation part, if it is kept."""

    records: list[EpochRecord] = dataclasses.field(default_factory=list)
    best_top1: float = -1.0
    best_state: dict[str, Tensor] | None = None


_REACHED = TypeAdapter(tuple[list[EpochRecord], float])


class Checkpoint:
    """The checkpoint file of one training.

    Args:
        path: None to keep none.
        settings, stream, num_images: say which training it is; the file of another one is not taken up.
    """

    def __init__(
        self,
        path: Path | None,
        network: nn.Module,
        optimizer: Optimizer,
        scaler: torch.amp.GradScaler,
        settings: TrainSettings,
        stream: tuple[Part, ...],
        num_images: int,
    ) -> None:
        self._path, self._network, self._optimizer, self._scaler = path, network, optimizer, scaler
        shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
        more = [value for value in (settings.penalties, settings.distillation) if value]
        training = repr((settings, stream, num_images, shapes, *more))
        self._fingerprint = hashlib.sha256(training.encode()).hexdigest()
        self._written, self._cost = time.monotonic(), 0.0
        self._pending: dict[str, object] | None = None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Write the last finished epoch, if it was not worth it until now, where somebody asks the process to end."""
        if self._pending is not None and isinstance(error, KeyboardInterrupt | SystemExit):
            self._write(self._pending)

    def load(self, rewind_to: tuple[int, Path] | None = None) -> Progress:
        """Take the training up where the file left it; from the start, if there is no whole file of this training.

        Args:
            rewind_to: an epoch and the file of its start: where that epoch has been passed, the file must be there.
        """
        if self._path is None or not self._path.exists():
            return Progress()
        saved = read_whole(self._path)
        progress = None
        if saved is not None and saved.get("format") == FORMAT and saved.get("fingerprint") == self._fingerprint:
            progress = self._taken_up(saved, rewind_to)
        if progress is None:
            place = set_aside(self._path)
            log.warning("%s is damaged or of another training: set aside as %s.", self._path, place.name)
        return progress or Progress()

    def _taken_up(self, saved: Mapping[str, Any], rewind_to: tuple[int, Path] | None) -> Progress | None:
        """What a file of this training holds, written into network and optimizer; None, and they are as they were."""
        before = copy.deepcopy((self._network.state_dict(), self._optimizer.state_dict()))
        try:
            reached = saved["records"][-1]["epoch"] if saved["records"] else -1
            if rewind_to is not None and reached >= rewind_to[0] and not rewind_to[1].is_file():
                return Progress()
            return self.restore(saved)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError):
            self._network.load_state_dict(before[0])
            self._optimizer.load_state_dict(before[1])
            return None

    def restore(self, saved: Mapping[str, Any]) -> Progress:
        """Put network and optimizer into a state that `state` gave, here or in another process.

        Raises: ValueError, and what torch raises: the state is not one of this network and optimizer.
        """
        records, best_top1 = _REACHED.validate_python((saved["records"], saved["best_top1"]))
        best, own = saved["best_state"], self._network.state_dict()
        if best is not None and {n: t.shape for n, t in best.items()} != {n: t.shape for n, t in own.items()}:
            raise ValueError("the best state is that of another network")
        self._network.load_state_dict(saved["network"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._scaler.load_state_dict(saved["scaler"])
        return Progress(records, best_top1, best)

    def save(self, progress: Progress, *, last: bool) -> None:
        """Write the file, if it is the last epoch or the time since the last writing is worth it; else keep a copy."""
        if self._path is None:
            return
        state = self.state(progress)
        if last or self._cost <= MAX_SHARE * (time.monotonic() - self._written):
            self._pending = state
            self._write(state)
        else:
            self._pending = _copied(state)

    def _write(self, state: dict[str, Any]) -> None:
        assert self._path is not None
        started = time.monotonic()
        save_whole(self._path, state)
        self._written, self._pending = time.monotonic(), None
        self._cost = self._written - started

    def state(self, progress: Progress) -> dict[str, Any]:
        """Everything that the training continues from, as tensors and plain values."""
        return {
            "format": FORMAT,
            "fingerprint": self._fingerprint,
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "records": [dataclasses.asdict(record) for record in progress.records],
            "best_top1": progress.best_top1,
            "best_state": progress.best_state,
        }


def save_whole(path: Path, state: Mapping[str, object]) -> None:
    """Save tensors and plain values for `torch.load(weights_only=True)`: whole or not at all."""
    buffer = io.BytesIO()  # where torch writes to a file itself, a full disk is an error among others
    torch.save(state, buffer)
    write_whole(path, buffer.getbuffer())


def _copied(value: Any) -> Any:
    """Plain values with copies of the tensors in them, on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(child) for key, child in value.items()}
    return [_copied(child) for child in value] if isinstance(value, list) else value


def read_whole(path: Path) -> dict[str, Any] | None:
    """What `save_whole` wrote; None if the file is damaged, by its checksums or its structure."""
    try:
        loaded = read_tensors(path) if is_whole_archive(path) else None
    except (FileNotFoundError, Damaged):
        return None
    return loaded if isinstance(loaded, dict) else None
