"""Prune and BlockPrune: exact counts against numpy, own densities, alignment, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment import compress
from experiment.errors import CompressionError, ConfigError, InfeasibleBudget
from experiment.layers.masks import named_masks
from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Compressor, make_method
from experiment.methods.configure import configure
from experiment.random_streams import generator, seeded

LAYERS = ("0", "3", "5")
NORMS = {
    "l2norm": lambda block: np.sqrt((block**2).sum()),
    "max": np.max,
    "min": np.min,
    "mean": np.mean,
    "sum": np.sum,
}


@pytest.fixture
def net() -> nn.Module:
    with seeded("tests/methods/test_prune"):
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 6)
        ).eval()  # fmt: skip


@pytest.fixture
def x() -> Tensor:
    return torch.randn(1, 2, 6, 6, generator=generator("tests/methods/test_prune"))


def weights(net: nn.Module) -> dict[str, Any]:
    return {name: net.get_submodule(name).get_parameter("weight").detach().numpy() for name in LAYERS}


def kept(network: nn.Module) -> dict[str, Any]:
    masks = named_masks(network)
    whole = {name: np.ones(tuple(network.get_submodule(name).weight.shape), bool) for name in LAYERS}
    return {name: masks[f"{name}.weight"].numpy() if f"{name}.weight" in masks else whole[name] for name in LAYERS}


@pytest.mark.parametrize("density", [0.007, 0.1, 0.3, 1.0])
def test_exactly_the_largest_of_all_layers_stay(net: nn.Module, x: Tensor, density: float) -> None:
    all_weights = np.concatenate([np.abs(w).ravel() for w in weights(net).values()])
    number = int(density * all_weights.size)
    largest = set(np.argsort(-all_weights, kind="stable")[:number].tolist())
    result = compress(net, "Prune", example=x, density=density)
    found = np.concatenate([mask.ravel() for mask in kept(result.network).values()])
    assert set(np.flatnonzero(found).tolist()) == largest
    assert result.parameters == number + 4 + 12 + 6


def test_of_equal_weights_those_that_come_first_stay(net: nn.Module, x: Tensor) -> None:
    for parameter in net.parameters():
        nn.init.constant_(parameter, -0.5)
    found = kept(compress(net, "Prune", example=x, density=0.1).network)
    number = int(0.1 * (72 + 768 + 72))
    assert [int(mask.sum()) for mask in found.values()] == [72, number - 72, 0]
    assert found["3"].ravel()[: number - 72].all()


def test_layers_may_be_left_out_or_have_a_density_of_their_own(net: nn.Module, x: Tensor) -> None:
    settings: dict[str, Any] = {"ignore": ["0"], "layers": {"5": {"density": 0.5}}}
    found = kept(compress(net, "Prune", example=x, density=0.1, **settings).network)
    assert [int(mask.sum()) for mask in found.values()] == [72, int(0.1 * 768), 36]
    w = np.abs(weights(net)["5"])
    assert (w[found["5"]].min()) > w[~found["5"]].max()
    budgeted = compress(net, "Prune", example=x, keep=0.2, **settings)
    total = count(net, x).parameters
    assert budgeted.parameters == int(0.2 * total)
    assert int(kept(budgeted.network)["5"].sum()) == 36
    assert list(budgeted.layers["kept"]) == [1.0, (int(0.2 * total) - 22 - 72 - 36) / 768, 0.5]


def blocks(w: Any, rows: int, columns: int) -> dict[tuple[int, int], Any]:
    return {
        (i, j): np.abs(w[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]).astype(np.float64)
        for i in range(w.shape[0] // rows)
        for j in range(w.shape[1] // columns)
    }


@pytest.mark.parametrize("criteria", NORMS)
def test_exactly_the_best_blocks_stay(net: nn.Module, x: Tensor, criteria: str) -> None:
    cut = {(name, *at): b for name in ("3", "5") for at, b in blocks(weights(net)[name], 3, 2).items()}
    number = int(0.3 * len(cut))
    best = sorted(cut, key=lambda at: -NORMS[criteria](cut[at]))[:number]
    found = kept(compress(net, "BlockPrune", example=x, density=0.3, block_size=(3, 2), criteria=criteria).network)
    assert found["0"].all()
    expected = {name: np.zeros(weights(net)[name].shape, bool) for name in ("3", "5")}
    for name, i, j in best:
        expected[name][3 * i : 3 * i + 3, 2 * j : 2 * j + 2] = True
    for name, mask in expected.items():
        assert (found[name] == mask).all(), name


def test_blocks_are_rounded_down_but_never_to_none(net: nn.Module, x: Tensor) -> None:
    def numbers(density: float, align: int) -> list[int]:
        made = compress(net, "BlockPrune", example=x, density=density, block_size=(3, 2), align=align)
        return [int(mask.sum()) // 6 for mask in list(kept(made.network).values())[1:]]

    seen = []
    for density in (0.05, 0.1, 0.2, 0.3, 0.5):
        plain = numbers(density, 1)
        assert sum(plain) == int(density * (128 + 12))
        assert numbers(density, 4) == [max(n // 4 * 4, 4) if n else 0 for n in plain]
        seen += plain
    assert any(0 < n < 4 for n in seen)


def test_with_a_budget_rounded_blocks_fit(net: nn.Module, x: Tensor) -> None:
    made = compress(net, "BlockPrune", example=x, keep=0.3, block_size=(3, 2), align=4)
    numbers = [int(mask.sum()) // 6 for mask in list(kept(made.network).values())[1:]]
    assert all(n % 4 == 0 for n in numbers)
    total = count(net, x).parameters
    assert int(0.3 * total) - 24 <= made.parameters <= int(0.3 * total)


@pytest.mark.parametrize(
    ("method", "settings", "text"),
    [
        ("Prune", {"density": 1e-4}, "density 0.0001 keeps none of the 912 units"),
        ("Prune", {"density": 0.5, "ignore": ["*"]}, "no convolution, linear layer or other matrix to prune"),
        ("BlockPrune", {"density": 0.5, "block_size": (5, 2)}, r"not divide those of '3' \(12, 64\), '5' \(6, 12\)"),
        ("BlockPrune", {"density": 0.5, "block_size": (4, 2)}, r"not divide those of '5' \(6, 12\). Choose another"),
        ("BlockPrune", {"density": 0.5, "block_size": (1, 1), "ignore": ["3", "5"]}, "no linear layer to prune"),
    ],
)
def test_what_cannot_be_done_is_said(
    net: nn.Module, x: Tensor, method: str, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(CompressionError, match=text):
        compress(net, method, example=x, **settings)


def test_layers_that_blocks_do_not_divide_may_be_exempt(net: nn.Module, x: Tensor) -> None:
    made = compress(net, "BlockPrune", example=x, density=0.5, block_size=(4, 2), ignore=["5"])
    assert [int(m.sum()) for m in kept(made.network).values()] == [72, 384, 72]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"ignore": ["fc*"]}, "Prune.ignore: no layer is called 'fc*'. The layers are 0, 3, 5."),
        ({"layers": {"fc": {"density": 0.5}}}, "Prune.layers: no layer is called 'fc'."),
        ({"layers": {"3": {"density": 0.5}}, "ignore": ["3"]}, "matches '3', which `ignore` matches too"),
        ({"layers": {"3": {"density": 0.5}, "[35]": {"density": 0.5}}}, "which another pattern matches too"),
        ({"layers": {"3": {"densty": 0.5}}}, "layers.3.densty"),
        ({"density": 1.5}, "density: must be"),
        ({"density": 0.0}, "density: must be"),
    ],
)
def test_wrong_settings_are_named(net: nn.Module, x: Tensor, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compress(net, "Prune", example=x, **{"density": 0.5, **settings})
    assert text in str(caught.value)


def test_a_keep_ratio_beside_a_density_is_refused_and_needed_without_one(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(ConfigError, match="keep has no effect: the settings of Prune determine the size"):
        compress(net, "Prune", example=x, keep=0.5, density=0.5)
    with pytest.raises(ConfigError, match="Prune needs keep"):
        compress(net, "Prune", example=x)


def test_a_budget_below_the_density_cannot_be_met(net: nn.Module, x: Tensor) -> None:
    entry = METHODS["Prune"]
    method = make_method(entry, configure(entry, {"density": 0.5}).settings)
    made = Compressor(method, State(net, x), count(net, x), None, generator("x"))
    with pytest.raises(InfeasibleBudget) as caught:
        made.compress(0.4)
    assert caught.value.smallest == 912 // 2 + 22


def test_what_is_masked_stays_masked_and_the_density_is_of_the_original(net: nn.Module, x: Tensor) -> None:
    first = compress(net, "Prune", example=x, density=0.2)
    state = State(net, x, masks=dict(first.plan.masks))
    for density, number in ((0.1, 91), (0.5, int(0.2 * 912))):
        entry = METHODS["Prune"]
        method = make_method(entry, configure(entry, {"density": density}).settings)
        made = Compressor(method, state, count(net, x), None, generator("x")).compress(1.0)
        found, before = kept(made.network), kept(first.network)
        assert sum(int(mask.sum()) for mask in found.values()) == number
        assert not any((found[name] & ~before[name]).any() for name in LAYERS)
