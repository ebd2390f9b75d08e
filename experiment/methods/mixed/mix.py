"""Mix: of every layer the form that serves it best under the budget, whole, low rank, masked, or in fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiment.inputs import Inputs
from experiment.layers.build import unslice_mask, write_whole
from experiment.layers.compensated_rounding import compensate, input_moments
from experiment.layers.factored_layers import write_factors
from experiment.layers.forms import UNMASKED
from experiment.layers.plan import Detail, Factors, Plan, State
from experiment.layers.refit import fitted_weights
from experiment.methods.allocate import minimise_sum
from experiment.methods.base import Budget, Calibration
from experiment.methods.data.output_divergence import as_fit, comparable_inputs, divergence, predictions_of
from experiment.methods.lowrank.base import LowRankLayers, choose
from experiment.methods.lowrank.klds import directions_of, interpolated, per_option, selectable_layers, spread
from experiment.methods.lowrank.layer_options import LayerOptions
from experiment.methods.mixed.layer_forms import LayerChoices, LayerForms, find_choices, takes_bits
from experiment.methods.mixed.settings import MixSettings
from experiment.methods.starting_state import parameter_name
from experiment.progress import progress
from experiment.random_streams import generator as stream

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Tried = Mapping[str, tuple[Integers, Floats, Floats]]
TINY, EPSILON = 1e-30, 1e-6
WHOLE = "float32"  # the dtype of layers in their own, in tables


@dataclass(frozen=True)
class MixAnalysis:
    """The forms of every layer with their estimated effect on the output.

    Attributes:
        network: the starting state as plain layers, masked weights at zero.
        losses: for every layer (number of forms,): the estimated divergence of the network's output.
        tried: layer name -> family -> the forms that were evaluated, their predicted and their measured divergence.
    """

    base: LowRankLayers
    network: nn.Module
    choices: Mapping[str, LayerChoices]
    forms: Mapping[str, LayerForms]
    losses: Sequence[Floats]
    tried: Mapping[str, Tried]
    inputs: Inputs
    seed: int


@dataclass(frozen=True)
class Mix:
    """Every layer whole, low rank, masked, in fewer bits, or low rank or masked in fewer bits.

        min over forms f_l of sum_l KL_l(f_l)   subject to   sum_l cost_l(f_l) <= budget, for every limited quantity

    with KL_l the divergence of KLDS: that of the network's output when layer l alone takes a form. It is measured for
    a few forms of every layer and family; for the others, the second-order prediction 1/2 tr(G E C E^T) of the change
    E of the weights is scaled to the measured values. The program is solved exactly (`scipy.optimize.milp`).

    Factors are those of KLDS. Masks keep the weights without which the output would change the most, each taken alone
    (Optimal Brain Surgeon). Weights that are masked or rounded later compensate the errors of earlier ones (GPTQ,
    SparseGPT). In the network with the chosen forms, layers are then fitted, one after the other, to the outputs of
    the dense layers before they are masked and rounded. Labels are not used.

    Fewer bits count only under a limit on bytes. Other weights than those analysed (rewinding) take the plan's forms,
    and are fitted to the outputs of the network with these weights.

    Source: this project; Liebenwein et al. 2021, https://arxiv.org/abs/2107.11442 (options of low rank); Frantar,
    Alistarh 2023, SparseGPT, https://arxiv.org/abs/2301.00774 (masks); Frantar et al. 2022, GPTQ,
    https://arxiv.org/abs/2210.17323 (rounding).
    """

    settings: MixSettings

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> MixAnalysis:
        """The second-order prediction for all forms, and the measured divergence of some.

        Raises: CompressionError: there are no calibration data, the outputs are not class scores or not finite, or the
            targets are those of a regression.
        """
        inputs = comparable_inputs(calibration, state, "Mix")
        seed = int(torch.randint(2**62, (), generator=generator))
        base, network = selectable_layers(state, self.settings)
        settings, start = self.settings, base.start
        choices = {
            name: find_choices(start, start.layers[name], options, settings.families, settings.dtypes)
            for name, options in base.options.items()
        }
        images = as_fit(network, inputs, settings.images)
        dense = predictions_of(network, images)
        forms, losses, tried = dict[str, LayerForms](), dict[str, Floats](), dict[str, Tried]()
        for part in directions_of(base, network, inputs, stream("mix", seed)):
            matrices = input_moments(network, [n for n in part if takes_bits(start.layers[n])], inputs, seed)
            for name, directions in progress(part.items(), "output divergence, by layer"):
                own = forms[name] = LayerForms(network.get_submodule(name), directions)
                if name in matrices:
                    own.take(matrices.pop(name), start.alive(parameter_name(name)))

                def measured(weight: Tensor, name: str = name) -> float:
                    return divergence(name, dense, predictions_of(network, images, {parameter_name(name): weight}))

                predicted = _predicted(own, choices[name], base.options[name], settings.points)
                losses[name], tried[name] = _losses(own, choices[name], predicted, measured, settings.points)
                own.forget()
        return MixAnalysis(base, network, choices, forms, [losses[name] for name in choices], tried, inputs, seed)

    def plan(self, analysis: MixAnalysis, budget: Budget) -> Plan:
        """The forms with the smallest estimated sum of divergences within the budget."""
        start = analysis.base.start

        def rule(costs: list[Integers], limits: int | Sequence[int]) -> list[int]:
            several = [limits] if isinstance(limits, int) else limits
            return minimise_sum(analysis.losses, [np.atleast_2d(cost) for cost in costs], several)

        chosen = choose(start, analysis.choices, budget, rule)
        details: dict[str, Mapping[str, Detail]] = {}
        pairs = list(zip(analysis.choices.items(), analysis.losses, strict=True))
        if chosen is None:
            return start.unchanged({name: _detail(own, loss, -1) for (name, own), loss in pairs})
        factors, masks, dtypes = dict[str, Factors](), dict(start.state.masks), dict[str, str]()
        total, sum_of_losses = start.count.parameters, 0.0
        for ((name, own), loss), index in zip(pairs, chosen, strict=True):
            forms, parameter = own.all_forms, parameter_name(name)
            details[name] = _detail(own, loss, index)
            total += int(own.costs["parameters"][index]) - start.layer_cost(name, "parameters")
            sum_of_losses += float(loss[index])
            if forms.dtypes[index]:
                dtypes[name] = str(forms.dtypes[index])
            if forms.ranks[index]:
                factors[name] = own.factors(index)
                factors |= {tied.name: Factors(int(forms.ranks[index]), bias=tied.bias)
                            for tied in start.layers[name].tied}  # fmt: skip
                masks.pop(parameter, None)
            elif forms.kept[index] != start.alive_weights(name):
                mask = analysis.forms[name].mask(int(forms.kept[index]))
                shape = start.state.network.get_parameter(parameter).shape
                masks[parameter] = unslice_mask(mask, shape, start.state.kept, parameter)
        kept = dict(start.state.kept)
        return Plan(factors, masks, kept, total, details, loss=sum_of_losses, quantized=dtypes)

    def fill(self, built: nn.Module, state: State, analysis: MixAnalysis, plan: Plan) -> None:
        write_whole(built, state.network, plan)
        start, network = analysis.base.start, analysis.network
        directions = {name: own.directions for name, own in analysis.forms.items()}
        if state.network is not start.state.network:
            base, network = selectable_layers(replace(start.state, network=state.network), self.settings)
            for part in directions_of(base, network, analysis.inputs, stream("mix", analysis.seed)):
                directions |= part
        for name in plan.factors.keys() & directions.keys():
            factors = plan.factors[name]
            write_factors(built.get_submodule(name), *directions[name].factors(factors), factors.folding)
            directions[name].forget()
        own = {
            parameter: mask for parameter, mask in plan.masks.items() if mask is not start.state.masks.get(parameter)
        }
        masked = {name for name in directions if parameter_name(name) in own}
        changed = {*plan.factors, *plan.quantized, *masked}
        names = [name for name in directions if name in changed and not start.layers[name].tied]
        if self.settings.refit and names:
            fitted = fitted_weights(built, network, names, analysis.inputs, analysis.seed)
            compensate(built, analysis.inputs, analysis.seed, fitted)


def _predicted(own: LayerForms, choices: LayerChoices, options: LayerOptions, points: int) -> Floats:
    """The second-order effect of every form, 0 for the layer itself."""
    found = np.zeros(len(choices.all_forms))
    ranks = per_option(options, own.directions)[:-1]
    for family in choices.names():
        kind, _, dtype = family.partition(" ")
        here = choices.of(family)
        if kind == "lowrank":
            found[here] = ranks
            for slicing in options.slicings() if dtype else ():
                at = options.of(slicing)
                found[here[at]] += own.rounding(slicing, options.ranks[at], dtype)
            continue
        even = _evenly(choices.costs["parameters"][here], points)
        values = [own.divergence(own.weight_as(choices, here[i])) for i in even]
        kept = np.log(np.maximum(choices.all_forms.kept[here], 1))
        found[here] = np.exp(np.interp(kept, kept[even], np.log(np.maximum(values, TINY))))
    return found


def _losses(
    own: LayerForms, choices: LayerChoices, predicted: Floats, measured: Callable[[Tensor], float], points: int
) -> tuple[Floats, Tried]:
    """The divergence of every form, measured for some of each family, interpolated for the others."""
    losses, tried = np.zeros(len(predicted)), dict[str, tuple[Integers, Floats, Floats]]()
    for family in choices.names():
        here = np.append(choices.of(family), len(predicted) - 1)
        at = [0] if len(here) == 2 else spread(predicted[here], choices.costs["parameters"][here], points)
        tries = np.array(at, dtype=np.int64)
        values = np.array([measured(own.weight_as(choices, here[i])) for i in tries])
        losses[here] = interpolated(predicted[here], predicted[here[tries]], values)
        tried[family] = here[tries], predicted[here[tries]], values
    for family in choices.names():
        kind, _, dtype = family.partition(" ")
        if dtype and kind != "whole":  # fewer bits never help: none are chosen where they save nothing
            here, own_bits = choices.of(family), choices.of(kind)
            losses[here] = np.maximum(losses[here], losses[own_bits] * (1 + EPSILON) + TINY)
    return losses, tried


def _evenly(cost: Integers, points: int) -> list[int]:
    """Indices of rising costs, spread evenly in log cost."""
    wanted = np.linspace(np.log(cost[0]), np.log(cost[-1]), points)
    return sorted({int(np.abs(np.log(cost) - value).argmin()) for value in wanted})


def _detail(choices: LayerChoices, losses: Floats, index: int) -> dict[str, Detail]:
    forms = choices.all_forms
    low = forms.ranks[index] > 0
    return {
        "rank": int(forms.ranks[index]) if low else None,
        "groups": int(forms.groups[index]) if low else None,
        "folding": int(forms.foldings[index]) if low else None,
        "weights_kept": None if forms.kept[index] == UNMASKED else int(forms.kept[index]),
        "dtype": str(forms.dtypes[index]) or WHOLE,
        "divergence": float(losses[index]),
    }
