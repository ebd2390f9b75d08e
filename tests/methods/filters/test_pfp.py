"""PFP: counts against the formula, relevance, budgets, and draws that are right on average."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Budget, Calibration, Compressed, Compressor, Quantity, make_method
from experiment.methods.data.poisson_draws import first_rings
from experiment.methods.filters.pfp import draws_beyond, errors, probabilities
from experiment.random_streams import generator, seeded

LABELS = ("PFP", "PFP (rand)", "PFP (partial)")


def network() -> nn.Module:
    with seeded("test_pfp"):
        return nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(96, 7), nn.ReLU(), nn.Linear(7, 4),
        ).eval()  # fmt: skip


def images() -> Tensor:
    return torch.rand(5, 2, 4, 4, generator=generator("test_pfp", "images")) + 0.2


def compressor(label: str, net: nn.Module, x: Tensor, seed: int = 0, **settings: object) -> Compressor:
    entry = METHODS[label]
    method = make_method(entry, entry.settings(**settings))
    return Compressor(method, State(net, x[:1]), count(net, x[:1]), Calibration(x), generator("test_pfp", seed))


def channels(compressed: Compressed) -> list[int]:
    return [int(detail["channels"] or 0) for detail in compressed.plan.details.values()]


def by_formula(s: list[float], alpha: float, eps: float) -> int:
    """max(1, ceil(sum_c 1 - (1 - p_c)^m)), m = max(1, ceil(3 (6 + 2 eps) alpha S / eps^2))."""
    S = sum(s)
    m = max(1, math.ceil(3 * (6 + 2 * eps) * alpha * S / eps**2))
    return max(1, math.ceil(sum(1 - (1 - value / S) ** m for value in s) - 1e-9))


def test_channels_come_in_where_the_formula_says() -> None:
    s, alpha = [0.9, 0.5, 0.05, 0.3, 0.001], 7.0
    largest = errors(torch.tensor(s, dtype=torch.float64), alpha)
    assert largest[0] == math.inf
    assert sorted(largest, reverse=True) == largest
    for k, eps in enumerate(largest[1:], start=2):
        assert by_formula(s, alpha, eps * (1 - 1e-9)) == k
        assert by_formula(s, alpha, eps * (1 + 1e-9)) == k - 1
    assert errors(torch.tensor([0.0, 2.0, 0.0]), alpha) == [math.inf, 0, 0]
    assert errors(torch.zeros(3), alpha) == [math.inf, 0, 0]


def test_draws_beyond_is_the_first_number_that_hits_more() -> None:
    for p in ([0.25] * 4, [0.7, 0.2, 0.08, 0.02]):
        found = [int(n) for n in draws_beyond(torch.tensor(p).double())]
        for k, number in enumerate(found, start=1):
            hit = [sum(1 - (1 - q) ** n for q in p) for n in (number - 1, number)]
            assert hit[0] <= k - 1 + 1e-12 < hit[1]


@pytest.mark.parametrize("quantity", ["parameters", "flops"])
def test_counts_are_those_of_one_error(quantity: Quantity) -> None:
    net, x = network(), images()
    made = compressor("PFP", net, x)
    scores = [s.tolist() for s in made.analysis.scores[:3]]
    kappas, etas = (9, 1, 1), (16, 1, 1)  # of the layers that read the first, second and third group
    alphas = [6 * math.log(8 * (eta + 1) * kappa / 1e-16) for kappa, eta in zip(kappas, etas, strict=True)]
    pairs = list(zip(scores, alphas, strict=True))
    sizes = {}
    for eps in torch.logspace(5, -1, 3000).tolist():
        counts = [by_formula([v for v in s if v > 0], alpha, eps) for s, alpha in pairs]
        if quantity == "parameters":
            a, b, c = counts
            sizes[a * 19 + b * (9 * a + 1) + c * (16 * b + 1) + 4 * c + 4] = counts
    for size, counts in sizes.items():
        found = made.method.plan(made.analysis, Budget("parameters", size, made.original.parameters))
        assert [d["channels"] for d in list(found.details.values())[:3]] == counts
    previous = 0
    for keep in (0.2, 0.3, 0.5, 0.7, 0.9, 1.0):
        made_smaller = made.compress(keep, quantity)
        now = getattr(made_smaller.count, quantity)
        assert previous <= now <= keep * getattr(made.original, quantity)
        previous = now


def test_scores_are_the_largest_of_what_readers_make_of_a_channel() -> None:
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        net[2].weight.copy_(torch.tensor([[1.0, 3.0, 1.0], [2.0, -1.0, 5.0]]))
    made = compressor("PFP", net, torch.tensor([[1.0, 1.0], [4.0, 1.0]]))
    # hidden: (1, 1, 0) and (4, 1, 0). Filter 0: 1/4 3/4 and 4/7 3/7; filter 1: alone of their signs
    torch.testing.assert_close(made.analysis.scores[0], torch.tensor([1.0, 1.0, 0.0]).double())


@pytest.mark.parametrize("label", LABELS)
def test_a_channel_that_is_always_zero_goes_first(label: str) -> None:
    net, x = network(), images()
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = 0.01, -50
    made = compressor(label, net, x)
    ranked = made.analysis if label == "PFP" else made.analysis.ranked
    assert ranked.scores[0][3] == 0
    removed = set(range(8)) - set(made.compress(0.6).plan.kept["0"].out or ())
    assert 3 in removed


@pytest.mark.parametrize("label", ["PFP (rand)", "PFP (partial)"])
def test_drawing_keeps_as_many_channels_and_reweighs_what_is_read(label: str) -> None:
    net, x = network(), images()
    drawn, sure = compressor(label, net, x).compress(0.5), compressor("PFP", net, x).compress(0.5)
    assert channels(drawn) == channels(sure)
    for name, scale in drawn.plan.scales.items():
        sides = drawn.plan.kept[name.removesuffix(".weight")]
        columns = list(sides.inputs or range(scale.shape[1]))
        expected = (net.get_parameter(name) * scale)[:, columns]
        rows = list(sides.out or range(scale.shape[0]))
        torch.testing.assert_close(drawn.network.get_parameter(name), expected[rows])
    assert drawn.plan.scales


def test_layers_answer_the_same_on_average() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    with seeded("test_pfp", "average"):
        for parameter in net.parameters():
            nn.init.uniform_(parameter, 0.4, 1.0)
    x = torch.rand(8, 3, generator=generator("test_pfp", "average")) + 0.2
    for label in ("PFP (rand)", "PFP (partial)"):
        made, runs = compressor(label, net, x), list[Tensor]()
        for i in range(80):
            rings = [first_rings(probabilities(s, range(len(s))), generator(i)) for s in made.analysis.ranked.scores]
            plan = made.method.plan(replace(made.analysis, rings=rings, seed=i), Budget("parameters", 24, 38))
            runs.append(made.instantiate(plan)(x).detach())
        outputs = torch.stack(runs)
        spread = outputs.std(0) / math.sqrt(len(runs))
        assert outputs.std(0).min() > 0
        assert ((outputs.mean(0) - net(x).detach()) / spread).abs().max() < 4.5


def test_numbers_of_channels_are_multiples() -> None:
    found = channels(compressor("PFP", network(), images(), round_to=2).compress(0.5))
    assert all(n % 2 == 0 or n == whole for n, whole in zip(found, (8, 6, 7, 4), strict=True))


def test_missing_data_are_asked_for() -> None:
    net, x, entry = network(), images(), METHODS["PFP"]
    with pytest.raises(CompressionError, match=r"PFP needs calibration data.*compress\(\.\.\., data=inputs\)"):
        Compressor(make_method(entry, entry.settings()), State(net, x[:1]), count(net, x[:1]), None, generator("t"))
