"""Importances of torch-pruning: the same numbers as in the package's own groups, and all of its classes."""

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError, ConfigError
from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods.base import Calibration, Compressor, make_method
from experiment.methods.configure import configure
from experiment.random_streams import generator

tp = pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
ROOT = "torch_pruning.pruner.importance"
CLASSES = (
    "GroupMagnitudeImportance", "GroupTaylorImportance", "GroupHessianImportance", "FPGMImportance", "LAMPImportance",
    "BNScaleImportance", "RandomImportance", "MagnitudeImportance", "TaylorImportance", "HessianImportance",
)  # fmt: skip


class Block(nn.Module):
    """A residual block between two convolutions, and a linear layer that reads a flattened grid."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.outer, self.head = nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        y = y + self.outer(torch.relu(self.inner_norm(self.inner(y))))
        out: Tensor = self.head(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1))
        return out


@pytest.fixture
def state() -> State:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Block().eval()
        for norm in (net.norm, net.inner_norm):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
        return State(net, torch.randn(1, 3, 8, 8))


def compressor(state: State, **settings: object) -> Compressor:
    spec = configure("TorchPruning", settings)
    data = Calibration(torch.randn(8, 3, 8, 8, generator=generator("tp")), torch.arange(8) % 5)
    return Compressor(
        make_method(spec.entry, spec.settings), state, count(state.network, state.example), data, generator(3)
    )


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("allocation", ["global", "uniform", "isomorphic"])
def test_every_class_meets_budgets(name: str, allocation: str, state: State) -> None:
    made = compressor(state, importance=f"{ROOT}:{name}", allocation=allocation)
    compressed = made.compress(0.5)
    assert 0.3 < compressed.count.parameters / made.original.parameters <= 0.5
    assert compressed.network(state.example).shape == (1, 5)


@pytest.mark.parametrize("name", ["GroupMagnitudeImportance", "FPGMImportance", "GroupTaylorImportance"])
def test_scores_are_those_of_the_package_on_its_own_groups(name: str, state: State) -> None:
    ranking = compressor(state, importance=f"{ROOT}:{name}").analysis
    network, importance = state.network, getattr(tp.pruner.importance, name)()
    data, targets = torch.randn(8, 3, 8, 8, generator=generator("tp")), torch.arange(8) % 5
    nn.functional.cross_entropy(network(data), targets).backward()
    graph = tp.DependencyGraph().build_dependency(network, state.example)
    for layer in ("first", "inner"):
        whole = list(range(getattr(network, layer).out_channels))
        expected = importance(graph.get_pruning_group(getattr(network, layer), tp.prune_conv_out_channels, whole))
        index = next(i for i, group in enumerate(ranking.filters.groups) if layer in group.producers)
        torch.testing.assert_close(ranking.scores[index].float(), expected.detach().float(), rtol=1e-4, atol=1e-7)
    network.zero_grad()


def test_own_importances_and_mistakes(state: State, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="must be a class"):
        compressor(state, importance=f"{ROOT}:warnings")
    with pytest.raises(ConfigError, match="forward pass of its own"):
        compressor(state, importance=f"{ROOT}:OBDCImportance")
    with pytest.raises(ConfigError, match="cannot be made with kwargs"):
        compressor(state, kwargs={"q": 3})
    monkeypatch.setattr(tp.pruner.importance.RandomImportance, "__call__", lambda own, group: torch.zeros(1))
    with pytest.raises(CompressionError, match="one number for each of the"):
        compressor(state, importance=f"{ROOT}:RandomImportance")
    spec = configure("TorchPruning", {"importance": f"{ROOT}:GroupTaylorImportance"})
    with pytest.raises(CompressionError, match="needs calibration data with class numbers"):
        Compressor(
            make_method(spec.entry, spec.settings), state, count(state.network, state.example), None, generator(1)
        )


def test_kinds_of_layers_keep_the_same_share_and_their_own_best() -> None:
    """Two layers in a row of the same kind, one of them with small filters: global pruning would empty it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Linear(6, 20), nn.Linear(20, 20), nn.Linear(20, 4)]
    with torch.no_grad():
        layers[1].weight[10:].mul_(0.1)
    state = State(nn.Sequential(*layers).eval(), torch.randn(1, 6))
    spec = configure("TorchPruning", {"allocation": "isomorphic", "kwargs": {"normalizer": None}})
    made = Compressor(
        make_method(spec.entry, spec.settings), state, count(state.network, state.example), None, generator(1)
    )
    scores = torch.cat(
        [own for own, free in zip(made.analysis.scores, made.analysis.filters.free, strict=True) if free]
    )
    kept = made.compress(0.5).plan.kept
    number = sum(len(kept[name].out or ()) for name in ("0", "1"))
    best = set(scores.argsort(descending=True)[:number].tolist())
    assert {*(kept["0"].out or ()), *(20 + i for i in kept["1"].out or ())} == best


def test_frozen_layers_have_gradients_too(state: State) -> None:
    state.network.get_submodule("first").requires_grad_(False)
    made = compressor(state, importance=f"{ROOT}:GroupTaylorImportance")
    assert made.compress(0.5).count.parameters <= 0.5 * made.original.parameters
