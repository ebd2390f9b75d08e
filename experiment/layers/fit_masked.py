"""Masked layers fitted, one after the other, to the outputs of the layers before they were masked."""

import copy
from collections.abc import Sequence

from torch import nn

from experiment.inputs import Inputs
from experiment.layers.build import slice_mask, sliced_copy
from experiment.layers.compensated_rounding import compensate
from experiment.layers.plan import Plan, State
from experiment.layers.refit import fitted_weights


def fit_masked(built: nn.Module, dense: nn.Module, names: Sequence[str], inputs: Inputs) -> None:
    """Fit the weights that masks leave, in place.

    Each layer's inputs are those in the network in which all earlier layers are masked and fitted. Its weight is first
    fitted without the mask to the outputs of the dense layer, and then under the mask to this weight.

    Source: Frantar, Alistarh 2023, SparseGPT, https://arxiv.org/abs/2301.00774. Differs: least squares under the mask
    by conjugate gradients, not column by column; targets are the outputs of the dense network.

    Args:
        built: the masked network.
        dense: the network before it was masked, of the same layers.
        names: of the layers, which share no weights; embeddings stay.
    """
    names = [name for name in names if not isinstance(built.get_submodule(name), nn.Embedding)]
    if names:
        compensate(built, inputs, fitted=fitted_weights(built, dense, names, inputs, seed=0))


def live_copy(state: State, plan: Plan) -> nn.Module:
    """A state's network without the removed channels, with masked weights at zero; its own if there are neither."""
    network = sliced_copy(state.network, plan.kept)
    if state.masks and network is state.network:
        network = copy.deepcopy(network)
    for name, mask in state.masks.items():
        parameter = network.get_parameter(name).detach()
        parameter.mul_(slice_mask(mask, plan.kept, name).to(parameter.device))
    return network
