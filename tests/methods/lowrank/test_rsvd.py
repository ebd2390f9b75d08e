"""RSVD: the ranks of SVD, its factors and errors against numpy's, and what its seed decides."""

import numpy as np
import pytest
import torch
from torch import nn

from experiment.errors import ConfigError, InfeasibleBudget
from experiment.layers.factored_layers import product
from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Compressor, make_method
from experiment.methods.configure import configure
from experiment.random_streams import generator, seeded


def compressor(state: State, label: str = "RSVD", seed: int = 0, **settings: object) -> Compressor:
    entry = METHODS[label]
    method = make_method(entry, configure(entry, settings).settings)
    return Compressor(method, state, count(state.network, state.example), None, generator("test_rsvd", seed))


def wide() -> State:
    """Layers whose ranks leave much to a sketch; the third convolution has nothing in it."""
    with seeded("test_rsvd"):
        network = nn.Sequential(
            nn.Conv2d(6, 64, 3), nn.ReLU(), nn.Conv2d(64, 48, 3), nn.Conv2d(48, 48, 1), nn.Flatten(), nn.Linear(48, 40)
        )
        for i in (0, 2, 5):
            weight = network[i].weight
            decay = 0.93 ** torch.arange(weight.shape[0], dtype=torch.float32)
            with torch.no_grad():
                weight.mul_(decay.reshape(-1, *[1] * (weight.dim() - 1)))
        nn.init.zeros_(network[3].weight)
    return State(network.eval(), torch.ones(1, 6, 5, 5))


@pytest.mark.parametrize("groups", [1, 2])
def test_ranks_and_sizes_are_those_of_svd(groups: int, state: State) -> None:
    mine, theirs = compressor(state, groups=groups), compressor(state, "SVD", groups=groups)
    for keep in (0.9, 0.6, 0.4):
        for quantity in ("parameters", "flops"):
            try:
                expected = theirs.compress(keep, quantity)
            except InfeasibleBudget:  # what SVD refuses, this refuses too
                with pytest.raises(InfeasibleBudget):
                    mine.compress(keep, quantity)
                continue
            assert mine.compress(keep, quantity).plan.factors == expected.plan.factors


def test_analysis_decomposes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("decomposed")

    for name in ("qr", "svd", "eigh", "eigvalsh", "svdvals"):
        monkeypatch.setattr(torch.linalg, name, refuse)
    made = compressor(wide())
    with pytest.raises(AssertionError, match="decomposed"):  # the plan does: nothing else computes factors
        made.compress(0.5)


@pytest.mark.parametrize("power_iterations", [0, 2])
def test_factors_are_nearly_the_best_ones_and_errors_as_told(power_iterations: int) -> None:
    state = wide()
    compressed = compressor(state, power_iterations=power_iterations).compress(0.3)
    for name in ("0", "2", "5"):
        W = state.network.get_submodule(name).weight.detach().flatten(1).double().numpy()
        rank, sigma = compressed.plan.factors[name].rank, np.linalg.svd(W, compute_uv=False)
        assert rank + 10 < len(sigma)  # else it is exact
        rest = W - product(compressed.network.get_submodule(name)).flatten(1).numpy()
        error, detail = np.linalg.norm(rest, 2), compressed.plan.details[name]
        assert sigma[rank] - 1e-6 <= error <= (1.02 if power_iterations else 2) * sigma[rank]
        assert detail["relative_error_exact"] == pytest.approx(error / sigma[0], rel=1e-3)
        told = float(str(detail["relative_error"]))
        assert error / sigma[0] <= told <= 20 * np.linalg.norm(rest) / sigma[0]
        layer = compressed.network.get_submodule(name)
        U, V = layer.decoder.weight.flatten(1), layer.encoder.weight.flatten(1)
        torch.testing.assert_close(U.norm(dim=0), V.norm(dim=1), rtol=1e-4, atol=1e-6)  # balanced
    detail = compressed.plan.details["3"]  # the layer of zeros
    assert (detail["relative_error"], detail["relative_error_exact"]) == (0, 0)


def test_more_power_iterations_never_hurt_on_average() -> None:
    errors = [
        np.mean([
            float(str(compressor(wide(), seed=seed, power_iterations=q).compress(0.3).plan.details["2"][
                "relative_error_exact"]))
            for seed in range(4)
        ])
        for q in (0, 1, 3)
    ]  # fmt: skip
    assert errors == sorted(errors, reverse=True)


def test_seed_decides_the_factors_and_the_order_of_keep_ratios_does_not() -> None:
    state = wide()
    first, second, other = compressor(state), compressor(state), compressor(state, seed=1)
    second.compress(0.6)
    a, b, c = (made.compress(0.3) for made in (first, second, other))
    assert a.plan.factors == b.plan.factors == c.plan.factors
    assert a.plan.details == b.plan.details
    weights = [made.network[2].encoder.weight for made in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    earlier = first.compress(0.6).plan
    first.compress(0.4)
    again = first.instantiate(earlier)[2].encoder.weight  # a plan made before another one
    assert torch.equal(again, second.compress(0.6).network[2].encoder.weight)


def test_registered_as_random_with_checked_settings() -> None:
    for wrong in ({"oversampling": 0}, {"power_iterations": -1}):
        with pytest.raises(ConfigError, match="must be at least"):
            configure("RSVD", wrong)
