"""ALDS: the optimum against trying everything, and its criteria."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from experiment.layers.build import build, expand
from experiment.layers.factored_layers import fold, product
from experiment.layers.plan import Kept, Plan, State
from experiment.measure import count
from experiment.methods.base import Compressor
from experiment.methods.lowrank.alds import ALDS
from experiment.methods.lowrank.layer_options import divisors
from experiment.methods.lowrank.settings import ALDSSettings
from experiment.random_streams import generator, seeded

CRITERIA = ("reference", "exact", "bound")


def compressor(state: State, error: str = "reference", original: State | None = None) -> Compressor:
    original = original or state
    counted = count(original.network, original.example)
    return Compressor(ALDS(ALDSSettings(error=error)), state, counted, None, generator("test_alds"))


def error_of(weight: np.ndarray, rank: int, groups: int, criterion: str) -> float:
    """By the definition: the slices' truncated SVDs, and the norm of what they leave."""
    norm, rest, largest = np.linalg.norm(weight, 2), [], 0.0
    for A in np.split(weight, groups, axis=1):
        U, S, Vt = np.linalg.svd(A, full_matrices=False)
        rest.append(A - (U[:, :rank] * S[:rank]) @ Vt[:rank])
        largest = max(largest, S[rank] if rank < len(S) else 0.0)
    if criterion == "exact":
        return float(np.linalg.norm(np.hstack(rest), 2) / norm)
    return float(largest / norm * (groups**0.5 if criterion == "bound" else 1))


def options(layer: nn.Conv2d | nn.Linear, criterion: str) -> list[tuple[int, float]]:
    """(parameters, error) of every decomposition of a layer that is smaller than it, and of the layer itself."""
    W = layer.weight.detach().flatten(1).double().numpy()
    channels, (F, N) = layer.weight.shape[1], W.shape
    found = [(F * N, 0.0)]
    for groups in (k for k in range(1, channels + 1) if channels % k == 0):
        for rank in range(1, min(F, N // groups) + 1):
            if (size := rank * (groups * F + N)) < F * N:
                found.append((size, error_of(W, rank, groups, criterion)))
    return found


def tiny() -> State:
    """Few enough options to try all; filters and channels of different size, so that groups differ."""
    with seeded("test_alds"):
        network = nn.Sequential(
            nn.Conv2d(4, 6, 2), nn.ReLU(), nn.Conv2d(6, 5, 2, bias=False), nn.Flatten(), nn.Linear(20, 4)
        )
        with torch.no_grad():
            for layer in (network[0], network[2], network[4]):
                layer.weight.mul_(
                    (0.6 ** torch.arange(layer.weight.shape[0])).reshape(-1, *[1] * (layer.weight.dim() - 1))
                )
    return State(network, torch.ones(1, 4, 4, 4))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_optimum_equals_trying_everything(criterion: str) -> None:
    state = tiny()
    made = compressor(state, criterion)
    layers = [state.network[i] for i in (0, 2, 4)]
    fixed = made.original.parameters - sum(layer.weight.numel() for layer in layers)
    choices = list(itertools.product(*(options(layer, criterion) for layer in layers)))
    sizes = np.array([fixed + sum(size for size, _ in choice) for choice in choices])
    errors = np.array([sorted((error for _, error in choice), reverse=True) for choice in choices])
    for keep in (0.9, 0.75, 0.6, 0.5, 0.4, 0.35):
        compressed = made.compress(keep)
        fitting = errors[sizes <= keep * made.original.parameters]
        best = min(tuple(row) for row in fitting.round(7))
        found = sorted((float(str(d["relative_error"])) for d in compressed.plan.details.values()), reverse=True)
        assert found == pytest.approx(best, abs=2e-6)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_errors_are_those_of_the_network(criterion: str, state: State) -> None:
    made = compressor(state, criterion)
    groups_seen = set()
    for keep in (0.8, 0.6, 0.4):
        compressed = made.compress(keep)
        for name, factors in compressed.plan.factors.items():
            W = state.network.get_submodule(name).weight.detach().flatten(1).double().numpy()
            W_hat = product(compressed.network.get_submodule(name)).flatten(1).numpy()
            detail = compressed.plan.details[name]
            exact = np.linalg.norm(W - W_hat, 2) / np.linalg.norm(W, 2)
            assert detail["relative_error_exact"] == pytest.approx(exact, abs=1e-6)
            own = error_of(W, factors.rank, factors.groups, criterion)
            assert detail["relative_error"] == pytest.approx(own, abs=1e-6)
            groups_seen.add(factors.groups)
    assert len(groups_seen) > 1 or criterion == "bound"  # which pays for groups so dearly that 1 may win everywhere


def test_criteria_are_ordered(state: State) -> None:
    """Lower bound, norm, upper bound: so are the optima."""
    for keep in (0.7, 0.4):
        worst = []
        for criterion in CRITERIA:
            details = compressor(state, criterion).compress(keep).plan.details.values()
            worst.append(max(float(str(detail["relative_error"])) for detail in details))
        assert worst[0] <= worst[1] + 1e-9
        assert worst[1] <= worst[2] + 1e-9


def test_factors_follow_the_budget_of_flops() -> None:
    """Under a budget of multiply-adds the layer at many positions is decomposed first."""
    with seeded("test_alds", 1):
        network = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 3, padding=1))
    state = State(network, torch.ones(1, 8, 16, 16))
    made = compressor(state)
    assert list(made.compress(0.9, "flops").plan.factors) == ["0"]
    assert made.compress(0.9, "flops").count.flops <= 0.9 * made.original.flops


def test_grouped_encoder_takes_slices_of_the_input_channels(state: State) -> None:
    compressed = compressor(state).compress(0.4)
    name, factors = next((n, f) for n, f in compressed.plan.factors.items() if f.groups > 1)
    W = state.network.get_submodule(name).weight.detach().double()
    slices = fold(W, factors.groups).numpy()
    approximations = fold(product(compressed.network.get_submodule(name)), factors.groups).numpy()
    for A, A_hat in zip(slices, approximations, strict=True):
        U, S, Vt = np.linalg.svd(A, full_matrices=False)
        assert A_hat == pytest.approx((U[:, : factors.rank] * S[: factors.rank]) @ Vt[: factors.rank], abs=1e-6)


def test_channels_that_are_gone_take_no_part() -> None:
    whole = tiny()
    kept = {"0": Kept(out=(0, 1, 3, 4)), "2": Kept(inputs=(0, 1, 3, 4))}
    sliced = build(whole.network, Plan(kept=kept)).eval()
    state = expand(sliced, whole.network, Plan(kept=kept), whole.example)
    made, alone = compressor(state, original=whole), compressor(State(sliced, whole.example))
    limit = 0.7 * alone.original.parameters
    compressed = made.compress(limit / made.original.parameters)
    assert compressed.plan.kept == kept
    assert compressed.plan.factors == alone.compress(0.7).plan.factors != {}
    assert compressed.count.parameters <= limit
    torch.testing.assert_close(compressed.network(whole.example), alone.compress(0.7).network(whole.example))
    after = expand(compressed.network, whole.network, compressed.plan, whole.example)
    torch.testing.assert_close(after.network(whole.example), compressed.network(whole.example))


def test_divisors() -> None:
    assert [divisors(n) for n in (1, 7, 12, 64)] == [[1], [1, 7], [1, 2, 3, 4, 6, 12], [1, 2, 4, 8, 16, 32, 64]]
