"""What a compression method is, and how one is applied: analyse once, then plan, build, fill and count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError, ConfigError, InfeasibleBudget, described
from experiment.layers.build import build
from experiment.layers.plan import Plan, State
from experiment.layers.recalibrate_batchnorm import DenseMoments, dense_moments, recalibrate
from experiment.measure import Count, count
from experiment.methods.reach import EVERYTHING, OutOfReach, out_of_reach
from experiment.progress import working
from experiment.registry import MethodEntry, resolve

FAR_BELOW = 0.5  # of the keep ratio that was asked for: what is below is told
Quantity = Literal["parameters", "flops"]
GIVE_DATA = "Give some: compress(..., data=inputs), a tensor, a pair (inputs, targets) or a loader of such pairs."


@dataclass(frozen=True)
class Budget:
    """The most that a compressed network may have: `limit` elements or multiply-adds, of the whole network.

    Masked weights count in neither. `original` is the uncompressed network's count of the same quantity.
    """

    quantity: Quantity
    limit: int
    original: int


@dataclass(frozen=True)
class Calibration:
    """Inputs (N, ...) and targets (N,) from the validation part, on the network's device."""

    inputs: Tensor
    targets: Tensor | None = None


class Method(Protocol):
    """A compression algorithm with its settings.

    `analyse` is the expensive part and runs once per starting state; `plan` turns its result into decisions for one
    budget and never exceeds it; `fill` writes the weights into the structure that `build(network, plan)` made from the
    plan alone. `build` and `expand` live in `experiment.layers`, for a plan says everything that they need.
    """

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Any:
        """Spectra, scores, statistics of the state. Returns whatever `plan` and `fill` want to have."""

    def plan(self, analysis: Any, budget: Budget) -> Plan:
        """The largest network within the budget that this method's order allows.

        Raises: InfeasibleBudget: even the smallest one is larger.
        """

    def fill(self, built: nn.Module, state: State, analysis: Any, plan: Plan) -> None:
        """Write the weights into `built`, in place."""


def make_method(entry: MethodEntry, settings: object) -> Method:
    """The method behind a registry entry, with its settings (an instance of `entry.settings`)."""
    factory = resolve(entry.target)
    if not callable(factory):
        raise ConfigError(f"method '{entry.target}' must be a class or a function. It is {described(factory)}.")
    method: Method = factory(settings)
    return method


@dataclass(frozen=True)
class Compressed:
    """A compressed network with the plan that it follows and what it costs."""

    network: nn.Module
    plan: Plan
    count: Count
    out_of_reach: OutOfReach = EVERYTHING


class Compressor:
    """One method on one starting state: the analysis is made once, for all keep ratios.

    Args:
        original: the uncompressed network's count, which keep ratios are relative to (also in a cascade).
        recalibrated: whether BatchNorm statistics are re-estimated on the calibration inputs in every network made.
    Raises: CompressionError: no calibration inputs, or no BatchNorm, to re-estimate with.
    """

    def __init__(
        self,
        method: Method,
        state: State,
        original: Count,
        calibration: Calibration | None,
        generator: torch.Generator,
        *,
        recalibrated: bool = False,
    ) -> None:
        self.method, self.state, self.original = method, state, original
        self._name = type(method).__name__
        self.images = _images(calibration, state) if recalibrated else None
        self.dense = None if self.images is None else dense_moments(state.network, self.images)
        with torch.no_grad(), working(f"{self._name}: analysis"):
            self.analysis = method.analyse(state, calibration, generator)

    def compress(self, keep: float, quantity: Quantity = "parameters") -> Compressed:
        """The compressed network for one keep ratio, in eval mode; the state stays as it is.

        Raises: InfeasibleBudget, CompressionError.
        """
        with working(f"{self._name}: choosing what stays"):
            plan = self.plan(keep, quantity)
        with working(f"{self._name}: building"):
            network = self.instantiate(plan)
        counted = count(network, self.state.example)
        assert plan.parameters is None or plan.parameters == counted.parameters, (
            f"planned {plan.parameters} parameters, counted {counted.parameters}"
        )
        return Compressed(network, plan, counted, self.out_of_reach)

    @cached_property
    def out_of_reach(self) -> OutOfReach:
        """What the method leaves alone, because it must."""
        return out_of_reach(self.state, self.analysis)

    def plan(self, keep: float, quantity: Quantity = "parameters") -> Plan:
        """What is decided for one keep ratio.

        Raises: InfeasibleBudget, CompressionError.
        """
        keep = keep_ratio(keep)
        total = {"parameters": self.original.parameters, "flops": self.original.flops}[quantity]
        budget = Budget(quantity, math.floor(keep * total + 1e-6), total)
        try:
            return self.method.plan(self.analysis, budget).keeping_biases(self.state)
        except InfeasibleBudget as error:
            raise error.because(self.out_of_reach.text()) from error

    def instantiate(self, plan: Plan, state: State | None = None) -> nn.Module:
        """The network that a plan describes, filled from this state or, to rewind, from another one.

        Statistics are re-estimated in both: BatchNorms must fit the weights before them, wherever these come from.
        """
        state = state or self.state
        with torch.no_grad():
            built = build(state.network, plan)
            self.method.fill(built, state, self.analysis, plan)
        if self.images is not None:
            recalibrate(built, self._dense_moments(state), plan.kept)
        return built.eval()

    def _dense_moments(self, state: State) -> DenseMoments:
        if state is self.state and self.dense is not None:
            return self.dense
        assert self.images is not None
        return dense_moments(state.network, self.images)


def keep_ratio(keep: object) -> float:
    """A keep ratio as a float, from a number of Python's or numpy's, or a tensor of one element.

    Raises: CompressionError: it is no number, or not in (0, 1].
    """
    if isinstance(keep, Tensor) and keep.dim() == 0:
        keep = keep.item()
    number = isinstance(keep, Real) and not isinstance(keep, bool)
    if isinstance(keep, Real) and number and 0 < float(keep) <= 1:
        return float(keep)
    raise CompressionError(f"keep must be a number in (0, 1]. Got {keep if number else f'a {type(keep).__name__}'}.")


def shortfall(keep: float, reached: float, quantity: Quantity) -> str | None:
    """What to say where a network is far smaller than asked for: less than half. None where it is not.

    Args:
        reached: the share of the original's `quantity` that the network has.
    """
    if reached >= FAR_BELOW * keep:
        return None
    return (
        f"{reached:.2%} of the {quantity} are left, and {keep:.2%} were asked for: the next larger network of this "
        "method does not fit"
    )


def _images(calibration: Calibration | None, state: State) -> Tensor:
    if calibration is None or not len(calibration.inputs):
        raise CompressionError(
            "recalibrate needs calibration data, a few hundred inputs normalised as for training. Got none. "
            "Pass them: compress(..., data=inputs, recalibrate=True)."
        )
    return calibration.inputs.to(state.example)
