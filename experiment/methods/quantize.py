"""Quantization as a method: all weights are kept in fewer bits."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from experiment.inputs import Inputs
from experiment.layers.build import build, write_whole
from experiment.layers.compensated_rounding import compensate
from experiment.layers.plan import Plan, State
from experiment.layers.read_parameters import is_matrix, may_be_computed, shown
from experiment.layers.residual_blocks import inside
from experiment.measure import count
from experiment.methods.base import Budget, Calibration, calibration_inputs
from experiment.methods.layer_patterns import matching, own_values
from experiment.methods.settings import INTEGERS, QuantizeSettings
from experiment.methods.starting_state import start_of

WHOLE = "float32"  # the dtype of layers that are not quantized, in tables


@dataclass(frozen=True)
class QuantizeAnalysis:
    """The plan, which does not depend on the budget, and the inputs for compensated rounding."""

    base: Plan
    inputs: Inputs | None = None


@dataclass(frozen=True)
class Quantize:
    """Weights rounded to floats, integers or codebooks whenever they are used; training updates float32 masters.

    Those of layers, with biases in float16 and bfloat16, and all other matrices: embeddings, recurrent weights, raw
    parameters.

    Nothing is removed, so the keep ratio has no effect. Masks and removed channels of the state are unchanged.

    Compensated rounding passes the calibration data once through the network. Every convolution and linear layer is
    rounded for its inputs in the network in which the layers before it are rounded. Other matrices, and layers that a
    forward pass calls several times, are rounded to nearest.

    A codebook has the values with the smallest sum of squared errors that k-means finds. It is learnt anew whenever the
    weights are used: in retraining and in every C-step of mode `lc`.

    Source: Joseph et al. 2020, Condensa, https://arxiv.org/abs/1911.02497 (float16 of a layer's weight and bias);
    Jacob et al. 2018, https://arxiv.org/abs/1712.05877 (int8); Frantar et al. 2022, GPTQ,
    https://arxiv.org/abs/2210.17323 (compensated rounding); Carreira-Perpinan and Idelbayev 2017,
    https://arxiv.org/abs/1707.04319, and Han et al. 2016, https://arxiv.org/abs/1510.00149 (codebooks).
    Differs: integers are symmetric, and activations are float32; `experiment.quantize_int8` quantizes the activations
    of a finished network. Compensated rounding has the scales of rounding to nearest, and takes columns of larger
    inputs first.
    """

    settings: QuantizeSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> QuantizeAnalysis:
        """The plan, and the inputs for compensated rounding.

        Raises: CompressionError: a weight is NaN or infinite, or there are no data for compensated rounding.
            ConfigError: a pattern matches no layer, or two patterns the same layer.
        """
        start = start_of(state, masked=True)  # which refuses weights that are not finite
        support = Plan(masks=dict(state.masks), kept=dict(state.kept), skipped=state.skipped, branches=state.branches)
        counted = count(build(state.network, support), state.example) if state.skipped else start.count
        plan = self.finish(replace(support, parameters=counted.parameters), state.network)
        return QuantizeAnalysis(plan, self.data_of(state, calibration))

    def plan(self, analysis: QuantizeAnalysis, budget: Budget) -> Plan:
        return analysis.base

    def fill(self, built: nn.Module, state: State, analysis: QuantizeAnalysis, plan: Plan) -> None:
        write_whole(built, state.network, plan)
        self.finish_weights(built, analysis.inputs)

    def data_of(self, state: State, calibration: Calibration | None) -> Inputs | None:
        """The inputs for compensated rounding.

        Raises: CompressionError: there are none.
        """
        if self.settings.rounding == "nearest":
            return None
        return calibration_inputs(calibration, state, "Quantize with compensated rounding")

    def finish_weights(self, built: nn.Module, inputs: Inputs | None) -> None:
        """Round the masters of a network that has the weights of any method, in place, if rounding is compensated."""
        if inputs is not None:
            compensate(built, inputs)

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
        dtypes = {name: own.get(name, self.settings.dtype) for name in layers if name not in ignored}
        groups = "" if self.settings.group_size is None else f"/{self.settings.group_size}"
        return {name: dtype + groups if dtype in INTEGERS else dtype for name, dtype in dtypes.items()}


def _may_be_rounded(network: nn.Module, name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix, or the weight of a layer."""
    module, _, key = name.rpartition(".")
    weight = key == "weight" and isinstance(network.get_submodule(module), nn.Conv2d | nn.Linear)
    return parameter.is_floating_point() and (weight or is_matrix(parameter)) and may_be_computed(network, name)
