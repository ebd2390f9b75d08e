"""Several methods in sequence: each analyses the result of the previous one and plans from it.

A plan is relative to the original architecture, and a state contains the remaining weights and channels, so the last
scheme's plan contains the decisions of all schemes: masks and channels only shrink from one to the next. A quantizing
scheme adds dtypes to any plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from experiment.errors import ConfigError
from experiment.inputs import Inputs
from experiment.layers.build import build, expand
from experiment.layers.plan import Detail, Plan, State
from experiment.measure import count
from experiment.methods.base import Budget, Calibration, Method, make_method
from experiment.methods.budget_search import check_smallest
from experiment.methods.configure import configure_schemes, takers_of
from experiment.methods.settings import ComposeSettings
from experiment.random_streams import generator as stream


@runtime_checkable
class Finisher(Protocol):
    """A method that can extend the plan of any other method, such as quantization."""

    def finish(self, plan: Plan, network: nn.Module) -> Plan:
        """The plan extended by this method; `network` is the original one."""


@runtime_checkable
class WeightFinisher(Finisher, Protocol):
    """A finisher that also changes the weights that the other methods have written, for calibration data."""

    def data_of(self, state: State, calibration: Calibration | None) -> Inputs | None:
        """The data that it needs."""

    def finish_weights(self, built: nn.Module, inputs: Inputs | None) -> None:
        """Change the weights in place."""


@dataclass(frozen=True)
class AppliedScheme:
    """A scheme with the state that it started from, its analysis of that state, and its plan."""

    method: Method
    state: State
    analysis: Any
    plan: Plan


class ComposeAnalysis:
    """The applied schemes that do not depend on the budget, and a cache of those of the latest plan.

    Attributes:
        done: the schemes before the one that takes the budget; all of them if none does.
        waiting: the state that the scheme which takes the budget starts from, with its analysis.
        inputs: the data for the finisher.
    """

    def __init__(
        self, compose: Compose, state: State, calibration: Calibration | None, generator: torch.Generator
    ) -> None:
        self.state = state
        finisher = compose.finisher
        self.inputs = finisher.data_of(state, calibration) if isinstance(finisher, WeightFinisher) else None
        self._compose, self._calibration = compose, calibration
        self._seed = int(torch.randint(2**62, (), generator=generator))
        self._latest: tuple[AppliedScheme, ...] = ()
        self.done: tuple[AppliedScheme, ...] = ()
        budgeted = compose.budgeted
        for i in range(len(compose.methods) if budgeted is None else budgeted):
            self.done += (self._apply(i, *self._analyse(i, self.done)),)
        self.waiting = None if budgeted is None else self._analyse(budgeted, self.done)

    def apply(self, budget: Budget) -> tuple[AppliedScheme, ...]:
        """All schemes, applied under a budget."""
        applied = self.done
        if self.waiting is not None:
            applied += (self._apply(len(applied), *self.waiting, budget),)
        for i in range(len(applied), len(self._compose.methods)):
            applied += (self._apply(i, *self._analyse(i, applied)),)
        self._latest = applied
        return applied

    def applied_in(self, plan: Plan) -> tuple[AppliedScheme, ...]:
        """The schemes as they were applied for a plan, analysed again unless it is the latest one."""
        if [id(applied.plan) for applied in self._latest] == [id(own) for own in plan.stages]:
            return self._latest
        again: tuple[AppliedScheme, ...] = ()
        for i, own in enumerate(plan.stages):
            if i < len(self.done) and self.done[i].plan is own:
                again += (self.done[i],)
            else:
                again += (AppliedScheme(self._compose.methods[i], *self._analyse(i, again), own),)
        return again

    def analyses(self) -> list[Any]:
        """The analyses of the schemes that have one."""
        waiting = [] if self.waiting is None else [self.waiting[1]]
        return [applied.analysis for applied in (*self.done, *self._latest)] + waiting

    def _analyse(self, i: int, before: Sequence[AppliedScheme]) -> tuple[State, Any]:
        """The state that a scheme starts from, with its analysis."""
        start = _state_after(before[-1], self.state) if before else self.state
        method = self._compose.methods[i]
        return start, method.analyse(start, self._calibration, stream("compose", self._seed, i))

    def _apply(self, i: int, start: State, analysis: Any, budget: Budget | None = None) -> AppliedScheme:
        method = self._compose.methods[i]
        plan = method.plan(analysis, _unlimited(start) if budget is None else budget)
        return AppliedScheme(method, start, analysis, plan.starting_from(start))


@dataclass(frozen=True)
class Compose:
    """Applies methods in order.

    Args:
        budgeted: the index of the method that takes the budget; the others have sizes of their own. None if all do.
        finisher: adds to the final plan.
    """

    methods: Sequence[Method]
    budgeted: int | None
    finisher: Finisher | None = None

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> ComposeAnalysis:
        """Apply the schemes before the one that takes the budget, and analyse what that one starts from."""
        return ComposeAnalysis(self, state, calibration, generator)

    def plan(self, analysis: ComposeAnalysis, budget: Budget) -> Plan:
        """The last scheme's plan, extended by the finisher and, for `fill`, with the plans of all schemes.

        Raises: InfeasibleBudget: the scheme that takes the budget cannot meet it, or fixed sizes exceed it.
        """
        if self.finisher is not None or self.budgeted not in (None, len(self.methods) - 1):
            own = tuple(price for price in budget.priced if not price.by_weight)  # later schemes lower the others
            budget = replace(budget, priced=own)
        applied = analysis.apply(budget)
        details = _merged([scheme.plan.details for scheme in applied])
        loss = applied[-1 if self.budgeted is None else self.budgeted].plan.loss
        final = replace(applied[-1].plan, details=details, loss=loss, stages=tuple(scheme.plan for scheme in applied))
        if self.budgeted is None:
            built = count(build(analysis.state.network, replace(final, stages=())), analysis.state.example)
            check_smallest(built.parameters if budget.quantity == "parameters" else built.flops_unmasked, budget)
        if self.finisher is None:
            return final
        return replace(self.finisher.finish(final, analysis.state.network), stages=final.stages)

    def fill(self, built: nn.Module, state: State, analysis: ComposeAnalysis, plan: Plan) -> None:
        """Pass the state's weights through the plans of all schemes; the last one writes them into `built`."""
        *before, last = analysis.applied_in(plan)
        if state is analysis.state:
            last.method.fill(built, last.state, last.analysis, plan)
        else:
            for scheme in before:
                state = _state_after(replace(scheme, state=state), analysis.state)
            last.method.fill(built, state, last.analysis, plan)
        if isinstance(self.finisher, WeightFinisher):
            self.finisher.finish_weights(built, analysis.inputs)


def compose(settings: ComposeSettings) -> Compose:
    """Several methods in sequence, each applied to the result of the previous one.

    At most one of them takes the keep ratio; the others need settings that fix their size.

    Source: Joseph et al. 2020, Condensa, https://arxiv.org/abs/1911.02497
    Differs: every scheme plans relative to the original network: densities are shares of all its units.
    Raises: ConfigError: a scheme is unknown, its settings are wrong, or the schemes cannot follow each other.
    """
    schemes, faults = configure_schemes(settings)
    if faults:
        raise ConfigError([text for _, text in faults])
    methods = [make_method(scheme.entry, scheme.settings) for scheme in schemes]
    last = methods[-1]
    finisher = last if len(methods) > 1 and isinstance(last, Finisher) else None
    if finisher is not None:
        methods, schemes = methods[:-1], schemes[:-1]
    takers = takers_of(schemes)
    return Compose(tuple(methods), takers[0] if takers else None, finisher)


def _state_after(scheme: AppliedScheme, start: State) -> State:
    """The result of a scheme, as a state of the original architecture."""
    built = build(scheme.state.network, scheme.plan)
    scheme.method.fill(built, scheme.state, scheme.analysis, scheme.plan)
    left = expand(built.eval(), start.network, scheme.plan, start.example)
    return replace(left, biases=(*start.biases, *left.biases), samples=start.samples)


def _unlimited(state: State) -> Budget:
    """A budget that every size meets, for methods with a size of their own."""
    parameters = sum(parameter.numel() for parameter in state.network.parameters())
    return Budget("parameters", parameters, parameters)


def _merged(stages: Sequence[Mapping[str, Mapping[str, Detail]]]) -> dict[str, dict[str, Detail]]:
    """The details of all schemes by layer, with the same columns for all layers; later schemes take precedence."""
    layers = dict.fromkeys(name for details in stages for name in details)
    columns = dict.fromkeys(key for details in stages for detail in details.values() for key in detail)
    found: dict[str, dict[str, Detail]] = {name: dict.fromkeys(columns) for name in layers}
    for details in stages:
        for name, detail in details.items():
            found[name].update(detail)
    return found
