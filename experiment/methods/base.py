"""The interface of compression methods, and how they are applied: analyse once, then plan, build, fill and count."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiment.errors import CompressionError, ConfigError, InfeasibleBudget, described, kind_of
from experiment.inputs import Inputs, batch_size, moved_like
from experiment.layers.build import build
from experiment.layers.forms import Forms
from experiment.layers.plan import Plan, State
from experiment.layers.recalibrate_batchnorm import DenseMoments, dense_moments, recalibrate
from experiment.measure import Count, count, recount
from experiment.methods.out_of_reach import EVERYTHING, OutOfReach, out_of_reach
from experiment.progress import working
from experiment.registry import MethodEntry, resolve

if TYPE_CHECKING:
    from experiment.layers.compressible import LayerInfo

LARGE = 2**22  # parameters of networks of which none should stay in memory: 16 MiB
Quantity = Literal["parameters", "flops"]
Integers = NDArray[np.int64]
LayerPrice = Callable[["LayerInfo", nn.Module, Forms], Integers]
"""From a layer, its module and the forms that it may take to their costs."""
GIVE_DATA = "Pass them: compress(..., data=inputs), a tensor, a pair (inputs, targets) or a loader of such pairs."


@dataclass(frozen=True)
class Budget:
    """The size limit of a compressed network.

    Attributes:
        quantity: the limited quantity, parameters or multiply-adds, without masked weights.
        limit: the largest value for the whole network.
        original: the value of the uncompressed network.
        priced: limits on other quantities.
        error_weight: weight of squared errors against prices: the mu of a step of mode `lc`, 1 elsewhere.
    """

    quantity: Quantity
    limit: int
    original: int
    priced: tuple[Priced, ...] = ()
    error_weight: float = 1.0


@dataclass(frozen=True)
class Priced:
    """A further limit, on the sum of what the layers cost: methods that choose among options of layers take it.

    Attributes:
        quantity: its name in errors.
        price: the cost of a layer's forms.
        whole: the cost of a whole starting state.
        limit: the largest cost.
        by_weight: whether later masks or rounding of the same layers would lower the cost.
    """

    quantity: str
    price: LayerPrice
    whole: Callable[[State], int]
    limit: int
    by_weight: bool = False


@dataclass(frozen=True)
class Calibration:
    """Inputs and targets (N, ...) from the validation part, on the network's device."""

    inputs: Inputs
    targets: Tensor | None = None


def calibration_inputs(calibration: Calibration | None, state: State, what: str) -> Inputs:
    """The calibration inputs, in the dtype and on the device of the state's example.

    Args:
        what: the method, or the setting, that needs them: the subject of the error.
    Raises: CompressionError: there are none.
    """
    if calibration is None or not batch_size(calibration.inputs):
        raise CompressionError(f"{what} needs calibration data, a few hundred inputs. {GIVE_DATA}")
    return moved_like(calibration.inputs, state.example)


class Method(Protocol):
    """A compression algorithm with its settings.

    `analyse` is the expensive step; it runs once per starting state. `plan` turns its result into decisions for one
    budget, which it never exceeds. `fill` writes the weights into the structure that `build(network, plan)` makes from
    the plan alone. `build` and `expand` are the same for all methods; see `experiment.layers`.
    """

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Any:
        """Compute spectra, scores or statistics of the state.

        Returns: the data that `plan` and `fill` need. They may use it as a cache, but must not change its meaning.
        Raises: CompressionError: calibration data are needed and missing, or unsuitable.
        """

    def plan(self, analysis: Any, budget: Budget) -> Plan:
        """The largest network within the budget among those that the method considers.

        Raises: InfeasibleBudget: even the smallest of them exceeds the budget.
        """

    def fill(self, built: nn.Module, state: State, analysis: Any, plan: Plan) -> None:
        """Write the state's weights into `built`, in place."""


def make_method(entry: MethodEntry, settings: object) -> Method:
    """The method of a registry entry, with its settings (an instance of `entry.settings`)."""
    factory = resolve(entry.target)
    if not callable(factory):
        raise ConfigError(f"method '{entry.target}' must be a class or a function. It is {described(factory)}.")
    method: Method = factory(settings)
    return method


@dataclass(frozen=True)
class Compressed:
    """A compressed network with its plan, its size, and the parameters that the method cannot compress.

    Attributes:
        amounts: quantity -> limit and values, where more than parameters or FLOPs is limited.
    """

    network: nn.Module
    plan: Plan
    count: Count
    out_of_reach: OutOfReach = EVERYTHING
    amounts: Mapping[str, Amount] = field(default_factory=dict)


@dataclass(frozen=True)
class Amount:
    """How much of a limited quantity a network has: elements, multiply-adds, bytes or milliseconds.

    Attributes:
        limit: the largest allowed value.
        predicted: by the plan.
        measured: of the compressed network.
    """

    limit: float
    predicted: float
    measured: float


class Compressor:
    """One method on one starting state, analysed once for all keep ratios.

    Args:
        original: the count of the uncompressed network, which keep ratios are relative to (also in a cascade).
        recalibrated: re-estimate BatchNorm statistics on the calibration inputs in every compressed network.
        error_weight: that of all budgets.
    Raises: CompressionError: `recalibrated` without calibration inputs or without a BatchNorm.
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
        error_weight: float = 1.0,
    ) -> None:
        self.method, self.state, self.original = method, state, original
        self.error_weight = error_weight
        self._name = type(method).__name__
        self.images = calibration_inputs(calibration, state, "recalibrate") if recalibrated else None
        self.dense = None if self.images is None else dense_moments(state.network, self.images)
        with torch.no_grad(), working(f"{self._name}: analysis"):
            self.analysis = method.analyse(state, calibration, generator)

    def compress(self, keep: float, quantity: Quantity = "parameters") -> Compressed:
        """The compressed network for one keep ratio, in eval mode; the state is not modified.

        Raises: InfeasibleBudget, CompressionError.
        """
        rest = self.out_of_reach  # before the new network takes memory, too
        with working(f"{self._name}: choosing what to keep"):
            plan = self.plan(keep, quantity)
        return self.made(plan, rest)

    def made(self, plan: Plan, rest: OutOfReach) -> Compressed:
        """The compressed network of a plan, counted."""
        with working(f"{self._name}: building"):
            network = self.instantiate(plan)
        masked = not (plan.factors or plan.kept or plan.skipped or plan.biases or plan.branches)
        counted = recount(network, self.original) if masked else count(network, self.state.example)
        assert plan.parameters is None or plan.parameters == counted.parameters, (
            f"planned {plan.parameters} parameters, counted {counted.parameters}"
        )
        return Compressed(network, plan, counted, rest)

    @cached_property
    def out_of_reach(self) -> OutOfReach:
        """What the method cannot compress."""
        return out_of_reach(self.state, self.analysis)

    def plan(self, keep: float, quantity: Quantity = "parameters", priced: tuple[Priced, ...] = ()) -> Plan:
        """The plan for one keep ratio, and further limits.

        Raises: InfeasibleBudget, CompressionError.
        """
        keep = keep_ratio(keep)
        total = {"parameters": self.original.parameters, "flops": self.original.flops}[quantity]
        budget = Budget(quantity, math.floor(keep * total + 1e-6), total, priced, self.error_weight)
        try:
            return self.method.plan(self.analysis, budget).starting_from(self.state)
        except InfeasibleBudget as error:
            raise error.because(self.out_of_reach.text()) from error

    def instantiate(self, plan: Plan, state: State | None = None) -> nn.Module:
        """The network of a plan, filled from this state or, to rewind, from another one.

        BatchNorm statistics are re-estimated in both cases, because they depend on the weights.
        """
        state = state or self.state
        if plan.masks and self.original.parameters > LARGE:
            gc.collect()  # earlier masked networks: torch's parametrizations are reference cycles
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
    """A keep ratio as a float, from a Python or numpy number or a tensor with one element.

    Raises: CompressionError: it is not a number in (0, 1].
    """
    if isinstance(keep, Tensor) and keep.dim() == 0:
        keep = keep.item()
    number = isinstance(keep, Real) and not isinstance(keep, bool)
    if isinstance(keep, Real) and number and 0 < float(keep) <= 1:
        return float(keep)
    raise CompressionError(f"keep must be a number in (0, 1]. Got {keep if number else kind_of(keep)}.")
