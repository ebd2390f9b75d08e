"""Ranks of spectra against closed forms and entropies, and of layers against SVDs of what they compute."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from experiment.effective_rank import effective_rank, layer_ranks, stable_rank
from experiment.layers.build import build
from experiment.layers.masks import add_masks
from experiment.layers.plan import Factors, Plan
from experiment.random_streams import generator, seeded

RANKS = (effective_rank, stable_rank)


@pytest.mark.parametrize("rank", RANKS)
def test_closed_forms(rank: object) -> None:
    assert callable(rank)
    for n in (1, 2, 7, 1000):
        assert rank(np.ones(n)) == pytest.approx(n)  # the identity
        assert rank([3.0] * n + [0.0] * 5) == pytest.approx(n)
    assert rank([5.0, 0.0, 0.0]) == 1
    assert rank(np.zeros(4)) == 0
    assert rank([]) == 0


def test_two_values_by_hand() -> None:
    assert effective_rank([3.0, 1.0]) == pytest.approx((3 / 4) ** (-3 / 4) * (1 / 4) ** (-1 / 4))
    assert stable_rank([3.0, 1.0]) == pytest.approx(10 / 9)


def test_effective_rank_is_the_exponential_of_the_entropy_and_lies_between_the_others() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        sigma = np.sort(draw.exponential(size=30) ** 3)[::-1]
        p = sigma / sigma.sum()
        assert effective_rank(sigma) == pytest.approx(np.prod(p**-p))
        assert 1 <= stable_rank(sigma) <= effective_rank(sigma) <= 30


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_scale_does_not_matter(rank: object, scale: float) -> None:
    assert callable(rank)
    sigma = np.array([1.0, 0.5, 0.25])
    assert rank(sigma * scale) == pytest.approx(rank(sigma))


@pytest.mark.parametrize("wrong", [[1.0, -1.0], [math.nan], [math.inf], [[1.0]]])
def test_what_is_no_spectrum_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        effective_rank(wrong)  # type: ignore[arg-type]


def net() -> nn.Sequential:
    with seeded("test_spectrum"):
        return nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.Flatten(),
            nn.Linear(24, 8),
        ).eval()  # fmt: skip


def ranks_of(matrix: torch.Tensor) -> tuple[float, float, int]:
    sigma = np.linalg.svd(matrix.detach().flatten(1).double().numpy(), compute_uv=False)
    p = sigma[sigma > 1e-12] / sigma.sum()
    return math.exp(-(p * np.log(p)).sum()), (sigma**2).sum() / sigma[0] ** 2, len(sigma)


def test_every_layer_is_measured_as_filters_by_the_rest() -> None:
    network = net()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = layer_ranks(network)
    assert [rank.layer for rank in found] == ["0", "3", "5"]
    for rank in found:
        expected = ranks_of(network.get_submodule(rank.layer).weight)
        assert (rank.effective_rank, rank.stable_rank, rank.full_rank) == pytest.approx(expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_factors_are_the_layer_that_they_stand_for() -> None:
    network = net()
    plan = Plan(factors={"0": Factors(2, 2, 0, bias=True), "5": Factors(3, 4, 0, bias=True)})
    compressed = build(network, plan)
    with torch.no_grad():
        for parameter in compressed.parameters():
            parameter.normal_(generator=generator("test_spectrum"))
    found = {rank.layer: rank for rank in layer_ranks(compressed)}
    assert list(found) == ["0", "3", "5"]
    encoder, decoder = compressed[5].encoder, compressed[5].decoder  # by its outputs: x -> U V x
    product = (decoder(encoder(torch.eye(24))) - decoder.bias).T
    assert found["5"].effective_rank == pytest.approx(ranks_of(product)[0], rel=1e-5)
    assert (found["5"].full_rank, found["0"].full_rank) == (8, 6)
    plan = Plan(factors={"5": Factors(1, 1, 0, bias=True)})
    assert layer_ranks(build(network, plan))[-1].full_rank == 8


def test_a_low_rank_layer_has_a_low_effective_rank() -> None:
    network, plan = net(), Plan(factors={"5": Factors(1, 1, 0, bias=True)})
    compressed = build(network, plan)
    for name in ("encoder", "decoder"):
        nn.init.normal_(compressed[5].get_submodule(name).weight, generator=generator("test_spectrum"))
    assert layer_ranks(compressed)[-1].effective_rank == pytest.approx(1, abs=1e-9)


def test_masked_weights_are_zeros_and_a_masked_network_stays_masked() -> None:
    network = net()
    mask = torch.zeros(8, 24, dtype=torch.bool)
    mask[:3] = True
    add_masks(network, {"5.weight": mask})
    found = layer_ranks(network)[-1]
    expected = ranks_of(network[5].weight[:3])
    assert (found.layer, found.full_rank) == ("5", 8)
    assert (found.effective_rank, found.stable_rank) == pytest.approx(expected[:2])
    assert isinstance(network[5], nn.Linear)
    assert not network[5].weight[3:].any()


@pytest.mark.parametrize(
    "layers", [(nn.Linear(5, 3, bias=False), nn.Linear(3, 5)), (nn.Conv2d(4, 2, 3, bias=False), nn.Conv2d(2, 4, 3))]
)
def test_an_autoencoder_is_two_layers(layers: tuple[nn.Module, nn.Module]) -> None:
    network = nn.Sequential(OrderedDict(zip(("encoder", "decoder"), layers, strict=True)))
    assert [rank.layer for rank in layer_ranks(network)] == ["encoder", "decoder"]


def test_weights_that_are_not_finite_have_no_rank_and_zeros_rank_zero() -> None:
    network = net()
    nn.init.constant_(network[0].weight, math.nan)
    nn.init.zeros_(network[5].weight)
    first, _, last = layer_ranks(network)
    assert math.isnan(first.effective_rank)
    assert (last.effective_rank, last.stable_rank) == (0, 0)
