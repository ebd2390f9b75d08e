"""Regression: K numbers per input."""

import math

import torch
from torch import Tensor

from experiment.errors import DataError, shortened
from experiment.inputs import as_numbers, in_words
from experiment.tasks.distributions import GAUSSIAN
from experiment.tasks.task import Metric, Task


def sums_of_errors(outputs: Tensor, y: Tensor) -> Tensor:
    """Per value: the squared errors, the targets, their squares, and their number; flattened from (4, K)."""
    outputs, y = outputs.double(), y.double()
    parts = ((outputs - y).square(), y, y.square(), torch.ones_like(y))
    return torch.stack([part.sum(dim=0) for part in parts]).flatten()


def root_mean_squared_error(sums: Tensor) -> float:
    """sqrt(mean((outputs - targets)^2)) over all samples and values, in the unit of the targets."""
    errors, _, _, counts = sums.reshape(4, -1)
    return math.sqrt(errors.sum() / counts.sum())


def determination(sums: Tensor) -> float:
    """R^2 = 1 - sum((outputs - y)^2) / sum((y - mean(y))^2), mean over the K values.

    A value that is the same in all samples counts as 1 if it is predicted exactly, else as 0.
    """
    errors, totals, squares, counts = sums.reshape(4, -1)
    spread = squares - totals.square() / counts
    constant = spread <= 1e-12 * squares  # rounding
    score = torch.where(constant, (errors == 0).double(), 1 - errors / spread.where(~constant, 1))
    return float(score.mean())


def numbers(where: str, target: object) -> Tensor:
    """One number or a list of numbers as float32 (K,).

    Raises: DataError: it is something else, or a number is NaN or infinite.
    """
    values = as_numbers(target)
    values = values.reshape(1) if values is not None and values.dim() == 0 else values
    if values is None or values.dim() != 1 or not values.numel():
        raise DataError(f"{where}: expected one number, or a list of numbers, as target. Got {in_words(target)}.")
    if not bool(values.isfinite().all()):
        found = shortened(str(values.tolist()))
        raise DataError(f"{where}: expected finite numbers as target. Got {found}. Fill them in, or remove the sample.")
    return values.float()


def check_numbers(where: str, output_size: int, targets: Tensor) -> None:
    """Check that the network has an output for every number, and that all numbers are finite.

    Raises: DataError: they are not.
    """
    if targets.shape[1] != output_size:
        raise DataError(
            f"{where}: {targets.shape[1]} numbers per target, but network.outputSize is {output_size}. "
            f"Set outputSize: {targets.shape[1]}."
        )
    if len(wrong := (~targets.isfinite().all(dim=1)).nonzero()):
        numbers(f"{where}: sample {int(wrong[0])}", targets[int(wrong[0])])


TASK = Task(
    "regression",
    metrics=(
        Metric("rmse", "RMSE", sums_of_errors, root_mean_squared_error, better="lower", unit="value", mappable=True),
        Metric("r2", "R²", sums_of_errors, determination, unit="value"),
    ),
    losses=("MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss"),
    target=numbers,
    check=check_numbers,
    distribution=GAUSSIAN,
)
