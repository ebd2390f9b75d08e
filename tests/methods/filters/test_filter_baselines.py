"""SoftNet, Uniform Filters, Global Filters, Slimming: scores by hand, the ranking against trying every prefix."""

import itertools
import logging

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError, InfeasibleBudget
from experiment.layers.build import expand
from experiment.layers.plan import Kept, State
from experiment.measure import count, example_input
from experiment.methods.base import Budget, Calibration, Compressor, Quantity
from experiment.methods.filters.allocation import longest_prefix
from experiment.methods.filters.base import FilterMethod, trace_channels
from experiment.methods.filters.ft import ft, soft_net, uniform_filters
from experiment.methods.filters.global_ranking import global_filters, slimming
from experiment.methods.filters.settings import GlobalFiltersSettings, RankedFilterSettings, ScoredFilterSettings
from experiment.networks.make_network import make_network
from experiment.random_streams import generator, seeded

SHAPE = (3, 16, 16)


def compressor(method: FilterMethod, network: nn.Module, example: Tensor, seed: int = 0) -> Compressor:
    return Compressor(method, State(network, example), count(network, example), None, generator("baselines", seed))


def known(name: str) -> tuple[nn.Module, Tensor]:
    with seeded("test_filter_baselines", name):
        network = make_network(name, {}, SHAPE, 10)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    nn.init.uniform_(tensor, 0.2, 1.5)
    return network.eval(), example_input(SHAPE)


def small() -> nn.Module:
    """Rows with l1 norms 4, 3, 5 and l2 norms 2, 3, 2.5: the two norms disagree."""
    network = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, -1, 1, 1], [0, -3, 0, 0], [1.25, 1.25, -1.25, 1.25]]))
    return network.eval()


@pytest.mark.parametrize(
    ("method", "stay"),
    [(ft(ScoredFilterSettings()), (0, 2)), (soft_net(ScoredFilterSettings()), (1, 2))],
    ids=["l1", "l2"],
)
def test_soft_net_takes_the_l2_norm_where_ft_takes_l1(method: FilterMethod, stay: tuple[int, ...]) -> None:
    assert compressor(method, small(), torch.ones(1, 4)).compress(12 / 18).plan.kept["0"] == Kept(stay)


def test_random_filters_of_convolutions_go_and_another_seed_takes_others() -> None:
    """More filters than a kernel is wide, and every one has its chance."""
    with seeded("test_filter_baselines"):
        network = nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 5, (1, 3), bias=False)).eval()
    method, example = uniform_filters(ScoredFilterSettings()), example_input((3, 8, 8))
    chosen = [compressor(method, network, example, seed).compress(0.5).plan.kept["0"].out or () for seed in range(30)]
    assert len(set(chosen)) == 30
    assert {len(kept) for kept in chosen} == {20}
    often = torch.bincount(torch.tensor([channel for kept in chosen for channel in kept]), minlength=40)
    assert often.min() >= 5  # of 30, where 15 are expected
    assert often.max() <= 25


@pytest.mark.parametrize(("norm", "scores"), [("l2", [1.0, 1.5, 1.25]), ("l1", [1.0, 0.75, 1.25])])
def test_norms_are_of_the_mean_weight(norm: str, scores: list[float]) -> None:
    method = global_filters(GlobalFiltersSettings(norm=norm))
    analysis = compressor(method, small(), torch.ones(1, 4)).analysis
    torch.testing.assert_close(analysis.scores[0], torch.tensor(scores, dtype=torch.float64))


def test_the_score_of_tied_filters_is_their_mean() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.c(torch.relu(self.a(x) + self.b(x)))
            return output

    network = Tied()
    with torch.no_grad():
        network.a.weight.copy_(torch.tensor([[1.0], [-2]]))
        network.b.weight.copy_(torch.tensor([[3.0], [5]]))
    analysis = compressor(global_filters(GlobalFiltersSettings()), network, torch.ones(1, 1)).analysis
    assert analysis.scores[0].tolist() == [2, 3.5]


METHODS = {
    "Global Filters": global_filters(GlobalFiltersSettings()),
    "Slimming": slimming(RankedFilterSettings()),
    "in eights": global_filters(GlobalFiltersSettings(round_to=8)),
}


@pytest.mark.parametrize("network_name", ["resnet20", "densenet22"])
@pytest.mark.parametrize("label", METHODS)
def test_the_next_step_of_the_order_would_not_fit(label: str, network_name: str) -> None:
    """The step that comes next is the best one of those that are left, and it exceeds the budget."""
    network, example = known(network_name)
    method = METHODS[label]
    made = compressor(method, network, example)
    whole = made.original
    filters, scores, step = made.analysis.filters, made.analysis.scores, method.settings.round_to
    cases: list[tuple[Quantity, float]] = [("parameters", 0.9), ("parameters", 0.3), ("flops", 0.5)]
    for quantity, keep in cases:
        total = whole.parameters if quantity == "parameters" else whole.flops
        limit = int(keep * total)
        counts = method.rule(filters, scores, Budget(quantity, limit, total), step)
        chosen = [list(order[:n]) for order, n in zip(made.analysis.order, counts, strict=True)]
        assert filters.size(chosen, quantity) <= limit
        assert all(n % step == 0 or n == g.size for n, g in zip(counts, filters.groups, strict=True))
        left = {
            g: float(scores[g][list(order[n : _next(n, len(order), step)])].mean())
            for g, (order, n) in enumerate(zip(made.analysis.order, counts, strict=True))
            if n < len(order)
        }
        best = max(left, key=lambda g: left[g])
        chosen[best] = list(made.analysis.order[best][: _next(counts[best], len(made.analysis.order[best]), step)])
        assert filters.size(chosen, quantity) > limit
        for g, order in enumerate(made.analysis.order):  # and what is there is worth more than what is not
            if counts[g] > min(step, len(order)) and filters.free[g]:
                last = list(order[_before(counts[g], len(order), step) : counts[g]])
                assert float(scores[g][last].mean()) >= left[best] - 1e-12


def _next(n: int, size: int, step: int) -> int:
    return min((n // step + 1) * step, size)


def _before(n: int, size: int, step: int) -> int:
    return (n - 1) // step * step


def test_every_prefix_of_a_small_order() -> None:
    network, example = (
        nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)),
        torch.ones(1, 2),
    )
    filters = trace_channels(State(network, example), ScoredFilterSettings(), "test")
    scores = [torch.tensor([5.0, 1, 9, 3, 7]), torch.tensor([8.0, 2, 6, 4]), torch.zeros(2)]
    join = [(0, 7.0), (1, 6.0), (0, 5.0), (1, 4.0), (0, 3.0), (1, 2.0), (0, 1.0)]  # after the best of each: 9 and 8
    prefixes = [[1 + sum(g == group for g, _ in join[:k]) for group in (0, 1)] + [2] for k in range(len(join) + 1)]
    sizes = [3 * a + (a + 1) * b + (b + 1) * 2 for a, b, _ in prefixes]
    for limit in range(sizes[0], sizes[-1] + 1):
        fitting = [counts for counts, size in zip(prefixes, sizes, strict=True) if size <= limit]
        assert longest_prefix(filters, scores, Budget("parameters", limit, sizes[-1]), 1) == fitting[-1]
    with pytest.raises(InfeasibleBudget) as caught:
        longest_prefix(filters, scores, Budget("parameters", sizes[0] - 1, sizes[-1]), 1)
    assert caught.value.smallest == sizes[0]


def test_equal_steps_join_in_the_order_of_the_network() -> None:
    network = nn.Sequential(
        nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 1)
    )
    filters = trace_channels(State(network, torch.ones(1, 1)), ScoredFilterSettings(), "test")
    scores = [torch.full((n,), 0.1) for n in (3, 3, 1)]  # whose means in steps differ by rounding
    sizes = {counts: counts[0] + counts[0] * counts[1] + counts[1] + 1 for counts in itertools.product((2, 3), (2, 3))}
    counts = longest_prefix(filters, scores, Budget("parameters", sizes[(3, 2)], 16), 2)
    assert counts == [3, 2, 1]


def scaled() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    )
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([0.5, -2.0, 1.0]))
    return network.eval()


def test_slimming_goes_by_the_size_of_batch_norm_scales(caplog: pytest.LogCaptureFixture) -> None:
    """11 parameters a channel: its filter, bias, scale, shift, and 4 weights that read it; the other layer stays."""
    network, example = scaled(), example_input((1, 2, 2))
    with caplog.at_level(logging.WARNING, "experiment"):
        made = compressor(slimming(RankedFilterSettings()), network, example)
    assert "Slimming keeps all channels of 3: no BatchNorm scales them." in caplog.text
    total = made.original.parameters
    assert made.compress((total - 8) / total).plan.kept == {
        "0": Kept((1, 2)), "1": Kept((1, 2)), "3": Kept(None, (1, 2)),
    }  # fmt: skip
    with pytest.raises(InfeasibleBudget) as caught:
        made.compress(0.1)
    assert caught.value.smallest == total - 16
    assert made.compress(caught.value.smallest / total).plan.kept["0"] == Kept((1,))


def test_slimming_averages_over_the_norms_that_a_channel_runs_through() -> None:
    network, example = known("densenet22")
    analysis = compressor(slimming(RankedFilterSettings()), network, example).analysis
    group = analysis.filters.groups[0]
    assert group.name == "conv1"
    norms = ["dense1.0.bn1", "dense1.1.bn1", "dense1.2.bn1", "trans1.bn"]
    expected = torch.stack([network.get_submodule(n).weight[: group.size].detach().abs().double() for n in norms]).mean(
        0
    )
    torch.testing.assert_close(analysis.scores[0], expected)


def test_slimming_refuses_networks_without_batch_norm() -> None:
    with pytest.raises(CompressionError, match="Slimming ranks channels by the scales of BatchNorm layers"):
        compressor(slimming(RankedFilterSettings()), small(), torch.ones(1, 4))


def test_what_data_are_for_is_said() -> None:
    for settings, what in (
        (ScoredFilterSettings(fold="mean"), "fold 'mean'"),
        (ScoredFilterSettings(refit=True), "refit"),
    ):
        with pytest.raises(CompressionError, match=f"FT with {what} needs calibration data"):
            compressor(ft(settings), small(), torch.ones(1, 4))


@pytest.mark.parametrize("settings", [{"fold": "mean"}, {"refit": True}, {"fold": "mean", "refit": True}], ids=str)
def test_correcting_readers_brings_the_outputs_nearer_and_costs_nothing(settings: dict[str, object]) -> None:
    network, example = known("resnet20")
    x = torch.randn(40, *SHAPE, generator=generator("test_filter_baselines", "images"))
    others = torch.randn(20, *SHAPE, generator=generator("test_filter_baselines", "others"))
    plain, better = (
        Compressor(
            ft(ScoredFilterSettings(**values)),
            State(network, example),
            count(network, example),
            Calibration(x),
            generator("b"),
        ).compress(0.8)
        for values in ({}, settings)
    )
    assert plain.plan == better.plan
    with torch.no_grad():
        expected = network(others)
        assert (better.network(others) - expected).norm() < 0.8 * (plain.network(others) - expected).norm()


def test_a_step_that_removes_nothing_changes_nothing() -> None:
    """Also with everything that corrects readers switched on, after an earlier step that removed channels."""
    network, example = known("resnet20")
    data = Calibration(torch.randn(16, *SHAPE, generator=generator("test_filter_baselines", "images")))
    method, original = ft(ScoredFilterSettings(fold="mean", refit=True)), count(network, example)
    first = Compressor(method, State(network, example), original, data, generator("b")).compress(0.5)
    state = expand(first.network, network, first.plan, example)
    again = Compressor(method, state, original, data, generator("b")).compress(0.9)
    assert again.plan.kept == first.plan.kept
    assert again.count == first.count
    assert all(map(torch.equal, again.network.state_dict().values(), first.network.state_dict().values()))


@pytest.mark.parametrize("protected", [0.0, 0.4])
def test_a_protected_share_of_every_group_stays(protected: float) -> None:
    network, example = known("resnet20")
    with torch.no_grad():
        network.get_parameter("layer2.1.conv1.weight").mul_(0.01)  # would lose all but one
    made = compressor(global_filters(GlobalFiltersSettings(protected=protected)), network, example)
    plan = made.compress(0.4).plan
    shares = [len(kept.out) / made.analysis.filters.layers[name] for name, kept in plan.kept.items() if kept.out and
              name in made.analysis.filters.layers]  # fmt: skip
    assert min(shares) >= protected if protected else min(shares) < 0.1
