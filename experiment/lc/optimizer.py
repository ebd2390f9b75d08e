"""The L-C optimizer: weights w learn while they are drawn to compressed ones, theta, which follow them in turn.

    min_{w, theta} L(w)   subject to   w = Delta(theta)

by the augmented Lagrangian L(w) - lambda^T (w - Delta(theta)) + mu/2 ||w - Delta(theta)||^2. In step j:

    L   minibatches on w with gradient  dL/dw + mu (w - Delta(theta)) - lambda      (not in step 0)
    C   theta = Pi(w - lambda / mu)      (Pi(w) while mu = 0: step 0 is direct compression)
    M   lambda <- lambda - mu (w - Delta(theta)),  then mu grows

for the weights of convolutions and linear layers; biases and BatchNorm take no part in the constraint, and nor do
layers that the compression leaves as they are. Every theta is validated, and the best one is the result.

Source: Carreira-Perpinan 2017, https://arxiv.org/abs/1707.01209; Joseph et al. 2019 (Condensa),
https://arxiv.org/abs/1911.02497
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from experiment.datasets.image_data import Images
from experiment.errors import TrainingDiverged
from experiment.lc.lc_checkpoint import Iteration, LCCheckpoint, Progress
from experiment.lc.projection import Projected, Projection, condensed_weights, weights_of
from experiment.lc.settings import LCSettings
from experiment.progress import progress
from experiment.random_streams import Part
from experiment.training.evaluation import Metrics, evaluate
from experiment.training.iterations import Iterations, Stretch
from experiment.training.settings import TrainSettings


class LCOptimizer:
    """One optimization, from a trained network to its best compressed form.

    Args:
        network: the trained network; it is copied, never modified.
        project: the compression.
        train, valid: images to learn from, and to choose the best compressed network by; never the test part.
        settings: of the optimizer.
        training: optimizer, batch size, loss and precision of the L-steps, penalties and distillation, whose teacher is
            `network`; its epochs and schedulers are not used.
        example: a batch of one input.
        stream: of data order, augmentation and dropout.
        checkpoint: file to continue from, if it is there, and to write after every step.
        about: what else says which optimization the checkpoint is of.
        replaces: whether a file there that is damaged or of another optimization is set aside, or refused.
        on_batch: told the number of images just trained on. on_iteration: told of every step that is made now.
    """

    def __init__(
        self,
        network: nn.Module,
        project: Projection,
        train: Images,
        valid: Images,
        settings: LCSettings,
        training: TrainSettings,
        *,
        example: Tensor,
        stream: tuple[Part, ...],
        device: torch.device | str,
        checkpoint: Path | None = None,
        about: object = None,
        replaces: bool = True,
        on_batch: Callable[[int], None] | None = None,
        on_iteration: Callable[[Iteration], None] | None = None,
    ) -> None:
        self._device = torch.device(device)
        self._network = copy.deepcopy(network).to(self._device).eval()
        self._teacher = None if training.distillation is None else network
        self._project, self._train, self._valid = project, train, valid
        self._settings, self._training, self._stream = settings, training, stream
        self._on_batch, self._on_iteration = on_batch, on_iteration
        self._weights = condensed_weights(self._network, example.to(self._device))
        which = (settings, training, stream, len(train), len(valid), about)
        self._checkpoint = LCCheckpoint(checkpoint, self._network, which, replaces=replaces)
        self._progress = Progress()
        self.best: Projected | None = None

    @property
    def statistics(self) -> list[Iteration]:
        """A row for every step until now, those before an interruption too."""
        return list(self._progress.statistics)

    def run(self) -> Projected:
        """Make the steps that are left; returns the compressed network of smallest validation loss.

        Raises:
            TrainingDiverged: loss or weights became NaN or infinite, or the loss of every compressed network is.
            CompressionError: InfeasibleBudget too; whatever the compression raises.
        """
        self._progress = p = self._checkpoint.load(self._network)
        iterations = Iterations(
            self._network, self._train, self._training, stream=self._stream, device=self._device,
            done=p.statistics[-1].iterations if p.statistics else 0, on_batch=self._on_batch, teacher=self._teacher,
        )  # fmt: skip
        for j in progress(range(len(p.statistics), self._settings.steps), "learning and compressing, by step"):
            row = self._step(j, iterations)
            p.statistics.append(row)
            p.mu = self._settings.next_mu(p.mu)
            self._checkpoint.save(self._network, p)
            if self._on_iteration is not None:
                self._on_iteration(row)
        if p.best is None:
            raise TrainingDiverged("the validation loss of every compressed network is NaN. Try a smaller muInit.")
        if self.best is None:  # it was found before an interruption
            self.best = self._project(_with_state(self._network, p.best))
        return self.best

    def _step(self, j: int, iterations: Iterations) -> Iteration:
        started = time.monotonic()
        learnt = self._learn(j, iterations) if j > 0 else None
        network = self._target()
        projected = self._project(network)
        measured = self._validated(projected)
        if measured.loss < self._progress.best_loss:
            self._progress.best_loss = measured.loss
            self._progress.best = {n: t.detach().cpu().clone() for n, t in network.state_dict().items()}
            self.best = projected
        distance, norm = self._follow(network, projected)
        return _row(j, self._progress.mu, learnt, iterations, measured, distance, norm, started)

    def _learn(self, j: int, iterations: Iterations) -> Stretch:
        """The L-step: what is added to the gradients draws w to theta."""
        p = self._progress

        def draw() -> None:
            with torch.no_grad():
                for name, theta in p.theta.items():
                    weight = self._weights[name]
                    if weight.grad is not None:
                        weight.grad.add_(weight - theta, alpha=p.mu).sub_(p.multipliers[name])

        try:
            return iterations.run(self._settings.count(j), self._settings.training(self._training, j), draw)
        except TrainingDiverged as error:
            advice = (
                "Or let mu start lower, grow slower or end sooner: where rate times mu passes 2, weights overshoot."
            )
            raise TrainingDiverged(f"step {j} of learning and compressing, mu {p.mu:g}: {error} {advice}") from error

    def _target(self) -> nn.Module:
        """What the C-step compresses: w - lambda / mu, all else being w's own."""
        network = copy.deepcopy(self._network)
        with torch.no_grad():
            for name, multiplier in self._progress.multipliers.items():
                network.get_submodule(name).get_parameter("weight").sub_(multiplier, alpha=1 / self._progress.mu)
        return network

    def _validated(self, projected: Projected) -> Metrics:
        t = self._training
        return evaluate(
            projected.network, self._valid, loss=t.loss, loss_kwargs=t.loss_kwargs, device=self._device,
            precision=t.precision, channels_last=t.channels_last,
        )  # fmt: skip

    def _follow(self, network: nn.Module, projected: Projected) -> tuple[float, float]:
        """Take over theta, and update the multipliers by it.

        Returns: ||w - Delta(theta)|| and ||w||.
        """
        p, difference, norm = self._progress, 0.0, 0.0
        found = weights_of(projected.dense, self._weights)
        theta: dict[str, Tensor] = {}
        multipliers: dict[str, Tensor] = {}
        for name, weight in self._weights.items():
            gap = weight.detach() - found[name]
            difference += float(gap.double().square().sum())
            norm += float(weight.detach().double().square().sum())
            if torch.equal(found[name], network.get_submodule(name).get_parameter("weight")):
                continue  # it is not condensed, so that nothing draws it, and its multiplier is zero
            before = p.multipliers.get(name, torch.zeros_like(gap))
            theta[name], multipliers[name] = found[name], before - p.mu * gap
        p.theta, p.multipliers = theta, multipliers
        return math.sqrt(difference), math.sqrt(norm)


def _row(
    j: int, mu: float, learnt: Stretch | None, iterations: Iterations, measured: Metrics, distance: float, norm: float,
    started: float,
) -> Iteration:  # fmt: skip
    return Iteration(
        iteration=j,
        mu=mu,
        learning_rate=learnt.learning_rate if learnt else None,
        iterations=iterations.done,
        epochs=round(iterations.done / iterations.per_epoch, 4),
        loss=learnt.loss if learnt else None,
        top1=learnt.top1 if learnt else None,
        valid_loss=measured.loss,
        valid_top1=measured.top1,
        valid_top5=measured.top5,
        distance=distance,
        relative_distance=distance / norm if norm else 0.0,
        images=learnt.images if learnt else 0,
        seconds=time.monotonic() - started,
    )


def _with_state(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    copied = copy.deepcopy(network)
    copied.load_state_dict(state)
    return copied.eval()
