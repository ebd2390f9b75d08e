"""The L-C optimizer: learning (L) and compression (C) steps alternate, and weights w approach compressed ones, theta.

    min_{w, theta} L(w)   subject to   w = Delta(theta)

by the augmented Lagrangian L(w) - lambda^T (w - Delta(theta)) + mu/2 ||w - Delta(theta)||^2. In step j:

    L   minibatches on w with gradient  dL/dw + mu (w - Delta(theta)) - lambda      (not in step 0)
    C   theta = Pi(w - lambda / mu)      (Pi(w) while mu = 0: step 0 is direct compression)
    M   lambda <- lambda - mu (w - Delta(theta)),  then mu grows

The constraint is on the weights of convolutions and linear layers; biases, BatchNorm and layers that the compression
does not change are free. Every theta is validated, and the best one is the result.

Source: Carreira-Perpinan 2017, https://arxiv.org/abs/1707.01209; Joseph et al. 2019 (Condensa),
https://arxiv.org/abs/1911.02497
"""

import hashlib
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from experiment.datasets.image_data import Images
from experiment.errors import TrainingDiverged
from experiment.inputs import Inputs
from experiment.layers.copied_network import copied
from experiment.lc.learning_step import MinibatchTraining
from experiment.lc.projection import Projected, Projection, condensed_weights, weights_of
from experiment.lc.schedule import LCSettings
from experiment.lc.state import LCRecord, LCState, restored
from experiment.progress import progress
from experiment.random_streams import Part
from experiment.tensor_file import load_tensors
from experiment.training.checkpoint import Checkpoint
from experiment.training.evaluation import validate
from experiment.training.settings import TrainSettings
from experiment.training.step import TrainingImages, TrainMetrics, compiler


class LCOptimizer:
    """One L-C optimization, from a trained network to its best compressed form.

    Args:
        network: the trained network, on the device to compute on; copied, not modified.
        project: the compression.
        train, valid: training images, and images that select the best compressed network; never the test part.
        settings: of the optimizer.
        training: optimizer, batch size, loss, precision, penalties and distillation of the L-steps, with `network` as
            teacher; number of epochs and schedulers are ignored.
        example: a batch of one input.
        stream: of data order, augmentation and dropout.
        checkpoint: file to continue from, written after every step.
        about: further values that identify the checkpoint.
        replaces: whether a checkpoint that is damaged or of another optimization is renamed and replaced.
    """

    def __init__(
        self,
        network: nn.Module,
        project: Projection,
        train: TrainingImages,
        valid: Images,
        settings: LCSettings,
        training: TrainSettings,
        *,
        example: Inputs,
        stream: tuple[Part, ...],
        checkpoint: Path | None = None,
        about: object = None,
        replaces: bool = True,
    ) -> None:
        self._device = next(network.parameters()).device
        self._network = copied(network).eval()
        self._teacher = None if training.distillation is None else network
        self._project, self._train, self._valid = project, train, valid
        self._settings, self._training, self._stream = settings, training, stream
        self._weights = condensed_weights(self._network, example)
        weights = None if checkpoint is None else digest(network.state_dict())
        which = (settings, training, stream, len(train), len(valid), about, weights)
        self._checkpoint = Checkpoint(checkpoint, which, replaces=replaces)
        self._state = LCState()
        self._best: Projected | None = None

    @property
    def records(self) -> list[LCRecord]:
        """The steps so far, including those before an interruption."""
        return self._state.records

    def steps(self) -> Iterator[LCRecord]:
        """Run the remaining steps; yields the record of each.

        Raises:
            TrainingDiverged: loss or weights became NaN or infinite.
            CompressionError: the compression failed (InfeasibleBudget: it cannot reach the size).
        """
        if saved := self._checkpoint.load():
            self._state = restored(saved, self._network, self._device)
        state = self._state
        training = MinibatchTraining(
            self._network, self._train, self._training, stream=self._stream, device=self._device,
            done=state.records[-1].iterations if state.records else 0, teacher=self._teacher,
        )  # fmt: skip
        with compiler(self._training):
            for j in progress(range(len(state.records), self._settings.steps), "learning and compressing, by step"):
                record = self._step(j, training)
                state.records.append(record)
                state.mu = self._settings.next_mu(state.mu)
                self._checkpoint.save(state.saved(self._network))
                yield record

    def run(self) -> Projected:
        """Run all remaining steps; returns the best compressed network."""
        for _ in self.steps():
            pass
        return self.best

    @property
    def best(self) -> Projected:
        """The compressed network with the smallest validation loss.

        Raises: TrainingDiverged: the loss of every network is NaN.
        """
        if self._state.best_weights is None:
            raise TrainingDiverged("the validation loss of every compressed network is NaN. Try a smaller muInit.")
        if self._best is None:  # from before an interruption
            network = copied(self._network)
            load_tensors(network, self._state.best_weights)
            mu = next(row.mu for row in self._state.records if row.valid_loss == self._state.best_loss)
            self._best = self._projected(network.eval(), mu)
        return self._best

    def _projected(self, network: nn.Module, mu: float) -> Projected:
        """The C-step. Methods that weigh errors against prices take the first mu in step 0, where mu is 0."""
        return self._project(network, mu or self._settings.mu_init)

    def _step(self, j: int, training: MinibatchTraining) -> LCRecord:
        started, state = time.monotonic(), self._state
        learned = self._learn(j, training) if j > 0 else None
        network = self._target()
        projected = self._projected(network, state.mu)
        valid = validate(projected.network, self._valid, self._training, self._device)
        if valid.loss < state.best_loss:
            state.best_loss, self._best = valid.loss, projected
            state.best_weights = {n: t.detach().cpu().clone() for n, t in network.state_dict().items()}
        distance, norm = self._update_multipliers(network, projected)
        return LCRecord(
            iteration=j,
            mu=state.mu,
            learning_rate=learned.learning_rate if learned else None,
            iterations=training.done,
            epochs=round(training.done / training.per_epoch, 4),
            loss=learned.loss if learned else None,
            values=learned.values if learned else {},
            valid_loss=valid.loss,
            valid=valid.values,
            distance=distance,
            relative_distance=distance / norm if norm else 0.0,
            images=learned.images if learned else 0,
            seconds=time.monotonic() - started,
        )

    def _learn(self, j: int, training: MinibatchTraining) -> TrainMetrics:
        """The L-step."""
        state = self._state

        @torch.no_grad()
        def draw_to_theta() -> None:
            for name, theta in state.theta.items():
                weight = self._weights[name]
                if weight.grad is not None:
                    weight.grad.add_(weight - theta, alpha=state.mu).sub_(state.multipliers[name])

        try:
            return training.run(self._settings.count(j), self._settings.training(self._training, j), draw_to_theta)
        except TrainingDiverged as error:
            advice = "Or use a smaller muInit, muMultiplier or muCap: weights overshoot if learning rate times mu > 2."
            raise TrainingDiverged(
                f"step {j} of learning and compressing, mu {state.mu:g}: {error} {advice}"
            ) from error

    @torch.no_grad()
    def _target(self) -> nn.Module:
        """The network that the C-step compresses: w - lambda / mu in its constrained weights."""
        network = copied(self._network)
        for name, multiplier in self._state.multipliers.items():
            network.get_submodule(name).get_parameter("weight").sub_(multiplier, alpha=1 / self._state.mu)
        return network

    def _update_multipliers(self, network: nn.Module, projected: Projected) -> tuple[float, float]:
        """The M-step, with the new theta; returns ||w - Delta(theta)|| and ||w||."""
        state, difference, norm = self._state, 0.0, 0.0
        found = weights_of(projected.dense, self._weights)
        theta: dict[str, Tensor] = {}
        multipliers: dict[str, Tensor] = {}
        for name, weight in self._weights.items():
            gap = weight.detach() - found[name]
            difference += float(gap.double().square().sum())
            norm += float(weight.detach().double().square().sum())
            if torch.equal(found[name], network.get_submodule(name).get_parameter("weight")):
                continue  # not compressed: nothing constrains it
            before = state.multipliers.get(name, torch.zeros_like(gap))
            theta[name], multipliers[name] = found[name], before - state.mu * gap
        state.theta, state.multipliers = theta, multipliers
        return math.sqrt(difference), math.sqrt(norm)


def digest(tensors: dict[str, Tensor]) -> str:
    """A hash of the names, types, shapes and values of tensors."""
    content = hashlib.sha256()
    for name, tensor in tensors.items():
        content.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
