"""The state of an L-C optimization between two steps, and the record of each step."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from experiment.tensor_file import load_tensors


@dataclasses.dataclass(frozen=True)
class LCRecord:
    """Step j of an L-C optimization: a row of its history.

    Attributes:
        iteration: j.
        mu: in this step.
        learning_rate: at the last minibatch of the L-step; None in step 0, which has none.
        iterations, epochs: minibatches, and passes over the training images, from the start to the end of this step.
        loss: of w on the augmented training batches of the L-step.
        values: name -> figure of the primary metric on these batches.
        valid_loss: of the compressed network on the validation part.
        valid: name -> figure of every metric of the compressed network on the validation part.
        distance, relative_distance: ||w - Delta(theta)|| over all constrained weights, and divided by ||w||.
        images: number of training images processed in this step.
        seconds: of the whole step.
    """

    iteration: int
    mu: float
    learning_rate: float | None
    iterations: int
    epochs: float
    loss: float | None
    values: Mapping[str, float]
    valid_loss: float
    valid: Mapping[str, float]
    distance: float
    relative_distance: float
    images: int
    seconds: float


@dataclasses.dataclass
class LCState:
    """The state from which the next step starts, except the weights w.

    Attributes:
        theta: layer name -> Delta(theta), the weight towards which w is pulled; layers that the compression did
            not change are omitted.
        multipliers: layer name -> lambda, of the layers in theta.
        mu: of the next step.
        best_loss, best_weights: the smallest validation loss, and the state_dict whose compression has it.
    """

    records: list[LCRecord] = dataclasses.field(default_factory=list)
    theta: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    multipliers: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    mu: float = 0.0
    best_loss: float = math.inf
    best_weights: dict[str, Tensor] | None = None

    def saved(self, network: nn.Module) -> dict[str, Any]:
        """The state and the weights w of `network` as tensors and plain values."""
        records = [dataclasses.asdict(record) for record in self.records]
        return {**vars(self), "records": records, "network": network.state_dict()}


def restored(saved: dict[str, Any], network: nn.Module, device: torch.device) -> LCState:
    """The state that `LCState.saved` returned; its weights w are loaded into `network`."""
    load_tensors(network, saved["network"])
    values = {field.name: saved[field.name] for field in dataclasses.fields(LCState)}
    for key in ("theta", "multipliers"):
        values[key] = {name: tensor.to(device) for name, tensor in saved[key].items()}
    return LCState(**{**values, "records": [LCRecord(**record) for record in saved["records"]]})
