"""NeuronPrune, FilterPrune, StructurePrune: exact counts against numpy, and thinned networks that equal masked ones."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment import compress
from experiment.errors import CompressionError, ConfigError
from experiment.layers.plan import Kept, State
from experiment.random_streams import generator, seeded

KINDS = {"NeuronPrune": nn.Linear, "FilterPrune": nn.Conv2d, "StructurePrune": (nn.Linear, nn.Conv2d)}
OUTPUT = "7"
NORMS = {
    "l2norm": lambda rows: np.sqrt((rows**2).sum(1)),
    "max": lambda rows: rows.max(1),
    "min": lambda rows: rows.min(1),
    "mean": lambda rows: rows.mean(1),
    "sum": lambda rows: rows.sum(1),
}


@pytest.fixture
def net() -> nn.Module:
    with seeded("tests/methods/test_structure"):
        network = nn.Sequential(
            nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(),
            nn.Linear(192, 30), nn.ReLU(), nn.Identity(), nn.Linear(30, 10),
        )  # fmt: skip
        nn.init.uniform_(network[1].running_mean, -0.2, 0.2)
        return network.eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 2, 6, 6, generator=generator("tests/methods/test_structure"))


def ranking(net: nn.Module, method: str, criteria: str = "l2norm") -> list[tuple[str, int]]:
    """All neurons and filters that may go, the most worth first, by numpy."""
    found = []
    for name, module in net.named_modules():
        if isinstance(module, KINDS[method]) and name != OUTPUT:
            rows = np.abs(module.weight.detach().double().numpy()).reshape(module.weight.shape[0], -1)
            found += [(-score, name, i) for i, score in enumerate(NORMS[criteria](rows))]
    return [(name, i) for _, name, i in sorted(found, key=lambda item: item[0])]


def masked(net: nn.Module, gone: list[tuple[str, int]]) -> nn.Module:
    """A copy in which these rows are zero, with their biases and BatchNorm."""
    network = copy.deepcopy(net)
    norms = {"0": "1"}
    with torch.no_grad():
        for name, i in gone:
            for module in (name, *([norms[name]] if name in norms else [])):
                for parameter in network.get_submodule(module).parameters():
                    parameter[i] = 0
                network.get_submodule(module)._buffers.get("running_mean", torch.zeros(99))[i] = 0
    return network


def channels(result: Any) -> dict[str, int]:
    return dict(zip(result.layers["layer"], result.layers["channels"], strict=True))


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("criteria", NORMS)
def test_exactly_the_best_stay_and_thinned_is_masked(net: nn.Module, x: Tensor, method: str, criteria: str) -> None:
    order = ranking(net, method, criteria)
    number = int(0.4 * len(order))
    result = compress(net, method, example=x, density=0.4, criteria=criteria)
    best, forced = order[:number], {name for name, _ in order} - {name for name, _ in order[:number]}
    for name in forced:  # a layer keeps its best one, in the place of the last of the others
        best = [*best[:-1], next(unit for unit in order if unit[0] == name)]
    assert sum(n for name, n in channels(result).items() if name in {u[0] for u in order}) == number
    gone = [unit for unit in order if unit not in best]
    torch.testing.assert_close(result.network(x), masked(net, gone)(x), rtol=1e-5, atol=1e-5)
    assert result.network.get_submodule(OUTPUT).out_features == 10
    for name in ("0", "4"):
        left = [i for n, i in best if n == name]
        if any(n == name for n, _ in order):
            whole = tuple(range(net.get_submodule(name).weight.shape[0]))
            assert (result.plan.kept.get(name, Kept()).out or whole) == tuple(sorted(left))


def test_neurons_and_filters_are_in_one_pool(net: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        net.get_submodule("4").weight.mul_(100)
    found = channels(compress(net, "StructurePrune", example=x, density=0.5))
    assert found == {"0": 1, "4": 20, "7": 10}
    apart = channels(compress(net, "NeuronPrune", example=x, density=0.5))
    assert apart == {"0": 12, "4": 15, "7": 10}


def test_counts_are_rounded_down_but_never_to_none(net: nn.Module, x: Tensor) -> None:
    for density in (0.2, 0.6, 1.0):
        plain = channels(compress(net, "StructurePrune", example=x, density=density))
        rounded = channels(compress(net, "StructurePrune", example=x, density=density, align=8))
        assert rounded == {n: k if n == OUTPUT else max(k // 8 * 8, 8) for n, k in plain.items()}


def test_layers_may_be_left_out_or_have_a_density_of_their_own(net: nn.Module, x: Tensor) -> None:
    found = compress(net, "StructurePrune", example=x, density=0.5, layers={"4": {"density": 0.3}})
    assert channels(found) == {"0": 6, "4": 9, "7": 10}
    assert channels(compress(net, "StructurePrune", example=x, density=0.5, ignore=["0"])) == {
        "0": 12,
        "4": 15,
        "7": 10,
    }
    budgeted = compress(net, "StructurePrune", example=x, keep=0.2, layers={"4": {"density": 0.3}})
    assert channels(budgeted)["4"] == 9
    assert budgeted.keep_parameters <= 0.2


def test_what_neurons_without_weights_still_give_is_kept_where_biases_are(net: nn.Module, x: Tensor) -> None:
    order = ranking(net, "NeuronPrune")
    gone = order[int(0.4 * len(order)) :]
    network = copy.deepcopy(net)
    with torch.no_grad():
        for name, i in gone:
            network.get_submodule(name).weight[i] = 0
    thinned = compress(net, "NeuronPrune", example=x, density=0.4, prune_bias=False).network
    torch.testing.assert_close(thinned(x), network(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(compress(net, "NeuronPrune", example=x, density=0.4).network(x), network(x), atol=1e-3)


def test_a_channel_of_tied_layers_counts_as_its_filters_and_is_worth_their_mean(state_of: Any) -> None:
    state: State = state_of("residual")
    net, weights = state.network, {}
    for name in ("stem.0", "conv1", "conv2", "shortcut.0"):
        weights[name] = net.get_submodule(name).weight.detach().double().flatten(1).norm(dim=1).numpy()
    worth = [
        *((-w, 0, 1) for w in weights["stem.0"]),
        *((-w, 1, 1) for w in weights["conv1"]),
        *((-(a + b) / 2, 2, 2) for a, b in zip(weights["conv2"], weights["shortcut.0"], strict=True)),
    ]
    left, counts, firsts = int(0.6 * (8 + 12 + 24)), [0, 0, 0], {0, 1, 2}
    left -= 4  # the best of every layer
    for _, group, rows in sorted(worth):
        if group in firsts:
            firsts.remove(group)
        else:
            left -= rows
            if left < 0:
                break
        counts[group] += 1
    found = channels(compress(net, "FilterPrune", example=state.example, density=0.6))
    assert [found[n] for n in ("stem.0", "conv1", "conv2", "shortcut.0", "fc")] == [*counts, counts[2], 10]


@pytest.mark.parametrize(
    ("method", "settings", "text"),
    [
        (
            "StructurePrune",
            {"density": 0.01},
            "density 0.01 keeps 0 of 42 units, and every layer keeps at least one: 2 in",
        ),
        (
            "FilterPrune",
            {"density": 0.5, "ignore": ["0"]},
            "FilterPrune: no layer of this network has filters that can",
        ),
        ("NeuronPrune", {"density": 0.5, "layers": {"4": {"density": 0.01}}}, "density 0.01 keeps none of 30 of 4"),
        ("NeuronPrune", {"density": 0.5, "fold": "mean"}, "needs calibration data"),
    ],
)
def test_what_cannot_be_done_is_said(
    net: nn.Module, x: Tensor, method: str, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(CompressionError, match=text):
        compress(net, method, example=x, **settings)


def test_the_classifier_cannot_be_given_a_density(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"NeuronPrune.layers: no layer is called '7'. The layers are 4"):
        compress(net, "NeuronPrune", example=x, density=0.5, layers={"7": {"density": 0.5}})
