"""What the low-rank methods share: a layer's options and their costs, the plan made from a choice, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiment.errors import InfeasibleBudget
from experiment.layers.build import slice_mask, sliced_copy, write_whole
from experiment.layers.compressible import LayerInfo
from experiment.layers.factored_layers import Slicing, flops, max_rank, parameters, split_kernel, write_factors
from experiment.layers.plan import Detail, Factors, Plan, State
from experiment.methods.allocate import smallest
from experiment.methods.base import Budget, Quantity
from experiment.methods.layer_patterns import matching
from experiment.methods.lowrank.randomised_spectra import RandomisedSpectra
from experiment.methods.lowrank.spectra import LayerSpectra, Spectra
from experiment.methods.starting_state import Start, live_weight, start_of
from experiment.progress import progress
from experiment.random_streams import seed_of

FASTER = "the setting randomised_above: 512 is faster"
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """What one layer may become: pairs of factors that make it smaller and, last, itself.

    Attributes:
        ranks, groups, foldings: (number of options,) each, slicing by slicing, ranks rising within each; the last one,
            (0, 1, 0), is the layer itself.
        costs: parameters (bias included) and multiply-adds of every option.
        bias: whether the factors have one.
    """

    ranks: Integers
    groups: Integers
    foldings: Integers
    costs: Mapping[Quantity, Integers]
    bias: bool

    def slicings(self) -> list[Slicing]:
        """The slicings that have an option, in their order."""
        pairs = zip(self.groups[:-1].tolist(), self.foldings[:-1].tolist(), strict=True)
        return list(dict.fromkeys(pairs))

    def of(self, slicing: Slicing) -> Integers:
        """The indices of a slicing's options."""
        groups, folding = slicing
        here = (self.groups == groups) & (self.foldings == folding) & (self.ranks > 0)
        return np.flatnonzero(here)


@dataclass(frozen=True)
class LowRank:
    """What low-rank methods start from: every compressible layer's spectra and options.

    Attributes:
        spectra_of: from a layer's name and weight to spectra of the same kind, for the weights of other states.
        hint: a faster way, for those who wait long.
    """

    start: Start
    spectra: Mapping[str, Spectra]
    options: Mapping[str, Options]
    spectra_of: Callable[[str, Tensor], Spectra]
    hint: str = ""

    def costs(self, quantity: Quantity) -> list[Integers]:
        """The costs of every layer's options."""
        return [options.costs[quantity] for options in self.options.values()]

    def pairs(self) -> list[tuple[LayerInfo, Options]]:
        """Every layer with its options."""
        return [(self.start.layers[name], options) for name, options in self.options.items()]

    def curves(self, curve: Callable[[Spectra, int, int], Floats]) -> list[Floats]:
        """For every layer (number of options,): a curve's values, and 0 for the layer itself.

        Args:
            curve: from spectra, groups and folding to one value a rank, from rank 1 to at least `top_rank`.
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
            found.append(values)
        return found

    def limit(self, budget: Budget) -> int:
        """What the budget leaves for the compressible layers once all the rest is paid.

        Raises: InfeasibleBudget: it is less than their smallest options cost.
        """
        layers = sum(self.start.layer_cost(name, budget.quantity) for name in self.options)
        fixed = self.start.cost(budget.quantity) - layers
        least = fixed + smallest(self.costs(budget.quantity))
        if budget.limit < least:
            raise InfeasibleBudget(
                limit=budget.limit, smallest=least, original=budget.original, quantity=budget.quantity
            )
        return budget.limit - fixed


def analyse(
    state: State,
    slicings_of: Callable[[LayerInfo], Sequence[Slicing]],
    round_to: int = 1,
    *,
    layers: Sequence[str] | None = None,
    with_bias: bool = False,
    randomised_above: int | None = None,
    generator: torch.Generator | None = None,
) -> LowRank:
    """The options of a state's compressible layers, and their spectra, which are computed when first asked for.

    Args:
        slicings_of: from a layer to the slicings to consider; see `slicings`.
        round_to: ranks are multiples of this.
        layers: name patterns of those that may become factors; all others stay as they are. None for all.
        with_bias: give the factors a bias where the layer has none.
        randomised_above: of larger slices this many singular values, by randomised SVD; None for all of them.
        generator: what randomised SVD is seeded from.

    Raises: CompressionError: a layer's weights are NaN or infinite. ConfigError: a pattern names no layer.
    """
    start = start_of(state)
    chosen = set(start.layers) if layers is None else matching(layers, start.layers, "settings", setting="layers")
    pairs = {name: slicings_of(info) for name, info in start.layers.items() if name in chosen}
    spectra_of: Callable[[str, Tensor], Spectra] = _exact_spectra
    if randomised_above is not None:
        assert generator is not None
        spectra_of = _randomised_spectra(start, pairs, randomised_above, generator)
    return LowRank(
        start=start,
        spectra={name: spectra_of(name, live_weight(start.network, start.masks, name)) for name in pairs},
        options={
            name: find_options(start, start.layers[name], own, round_to, randomised_above, with_bias=with_bias)
            for name, own in pairs.items()
        },
        spectra_of=spectra_of,
        hint=FASTER if generator is not None and randomised_above is None else "",
    )


def _exact_spectra(name: str, weight: Tensor) -> Spectra:
    return LayerSpectra(weight)


def _randomised_spectra(
    start: Start, pairs: Mapping[str, Sequence[Slicing]], above: int, generator: torch.Generator
) -> Callable[[str, Tensor], Spectra]:
    """Randomised spectra for layers of which some slices are larger, exact ones for the others."""
    seed = int(torch.randint(2**62, (), generator=generator))
    large = {name for name, own in pairs.items() if any(max_rank(start.layers[name], *pair) > above for pair in own)}

    def spectra_of(name: str, weight: Tensor) -> Spectra:
        return RandomisedSpectra(weight, above, seed_of(seed, name)) if name in large else LayerSpectra(weight)

    return spectra_of


def slicings(info: LayerInfo, all_groups: Sequence[int], foldings: Sequence[int] = (0,)) -> list[Slicing]:
    """All pairs of a number of groups and a folding that differ for this layer; foldings it does not have become 0."""
    distinct: dict[tuple[int, int], int] = {}
    for folding in foldings:
        own = folding if info.kind == "conv" else 0
        encoder = split_kernel(info.kernel, own)[0]
        distinct.setdefault(encoder, 0 if encoder == info.kernel else own)
    return [(groups, folding) for folding in distinct.values() for groups in all_groups]


def group_numbers(info: LayerInfo, min_width: int = 1) -> list[int]:
    """All numbers of groups that leave each at least so many input channels; one group is always among them."""
    return [k for k in divisors(info.in_features) if k == 1 or info.in_features // k >= min_width]


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor closest to what is wanted, the larger one of two that are equally close."""
    return min(divisors(number), key=lambda d: (abs(d - wanted), -d))


def divisors(number: int) -> list[int]:
    """All divisors, rising."""
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})


def unchanged(analysis: LowRank) -> Plan:
    """The plan that leaves every layer as it is."""
    return analysis.start.unchanged({name: _detail(None, 0.0, 0.0) for name in analysis.options})


def plan_within(
    budget: Budget,
    analysis: LowRank,
    choose: Callable[[list[Integers], int], list[int]],
    errors: Sequence[Floats],
    exact_error: Callable[[str, Factors], float] | None = None,
) -> Plan:
    """The plan for a budget: every layer as it is where the state fits already, else the options that are chosen.

    Args:
        choose: from the costs of every layer's options and the limit on their sum to the index of every layer's option.
        errors, exact_error: see `make_plan`.
    Raises: InfeasibleBudget: the cheapest options exceed the budget.
    """
    if analysis.start.allows(budget):
        return unchanged(analysis)
    chosen = choose(analysis.costs(budget.quantity), analysis.limit(budget))
    return make_plan(analysis, chosen, errors, exact_error)


def make_plan(
    analysis: LowRank,
    chosen: Sequence[int],
    errors: Sequence[Floats],
    exact_error: Callable[[str, Factors], float] | None = None,
) -> Plan:
    """The plan that gives every layer its chosen option.

    Args:
        chosen: for every layer the index of its option.
        errors: for every layer the relative error of every option, in the method's own criterion.
        exact_error: from a layer and its factors to ||W - What||_2 / ||W||_2; default: that of truncated SVDs.
    """
    start = analysis.start
    factors: dict[str, Factors] = {}
    details: dict[str, Mapping[str, Detail]] = {}
    total = start.count.parameters
    for (name, options), index, error in zip(analysis.options.items(), chosen, errors, strict=True):
        rank, groups, folding = (int(a[index]) for a in (options.ranks, options.groups, options.foldings))
        if rank == 0:
            details[name] = _detail(None, 0.0, 0.0)
            continue
        factors[name] = Factors(rank, groups, folding, bias=options.bias)
        total += int(options.costs["parameters"][index]) - start.layer_cost(name, "parameters")
        if exact_error is None:
            exact = analysis.spectra[name].exact_error(rank, groups, folding)
        else:
            exact = exact_error(name, factors[name])
        details[name] = _detail(factors[name], float(error[index]), exact)
    masks = {n: mask for n, mask in start.state.masks.items() if n.rpartition(".")[0] not in factors}
    return Plan(factors, masks, dict(start.state.kept), parameters=total, details=details)


def fill(built: nn.Module, state: State, analysis: LowRank, plan: Plan) -> None:
    """Write the state's weights into `built`, in place: truncated SVDs into the factors, the rest as it is.

    The decompositions of the analysis serve the state that was analysed; another one's weights are decomposed anew.
    """
    write_whole(built, state.network, plan)
    analysed = state.network is analysis.start.state.network
    network = analysis.start.network if analysed else sliced_copy(state.network, plan.kept)
    masks = {name: slice_mask(mask, plan.kept, name) for name, mask in state.masks.items()}
    for name, factors in progress(plan.factors.items(), "factors, by layer"):
        spectra = analysis.spectra[name] if analysed else analysis.spectra_of(name, live_weight(network, masks, name))
        U_GRJ, V_GJN = spectra.factors(factors.rank, factors.groups, factors.folding)
        write_factors(built.get_submodule(name), U_GRJ, V_GJN, factors.folding)


def find_options(
    start: Start,
    info: LayerInfo,
    all_slicings: Sequence[Slicing],
    round_to: int = 1,
    most: int | None = None,
    *,
    with_bias: bool = False,
) -> Options:
    """Every rank up to `most` that makes the layer smaller, and no slower, for every slicing; then the layer itself.

    Args:
        with_bias: give the factors a bias where the layer has none.
    """
    dense, work = start.layer_cost(info.name, "parameters"), start.layer_cost(info.name, "flops")
    bias = info.out_features if info.bias or with_bias else 0
    choices: list[tuple[int, int, int, int, int]] = []
    for k, folding in all_slicings:
        size, multiplications = parameters(info, 1, k, folding), flops(info, 1, k, folding)
        top = min(max_rank(info, k, folding), (dense - bias - 1) // size, work // multiplications)
        top = top if most is None else min(top, most)
        ranks = range(round_to, top + 1, round_to)
        choices += [(j, k, folding, j * size + bias, j * multiplications) for j in ranks]
    js, groups, foldings, sizes, works = np.array([*choices, (0, 1, 0, dense, work)], dtype=np.int64).T
    return Options(js, groups, foldings, {"parameters": sizes, "flops": works}, info.bias or with_bias)


def _detail(factors: Factors | None, error: float, exact: float) -> dict[str, Detail]:
    return {
        "rank": factors.rank if factors else None,
        "groups": factors.groups if factors else None,
        "folding": factors.folding if factors else None,
        "relative_error": error,
        "relative_error_exact": exact,
    }
