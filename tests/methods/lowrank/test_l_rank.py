"""L-Rank with a price: the formula against every rank, its limit by the keep ratio, and what mu does to it."""

import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from experiment import compress
from experiment.errors import ConfigError, InfeasibleBudget
from experiment.layers.build import build
from experiment.layers.compressible import compressible_layers
from experiment.layers.plan import Factors, Plan, State
from experiment.measure import Count, count
from experiment.methods import METHODS
from experiment.methods.base import Compressor, make_method
from experiment.methods.configure import configure
from experiment.random_streams import generator

NETWORKS = ("cnn", "residual", "sequences")
COSTS = ("flops", "parameters")
PRICES = {"flops": (1e-7, 1e-5, 1e-4, 2e-3, 1e-2), "parameters": (1e-5, 1e-3, 3e-3, 5e-3, 1e-2, 1.0)}


def compressor(state: State, mu: float = 1.0, **settings: Any) -> Compressor:
    method = make_method(METHODS["L-Rank"], configure("L-Rank", settings).settings)
    original = count(state.network, state.example)
    return Compressor(method, state, original, None, generator("test_l_rank"), error_weight=mu)


def ranks(plan: Plan) -> dict[str, int | None]:
    """Of every layer; None for one that is whole."""
    return {name: detail["rank"] for name, detail in plan.details.items()}  # type: ignore[misc]


Costs = dict[str, dict[int | None, tuple[Count, float]]]


def costs(state: State) -> Costs:
    """What every rank of every layer costs, counted on a network that is built, and its error."""
    whole, found = count(state.network, state.example), Costs()
    for name in compressible_layers(state.network, state.example):
        layer = state.network.get_submodule(name)
        sigma = np.linalg.svd(layer.get_parameter("weight").detach().flatten(1).double().numpy(), compute_uv=False)
        found[name] = {None: (whole, 0.0)}
        for rank in range(1, len(sigma) + 1):
            factors = Factors(rank, bias=getattr(layer, "bias", None) is not None)
            counted = count(build(state.network, Plan(factors={name: factors})), state.example)
            if counted.parameters < whole.parameters and counted.flops <= whole.flops:
                found[name][rank] = counted, float((sigma[rank:] ** 2).sum())
    return found


def best(found: Costs, price: float, cost: str, mu: float) -> dict[str, int | None]:
    """Of every layer the rank that is best, tried one by one."""
    values = {
        name: {rank: price * getattr(counted, cost) + mu / 2 * error for rank, (counted, error) in ranks.items()}
        for name, ranks in found.items()
    }
    return {name: min(tried, key=lambda rank: tried[rank]) for name, tried in values.items()}


@pytest.fixture(scope="module")
def counted(state_of: Callable[[str], State]) -> Callable[[str], Costs]:
    return lru_cache(lambda name: costs(state_of(name)))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("cost", COSTS)
def test_ranks_are_those_of_the_formula(
    name: str, cost: str, state_of: Callable[[str], State], counted: Callable[[str], Costs]
) -> None:
    state, seen = state_of(name), set()
    for price in PRICES[cost]:
        for mu in (1.0, 0.03):
            compressed = compressor(state, mu, price=price, cost=cost).compress(1.0)
            expected = best(counted(name), price, cost, mu)
            assert ranks(compressed.plan) == expected
            assert compressed.plan.factors.keys() == {name for name, rank in expected.items() if rank is not None}
            seen |= set(expected.values())
    assert {None, 1} < seen


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("quantity", COSTS)
def test_the_keep_ratio_is_a_limit_beside_the_price(name: str, quantity: Any, state_of: Callable[[str], State]) -> None:
    """No layer has more than the price allows; where that is everything, ranks are those without a price."""
    state = state_of(name)
    free = compressor(state).compress(0.5, quantity).plan
    for price in PRICES["flops"]:
        made = compressor(state, price=price)
        most = ranks(made.compress(1.0, quantity).plan)
        for keep in (0.9, 0.5):
            compressed = made.compress(keep, quantity)
            assert getattr(compressed.count, quantity) <= keep * getattr(made.original, quantity)
            for layer, rank in ranks(compressed.plan).items():
                allowed = most[layer]
                assert allowed is None or (rank is not None and rank <= allowed)
        if price == PRICES["flops"][0]:
            assert ranks(compressed.plan) == ranks(free)
        with pytest.raises(InfeasibleBudget):
            made.compress(1e-4, quantity)


def test_ranks_grow_with_mu(state_of: Callable[[str], State]) -> None:
    state = state_of("cnn")
    rows = [ranks(compressor(state, mu, price=1e-4).compress(1.0).plan) for mu in (1e-3, 0.1, 1.0, 10.0, 1e6)]
    for before, after in itertools.pairwise(rows):
        assert all(after[n] is None or (before[n] is not None and before[n] <= after[n]) for n in before)  # type: ignore[operator]
    assert set(rows[0].values()) == {1}
    assert set(rows[-1].values()) == {None}


def test_mu_has_no_effect_without_a_price(state_of: Callable[[str], State]) -> None:
    plans = [compressor(state_of("cnn"), mu).compress(0.5).plan for mu in (1e-3, 1.0, 1e3)]
    assert plans[0] == plans[1] == plans[2]


def test_values_per_parameter_are_not_those_per_flop(state_of: Callable[[str], State]) -> None:
    """Without a price: kept singular values are larger, per parameter, than those that are not."""
    state = state_of("cnn")
    plan = compressor(state, cost="parameters").compress(0.5).plan
    assert plan != compressor(state).compress(0.5).plan
    kept, left = [], []
    for name, rank in ranks(plan).items():
        weight = state.network.get_submodule(name).weight.detach().flatten(1).double()
        values = np.linalg.svd(weight.numpy(), compute_uv=False) ** 2 / sum(weight.shape)
        if rank is not None:
            kept += list(values[1:rank])  # the first one is kept in any case
            left.append(values[rank])
    assert kept
    assert left
    assert min(kept) >= max(left)


def test_less_than_the_keep_ratio_is_no_surprise(state_of: Callable[[str], State]) -> None:
    state = state_of("cnn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = compress(state.network, "L-Rank", keep=1.0, example=state.example, price=1.0)
    assert result.keep_parameters < 0.5
    small = {"name": "L-Rank", "settings": {"price": 1.0}}
    schemes = [small, {"name": "Quantize", "settings": {"dtype": "int8"}}]
    assert configure("Compose", {"schemes": schemes}).has_price
    assert not configure("L-Rank", {}).has_price
    composed = compress(state.network, "Compose", keep=1.0, example=state.example, schemes=schemes)
    assert composed.keep_parameters == result.keep_parameters


def test_a_layer_that_is_masked_is_compared_as_it_is(state_of: Callable[[str], State]) -> None:
    """Its multiply-adds are those that its mask leaves."""
    state = state_of("cnn")
    made = compressor(state, price=1e-4).compress(1.0)
    name = next(n for n, rank in ranks(made.plan).items() if rank is not None)
    weight = state.network.get_submodule(name).weight
    mask = (weight.abs() >= weight.abs().max()) & (weight != 0)
    masked = replace(state, masks={f"{name}.weight": mask})
    assert ranks(compressor(masked, price=1e-4).compress(1.0).plan)[name] is None


@pytest.mark.parametrize("settings", [{"price": 0.0}, {"price": -1.0}, {"cost": "bytes"}])
def test_other_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        configure("L-Rank", settings)


def test_layers_that_no_rank_makes_smaller_are_whole() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.Flatten(), nn.Linear(36, 1)).eval()
    compressed = compressor(State(network, torch.ones(1, 4, 3, 3)), price=1.0).compress(1.0)
    assert not compressed.plan.factors
    assert compressed.count == count(network, torch.ones(1, 4, 3, 3))
