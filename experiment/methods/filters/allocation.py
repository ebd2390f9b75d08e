"""How many channels every group keeps: rules that any score of channels may use."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from experiment.layers.build import build, write_whole
from experiment.methods.base import Budget, Calibration
from experiment.methods.budget_search import affordable_steps, counts_after, ladder, largest_share
from experiment.methods.data.output_divergence import as_fit, comparable_inputs, divergence, predictions_of
from experiment.methods.filters.base import Channels, ChannelScores, CountChannels, FilterMethod, ScoreChannels
from experiment.methods.filters.settings import ScoredFilterSettings
from experiment.progress import progress

INPUTS = 256  # whose predictions the greedy rule compares
POINTS = 9  # numbers of channels for which it does, per group
ORDER = 1e-12  # keeps channels of equal harm in the order of their scores


def scored(settings: ScoredFilterSettings, label: str, score: ScoreChannels) -> FilterMethod:
    """The method of a score, under the rule that the settings name."""
    prefix = partial(longest_prefix, protected=settings.protected)
    rules: Mapping[str, CountChannels] = {
        "uniform": same_share, "global": prefix, "greedy": prefix,
        "isomorphic": partial(within_kinds, protected=settings.protected),
    }  # fmt: skip
    score = negated(score) if settings.reverse else score
    score = by_harm(score, label) if settings.allocation == "greedy" else score
    return FilterMethod(settings, label, score, rules[settings.allocation])


def same_share(filters: Channels, scores: ChannelScores, budget: Budget, round_to: int) -> list[int]:
    """Count channels by the largest common share of all groups that the budget allows."""
    size = filters.size_of(filters.orders(scores), budget.quantity)
    return largest_share([len(alive) for alive in filters.alive], filters.free, size, budget, filters.steps(round_to))


def longest_prefix(
    filters: Channels, scores: ChannelScores, budget: Budget, round_to: int, *, protected: float = 0.0
) -> list[int]:
    """How many channels every group keeps when channels are added in the order of their scores as long as they fit.

    Every group starts with its `round_to` best ones, or all if it has fewer, and with no fewer than the `protected`
    share of them; further ones are added in steps of `round_to`, by the mean score of the step's channels. Equal steps
    are taken in network order.

    Raises: InfeasibleBudget: the channels that the groups start with already exceed the budget.
    """
    orders = filters.orders(scores)
    each = zip(orders, filters.free, filters.steps(round_to), strict=True)
    ladders = [ladder(len(order), step) if may else [len(order)] for order, may, step in each]
    ladders = [[n for n in rungs if n >= protected * rungs[-1]] for rungs in ladders]
    steps = []
    for group, (order, rungs) in enumerate(zip(orders, ladders, strict=True)):
        worth = float("inf")
        for few, more in pairwise(rungs):
            step = scores[group][list(order[few:more])]
            worth = min(worth, float(step.mean()))  # rounding must not let a step overtake the one before it
            steps.append((-worth, group))
    growing = [group for _, group in sorted(steps)]
    size = filters.size_of(orders, budget.quantity)
    return counts_after(ladders, growing[: affordable_steps(ladders, growing, size, budget)])


def within_kinds(
    filters: Channels, scores: ChannelScores, budget: Budget, round_to: int, *, protected: float
) -> list[int]:
    """The largest prefix of the places of channels among all groups of the same kinds of layers, as shares of these.

    Source: Fang et al. 2024, Isomorphic Pruning, https://arxiv.org/abs/2407.04616
    """
    modules = dict(filters.state.network.named_modules())
    kinds = [tuple((type(modules.get(m.module)).__name__, m.side) for m in group.members) for group in filters.groups]
    found = [torch.zeros_like(own) for own in scores]
    for kind in set(kinds):
        own = [i for i, other in enumerate(kinds) if other == kind]
        every = torch.cat([scores[i] for i in own])
        places = every.argsort(stable=True).argsort().double() / len(every)
        for i, part in zip(own, torch.split(places, [len(scores[i]) for i in own]), strict=True):
            found[i] = part
    return longest_prefix(filters, found, budget, round_to, protected=protected)


def negated(score: ScoreChannels) -> ScoreChannels:
    """The score with its sign changed."""
    return lambda channels, calibration, generator: [-own for own in score(channels, calibration, generator)]


def by_harm(score: ScoreChannels, label: str) -> ScoreChannels:
    """For the greedy rule: channels in the order of a score, each worth the harm of a group that ends before it.

    The harm is the mean KL divergence of the network's predictions from those of the whole network when only this group
    loses channels. It is measured for nine numbers of channels, and interpolated linearly. With these scores,
    `longest_prefix` gives every group the fewest channels whose harm is below a common limit, the lowest that the
    budget allows.

    Source: the greedy selection of compression ratios in AIMET (https://github.com/quic/aimet), where the score of a
    layer at a ratio is the accuracy of the network. Differs: the divergence, which needs no labels.
    """

    def harm_scores(channels: Channels, calibration: Calibration | None, generator: torch.Generator) -> ChannelScores:
        state = channels.state
        inputs = comparable_inputs(calibration, state, f"{label} with allocation greedy")
        inputs = as_fit(state.network, inputs, INPUTS)
        whole = predictions_of(build(state.network, channels.plan(channels.alive)), inputs)
        scores = score(channels, calibration, generator)
        orders = channels.orders(scores)

        def harm(group: int, number: int) -> float:
            chosen = [order[:number] if i == group else order for i, order in enumerate(orders)]
            plan = channels.plan([sorted(own) for own in chosen])
            built = build(state.network, plan)
            write_whole(built, state.network, plan)
            return divergence(channels.groups[group].name, whole, predictions_of(built.eval(), inputs))

        return [
            _worths(own, orders[i], partial(harm, i)) if channels.free[i] else own
            for i, own in enumerate(progress(scores, "harm of removing channels, by group"))
        ]

    return harm_scores


def _worths(scores: Tensor, order: Sequence[int], harm: Callable[[int], float]) -> Tensor:
    """The harm of every channel's absence, and of that of all channels after it, in the shape of the scores."""
    numbers = np.unique(np.linspace(1, len(order), POINTS).round().astype(int))[:-1]
    measured = np.array([*(harm(int(n)) for n in numbers), 0.0])
    measured = np.maximum.accumulate(measured[::-1])[::-1]  # noise must not make more channels worse
    before = np.maximum(np.arange(len(order)), 1)  # how many channels stay without this one
    worth = np.interp(before, [*numbers, len(order)], measured) + ORDER * (len(order) - np.arange(len(order)))
    found = torch.zeros_like(scores)
    found[list(order)] = torch.from_numpy(worth)
    return found
