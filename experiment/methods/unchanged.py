"""Networks that are not compressed: the reference, and the one that is retrained like the compressed ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from experiment.layers.build import build, write_whole
from experiment.layers.plan import Plan, State
from experiment.measure import count
from experiment.methods.base import Budget, Calibration
from experiment.methods.settings import FakeSettings, ReferenceSettings


@dataclass(frozen=True)
class Unchanged:
    """The network as it is, whatever the budget: it is the measure of the others, and exceeds budgets on purpose.

    Retrained (`Fake`), it is the control for what more epochs alone would gain.
    """

    settings: ReferenceSettings | FakeSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Plan:
        """The one plan that there is: all that the state still has stays."""
        support = Plan(masks=dict(state.masks), kept=dict(state.kept))
        parameters = count(build(state.network, support), state.example).parameters
        return Plan(masks=support.masks, kept=support.kept, parameters=parameters)

    def plan(self, analysis: Plan, budget: Budget) -> Plan:
        """The same plan for every budget."""
        return analysis

    def fill(self, built: nn.Module, state: State, analysis: Plan, plan: Plan) -> None:
        """Write the state's weights into `built`, in place."""
        write_whole(built, state.network, plan)
