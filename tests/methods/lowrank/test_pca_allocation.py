"""Allocations of PCA: what each makes best, and that refitted decoders come closer to the outputs."""

import pytest
import torch
from torch import Tensor, nn

from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods.base import Calibration, Compressor, make_method
from experiment.methods.configure import configure
from experiment.random_streams import generator

ALLOCATIONS = ("product", "sum", "minimax", "uniform")


@pytest.fixture(scope="module")
def state() -> State:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 20, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(320, 10)
        ).eval()
    return State(net, torch.randn(1, 3, 8, 8))


def images(seed: int) -> Tensor:
    """Of few degrees of freedom, as real ones have."""
    basis = torch.randn(12, 192, generator=generator("pca"))
    return (torch.randn(256, 12, generator=generator("pca", seed)) @ basis / 12**0.5).reshape(-1, 3, 8, 8)


def made(label: str, state: State, **settings: object) -> Compressor:
    spec = configure(label, settings)
    calibration = Calibration(images(1))
    original = count(state.network, state.example)
    return Compressor(make_method(spec.entry, spec.settings), state, original, calibration, generator(0))


def errors(label: str, state: State, keep: float, **settings: object) -> list[float]:
    plan = made(label, state, **settings).plan(keep)
    return [float(detail["relative_error"]) for detail in plan.details.values()]


@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_each_allocation_is_best_in_what_it_makes_small(keep: float, state: State) -> None:
    found = {name: errors("PCA", state, keep, allocation=name) for name in ALLOCATIONS}
    assert min(found, key=lambda name: max(found[name])) == "minimax"
    assert sum(found["sum"]) <= 1.02 * min(map(sum, found.values()))  # the hull's optimum, and a greedy rest


def test_the_same_share_of_every_layer(state: State) -> None:
    compressed = made("SVD-LLM", state).compress(0.5)
    before, after = made("PCA", state).original.layers, compressed.count.layers
    for name in ("0", "2", "5"):
        own = [layer for key, layer in after.items() if key == name or key.startswith(f"{name}.")]
        step = max(layer.parameters for layer in own)
        assert sum(layer.parameters for layer in own) / before[name].parameters <= 0.55, step


@pytest.mark.parametrize(("label", "allocation"), [("BALF", "sum"), ("SVD-LLM", "uniform")])
def test_names_are_presets(label: str, allocation: str, state: State) -> None:
    assert errors(label, state, 0.5) == errors("PCA", state, 0.5, allocation=allocation)


def test_refitted_decoders_come_closer_to_the_outputs(state: State) -> None:
    x = images(2)
    with torch.no_grad():
        plain, fitted = (
            float((made("PCA", state, refit=refit).compress(0.4).network(x) - state.network(x)).square().mean())
            for refit in (False, True)
        )
    assert fitted < plain
