"""Quantization as a method: all weights are kept in fewer bits."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from experiment.layers.build import build, write_whole
from experiment.layers.plan import Plan, State
from experiment.layers.read_parameters import is_matrix, may_be_computed, shown
from experiment.layers.residual_blocks import inside
from experiment.measure import count
from experiment.methods.base import Budget, Calibration
from experiment.methods.layer_patterns import matching, own_values
from experiment.methods.settings import QuantizeSettings
from experiment.methods.starting_state import start_of

WHOLE = "float32"  # the dtype of layers that are not quantized, in tables


@dataclass(frozen=True)
class Quantize:
    """Weights rounded to float16, bfloat16 or int8 whenever they are used; training updates float32 master weights.

    Those of layers, with biases in float16 and bfloat16, and all other matrices: embeddings, recurrent weights, raw
    parameters.

    Nothing is removed, so the keep ratio has no effect. Masks and removed channels of the state are unchanged.

    Source: Joseph et al. 2020, Condensa, https://arxiv.org/abs/1911.02497 (float16 of a layer's weight and bias);
    Jacob et al. 2018, https://arxiv.org/abs/1712.05877 (int8).
    Differs: int8 is symmetric with one scale per output channel, and activations are float32;
    `experiment.quantize_int8` quantizes the activations of a finished network.
    """

    settings: QuantizeSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> Plan:
        """The plan, which does not depend on the budget.

        Raises: CompressionError: a weight is NaN or infinite. ConfigError: a pattern matches no layer, or two patterns
            the same layer.
        """
        start_of(state, masked=True)  # which refuses weights that are not finite
        support = Plan(masks=dict(state.masks), kept=dict(state.kept), skipped=state.skipped, branches=state.branches)
        parameters = count(build(state.network, support), state.example).parameters
        return self.finish(replace(support, parameters=parameters), state.network)

    def plan(self, analysis: Plan, budget: Budget) -> Plan:
        return analysis

    def fill(self, built: nn.Module, state: State, analysis: Plan, plan: Plan) -> None:
        write_whole(built, state.network, plan)

    def finish(self, plan: Plan, network: nn.Module) -> Plan:
        """Another method's plan, extended by the dtypes of the layers.

        Args:
            network: the original network, or any with its layers.
        Raises: ConfigError: a pattern matches no layer, or two patterns the same layer.
        """
        layers = [
            shown(name)
            for name, parameter in network.named_parameters(remove_duplicate=False)
            if _may_be_rounded(network, name, parameter) and not inside(shown(name), plan.skipped)
        ]
        dtypes = self._dtypes(layers)
        details = {name: {**plan.details.get(name, {}), "dtype": dtypes.get(name, WHOLE)} for name in layers}
        return replace(plan, quantized=dtypes, details={**plan.details, **details})

    def _dtypes(self, layers: list[str]) -> dict[str, str]:
        ignored = matching(self.settings.ignore, layers, "Quantize")
        own = own_values(self.settings.layers, layers, ignored, "Quantize")
        return {name: own.get(name, self.settings.dtype) for name in layers if name not in ignored}


def _may_be_rounded(network: nn.Module, name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix, or the weight of a layer."""
    module, _, key = name.rpartition(".")
    weight = key == "weight" and isinstance(network.get_submodule(module), nn.Conv2d | nn.Linear)
    return parameter.is_floating_point() and (weight or is_matrix(parameter)) and may_be_computed(network, name)
