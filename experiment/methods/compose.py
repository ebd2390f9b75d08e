"""Several methods one after the other: each analyses, and plans from, what the one before has left.

A plan is relative to the original architecture, and a state carries the support that is left, so the last scheme's plan
says everything that all of them decided: masks and channels only shrink from one to the next. A quantizing scheme adds
bits to that plan, whatever it is, low-rank factors too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from experiment.errors import ConfigError
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
    """A method that can be added to the plan of any other one, such as quantization."""

    def finish(self, plan: Plan, network: nn.Module) -> Plan:
        """The plan with what this method adds; `network` is the original one."""


@dataclass(frozen=True)
class Applied:
    """One scheme, applied: the state that it started from, what it found there, what it decided."""

    method: Method
    state: State
    analysis: Any
    plan: Plan


@dataclass(frozen=True)
class Chain:
    """The analysis: the schemes as far as no budget is needed.

    Attributes:
        state: where the first scheme starts.
        seed: what the schemes' random streams start from.
        done: the schemes before the one that takes the budget; all of them, where none does.
        waiting: the state that the one which takes it starts from, with its analysis.
        latest: the schemes as they were applied for the plan that was made last.
    """

    state: State
    calibration: Calibration | None
    seed: int
    done: tuple[Applied, ...]
    waiting: tuple[State, Any] | None
    latest: list[tuple[Applied, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Compose:
    """Applies methods in order; the one at `budgeted`, if any, gets the budget, the others have sizes of their own.

    Args:
        finisher: what is added to the plan in the end.
    """

    methods: Sequence[Method]
    budgeted: int | None
    finisher: Finisher | None = None

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Chain:
        """Apply the schemes up to the one that takes the budget, and analyse what it starts from."""
        seed = int(torch.randint(2**62, (), generator=generator))
        chain = Chain(state, calibration, seed, (), None)
        first = len(self.methods) if self.budgeted is None else self.budgeted
        done: tuple[Applied, ...] = ()
        for i in range(first):
            here, found = self._analysed(chain, i, done)
            done += (_applied(self.methods[i], here, found, _everything(here)),)
        waiting = None if self.budgeted is None else self._analysed(chain, first, done)
        return replace(chain, done=done, waiting=waiting)

    def plan(self, analysis: Chain, budget: Budget) -> Plan:
        """The last scheme's plan, with what the finisher adds and, to be filled, the plans of all.

        Raises: InfeasibleBudget: the scheme that takes the budget cannot meet it, or sizes of their own exceed it.
        """
        applied = self._apply(analysis, budget)
        final = applied[-1].plan
        details = _merged([a.plan.details for a in applied])
        final = replace(final, details=details, stages=tuple(a.plan for a in applied))
        if self.budgeted is None:
            built = count(build(analysis.state.network, replace(final, stages=())), analysis.state.example)
            check_smallest(built.parameters if budget.quantity == "parameters" else built.flops_unmasked, budget)
        analysis.latest[:] = [applied]
        if self.finisher is None:
            return final
        return replace(self.finisher.finish(final, analysis.state.network), stages=final.stages)

    def fill(self, built: nn.Module, state: State, analysis: Chain, plan: Plan) -> None:
        """Send the state's weights through all schemes' plans; the last one writes them into `built`, in place."""
        *before, last = self._found(analysis, plan)
        if state is analysis.state:
            last.method.fill(built, last.state, last.analysis, plan)
            return
        for scheme in before:
            state = _after(replace(scheme, state=state), analysis.state)
        last.method.fill(built, state, last.analysis, plan)

    def _apply(self, chain: Chain, budget: Budget) -> tuple[Applied, ...]:
        applied = chain.done
        if chain.waiting is not None:
            assert self.budgeted is not None
            applied += (_applied(self.methods[self.budgeted], *chain.waiting, budget),)
        for i in range(len(applied), len(self.methods)):
            here, found = self._analysed(chain, i, applied)
            applied += (_applied(self.methods[i], here, found, _everything(here)),)
        return applied

    def _found(self, chain: Chain, plan: Plan) -> tuple[Applied, ...]:
        """The schemes as they were applied for a plan: as they are remembered, or analysed once more."""
        for applied in chain.latest:
            if all(a.plan is p for a, p in zip(applied, plan.stages, strict=True)):
                return applied
        again: tuple[Applied, ...] = ()
        for i, (method, own) in enumerate(zip(self.methods, plan.stages, strict=True)):
            known = i < len(chain.done) and chain.done[i].plan is own
            again += (chain.done[i] if known else Applied(method, *self._analysed(chain, i, again), own),)
        return again

    def _analysed(self, chain: Chain, i: int, before: Sequence[Applied]) -> tuple[State, Any]:
        """The state that a scheme starts from, with its analysis."""
        here = _after(before[-1], chain.state) if before else chain.state
        return here, self.methods[i].analyse(here, chain.calibration, stream("compose", chain.seed, i))


def compose(settings: ComposeSettings) -> Compose:
    """The schemes of the settings, in order.

    Source: Joseph et al. 2020, https://arxiv.org/abs/1911.02497
    Differs: every scheme plans relative to the original network: densities are shares of all its units.
    Raises: ConfigError: a scheme is not known or its settings are wrong, or they cannot follow each other.
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


def _applied(method: Method, state: State, found: Any, budget: Budget) -> Applied:
    return Applied(method, state, found, method.plan(found, budget).keeping_biases(state))


def _after(scheme: Applied, start: State) -> State:
    """What a scheme leaves, as a state of the original architecture."""
    built = build(scheme.state.network, scheme.plan)
    scheme.method.fill(built, scheme.state, scheme.analysis, scheme.plan)
    left = expand(built.eval(), start.network, scheme.plan, start.example)
    return replace(left, biases=(*start.biases, *left.biases), samples=start.samples)


def _everything(state: State) -> Budget:
    """A budget that every size fits, for methods that do not look at it."""
    parameters = sum(parameter.numel() for parameter in state.network.parameters())
    return Budget("parameters", parameters, parameters)


def _merged(told: Sequence[Mapping[str, Mapping[str, Detail]]]) -> dict[str, dict[str, Detail]]:
    """What the schemes tell about every layer, the last word counting, with the same columns for all."""
    layers = dict.fromkeys(name for details in told for name in details)
    columns = dict.fromkeys(key for details in told for detail in details.values() for key in detail)
    found: dict[str, dict[str, Detail]] = {name: dict.fromkeys(columns) for name in layers}
    for details in told:
        for name, detail in details.items():
            found[name].update(detail)
    return found
