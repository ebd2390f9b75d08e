"""Relative sensitivities against explicit loops over filters, inputs, positions and samples."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from experiment.errors import CompressionError
from experiment.methods.data import sensitivity
from experiment.methods.data.sensitivity import Reduction, channel_sensitivities, weight_sensitivities
from experiment.random_streams import generator, seeded


def small() -> nn.Module:
    with seeded("test_sensitivity"):
        return nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 2, bias=False), nn.ReLU(),
            nn.Flatten(), nn.Linear(16, 5),
        ).eval()  # fmt: skip


def images(number: int = 11) -> Tensor:
    return torch.randn(number, 2, 6, 6, generator=generator("test_sensitivity", "images"))


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {n: m.weight for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def patches(network: nn.Module, name: str, x: Tensor) -> np.ndarray:
    """What the layer sees of every sample at every position: (samples, positions, inputs)."""
    layer = network.get_submodule(name)
    with torch.no_grad():
        x = network[: int(name)](x)
    if isinstance(layer, nn.Linear):
        return x[:, None].double().numpy()
    return unfold(x, layer.kernel_size, 1, layer.padding, layer.stride).mT.double().numpy()


def by_loops(weight: Tensor, a: np.ndarray, reduction: Reduction) -> np.ndarray:
    W = weight.detach().double().flatten(1).numpy()
    if (a < 0).any():
        a = np.concatenate([np.maximum(a, 0), np.maximum(-a, 0)])
    s = np.zeros((*W.shape, *a.shape[:2]))
    for g, x, place in product(range(len(W)), range(a.shape[0]), range(a.shape[1])):
        for sign in (1, -1):
            shares = np.maximum(sign * W[g], 0) * a[x, place]
            if shares.sum() > np.finfo(np.float32).eps:
                s[g, :, x, place] = np.maximum(s[g, :, x, place], shares / shares.sum())
    over_positions = s.max(-1) if reduction == "max" else s.mean(-1)
    return over_positions.max(-1).reshape(tuple(weight.shape))


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_sensitivities_are_those_of_explicit_loops(reduction: Reduction) -> None:
    network, x = small(), images()
    found = weight_sensitivities(network, weights_of(network), x, reduction)
    for name, weight in weights_of(network).items():
        a = patches(network, name, x)
        assert (a < 0).any() == (name in ("0", "2"))
        np.testing.assert_allclose(found[name].numpy(), by_loops(weight, a, reduction), rtol=1e-5, atol=1e-6)
        assert found[name].min() >= 0
        assert found[name].max() <= 1


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_parts_of_any_size_give_the_same(reduction: Reduction, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = small(), images()
    whole = weight_sensitivities(network, weights_of(network), x, reduction)
    monkeypatch.setattr(sensitivity, "SAMPLES", 3)
    monkeypatch.setattr(sensitivity, "PLACES", 2)
    monkeypatch.setattr(sensitivity, "PRODUCTS", {"cpu": 30})
    monkeypatch.setattr(sensitivity, "MOST_PRODUCTS", 100)
    parts = weight_sensitivities(network, weights_of(network), x, reduction)
    for name, s in whole.items():
        torch.testing.assert_close(parts[name], s, rtol=1e-5, atol=1e-7)


def test_positions_of_sequences_belong_to_their_sample() -> None:
    layer = nn.Sequential(nn.Linear(4, 3))
    x = torch.rand(5, 6, 4, generator=generator("test_sensitivity", "sequences"))
    found = weight_sensitivities(layer, {"0": layer[0].weight}, x, "mean")
    np.testing.assert_allclose(found["0"].numpy(), by_loops(layer[0].weight, x.double().numpy(), "mean"), rtol=1e-5)


def test_fewer_positions_find_no_more_than_all() -> None:
    network, x = small(), images()
    every = weight_sensitivities(network, weights_of(network), x)
    some = weight_sensitivities(network, weights_of(network), x, positions=3)
    assert all((some[name] <= every[name] + 1e-9).all() for name in every)
    assert (some["0"] < every["0"]).any()
    same = weight_sensitivities(network, weights_of(network), x, positions=3)
    assert all(torch.equal(same[name], some[name]) for name in some)
    enough = weight_sensitivities(network, weights_of(network), x, positions=9)
    assert all(torch.equal(enough[name], every[name]) for name in every)


def test_channels_have_the_largest_sensitivity_of_their_weights() -> None:
    s = torch.rand(3, 4, 2, 2, generator=generator("test_sensitivity", "channels"))
    expected = [float(s[:, c].max()) for c in range(4)]
    assert channel_sensitivities(s).tolist() == expected


def test_dead_inputs_and_masked_weights_have_none() -> None:
    layer = nn.Sequential(nn.Linear(3, 2))
    weight = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 5.0, 3.0]])
    found = weight_sensitivities(layer, {"0": weight}, torch.tensor([[2.0, 0.0, 4.0], [1.0, 0.0, 0.0]]))
    assert found["0"].tolist() == [[1, 0, 0], [1, 0, 1]]


def test_data_that_are_not_numbers_are_named() -> None:
    network, x = small(), images()
    x[0, 0, 0, 0] = math.nan
    with pytest.raises(CompressionError, match="layer '0': its inputs from the calibration data must be finite"):
        weight_sensitivities(network, weights_of(network), x)
