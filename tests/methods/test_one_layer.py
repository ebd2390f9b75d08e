"""One layer alone at a keep ratio: its weights against numpy, groups of channels, and what no method can do."""

import numpy as np
import pytest
import torch
from torch import nn

from experiment.layers.factored_layers import product
from experiment.layers.masks import named_masks
from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Calibration
from experiment.methods.configure import configure
from experiment.methods.one_layer import OneLayer, why_not
from experiment.networks.make_network import make_network
from experiment.random_streams import generator, seeded
from experiment.registry import InputShape

KEEPS = (0.8, 0.5, 0.11)


def one_layer(label: str, name: str = "lenet5", **settings: object) -> OneLayer:
    shape = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    with seeded("test_one_layer"):
        network = make_network(name, {}, InputShape(shape), 10).eval()
        calibration = Calibration(torch.randn(32, *shape), torch.randint(10, (32,)))
    state, spec = State(network, torch.zeros(1, *shape)), configure(METHODS[label], settings)
    return OneLayer(spec, state, count(network, state.example), calibration, generator("test_one_layer"))


def whole_network(one: OneLayer) -> nn.Module:
    return one._state.network


def test_a_masked_layer_keeps_its_largest_weights_and_no_other_changes() -> None:
    one = one_layer("WT")
    assert [unit.layers for unit in one.units] == [("conv1",), ("conv2",), ("fc1",), ("fc2",)]
    unit, before = one.units[1], whole_network(one)
    assert unit.parameters == before.conv2.weight.numel()
    for keep, made in zip(KEEPS, one.compress(unit, KEEPS), strict=True):
        assert made is not None
        weights = before.conv2.weight.detach().numpy()
        number = int(keep * weights.size + 1e-6)
        smallest = np.sort(np.abs(weights).ravel())[-number]
        assert np.array_equal(made.conv2.weight.detach().numpy(), np.where(np.abs(weights) >= smallest, weights, 0))
        assert set(named_masks(made)) == {"conv2.weight"}
        for name in ("conv1", "fc1", "fc2"):
            assert torch.equal(made.get_submodule(name).weight, before.get_submodule(name).weight)


def test_a_low_rank_layer_is_the_truncated_svd_of_the_largest_rank_that_fits() -> None:
    one = one_layer("SVD")
    unit = next(unit for unit in one.units if unit.layers == ("fc1",))
    W = whole_network(one).fc1.weight.detach().double().numpy()
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    for keep, made in zip(KEEPS, one.compress(unit, KEEPS), strict=True):
        assert made is not None
        rank = int(keep * W.size) // sum(W.shape)
        assert product(made.fc1).detach().numpy() == pytest.approx((U[:, :rank] * S[:rank]) @ Vt[:rank], abs=1e-5)
        assert torch.equal(made.conv1.weight, whole_network(one).conv1.weight)


def test_a_rank_below_one_is_no_network() -> None:
    one = one_layer("SVD")
    unit = next(unit for unit in one.units if unit.layers == ("conv1",))  # 20 x 25
    assert [made is None for made in one.compress(unit, (0.5, 0.05))] == [False, True]


@pytest.mark.parametrize("label", ["FT", "PFP", "ThiNet", "Global Filters", "FilterPrune", "PFP (rand)"])
def test_filters_of_one_layer_go_with_what_reads_them(label: str) -> None:
    one = one_layer(label)
    unit = next(unit for unit in one.units if unit.layers == ("conv1",))
    assert unit.parameters == 20 * (25 + 1) + 20 * 50 * 25  # its filters, biases, and the columns of conv2
    for keep, made in zip(KEEPS, one.compress(unit, KEEPS), strict=True):
        assert made is not None
        assert made.conv1.out_channels == made.conv2.in_channels == int(keep * 20)
        assert (made.conv2.out_channels, made.fc1.out_features) == (50, 500)


def test_layers_that_lose_the_same_channels_are_one_unit() -> None:
    one = one_layer("FT", "resnet20")
    tied = next(unit for unit in one.units if len(unit.layers) > 1)
    network = whole_network(one)
    width = network.get_submodule(tied.layers[0]).out_channels
    (made,) = one.compress(tied, [0.5])
    assert made is not None
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            left = width // 2 if name in tied.layers else module.out_channels
            assert made.get_submodule(name).out_channels == left, name


def test_settings_of_the_method_stay() -> None:
    one = one_layer("WT", ignore=["conv*"])
    assert [unit.layers for unit in one.units] == [("fc1",), ("fc2",)]
    (made,) = one.compress(one.units[0], [0.5])
    assert made is not None
    assert set(named_masks(made)) == {"fc1.weight"}
    assert [unit.layers for unit in one_layer("SVD", layers=["fc*"], ignore=["fc2"]).units] == [("fc1",)]


@pytest.mark.parametrize(
    ("label", "settings", "why"),
    [
        ("WT", {}, None),
        ("FT", {}, None),
        ("Mix", {}, None),
        ("Fake", {}, "does not change"),
        ("Quantize", {}, "settings decide"),
        ("Prune", {"density": 0.5}, "settings decide"),
        ("Uniform", {}, "no setting ignore"),
        ("Compose", {"schemes": [{"name": "FT"}, {"name": "Quantize"}]}, "no setting ignore"),
        ("Blocks", {}, "whole blocks"),
    ],
)
def test_methods_that_compress_no_single_layers_say_why(label: str, settings: dict[str, object], why: object) -> None:
    found = why_not(configure(METHODS[label], settings))
    assert found is None if why is None else str(why) in str(found)
