"""Networks that are not compressed: the reference network, and the control that is retrained like the others."""

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
    """The unchanged network, for any budget: the baseline for the compressed networks.

    As `Fake` it is retrained like the compressed networks, as a control for the effect of more epochs.
    """

    settings: ReferenceSettings | FakeSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Plan:
        support = Plan(masks=dict(state.masks), kept=dict(state.kept))
        parameters = count(build(state.network, support), state.example).parameters
        return Plan(masks=support.masks, kept=support.kept, parameters=parameters)

    def plan(self, analysis: Plan, budget: Budget) -> Plan:
        return analysis

    def fill(self, built: nn.Module, state: State, analysis: Plan, plan: Plan) -> None:
        write_whole(built, state.network, plan)
