"""The L-C optimizer in Python, on a network of one's own: LC(network, "WT", keep=0.05, train=..., valid=...).run()."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from experiment.api.compression import CompressionResult, result_of
from experiment.config import LearnCompress
from experiment.config.error_messages import expectation
from experiment.datasets.image_data import Batch, count_batches
from experiment.datasets.python_samples import PairData
from experiment.errors import CompressionError, ConfigError, DataError
from experiment.layers.prepare_network import plain_copy
from experiment.lc.optimizer import LCOptimizer
from experiment.lc.projection import FunctionProjection, MethodProjection, Projection
from experiment.measure import count
from experiment.methods.base import Calibration, Quantity, keep_ratio, make_method
from experiment.methods.configure import configure
from experiment.progress import bars, showing
from experiment.run.cell.learn_compress import lc_settings
from experiment.training.check import check_training
from experiment.training.settings import Precision, TrainSettings

if TYPE_CHECKING:
    import pandas as pd

COMPARED = 256  # samples that tell whether a checkpoint is of the same data
CALIBRATION = 256  # images of the validation part that methods which look at data are given
Pair = tuple[Callable[[nn.Module], nn.Module], Callable[[nn.Module], nn.Module]]


class LC:
    """Learning and compressing in turn: the weights of a trained network are drawn to compressed ones.

        lc = LC(net, "WT", keep=0.05, train=train_set, valid=valid_set, optimizer_kwargs={"lr": 0.01, "momentum": 0.9})
        small = lc.run()          # the compressed network of smallest validation loss; `net` is unchanged
        lc.statistics             # a row a step
        save_network(lc.result, "small.pt")

    Args:
        network: the trained network.
        scheme: a method's label, or a pair of functions of your own: compress(module) -> compressed module, and
            decompress(compressed) -> module that has the network's layers under their names. Both get copies, and
            give equal results for equal networks.
        train, valid: datasets (len and indexing) of (input, class number), or pairs of tensors (inputs, targets); the
            second one chooses the best network. Random transforms draw from torch's generators.
        keep, budget, settings: of a method, as for `compress`.
        steps, iterations, iterations_first, mu_init, mu_multiplier, mu_cap, lr_decay, lr_milestones, lr_end: as in the
            block `lc` of parameter files.
        batch_size, optimizer, optimizer_kwargs, loss, loss_kwargs, precision: of the L-steps.
        checkpoint: file that is written after every step, and from which the same call continues: one with the same
            settings, network, samples (256 are compared) and compression of the network.
        progress: whether a bar shows, on a terminal and in notebooks, how far `run` is.
    Raises: ConfigError: an unknown method or setting. DataError: too few samples, or what is no class of the network.
    """

    def __init__(
        self,
        network: nn.Module,
        scheme: str | Pair,
        *,
        train: Any,
        valid: Any,
        keep: float | None = None,
        budget: Quantity = "parameters",
        settings: Mapping[str, Any] | None = None,
        steps: int = 30,
        iterations: int | None = None,
        iterations_first: int | None = None,
        mu_init: float = 1e-3,
        mu_multiplier: float = 1.1,
        mu_cap: float = 1e4,
        lr_decay: float | None = None,
        lr_milestones: Sequence[int] = (),
        lr_end: float | None = None,
        batch_size: int = 64,
        optimizer: str = "SGD",
        optimizer_kwargs: Mapping[str, Any] | None = None,
        loss: str = "CrossEntropyLoss",
        loss_kwargs: Mapping[str, Any] | None = None,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
        seed: int = 0,
        checkpoint: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        if torch.device(device).type not in ("cpu", "cuda"):
            raise ConfigError(f"device: training needs cpu or cuda, since losses are summed in float64. Got {device}.")
        self._shown, self._label = progress, scheme if isinstance(scheme, str) else "functions of your own"
        training = TrainSettings(
            num_epochs=1, batch_size=batch_size, optimizer=optimizer,
            optimizer_kwargs=dict(optimizer_kwargs or {"lr": 0.01, "momentum": 0.9, "nesterov": True}), loss=loss,
            loss_kwargs=dict(loss_kwargs or {}), precision=precision, channels_last=torch.device(device).type == "cpu",
        )  # fmt: skip
        if problems := _call_problems(training, budget):
            raise ConfigError(problems)
        block = _block(
            steps=steps, iterations=iterations, iterations_first=iterations_first, mu_init=mu_init,
            mu_multiplier=mu_multiplier, mu_cap=mu_cap, lr_decay=lr_decay, lr_milestones=list(lr_milestones),
            lr_end=lr_end,
        )  # fmt: skip
        images = PairData("train", train, torch.device(device))
        held_out = PairData("valid", valid, torch.device(device))
        example = held_out.first(1)[0]
        network = plain_copy(network).to(device).eval()
        samples = {part.name: part.some(COMPARED) for part in (images, held_out)}
        _check_targets(samples, network, training)
        project, about = _projection(network, scheme, keep, budget, dict(settings or {}), held_out, example, seed)
        if checkpoint is not None:
            about = (*about, *(_digest(*batch) for batch in samples.values()))
        if checkpoint is not None and isinstance(project, FunctionProjection):  # whose code and settings none can see
            first = project(network)
            about = (*about, *(_digest(*module.state_dict().values()) for module in (first.network, first.dense)))
        self._original = count(network, example)
        per_epoch = count_batches(len(images), batch_size, training=True)
        self._optimizer = LCOptimizer(
            network, project, images, held_out, lc_settings(block, per_epoch), training, example=example,
            stream=("lc", seed), device=device, checkpoint=None if checkpoint is None else Path(checkpoint),
            about=about, replaces=False,
        )  # fmt: skip

    def run(self) -> nn.Module:
        """Make the steps that are left; returns the compressed network of smallest validation loss, in eval mode.

        Raises:
            TrainingDiverged, CompressionError (InfeasibleBudget too).
            StoreError: the file `checkpoint` is of something else.
        """
        with showing(bars(self._shown)):
            return self._optimizer.run().network

    @property
    def result(self) -> CompressionResult:
        """The network that `run` returned with its sizes and its plan, as `compress` returns it; of a method alone.

        Raises: CompressionError: `run` has not been called, or functions of your own compressed it.
        """
        best = self._optimizer.best
        if best is None:
            raise CompressionError("there is no result yet. Call run() first.")
        if best.compressed is None:
            raise CompressionError("of functions of your own nothing is known but the network that run() returned.")
        return result_of(self._label, self._original, best.compressed)

    @property
    def top1(self) -> float:
        """Validation accuracy of the network that `run` returned, a fraction."""
        rows = [row for row in self._optimizer.statistics if math.isfinite(row.valid_loss)]
        if not rows:
            raise CompressionError("there is no accuracy yet. Call run() first.")
        return min(rows, key=lambda row: row.valid_loss).valid_top1

    @property
    def statistics(self) -> pd.DataFrame:
        """One row a step: mu, learning rate, iterations, losses and accuracies, the distance between w and theta."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(row) for row in self._optimizer.statistics])


def _projection(
    network: nn.Module,
    scheme: str | Pair,
    keep: float | None,
    budget: Quantity,
    settings: Mapping[str, Any],
    valid: PairData,
    example: Tensor,
    seed: int,
) -> tuple[Projection, tuple[object, ...]]:
    """The compression, and what tells it from another."""
    if not isinstance(scheme, str):
        if keep is not None or settings:
            raise ConfigError("keep and settings are a method's. Functions of your own have theirs in them.")
        shrink, restore = scheme
        return FunctionProjection(shrink, restore), ()
    spec = configure(scheme, settings)
    if keep is None and not spec.fixed_size:
        raise ConfigError(f"keep is required and missing: {scheme} needs to know how much stays, in (0, 1].")
    if keep is not None and keep_ratio(keep) != 1 and spec.fixed_size:
        raise ConfigError(f"keep has no effect: the settings of {scheme} decide the size. Leave it out.")
    calibration = Calibration(*valid.first(CALIBRATION))
    keep = 1.0 if keep is None else keep_ratio(keep)
    projection = MethodProjection(
        make_method(spec.entry, spec.settings),
        keep,
        budget,
        example,
        count(network, example),
        calibration,
        ("method", seed),
    )
    return projection, (spec.entry.label, spec.entry.version, spec.settings, keep, budget)


def _call_problems(training: TrainSettings, budget: str) -> list[str]:
    problems = []
    if budget not in get_args(Quantity):
        problems.append(f"budget: must be one of {', '.join(get_args(Quantity))}. Got {budget!r}.")
    if training.precision not in get_args(Precision):
        problems.append(f"precision: must be one of {', '.join(get_args(Precision))}. Got {training.precision!r}.")
    if training.batch_size < 1:
        problems.append(f"batch_size: must be at least 1. Got {training.batch_size}.")
    return problems + check_training(training)


def _check_targets(samples: Mapping[str, Batch], network: nn.Module, training: TrainSettings) -> None:
    """Raises: DataError: among the samples is one of a class that the network does not have."""
    for name, (x, y) in samples.items():
        with torch.no_grad():
            classes = network(x[:1]).shape[-1]
        strange = y[(y < 0) | (y >= classes)]
        if len(strange) and "ignore_index" not in training.loss_kwargs:
            raise DataError(f"{name}: expected class numbers from 0 to {classes - 1}. Got {int(strange[0])}.")


def _digest(*tensors: Tensor) -> str:
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def _block(**values: Any) -> LearnCompress:
    """The settings, checked as those of a parameter file are.

    Raises: ConfigError: all that is wrong.
    """
    try:
        block = LearnCompress.model_validate(
            {LearnCompress.model_fields[name].alias: value for name, value in values.items()}
        )
    except ValidationError as error:
        names = {info.alias: name for name, info in LearnCompress.model_fields.items()}
        raise ConfigError(
            [f"{names.get(str(e['loc'][0]), e['loc'][0])}: {expectation(e)}" for e in error.errors(include_url=False)]
        ) from error
    if block.lr_end is not None and (block.lr_decay is not None or block.lr_milestones):
        raise ConfigError("lr_end says where the learning rate ends each time; leave lr_decay and lr_milestones out.")
    if block.mu_cap < block.mu_init:
        raise ConfigError(f"mu_cap: must be at least mu_init ({block.mu_init:g}). Got {block.mu_cap:g}.")
    return block
