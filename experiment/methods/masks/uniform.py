"""Weights sampled filter by filter, with replacement, and reweighted: Uniform, l1, l2 and (l1+l2)/2.

Suffixes: R = rows (filters), C = columns (weights of a filter).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from experiment.layers.build import write_whole
from experiment.layers.plan import Plan, State
from experiment.methods.base import Budget, Calibration
from experiment.methods.budget_search import check_smallest, longest
from experiment.methods.data.draws import counts_of, draws_for, first_draws
from experiment.methods.masks.weight_ranking import plan_masked, unpruned_cost, weight_costs
from experiment.methods.settings import NoSettings
from experiment.methods.starting_state import Start, start_of


@dataclass(frozen=True)
class LayerDraws:
    """The sampling of one layer's weights, on the CPU.

    Attributes:
        p: (R, C) probabilities; a row sums up to 1, or to 0 where all its weights are masked or zero.
        first: (R, C) the number of the draw that hits each weight first.
        alive: (R, C) the weights that the state's masks leave.
    """

    p: Tensor
    first: Tensor
    alive: Tensor

    def wanted(self, share: float) -> Tensor:
        """The wanted number of different weights per row: m = max(1, int(share C)). Returns: (R,)."""
        rows, columns = self.p.shape
        return torch.full((rows,), max(1, int(share * columns + 1e-9)))  # shares are rounded fractions: k / C gives k

    def draws(self, wanted_R: Tensor) -> Tensor:
        """The number of draws N of every row, infinite where sampling removes nothing."""
        sampled_R = wanted_R < (self.p > 0).sum(1)
        draws_R = torch.full(wanted_R.shape, torch.inf, dtype=torch.float64)
        draws_R[sampled_R] = draws_for(self.p[sampled_R], wanted_R[sampled_R])
        return draws_R

    def kept(self, share: float) -> tuple[Tensor, Tensor]:
        """Which weights are kept, (R, C), and after how many draws, (R,); infinite where a row is exact.

        A row is exact if it has no more live weights than it wants, or if all weights of non-zero probability are hit.
        """
        wanted_R = self.wanted(share)
        draws_R = self.draws(wanted_R)
        hit_RC = (self.first <= draws_R[:, None]) & (self.p > 0)
        draws_R = draws_R.masked_fill(hit_RC.sum(1) == (self.p > 0).sum(1), torch.inf)
        whole_R = wanted_R >= self.alive.sum(1)
        return torch.where(whole_R[:, None], self.alive, hit_RC), draws_R.masked_fill(whole_R, torch.inf)

    def scales(self, kept_RC: Tensor, draws_R: Tensor, generator: torch.Generator) -> Tensor:
        """count_i / (N p_i) where a row was sampled, 1 elsewhere. Returns: (R, C)."""
        scales_RC = torch.ones_like(self.p)
        rows = draws_R.isfinite()
        p_RC, N_R = self.p[rows], draws_R[rows]
        counts_RC = counts_of(p_RC, self.first[rows], N_R, generator)
        scales_RC[rows] = torch.where(kept_RC[rows], counts_RC / (N_R[:, None] * p_RC), 1)
        return scales_RC


@dataclass(frozen=True)
class NetworkDraws:
    """The analysis: all draws of all layers, of which every budget takes the first ones."""

    start: Start
    layers: Mapping[str, LayerDraws]
    seed: int

    def cost(self, share: float, budget: Budget) -> int:
        """The network's cost at a share, in the budget's quantity; non-decreasing in the share."""
        costs = weight_costs(self.start, budget)
        kept = {name: int(layer.kept(share)[0].sum()) for name, layer in self.layers.items()}
        return unpruned_cost(self.start, budget) + sum(costs[name] * n for name, n in kept.items())


@dataclass(frozen=True)
class SampledWeights:
    """Keeps about max(1, rho C) of every filter's C weights, drawn with replacement and reweighted by count / (N p).

    N is the smallest number of draws that hit this many different weights on average; those that are hit are kept. The
    expectation of the filter is unchanged. A filter that sampling would not shrink remains exact. rho is the
    largest share whose weights fit; a larger rho repeats the same draws and adds more.

    Source: Achlioptas et al. 2013, Near-optimal Entrywise Sampling for Data Matrices, https://arxiv.org/abs/1311.4643;
    as baselines of pruning in Baykal et al. 2019, https://arxiv.org/abs/1910.05422.

    Args:
        worth: what probabilities are proportional to, from the live weights and the mask of live ones, both (R, C).
    """

    worth: Callable[[Tensor, Tensor], Tensor]

    def analyse(self, state: State, calibration: Calibration | None, generator: torch.Generator) -> NetworkDraws:
        """Compute all probabilities and draw for each weight when it is hit first."""
        start, layers = start_of(state, masked=True), {}
        for name in start.weights:
            alive_RC = start.alive(name).cpu().flatten(1)
            weight_RC = start.live(name).cpu().double().flatten(1)
            p_RC = _shares(self.worth(weight_RC, alive_RC))
            layers[name] = LayerDraws(p_RC, first_draws(p_RC, generator), alive_RC)
        return NetworkDraws(start, layers, int(torch.randint(2**62, (), generator=generator)))

    def plan(self, analysis: NetworkDraws, budget: Budget) -> Plan:
        """Sample with the largest share that fits.

        Raises: InfeasibleBudget: one weight per filter already exceeds the budget.
        """
        start = analysis.start
        if start.allows(budget):
            return plan_masked(start, {})
        costs = weight_costs(start, budget)
        analysis = replace(analysis, layers={name: own for name, own in analysis.layers.items() if costs[name]})
        share = _largest_share(analysis, budget)
        generator, masks, scales = torch.Generator().manual_seed(analysis.seed), {}, {}
        for name, layer in analysis.layers.items():
            weight = start.network.get_parameter(name)
            kept_RC, draws_R = layer.kept(share)
            masks[name] = kept_RC.reshape(weight.shape).to(weight.device)
            if draws_R.isfinite().any():
                precise = torch.promote_types(weight.dtype, torch.float32)
                factors = layer.scales(kept_RC, draws_R, generator).reshape(weight.shape)
                scales[name] = factors.to(weight.device, precise)
        return plan_masked(start, masks, scales)

    def fill(self, built: nn.Module, state: State, analysis: NetworkDraws, plan: Plan) -> None:
        """Write the state's weights into `built`, in place, reweighted only if they are the ones that were sampled."""
        same = state is analysis.start.state
        write_whole(built, state.network, plan if same else replace(plan, scales={}))


def uniform(settings: NoSettings) -> SampledWeights:
    """All weights of a filter with the same probability."""
    return SampledWeights(lambda w_RC, alive_RC: alive_RC.double())


def l1(settings: NoSettings) -> SampledWeights:
    """p = |w| / sum |w|."""
    return SampledWeights(lambda w_RC, alive_RC: w_RC.abs())


def l2(settings: NoSettings) -> SampledWeights:
    """p = w^2 / sum w^2."""
    return SampledWeights(lambda w_RC, alive_RC: w_RC.square())


def l1_l2(settings: NoSettings) -> SampledWeights:
    """The mean of the two: p = (|w| / sum |w| + w^2 / sum w^2) / 2."""
    return SampledWeights(lambda w_RC, alive_RC: (_shares(w_RC.abs()) + _shares(w_RC.square())) / 2)


def _shares(worth_RC: Tensor) -> Tensor:
    return worth_RC / worth_RC.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def _largest_share(draws: NetworkDraws, budget: Budget) -> float:
    """Of all shares at which a row keeps one more weight, the largest whose weights fit."""
    sizes = {layer.p.shape[1] for layer in draws.layers.values()}
    shares = [0.0, *sorted({k / size for size in sizes for k in range(2, size + 1)})]
    check_smallest(draws.cost(0, budget), budget)
    return shares[longest(len(shares) - 1, lambda i: draws.cost(shares[i], budget) <= budget.limit)]
