"""The L-C optimizer in Python: LC(network, "WT", keep=0.05, train=..., valid=...).run()."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from experiment.api.compression import BudgetForm, CompressionResult, result_of
from experiment.config import LearnCompress
from experiment.config.error_messages import expectation
from experiment.config.schema.budget import Budget
from experiment.datasets.image_data import Batch, count_batches
from experiment.datasets.python_samples import PairData
from experiment.errors import CompressionError, ConfigError
from experiment.inputs import Inputs, first, tensors
from experiment.layers.copied_network import copied
from experiment.layers.forward_pass import forward_of
from experiment.layers.prepare_network import prepared, with_parameters
from experiment.lc.optimizer import LCOptimizer, digest
from experiment.lc.projection import FunctionProjection, MethodProjection, Projection
from experiment.measure import count
from experiment.measure.latency_model import LatencyTable
from experiment.methods.base import Calibration, keep_ratio, make_method
from experiment.methods.configure import configure
from experiment.methods.meter import Meter
from experiment.progress import bars, showing
from experiment.run.cell.outcome import history_row
from experiment.run.cell.training_settings import lc_settings
from experiment.tasks import find_task
from experiment.tasks.task import Task
from experiment.training.check_settings import check_training
from experiment.training.settings import Precision, TrainSettings

if TYPE_CHECKING:
    import pandas as pd

COMPARED = 256  # samples that identify a checkpoint's data
CALIBRATION = 256  # validation images for methods that look at data
Pair = tuple[Callable[[nn.Module], nn.Module], Callable[[nn.Module], nn.Module]]


class LC:
    """Alternate learning and compression steps, which pull a trained network's weights towards compressed ones.

        lc = LC(net, "WT", keep=0.05, train=train_set, valid=valid_set, optimizer_kwargs={"lr": 0.01, "momentum": 0.9})
        small = lc.run()          # the compressed network with the smallest validation loss; `net` is unchanged
        lc.statistics             # one row per step
        save_network(lc.result, "small.pt")

    Args:
        network: the trained network.
        scheme: label of a method, or a pair of functions: compress(module) -> compressed module, and
            decompress(compressed) -> module with the layers of the network under their names. Both receive copies
            and must be deterministic.
        train, valid: datasets (with len and indexing) of (input, class number), or pairs of tensors (inputs, targets);
            `valid` selects the best network. Random transforms draw from torch's generators.
        keep, budget, settings: as in `compress`.
        steps, iterations, iterations_first, mu_init, mu_multiplier, mu_cap, lr_decay, lr_milestones, lr_end: as in the
            block `lc` of parameter files.
        task: what outputs and targets mean: a name, or `package.module:TASK`.
        batch_size, optimizer, optimizer_kwargs, loss, loss_kwargs, precision: training settings of the L-steps.
        device: where to compute, any but mps.
        seed: seed of all random numbers.
        checkpoint: file written after every step. The same call continues from it: with the same settings,
            network, data (256 samples are compared) and method.
        progress: whether `run` shows a progress bar, on a terminal and in notebooks.

    Raises:
        ConfigError: unknown method, or wrong settings.
        DataError: too few samples, or a target that is not a class of the network.
    """

    def __init__(
        self,
        network: nn.Module,
        scheme: str | Pair,
        *,
        train: Any,
        valid: Any,
        keep: float | None = None,
        budget: BudgetForm = "parameters",
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
        task: str = "classification",
        batch_size: int = 64,
        optimizer: str = "SGD",
        optimizer_kwargs: Mapping[str, Any] | None = None,
        loss: str | None = None,
        loss_kwargs: Mapping[str, Any] | None = None,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
        seed: int = 0,
        checkpoint: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        self._task = find_task(task)
        training = TrainSettings(
            num_epochs=1, batch_size=batch_size, optimizer=optimizer,
            optimizer_kwargs=dict(optimizer_kwargs or {"lr": 0.01, "momentum": 0.9, "nesterov": True}), task=task,
            loss=loss or self._task.losses[0],
            loss_kwargs=dict(loss_kwargs or {}), precision=precision, channels_last=torch.device(device).type == "cpu",
        )  # fmt: skip
        limited = Budget.read(budget)
        _check_call(training, device)
        block = _lc_block(
            steps=steps, iterations=iterations, iterations_first=iterations_first, mu_init=mu_init,
            mu_multiplier=mu_multiplier, mu_cap=mu_cap, lr_decay=lr_decay, lr_milestones=list(lr_milestones),
            lr_end=lr_end,
        )  # fmt: skip
        train_data = PairData("train", train, torch.device(device), self._task)
        valid_data = PairData("valid", valid, torch.device(device), self._task)
        example = valid_data.first(1)[0]
        plain = with_parameters(network) if not isinstance(scheme, str) else prepared(network)
        network = copied(plain.network).to(device).eval()  # a pair of functions knows the modules as they are
        samples = {part.name: part.some(COMPARED) for part in (train_data, valid_data)}
        _check_targets(samples, network, self._task)
        project, about = _projection(
            network, scheme, keep, limited, dict(settings or {}), valid_data, example, seed, plain.unfused
        )  # fmt: skip
        if checkpoint is not None:
            about += (*(digest({**_named(x), "y": y}) for x, y in samples.values()), *_results_of(project, network))
        self._show_progress, self._label = progress, scheme if isinstance(scheme, str) else "your functions"
        self._original = count(network, example)
        self._optimizer = LCOptimizer(
            network, project, train_data, valid_data,
            lc_settings(block, count_batches(len(train_data), batch_size, training=True)), training, example=example,
            stream=("lc", seed), checkpoint=None if checkpoint is None else Path(checkpoint), about=about,
            replaces=False,
        )  # fmt: skip

    def run(self) -> nn.Module:
        """Run the remaining steps.

        Returns: the compressed network with the smallest validation loss, in eval mode.

        Raises:
            TrainingDiverged: loss or weights became NaN or infinite.
            CompressionError: the compression failed (InfeasibleBudget: it cannot reach the size).
            StoreError: the checkpoint belongs to another run.
        """
        with showing(bars(self._show_progress)):
            return self._optimizer.run().network

    @property
    def result(self) -> CompressionResult:
        """The network that `run` returned, with sizes and plan as `compress` returns them.

        Raises: CompressionError: `run` has not been called, or the scheme is a pair of functions.
        """
        if not self._optimizer.records:
            raise CompressionError("there is no result yet. Call run() first.")
        compressed = self._optimizer.best.compressed
        if compressed is None:
            raise CompressionError("there is no result for a pair of functions. Use the network that run() returns.")
        return result_of(self._label, self._original, compressed)

    @property
    def top1(self) -> float:
        """Validation accuracy of the network that `run` returned, a fraction in [0, 1]; for classification only."""
        return self.metrics["top1"]

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of the task of the network that `run` returned, on the validation data."""
        records = [record for record in self._optimizer.records if math.isfinite(record.valid_loss)]
        if not records:
            raise CompressionError("there are no metrics yet. Call run() first.")
        return min(records, key=lambda record: record.valid_loss).valid

    @property
    def statistics(self) -> pd.DataFrame:
        """One row per step: mu, learning rate, iterations, losses, accuracies, and the distance of w from theta."""
        import pandas as pd

        return pd.DataFrame([history_row(record, self._task) for record in self._optimizer.records])


def _projection(
    network: nn.Module,
    scheme: str | Pair,
    keep: float | None,
    budget: Budget,
    settings: Mapping[str, Any],
    valid: PairData,
    example: Inputs,
    seed: int,
    unfused: Mapping[str, str],
) -> tuple[Projection, tuple[object, ...]]:
    """The compression, and the values that identify it."""
    if not isinstance(scheme, str):
        if keep is not None or settings:
            raise ConfigError("keep and settings: have no effect with a pair of functions. Remove them.")
        shrink, restore = scheme
        return FunctionProjection(shrink, restore), ()
    spec = configure(scheme, settings)
    if keep is None and not spec.fixed_size and not budget.complete:
        raise ConfigError(f"keep: is required by {scheme}. Expected the share of {budget} to keep, in (0, 1].")
    if keep is not None and keep_ratio(keep) != 1 and spec.fixed_size:
        raise ConfigError(f"keep: has no effect, since the settings of {scheme} decide the size. Remove it.")
    calibration = Calibration(*valid.first(CALIBRATION))
    keep = 1.0 if keep is None else keep_ratio(keep)
    method, original = make_method(spec.entry, spec.settings), count(network, example)
    stream = ("method", seed)
    table = LatencyTable(None, torch.get_num_threads())
    meter = None if budget.counted is not None else Meter(network, example, budget, table)
    projection = MethodProjection(method, keep, budget, meter, example, original, calibration, stream, unfused=unfused)
    return projection, (spec.entry.label, spec.entry.version, spec.settings, keep, budget.key())


def _check_call(training: TrainSettings, device: torch.device | str) -> None:
    problems = []
    if torch.device(device).type == "mps":
        problems.append(f"device: must have float64, in which losses are summed. Got {device}. Use cpu.")
    if training.precision not in get_args(Precision):
        problems.append(f"precision: must be one of {', '.join(get_args(Precision))}. Got {training.precision!r}.")
    if training.batch_size < 1:
        problems.append(f"batch_size: must be at least 1. Got {training.batch_size}.")
    if problems := problems + check_training(training):
        raise ConfigError(problems)


def _lc_block(**values: Any) -> LearnCompress:
    """The block `lc` of a parameter file with these values."""
    names = {info.alias or name: name for name, info in LearnCompress.model_fields.items()}
    try:
        return LearnCompress.model_validate({alias: values[name] for alias, name in names.items()})
    except ValidationError as error:
        problems = [f"{e['loc'][0]}: {expectation(e)}" for e in error.errors(include_url=False)]
        for alias, name in names.items():
            problems = [problem.replace(alias, name) for problem in problems]
        raise ConfigError(problems) from error


def _named(x: Inputs) -> dict[str, Tensor]:
    return {"x": x} if isinstance(x, Tensor) else {f"x{i}": tensor for i, tensor in enumerate(tensors(x))}


def _check_targets(samples: Mapping[str, Batch], network: nn.Module, task: Task) -> None:
    """Raises: CompressionError: the network fails on a sample. DataError: it has no such class."""
    for name, (x, y) in samples.items():
        task.check(name, task.outputs(forward_of(name, network, first(x))).shape[1], y)


def _results_of(project: Projection, network: nn.Module) -> tuple[str, ...]:
    """The identity of a pair of functions, given by their results since their code is unknown."""
    if not isinstance(project, FunctionProjection):
        return ()
    first = project(network)
    return digest(first.network.state_dict()), digest(first.dense.state_dict())
