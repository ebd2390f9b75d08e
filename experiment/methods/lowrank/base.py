"""Common parts of the low-rank methods: layers with options and spectra, plans of chosen options, and weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiment.layers.build import slice_mask, sliced_copy, write_whole
from experiment.layers.compressible import LayerInfo, groups_of
from experiment.layers.factored_layers import Slicing, max_rank, write_factors
from experiment.layers.forms import Forms
from experiment.layers.plan import Detail, Factors, Plan, State
from experiment.methods.allocate import Limits, smallest
from experiment.methods.base import Budget, Priced, Quantity
from experiment.methods.budget_search import check_limit, check_smallest
from experiment.methods.layer_patterns import matching, not_ignored
from experiment.methods.lowrank.layer_options import Integers, LayerOptions, find_options
from experiment.methods.lowrank.randomised_spectra import RandomisedSpectra
from experiment.methods.lowrank.settings import LayerSettings
from experiment.methods.lowrank.spectra import LayerSpectra, Spectra
from experiment.methods.starting_state import Start, live_filters, start_of
from experiment.progress import progress
from experiment.random_streams import seed_of

FASTER = "the setting randomised_above: 512 is faster"
CACHED = 2**23  # elements in float64, at least: 64 MiB
Floats = NDArray[np.float64]
Rule = Callable[[list[Integers], Limits], list[int]]


@dataclass(frozen=True)
class LowRankLayers:
    """The layers of a starting state that may become factors, with their options and spectra.

    Attributes:
        spectra_of: from a layer's name and weight to spectra of the same kind, for the weights of other states.
        hint: a faster alternative, shown when the spectra take long.
    """

    start: Start
    spectra: Mapping[str, Spectra]
    options: Mapping[str, LayerOptions]
    spectra_of: Callable[[str, Tensor], Spectra]
    hint: str = ""

    def pairs(self) -> list[tuple[LayerInfo, LayerOptions]]:
        """Every layer with its options."""
        return [(self.start.layers[name], options) for name, options in self.options.items()]

    def curves(self, curve: Callable[[Spectra, int, int], Floats]) -> list[Floats]:
        """A curve's value for every option of every layer, 0 for the layer itself: (number of options,) per layer.

        Args:
            curve: from spectra, groups and folding to one value per rank, from rank 1 to at least `top_rank`.
        """
        found = []
        for name, options in progress(self.options.items(), "singular values, by layer", self.hint):
            values = np.zeros(len(options.ranks))
            spectra = self.spectra[name]
            for folding in np.unique(options.foldings).tolist():
                spectra.prepare([k for k, f in options.slicings() if f == folding], folding)
            for groups, folding in options.slicings():
                here = options.of((groups, folding))
                values[here] = curve(spectra, groups, folding)[options.ranks[here] - 1]
            self._release(name)
            found.append(values)
        return found

    def choose(self, budget: Budget, rule: Rule) -> list[int] | None:
        """The index of every layer's option within a budget, as `choose`."""
        return choose(self.start, self.options, budget, rule)

    def plan(
        self,
        chosen: Sequence[int] | None,
        errors: Sequence[Floats],
        exact_error: Callable[[str, Factors], float] | None = None,
    ) -> Plan:
        """The plan that gives every layer its chosen option; its loss is the largest error.

        Args:
            chosen: the index of every layer's option; None to change nothing.
            errors: for every layer the relative error of every option, in the method's own criterion.
            exact_error: from a layer and its factors to ||W - What||_2 / ||W||_2; default: that of truncated SVDs.
        """
        start = self.start
        if chosen is None:
            return start.unchanged({name: detail(None, 0.0, 0.0) for name in self.options})
        factors: dict[str, Factors] = {}
        details: dict[str, Mapping[str, Detail]] = {}
        total, worst = start.count.parameters, 0.0
        for (name, options), index, error in zip(self.options.items(), chosen, errors, strict=True):
            rank, groups, folding = (int(a[index]) for a in (options.ranks, options.groups, options.foldings))
            if rank == 0:
                details[name] = detail(None, 0.0, 0.0)
                continue
            factors[name] = Factors(rank, groups, folding, bias=options.bias)
            factors |= {tied.name: Factors(rank, bias=tied.bias) for tied in start.layers[name].tied}
            total += int(options.costs["parameters"][index]) - start.layer_cost(name, "parameters")
            worst = max(worst, float(error[index]))
            if exact_error is None:
                exact = self.spectra[name].exact_error(rank, groups, folding)
                self._release(name)
            else:
                exact = exact_error(name, factors[name])
            details[name] = detail(factors[name], float(error[index]), exact)
        masks = {n: mask for n, mask in start.state.masks.items() if n.rpartition(".")[0] not in factors}
        return Plan(factors, masks, dict(start.state.kept), parameters=total, details=details, loss=worst)

    def fill(self, built: nn.Module, state: State, plan: Plan) -> None:
        """Write a state's weights into `built`, in place: truncated SVDs into factors, all others unchanged.

        The spectra serve the analysed state; the weights of another one are decomposed again.
        """
        write_whole(built, state.network, plan)
        analysed = state.network is self.start.state.network
        network = self.start.network if analysed else sliced_copy(state.network, plan.kept)
        masks = {name: slice_mask(mask, plan.kept, name) for name, mask in state.masks.items()}
        own = {name: factors for name, factors in plan.factors.items() if name in self.options}  # not of tied layers
        for name, factors in progress(own.items(), "factors, by layer"):
            spectra = self.spectra[name] if analysed else self.spectra_of(name, live_filters(network, masks, name))
            U_GRJ, V_GJN = spectra.factors(factors.rank, factors.groups, factors.folding)
            write_factors(built.get_submodule(name), U_GRJ, V_GJN, factors.folding)
            if analysed:
                self._release(name)

    def _release(self, name: str) -> None:
        """Drop the matrices of a layer's spectra if those of all layers take half of the network's memory."""
        most = max(CACHED, sum(p.numel() for p in self.start.network.parameters()) // 4)
        if sum(spectra.held() for spectra in self.spectra.values()) > most:
            self.spectra[name].forget()


class Options(Protocol):
    """The options of a layer, the last of which is the layer itself."""

    @property
    def costs(self) -> Mapping[Quantity, Integers]:
        """Parameters and multiply-adds of every option."""

    def forms(self, alive: int) -> Forms:
        """The options as forms of the layer, of whose own mask so many weights are left."""


def choose(start: Start, options: Mapping[str, Options], budget: Budget, rule: Rule) -> list[int] | None:
    """The index of every layer's option within a budget; None if the unchanged state fits the budget.

    Args:
        options: layer name -> its options.
        rule: from the costs of every layer's options, (number of options,) or (limits, number of options), and
            the limits on their sums to the indices.
    Raises: InfeasibleBudget: the cheapest options exceed the budget.
    """

    def priced(limit: Priced) -> list[Integers]:
        pairs = [(start.layers[name], own.forms(start.alive_weights(name))) for name, own in options.items()]
        return [_worthwhile(limit.price(info, start.network.get_submodule(info.name), f)) for info, f in pairs]

    wholes = {limit: limit.whole(start.state) for limit in budget.priced}
    prices = {limit: priced(limit) for limit, whole in wholes.items() if whole > limit.limit}
    if start.allows(budget) and not prices:
        return None
    costs = [_worthwhile(own.costs[budget.quantity]) for own in options.values()]
    layers = sum(start.layer_cost(name, budget.quantity) for name in options)
    fixed = start.cost(budget.quantity) - layers
    check_smallest(fixed + smallest(costs), budget)
    limits = [budget.limit - fixed]
    if start.allows(budget):  # only the other limits matter
        costs, limits = [], []
    for price, found in prices.items():
        rest = wholes[price] - sum(int(cost[-1]) for cost in found)
        check_limit(rest + smallest(found), price.limit, wholes[price], price.quantity)
        costs = [np.vstack([cost, more]) for cost, more in zip(costs, found, strict=True)] if costs else found
        limits.append(price.limit - rest)
    return rule(costs, limits[0] if len(limits) == 1 else limits)


def lowrank_layers(
    state: State,
    slicings_of: Callable[[LayerInfo], Sequence[Slicing]],
    round_to: int = 1,
    *,
    chosen: LayerSettings | None = None,
    with_bias: bool = False,
    randomised_above: int | None = None,
    generator: torch.Generator | None = None,
) -> LowRankLayers:
    """The layers of a state that may become factors; their spectra are computed when first needed.

    Args:
        slicings_of: from a layer to the slicings to consider; see `slicings`.
        round_to: ranks are multiples of this.
        chosen: which layers may become factors; None for all.
        with_bias: give the factors a bias even if the layer has none.
        randomised_above: singular values to compute, by randomised SVD, of slices that have more; None for all.
        generator: seeds the randomised SVD.
    Raises: CompressionError: a layer's weights are NaN or infinite. ConfigError: a pattern matches no layer, or
        nothing is left to compress.
    """
    start = start_of(state)
    chosen = chosen or LayerSettings()
    which = ["*"] if chosen.layers is None else chosen.layers
    names = matching(which, start.layers, "settings", setting="layers") if start.layers else set()
    names &= set(not_ignored(chosen.ignore, start.layers))
    pairs = {name: slicings_of(info) for name, info in start.layers.items() if name in names}
    spectra_of: Callable[[str, Tensor], Spectra] = _exact_spectra(start)
    if randomised_above is not None:
        assert generator is not None
        spectra_of = _randomised_spectra(start, pairs, randomised_above, generator)
    return LowRankLayers(
        start=start,
        spectra={name: spectra_of(name, live_filters(start.network, start.masks, name)) for name in pairs},
        options={
            name: find_options(start, start.layers[name], own, round_to, randomised_above, with_bias=with_bias)
            for name, own in pairs.items()
        },
        spectra_of=spectra_of,
        hint=FASTER if generator is not None and randomised_above is None else "",
    )


def _worthwhile(costs: Integers) -> Integers:
    """The costs of a layer's options; where none is below that of the layer itself, the last, that one for all."""
    return costs if costs.min() < costs[-1] else np.full_like(costs, costs[-1])


def _exact_spectra(start: Start) -> Callable[[str, Tensor], Spectra]:
    return lambda name, weight: LayerSpectra(weight, groups_of(start.network.get_submodule(name)))


def _randomised_spectra(
    start: Start, pairs: Mapping[str, Sequence[Slicing]], above: int, generator: torch.Generator
) -> Callable[[str, Tensor], Spectra]:
    """Randomised spectra for layers with larger slices, exact ones for the others."""
    seed = int(torch.randint(2**62, (), generator=generator))
    exact = _exact_spectra(start)

    def is_large(info: LayerInfo, own: Sequence[Slicing]) -> bool:
        return info.groups == 1 and any(max_rank(info, *pair) > above for pair in own)

    large = {name for name, own in pairs.items() if is_large(start.layers[name], own)}

    def spectra_of(name: str, weight: Tensor) -> Spectra:
        return RandomisedSpectra(weight, above, seed_of(seed, name)) if name in large else exact(name, weight)

    return spectra_of


def detail(factors: Factors | None, error: float, exact: float) -> dict[str, Detail]:
    """What a plan reports of a layer; `exact` is ||W - What||_2 / ||W||_2, `error` the method's own."""
    return {
        "rank": factors.rank if factors else None,
        "groups": factors.groups if factors else None,
        "folding": factors.folding if factors else None,
        "relative_error": error,
        "relative_error_exact": exact,
    }
