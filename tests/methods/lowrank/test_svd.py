"""The SVD baselines: what their threshold means, and that no larger one would fit."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from experiment.layers.build import expand
from experiment.layers.factored_layers import product
from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Compressor, make_method
from experiment.random_streams import generator

LABELS = ("SVD", "SVD-Energy", "SVD-Error")


def compressor(label: str, state: State) -> Compressor:
    entry = METHODS[label]
    original = count(state.network, state.example)
    return Compressor(make_method(entry, entry.settings()), state, original, None, generator("test_svd"))


def spectra(state: State) -> dict[str, np.ndarray]:
    """Singular values of every weight as a matrix (filters, rest)."""
    layers = {n: m for n, m in state.network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return {n: np.linalg.svd(m.weight.detach().flatten(1).numpy(), compute_uv=False) for n, m in layers.items()}


def size_at(state: State, curves: dict[str, np.ndarray], threshold: float, total: int) -> int:
    """Parameters of the whole network with the first rank of every layer whose curve is at most the threshold."""
    for name, values in curves.items():
        weight = state.network.get_submodule(name).weight
        rank = int(np.argmax(values <= threshold)) + 1
        total += min(rank * (weight.shape[0] + weight[0].numel()), weight.numel()) - weight.numel()
    return total


@pytest.mark.parametrize("keep", [0.85, 0.6, 0.4, 0.3])
def test_lowest_threshold_that_fits(keep: float, state: State) -> None:
    """SVD's, the share of ranks left out. Equal shares are common: layers of the same share go one at a time."""
    made = compressor("SVD", state)
    planned, limit = made.compress(keep).count.parameters, int(keep * made.original.parameters)
    full = {name: len(sigma) for name, sigma in spectra(state).items()}
    curves = {name: np.maximum(1 - (np.arange(1, n + 1) + 0.5) / n, 0) for name, n in full.items()}
    values = np.concatenate(list(curves.values()))
    sizes = [size_at(state, curves, threshold + 1e-6, made.original.parameters) for threshold in values]
    assert max(size for size in sizes if size <= limit) <= planned <= limit
    assert planned < min(size for size in sizes if size > limit)


@pytest.mark.parametrize("label", LABELS)
def test_weights_are_truncated_svds_and_errors_as_told(label: str, state: State) -> None:
    compressed = compressor(label, state).compress(0.5)
    assert compressed.plan.factors
    for name, detail in compressed.plan.details.items():
        W = state.network.get_submodule(name).weight.detach().flatten(1).double().numpy()
        if detail["rank"] is None:
            assert name not in compressed.plan.factors
            assert (detail["relative_error"], detail["relative_error_exact"]) == (0, 0)
            continue
        U, S, Vt = np.linalg.svd(W, full_matrices=False)
        rank = compressed.plan.factors[name].rank
        W_hat = product(compressed.network.get_submodule(name)).flatten(1).numpy()
        assert W_hat == pytest.approx((U[:, :rank] * S[:rank]) @ Vt[:rank], abs=1e-6 * S[0])
        exact = np.linalg.norm(W - W_hat, 2) / S[0]
        energy = np.linalg.norm(W - W_hat) ** 2 / np.linalg.norm(W) ** 2
        assert detail["relative_error_exact"] == pytest.approx(exact, abs=1e-6)
        assert detail["relative_error"] == pytest.approx(energy if label == "SVD-Energy" else exact, abs=1e-6)
        assert (detail["rank"], detail["groups"], detail["folding"]) == (rank, 1, 0)


def test_svd_keeps_the_same_share_of_ranks(state: State) -> None:
    made = compressor("SVD", state)
    full = {name: len(sigma) for name, sigma in spectra(state).items()}
    for keep in (0.6, 0.4, 0.3):
        compressed = made.compress(keep)
        factors = compressed.plan.factors
        # a share t with rank = round(t * full), at least 1, exists: the intervals of all layers meet
        low = max((factors[name].rank - 0.5) / full[name] for name in factors if factors[name].rank > 1)
        high = min((factors[name].rank + 0.5) / full[name] for name in factors)
        assert low <= high


def test_layer_that_is_zero_has_no_error_and_the_smallest_rank(state_of: Callable[[str], State]) -> None:
    state = state_of("cnn")
    nn.init.zeros_(state.network[4].weight)
    for label in ("SVD-Energy", "SVD-Error", "ALDS"):
        compressed = compressor(label, state).compress(0.5)
        detail = compressed.plan.details["4"]
        assert (detail["rank"], detail["relative_error"], detail["relative_error_exact"]) == (1, 0, 0)
        assert torch.isfinite(compressed.network(state.example)).all()


def test_masked_layers_are_paid_by_their_masks_and_lose_them_as_factors(state: State) -> None:
    """After weight pruning, factors must be smaller than what the masks had left."""
    pruned = compressor("WT", state).compress(0.6)
    middle = expand(pruned.network, state.network, pruned.plan, state.example)
    entry = METHODS["SVD-Error"]
    original = count(state.network, state.example)
    made = Compressor(make_method(entry, entry.settings()), middle, original, None, generator("test_svd"))
    assert made.compress(0.6).count == pruned.count
    compressed = made.compress(0.45)
    assert compressed.plan.factors
    assert compressed.count.parameters == compressed.plan.parameters <= 0.45 * original.parameters
    assert compressed.plan.masks.keys() == {
        n for n in middle.masks if n.split(".weight")[0] not in compressed.plan.factors
    }
