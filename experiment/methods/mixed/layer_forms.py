"""The weights that a layer has in each of its forms, and what they change in the network's output, to second order.

Shape suffixes as in `experiment.methods.data.fisher`; J = rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiment.layers.compensated_rounding import fit_support, inverse_root, rounded_weight
from experiment.layers.compressible import LayerInfo, filters_of, groups_of, weight_of
from experiment.layers.factored_layers import Slicing, make_layer, product, write_factors
from experiment.layers.forms import UNMASKED, Forms
from experiment.layers.masks import write_parameter
from experiment.layers.plan import Factors
from experiment.layers.quantized_weights import levels_of, round_to
from experiment.layers.refit import double
from experiment.methods.base import Quantity
from experiment.methods.lowrank.klds_factors import LayerDirections
from experiment.methods.lowrank.layer_options import LayerOptions
from experiment.methods.starting_state import Start

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
STEPS = 32  # densities of masks
SHRINK, ROUND = 0.8, 8  # the share of weights that a round of masking leaves, and the steps of its fit
COLUMNS = 8192  # inputs of a filter times its kernel, at most, for masks and fewer bits


@dataclass(frozen=True)
class LayerChoices:
    """The forms that a layer may take, and last the layer itself.

    Attributes:
        costs: parameters (bias included) and multiply-adds of every form.
        families: (number of forms,): the family and the dtype of every form, as one text.
    """

    all_forms: Forms
    costs: Mapping[Quantity, Integers]
    families: NDArray[np.str_]

    def forms(self, alive: int) -> Forms:
        """All forms; they are those under the layer's own mask already."""
        return self.all_forms

    def names(self) -> list[str]:
        """The families, without the layer itself."""
        return list(dict.fromkeys(self.families[:-1].tolist()))

    def factors(self, index: int) -> Factors:
        """The factors of a form of low rank."""
        rank, groups, folding = (
            int(part[index]) for part in (self.all_forms.ranks, self.all_forms.groups, self.all_forms.foldings)
        )
        return Factors(rank, groups, folding, self.all_forms.bias)

    def of(self, family: str) -> Integers:
        """The indices of a family's forms."""
        return np.flatnonzero(self.families == family)


def find_choices(
    start: Start, info: LayerInfo, options: LayerOptions, families: tuple[str, ...], dtypes: tuple[str, ...]
) -> LayerChoices:
    """All forms of a layer.

    Embeddings, tied layers and those with more than COLUMNS columns are whole or low rank, in their own dtype.
    """
    simple = not takes_bits(info)
    alive = start.alive_weights(info.name)
    dense, work = start.layer_cost(info.name, "parameters"), start.layer_cost(info.name, "flops")
    number = info.weight_numel if alive == UNMASKED else alive
    parts: list[tuple[str, str, Integers]] = []  # family, dtype, (fields, number of forms)
    own = np.array([[0], [1], [0], [alive], [dense], [work]])
    for dtype in ("",) if simple else ("", *dtypes):
        if "lowrank" in families and alive == UNMASKED:  # factors would lose the mask
            sizes, kept = options.costs, np.full(len(options.ranks), UNMASKED)
            fields = (options.ranks, options.groups, options.foldings, kept, sizes["parameters"], sizes["flops"])
            parts.append(("lowrank", dtype, np.stack(fields)[:, :-1]))
        if "masked" in families and not simple:
            kept = np.unique(np.maximum(1, np.arange(1, STEPS) * number // STEPS))
            kept = kept[kept < number]
            zeros, each = np.zeros_like(kept), work // max(number, 1)
            parts.append(
                ("masked", dtype, np.stack((zeros, zeros + 1, zeros, kept, dense - number + kept, each * kept)))
            )
        if dtype:
            parts.append(("whole", dtype, own))
    parts.append(("whole", "", own))
    ranks, groups, foldings, kept, sizes, works = np.concatenate([fields for _, _, fields in parts], axis=1)
    each_dtype = np.concatenate([np.full(fields.shape[1], dtype) for _, dtype, fields in parts])
    each_family = np.concatenate(
        [np.full(fields.shape[1], f"{family} {dtype}".strip()) for family, dtype, fields in parts]
    )
    forms = Forms(ranks, groups, foldings, kept, each_dtype, options.bias)
    return LayerChoices(forms, {"parameters": sizes, "flops": works}, each_family)


def takes_bits(info: LayerInfo) -> bool:
    """Whether a layer may have masked weights or fewer bits."""
    return info.kind != "embedding" and not info.tied and info.weight_numel // info.out_features <= COLUMNS


class LayerForms:
    """A layer with the moments of its inputs and of the gradients at its outputs.

    Args:
        layer: of the network whose masked weights are zero.
    """

    def __init__(self, layer: nn.Module, directions: LayerDirections) -> None:
        self.layer, self.directions = layer, directions
        self.weight = layer.get_parameter("weight").detach()
        self.moments: Tensor | None = None
        self.places: Tensor | None = None
        self._fitted = dict[int, Tensor]()

    def take(self, moments_ONN: Tensor, alive: Tensor) -> None:
        """Take what masks and fewer bits need.

        Args:
            moments_ONN: X X^T of the inputs in each of the layer's groups.
            alive: where its weights may stay, in their shape.
        """
        self.moments = moments_ONN
        self.places = self._places(moments_ONN, alive)

    def forget(self) -> None:
        """Drop what is only needed to tell the effect of forms."""
        self.moments = None
        self._fitted.clear()
        self.directions.forget()

    def weight_as(self, choices: LayerChoices, index: int) -> Tensor:
        """The weight in one of its forms."""
        forms, dtype = choices.all_forms, str(choices.all_forms.dtypes[index])
        if forms.ranks[index]:
            return self.factored(choices.factors(index), dtype)
        return self.whole(int(forms.kept[index]), dtype)

    def mask(self, kept: int) -> Tensor:
        """The mask of so many weights."""
        assert self.places is not None
        return self.places < kept

    def whole(self, kept: int, dtype: str) -> Tensor:
        """The weight under a mask of so many weights, or without one, in a dtype."""
        assert self.moments is not None
        if kept == UNMASKED or kept == self.weight.numel():
            return rounded_weight(self.layer, self.weight, dtype or None, None, self.moments)
        mask = self.mask(kept)
        if kept not in self._fitted:  # for all dtypes
            self._fitted[kept] = rounded_weight(self.layer, self.weight, None, mask, self.moments)
        return rounded_weight(self.layer, self._fitted[kept], dtype or None, mask, self.moments)

    def factored(self, factors: Factors, dtype: str) -> Tensor:
        """The weight that factors in a dtype represent."""
        if not dtype:
            return weight_of(self.layer, self.directions.product(factors)).to(self.weight)
        pair = make_layer(self.layer, factors)
        write_factors(pair, *self.directions.factors(factors), factors.folding)
        encoder, decoder = pair.get_submodule("encoder"), pair.get_submodule("decoder")
        E, D = (factor.get_parameter("weight").detach() for factor in (encoder, decoder))
        if self.moments is None or factors.folding:
            E, D = round_to(E, dtype), round_to(D, dtype)
        else:
            inner_GNN, outer_OJJ = self._factor_moments(filters_of(encoder, E).flatten(1), groups_of(encoder))
            E, D = (
                rounded_weight(encoder, E, dtype, None, inner_GNN),
                rounded_weight(decoder, D, dtype, None, outer_OJJ),
            )
        write_parameter(encoder, "weight", E)
        write_parameter(decoder, "weight", D)
        return weight_of(self.layer, product(pair)).to(self.weight)

    def divergence(self, weight: Tensor) -> float:
        """The second-order effect of another weight on the output, in the unit of `LayerDirections.tails`."""
        assert self.moments is not None
        return self.directions.divergence(filters_of(self.layer, weight - self.weight), self.moments)

    def rounding(self, slicing: Slicing, ranks: Integers, dtype: str) -> Floats:
        """About what rounding adds to the divergence at these ranks: components lose what their factors do."""
        tails = np.append(self.directions.total, self.directions.tails[slicing])
        squares = np.maximum(-np.diff(tails), 0)[: int(ranks.max())]
        U_GRJ, V_GJN = self.directions.factors(Factors(int(ranks.max()), *slicing))
        encoder_J = ((round_to(V_GJN.flatten(0, 1), dtype) - V_GJN.flatten(0, 1)) ** 2).sum(1).reshape(V_GJN.shape[:2])
        share_J = (encoder_J / V_GJN.square().sum(2).clamp_min(1e-30)).mean(0).cpu().numpy()
        scale_GRJ = U_GRJ.abs().cummax(2).values / (levels_of(dtype) or 1)
        lengths_J = U_GRJ.square().sum(1).clamp_min(1e-30).mean(0).cpu().numpy()
        rows_J = (scale_GRJ.square().sum(1) / 12).mean(0).cpu().numpy()
        own, other = np.cumsum(squares * share_J), rows_J * np.cumsum(squares / lengths_J)
        found: Floats = (own + other)[ranks - 1]
        return found

    def _factor_moments(self, E_QN: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        """The moments of the inputs of an encoder with these filters, and of the decoder's."""
        assert self.moments is not None
        slices = groups // len(self.moments)
        inner, outer = [], []
        for C_NN, E in zip(self.moments, torch.tensor_split(double(E_QN), len(self.moments)), strict=True):
            size = len(C_NN) // slices
            inner += [C_NN[i : i + size, i : i + size] for i in range(0, len(C_NN), size)]
            whole: Tensor = torch.block_diag(*torch.tensor_split(E, slices))  # type: ignore[no-untyped-call]
            outer.append(whole @ C_NN @ whole.T)
        return torch.stack(inner), torch.stack(outer)

    def _places(self, moments_ONN: Tensor, alive: Tensor) -> Tensor:
        """The place of every weight in the order in which they are kept, in the weight's shape; dead ones are last.

        In every round the weights go without which the output changes the least, each taken alone, when the others of
        its filter compensate; those that stay are then fitted to the filters.

        Source: Hassibi, Stork 1993, Optimal Brain Surgeon,
        https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html
        """
        filters = filters_of(self.layer, self.weight)
        W_OFN, alive_OFN = (
            torch.unflatten(filters_of(self.layer, part).flatten(1), 0, (len(moments_ONN), -1))
            for part in (double(self.weight), alive.to(moments_ONN.device))
        )
        inverse_O1N = inverse_root(moments_ONN).square().sum(1, keepdim=True)  # the diagonal of (X X^T + lambda)^-1
        price_OFN = torch.unflatten(self.directions.importance(), 0, (len(W_OFN), -1))[..., None] / inverse_O1N
        number, left_OFN = int(alive.sum()), W_OFN
        places = torch.full((W_OFN.numel(),), W_OFN.numel(), device=W_OFN.device)
        while number:
            scores = (left_OFN.square() * price_OFN).masked_fill(~alive_OFN, -1).flatten()
            order = scores.argsort(descending=True, stable=True)[:number]
            places[order] = torch.arange(number, device=order.device)
            number = int(SHRINK * number) if number > W_OFN.numel() // STEPS else 0
            alive_OFN = (places < number).reshape(W_OFN.shape)
            left_OFN = fit_support(W_OFN, alive_OFN, moments_ONN, left_OFN, ROUND)
        return weight_of(self.layer, places.reshape(filters.shape)).to(self.weight.device)
