"""The outputs of a reference network on a test set, which those of compressed networks are compared with.

They are computed once and kept in `.outputs/` of the results folder, which may be removed at any time.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from experiment.errors import CannotWrite, log
from experiment.files import whole_file
from experiment.inputs import Inputs, batch_size, call_network
from experiment.layers.forward_pass import evaluating
from experiment.tasks.task import Task
from experiment.tensor_file import read_array
from experiment.training.evaluation import Observer
from experiment.training.factories import Loss

FOLDER = ".outputs"
MOST_BYTES = 2_000_000_000  # that are kept; larger ones are computed again beside those of every compressed network

Array = npt.NDArray[np.float32]
OutputsOf = Callable[[int, Inputs], Tensor]
Pass = Callable[[Observer], object]


def reference_outputs(network: nn.Module, task: Task, number: int, evaluate: Pass, path: Path) -> OutputsOf:
    """A function (number of the first sample, inputs of a batch) -> outputs (N, K, ...) of the reference network.

    Args:
        number: of samples in the test set.
        evaluate: passes the test set through the network, and the outputs to an observer.
        path: where the outputs are kept.
    """
    kept = _read(path, number)
    if kept is None:
        try:
            with whole_file(path) as partial:
                evaluate(_Recorder(partial, number))
            kept = _read(path, number)
        except _NotKept:
            log.debug("the outputs of the reference network take too much room, or differ in shape")
        except CannotWrite as error:
            log.warning("%s The outputs of the reference network are computed again for every cell.", error)

    def computed(start: int, x: Inputs) -> Tensor:
        with evaluating(network), torch.inference_mode():
            return task.outputs(call_network(network, x)).float()

    if kept is None:
        return computed
    outputs = kept
    return lambda start, x: torch.from_numpy(outputs[start : start + batch_size(x)])


class _NotKept(Exception):
    """The outputs are not kept in a file."""


class _Recorder:
    """Writes the outputs of an evaluation into a file (an `Observer`)."""

    def __init__(self, path: Path, number: int) -> None:
        self._path, self._number = path, number
        self._kept: Array | None = None

    def restart(self) -> None:
        self._kept = None

    def observe(self, start: int, x: Inputs, outputs: Tensor, y: Tensor, criterion: Loss) -> None:
        shape = (self._number, *outputs.shape[1:])
        if self._kept is None:
            if 4 * math.prod(shape) > MOST_BYTES:
                raise _NotKept
            self._kept = np.lib.format.open_memmap(self._path, mode="w+", dtype=np.float32, shape=shape)
        if self._kept.shape != shape:
            raise _NotKept
        self._kept[start : start + len(y)] = outputs.cpu().numpy()


def _read(path: Path, number: int) -> Array | None:
    """The outputs in a file, memory-mapped; None if it is missing or damaged."""
    kept = read_array(path)
    if kept is None or kept.dtype != np.float32 or kept.ndim < 2 or len(kept) != number:
        return None
    return kept
