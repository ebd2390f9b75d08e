"""An L-C optimization on disk after every step, so that it continues where it was killed."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from experiment.errors import StoreError
from experiment.files import set_aside
from experiment.training.checkpoint import read_whole, save_whole

log = logging.getLogger(__name__)

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Iteration:
    """One step j of the optimizer as it went.

    Attributes:
        mu: in this step. learning_rate: at the last minibatch of its L-step; None in step 0, which has none.
        iterations, epochs: minibatches, and how many times all training images, from the start until here.
        loss, top1: of w on the training batches of the L-step as they came, augmented.
        valid_...: of the compressed network on the validation part.
        distance, relative_distance: ||w - Delta(theta)|| over all condensed weights, and by ||w||.
        images: trained on in this step. seconds: all of it.
    """

    iteration: int
    mu: float
    learning_rate: float | None
    iterations: int
    epochs: float
    loss: float | None
    top1: float | None
    valid_loss: float
    valid_top1: float
    valid_top5: float
    distance: float
    relative_distance: float
    images: int
    seconds: float


@dataclasses.dataclass
class Progress:
    """What has been reached.

    Attributes:
        theta: layer name -> the weight that w is drawn to, Delta(theta); layers that compression left as they were are
            not in it.
        multipliers: layer name -> lambda, of the layers in theta.
        mu: of the step to come.
        best_loss, best: the smallest validation loss, and the state_dict whose compression had it.
    """

    statistics: list[Iteration] = dataclasses.field(default_factory=list)
    theta: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    multipliers: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    mu: float = 0.0
    best_loss: float = math.inf
    best: dict[str, Tensor] | None = None


_REACHED = TypeAdapter(tuple[list[Iteration], float, float])


class LCCheckpoint:
    """The file of one optimization.

    What the best network was compressed from is kept, not the network: any compression can be done again, whatever
    its result is made of.

    Args:
        path: None to keep none.
        network: as it is before the first step.
        about: says which optimization it is, beside the network's weights.
        replaces: whether a file that is damaged or of another optimization is set aside, or refused.
    """

    def __init__(self, path: Path | None, network: nn.Module, about: object, *, replaces: bool = True) -> None:
        self._path, self._replaces = path, replaces
        content = hashlib.sha256(repr(about).encode())
        for name, tensor in network.state_dict().items() if path is not None else ():
            content.update(name.encode())
            content.update(repr(tuple(tensor.shape)).encode())
            content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        self._fingerprint = content.hexdigest()

    def load(self, network: nn.Module) -> Progress:
        """Take the optimization up where the file left it, w written into `network`; from the start without a file.

        Raises: StoreError: the file is not of this optimization, and may not be replaced.
        """
        if self._path is None or not self._path.exists():
            return Progress()
        saved = read_whole(self._path)
        progress = None
        if saved is not None and saved.get("format") == FORMAT and saved.get("fingerprint") == self._fingerprint:
            before = copy.deepcopy(network.state_dict())
            try:
                progress = self._taken_up(saved, network)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError):
                network.load_state_dict(before)
                saved = None
        if progress is None:
            if not self._replaces:
                raise StoreError(f"{self._path}: {_not_of_this(saved)} Remove it, or give another path.")
            place = set_aside(self._path)
            log.warning("%s is damaged or of another optimization: set aside as %s.", self._path, place.name)
        return progress or Progress()

    def _taken_up(self, saved: Mapping[str, Any], network: nn.Module) -> Progress:
        """What a file of this optimization holds. Raises: where its values are not those that `save` wrote."""
        network.load_state_dict(saved["network"])
        device = next(network.parameters()).device
        tensors: dict[str, Any] = {
            key: {name: tensor.to(device) for name, tensor in saved[key].items()} for key in ("theta", "multipliers")
        }
        rows, mu, best_loss = _REACHED.validate_python((saved["statistics"], saved["mu"], saved["best_loss"]))
        best = saved["best"]
        if best is not None and best.keys() != saved["network"].keys():
            raise ValueError("the best state is that of another network")
        return Progress(rows, mu=mu, best_loss=best_loss, best=best, **tensors)

    def save(self, network: nn.Module, progress: Progress) -> None:
        """Write the file: whole, or as it was."""
        if self._path is None:
            return
        rows = [dataclasses.asdict(row) for row in progress.statistics]
        about = {"format": FORMAT, "fingerprint": self._fingerprint, "network": network.state_dict()}
        save_whole(self._path, {**vars(progress), **about, "statistics": rows})


def _not_of_this(saved: dict[str, Any] | None) -> str:
    if saved is None or "fingerprint" not in saved:
        return "is no checkpoint of an L-C optimization, or is damaged."
    if saved.get("format") != FORMAT:
        return "is a checkpoint of another version of the program."
    return "is a checkpoint of another optimization: network, data, compression or settings are not the same."
