"""SiPP: the order by hand, the allocation against a search, and sampling that is right on average."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.masks import bake_masks, named_masks
from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Budget, Calibration, Compressed, Compressor, make_method
from experiment.methods.data.poisson_draws import first_rings
from experiment.methods.masks.sipp_rows import Rows, error, multiplier, num_samples, rows_of
from experiment.random_streams import generator, seeded


def network() -> nn.Module:
    with seeded("test_sipp"):
        return nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(20, 4),
        ).eval()  # fmt: skip


def images() -> Tensor:
    return torch.rand(6, 2, 6, 6, generator=generator("test_sipp", "images")) + 0.5


def compressor(label: str, net: nn.Module, x: Tensor, seed: int = 0) -> Compressor:
    entry = METHODS[label]
    method = make_method(entry, entry.settings())
    original = count(net, x[:1])
    return Compressor(method, State(net, x[:1]), original, Calibration(x), generator("test_sipp", seed))


def to_weights(made: Compressor, number: int) -> Compressed:
    """The network in which so many weights are left; nothing but they can go."""
    network = made.state.network
    weights = sum(p.numel() for n, p in network.named_parameters() if n.endswith("weight"))
    total = made.original.parameters
    return made.compress((total - weights + number) / total)


def rows(seed: int = 1) -> Rows:
    random = generator("test_sipp", "rows", seed)
    s = torch.rand(30, generator=random, dtype=torch.float64)
    row = torch.arange(30) // 10
    bounds, filters = torch.tensor([60.0, 40.0, 50.0]), torch.tensor([4.0, 4.0, 9.0])
    return rows_of(s, row, bounds.double(), filters.double(), torch.tensor([25.0, 25.0, 1.0]).double())


def test_the_weights_of_largest_mean_sensitivity_stay() -> None:
    net = nn.Sequential(nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 1.0, -5.0], [9.0, -1.0, -1.0]]))
    x = torch.tensor([[[1.0, 3.0, 1.0], [1.0, 1.0, 3.0]]])  # one sample of two positions
    # shares: 1/4 3/4 | 1/2 1/2, mean .375 .625; alone of its sign: 1; and 3/4 1/4 | 1/4 3/4, mean 1/2 1/2
    masks = [named_masks(to_weights(compressor("SiPP", net, x), n).network)["0.weight"].tolist() for n in (2, 3, 5)]
    assert masks[0] == [[False, False, True], [True, False, False]]
    assert masks[1] == [[False, True, True], [True, False, False]]
    assert masks[2] == [[False, True, True], [True, True, True]]


def test_the_multiplier_is_the_slope_of_the_error() -> None:
    m, A = torch.tensor([0.1, 3.0, 40.0, 1e5]).double(), torch.tensor([700.0, 5.0, 900.0, 2.0]).double()
    slope = (error(m * (1 - 1e-6), A) - error(m * (1 + 1e-6), A)) / (2e-6 * m)
    torch.testing.assert_close(multiplier(m, A), slope, rtol=1e-6, atol=0)
    torch.testing.assert_close(num_samples(multiplier(m, A), A), m, rtol=1e-9, atol=0)
    assert multiplier(torch.zeros(1), torch.ones(1)).isinf().all()


@pytest.mark.parametrize("flops", [False, True])
def test_the_allocation_is_the_best_of_a_grid(flops: bool) -> None:
    given = rows()
    costs = given.positions if flops else torch.ones(3).double()
    budget = float((costs * given.number).sum()) * 0.4
    found = given.allocation(budget, given.filters * costs, costs)
    assert float((costs * found).sum()) == pytest.approx(budget, rel=1e-6)

    def objective(m: Tensor) -> Tensor:
        return (error(m, given.A) / given.filters).sum(-1)

    first, second = (torch.linspace(0.02, 10, 500).double() for _ in range(2))
    pairs = torch.cartesian_prod(first, second)
    third = (budget - pairs @ costs[:2]) / costs[2]
    grid = torch.cat([pairs, third[:, None]], 1)[(third > 0) & (third <= 10)]
    assert float(objective(found)) <= float(objective(grid).min()) * (1 + 1e-9)


def test_different_weights_and_draws_are_each_other_s_inverse() -> None:
    given = rows()
    draws = torch.tensor([0.003, 4.0, 150.0]).double()
    exact = [float(-torch.expm1(-d * given.p[given.row == r]).sum()) for r, d in enumerate(draws)]
    found = given.different(draws, torch.arange(3))
    np.testing.assert_allclose(found.numpy(), exact, rtol=5e-3)
    torch.testing.assert_close(given.draws(found), draws, rtol=1e-6, atol=0)


@pytest.mark.parametrize("label", ["SiPPRand", "SiPPHybrid", "SiPP"])
def test_a_budget_is_met_to_the_weight(label: str) -> None:
    net, x = network(), images()
    made = compressor(label, net, x)
    for number in (0, 1, 37, 200, 440):
        compressed = to_weights(made, number)
        assert compressed.count.parameters == compressed.plan.parameters == 6 + 5 + 4 + number


def test_sampling_is_right_on_average() -> None:
    net = nn.Sequential(nn.Linear(8, 6))
    with seeded("test_sipp", "average"):
        nn.init.uniform_(net[0].weight, 0.5, 1.5)
        net[0].weight.data[:, ::2] *= -1
    x = torch.rand(20, 8, generator=generator("test_sipp", "average")) + 0.5
    W, runs, made, drawn = net[0].weight.detach(), 250, compressor("SiPPRand", net, x), list[Tensor]()
    for i in range(runs):
        rings = first_rings(made.analysis.rows.p, generator("test_sipp", "rings", i))
        plan = made.method.plan(replace(made.analysis, rings=rings, seed=i), Budget("parameters", 26, 54))
        drawn.append(bake_masks(made.instantiate(plan)).get_parameter("0.weight").detach())
    found = torch.stack(drawn)
    errors = (found.mean(0) - W) / (found.std(0) / math.sqrt(runs))
    assert (found == 0).any()
    assert errors.abs().max() < 4.5
    assert errors.square().mean() < 1.6


def test_hybrid_keeps_weights_as_they_are_where_that_is_better() -> None:
    net, x = network(), images()
    hybrid, drawn = (to_weights(compressor(label, net, x), 200) for label in ("SiPPHybrid", "SiPPRand"))
    changed = [
        sum(
            int(((bake_masks(made.network).get_parameter(n) != p) & made.plan.masks[n]).sum())
            for n, p in net.named_parameters()
            if n.endswith("weight")
        )
        for made in (hybrid, drawn)
    ]
    assert changed[0] < changed[1]


def test_rows_are_drawn_only_where_that_promises_less() -> None:
    given = rows()
    m = torch.full((3,), 5.0).double()
    s = given.s.reshape(3, 10).sort(1, descending=True).values
    det, rand = 3 * s[:, 5:].sum(1), error(m, given.A)
    assert given.better_drawn(m).tolist() == (det > rand).tolist()


def test_weights_without_sensitivity_go_first() -> None:
    net, x = network(), images()
    with torch.no_grad():
        net[0].weight[2], net[0].bias[2] = 0, -1  # channel 2 is always zero
    for label in ("SiPP", "SiPPRand", "SiPPHybrid"):
        mask = named_masks(to_weights(compressor(label, net, x), 250).network)["2.weight"]
        assert not mask[:, 2].any()


def test_missing_data_are_asked_for() -> None:
    net, x = network(), images()
    entry = METHODS["SiPP"]
    with pytest.raises(CompressionError, match=r"SiPP needs calibration data.*compress\(\.\.\., data=inputs\)"):
        Compressor(make_method(entry, entry.settings()), State(net, x[:1]), count(net, x[:1]), None, generator("t"))


def test_drawing_nothing_but_biases_is_the_smallest_network() -> None:
    net, x = network(), images()
    made = compressor("SiPPRand", net, x)
    plan = made.method.plan(made.analysis, Budget("flops", 0, made.original.flops))
    assert not any(mask.any() for mask in plan.masks.values())


@pytest.mark.parametrize("label", ["SiPPRand", "SiPPHybrid"])
def test_rows_of_a_transposed_layer_are_its_filters(label: str) -> None:
    """With a kernel of 1, a transposed convolution is a convolution that holds its weight the other way round."""
    plain, turned = nn.Conv2d(4, 6, 1), nn.ConvTranspose2d(4, 6, 1)
    turned.weight.data.copy_(plain.weight.detach().transpose(0, 1))
    x, masks = torch.rand(6, 4, 3, 3, generator=generator("test_sipp", "transposed")) + 0.5, []
    for layer in (plain, turned):
        made = to_weights(compressor(label, nn.Sequential(layer).eval(), x), 14)
        (mask,) = named_masks(made.network).values()
        masks.append(mask)
    assert int(masks[0].sum()) == 14
    assert torch.equal(masks[0], masks[1].transpose(0, 1))
