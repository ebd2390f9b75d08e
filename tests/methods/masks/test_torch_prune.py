"""Masks of torch.nn.utils.prune classes: torch's own as reference, the user's, structured ones, and wrong ones."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from experiment.errors import CompressionError, ConfigError, InfeasibleBudget
from experiment.layers.build import expand
from experiment.layers.compressible import compressible_layers
from experiment.layers.masks import named_masks
from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Compressor
from experiment.methods.configure import configure
from experiment.methods.masks.settings import TorchPruneSettings
from experiment.methods.masks.torch_prune import torch_prune
from experiment.random_streams import generator

TORCH = "torch.nn.utils.prune"


def compressor(state: State, method: str = f"{TORCH}:L1Unstructured", seed: int = 0, **kwargs: object) -> Compressor:
    counted = count(state.network, state.example)
    made = torch_prune(TorchPruneSettings(method, kwargs))
    return Compressor(made, state, counted, None, generator("test_torch_method", seed))


def layers(state: State) -> dict[str, nn.Module]:
    return {n: state.network.get_submodule(n) for n in compressible_layers(state.network, state.example)}


def all_masks(network: nn.Module, state: State) -> dict[str, Tensor]:
    found = named_masks(network)
    whole = {n: torch.ones_like(m.weight, dtype=torch.bool) for n, m in layers(state).items()}
    return {n: found.get(f"{n}.weight", mask) for n, mask in whole.items()}


@pytest.mark.parametrize("keep", [0.9, 0.45, 0.1])
def test_the_budget_is_met_exactly_with_torchs_own_masks(state: State, keep: float) -> None:
    made = compressor(state)
    compressed = made.compress(keep)
    assert compressed.count.parameters == int(keep * made.original.parameters)
    for name, mask in all_masks(compressed.network, state).items():
        module = copy.deepcopy(state.network.get_submodule(name))
        prune.l1_unstructured(module, "weight", amount=int((~mask).sum()))
        assert torch.equal(mask, module.weight_mask.bool())


def test_layers_keep_the_same_share(state: State) -> None:
    masks = all_masks(compressor(state).compress(0.5).network, state)
    shares = [float(mask.double().mean()) for mask in masks.values()]
    assert max(shares) - min(shares) <= 1 / min(mask.numel() for mask in masks.values()) + 1e-9


def test_whole_channels_of_structured_methods(state: State) -> None:
    made = compressor(state, f"{TORCH}:LnStructured", n=2, dim=0)
    for keep in (0.8, 0.4):
        compressed = made.compress(keep)
        assert compressed.count.parameters <= keep * made.original.parameters
        for name, mask in all_masks(compressed.network, state).items():
            rows = mask.flatten(1)
            assert torch.equal(rows.any(1), rows.all(1))
            module = copy.deepcopy(state.network.get_submodule(name))
            prune.ln_structured(module, "weight", amount=int((~rows.any(1)).sum()), n=2, dim=0)
            assert torch.equal(mask, module.weight_mask.bool())


def test_no_further_channel_fits(state: State) -> None:
    made = compressor(state, f"{TORCH}:LnStructured", n=1, dim=1)
    compressed = made.compress(0.6)
    slack = int(0.6 * made.original.parameters) - compressed.count.parameters
    columns = {n: m.weight.numel() // m.weight.shape[1] for n, m in layers(state).items()}
    assert 0 <= slack < max(columns.values())


@pytest.mark.parametrize("method", ["L1Unstructured", "RandomUnstructured"])
def test_masked_weights_stay_masked_and_do_not_count(state: State, method: str) -> None:
    """As torch's container: a second amount is one of what the first left."""
    first = compressor(state, f"{TORCH}:{method}").compress(0.7)
    middle = expand(first.network, state.network, first.plan, state.example)
    made = compressor(middle, f"{TORCH}:{method}")
    second = made.compress(0.6)
    assert second.count.parameters == int(0.6 * made.original.parameters)
    before = all_masks(first.network, state)
    for name, mask in all_masks(second.network, state).items():
        assert not (mask & ~before[name]).any()
        if method == "L1Unstructured":
            module = copy.deepcopy(state.network.get_submodule(name))
            prune.l1_unstructured(module, "weight", amount=int((~before[name]).sum()))
            prune.l1_unstructured(module, "weight", amount=int((before[name] & ~mask).sum()))
            assert torch.equal(mask, module.weight_mask.bool())


def test_structured_cascade_counts_channels_that_are_left(state_of: Callable[[str], State]) -> None:
    state = state_of("cnn")
    masks = {"4.weight": torch.ones(12, 8, 3, 3, dtype=torch.bool)}
    masks["4.weight"][[2, 5]] = False
    start = State(state.network, state.example, masks)
    made = compressor(start, f"{TORCH}:LnStructured", n=2, dim=0)
    assert made.analysis.units == {"0.weight": 8, "4.weight": 10, "8.weight": 20, "10.weight": 10}
    mask = made.compress(0.5).plan.masks["4.weight"]
    assert not mask[[2, 5]].any()
    left = [row for row in range(12) if row not in (2, 5)]
    norms = state.network[4].weight.detach().flatten(1).norm(dim=1)[left]
    kept = mask.flatten(1).any(1)[left]
    assert norms[kept].min() >= norms[~kept].max()


def test_random_methods_follow_the_seed_and_no_global_one(state: State) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    networks = [compressor(state, f"{TORCH}:RandomUnstructured", seed).compress(0.5).network for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    one, again, other = (all_masks(network, state) for network in networks)
    assert all(torch.equal(mask, again[name]) for name, mask in one.items())
    assert not all(torch.equal(mask, other[name]) for name, mask in one.items())


class SmallestLast(prune.BasePruningMethod):
    """A user's: the largest go, except that the very first always stays; the amount is a fraction."""

    PRUNING_TYPE = "unstructured"

    def __init__(self, amount: float, spared: int = 1) -> None:
        self.amount, self.spared = amount, spared

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        mask = default_mask.clone()
        assert 0 <= self.amount <= 1
        mask.view(-1)[t.abs().flatten().argsort(descending=True)[: round(self.amount * t.numel())]] = 0
        mask.view(-1)[: self.spared] = 1
        return mask


class Wrong(SmallestLast):
    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        return torch.ones(3)


class Failing(SmallestLast):
    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        raise KeyError("nothing here")


NOT_A_METHOD = 3


def mine(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An import path of a class of this file."""
    monkeypatch.setattr(prune, "mine", globals()[name], raising=False)
    return f"{TORCH}:mine"


def test_a_method_of_the_users(state_of: Callable[[str], State], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose masks leave more than the amount says: counted, so that the budget is met all the same."""
    state = state_of("cnn")
    made = compressor(state, mine("SmallestLast", monkeypatch), spared=3)
    compressed = made.compress(0.5)
    assert compressed.count.parameters <= int(0.5 * made.original.parameters)
    assert compressed.plan.parameters == compressed.count.parameters
    assert compressed.count.parameters > int(0.5 * made.original.parameters) - 10
    for name, mask in all_masks(compressed.network, state).items():
        magnitudes = state.network.get_submodule(name).weight.detach().abs()
        assert mask.view(-1)[:3].all()
        assert magnitudes[mask].flatten()[3:].max() <= magnitudes[~mask].min()
    with pytest.raises(InfeasibleBudget):
        made.compress(1e-3)


@pytest.mark.parametrize(
    ("name", "text"),
    [("Wrong", r"must return a mask of the weight's shape \(8, 3, 3, 3\)"), ("Failing", r"KeyError: 'nothing here'")],
)
def test_what_a_users_method_does_wrong_is_named(
    state_of: Callable[[str], State], monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    with pytest.raises(CompressionError, match=text):
        compressor(state_of("cnn"), mine(name, monkeypatch)).compress(0.5)


def test_what_is_no_method_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for path, got in (("torch.nn:Linear", "another class"), (f"{TORCH}:l1_unstructured", "a function")):
        with pytest.raises(ConfigError, match=f"must be a subclass of torch.nn.utils.prune.BasePruningMethod.*{got}"):
            torch_prune(TorchPruneSettings(path))
    with pytest.raises(ConfigError, match="an int"):
        torch_prune(TorchPruneSettings(mine("NOT_A_METHOD", monkeypatch)))
    with pytest.raises(ConfigError, match="has no 'L1'"):
        torch_prune(TorchPruneSettings(f"{TORCH}:L1"))
    with pytest.raises(ConfigError, match=r"kwargs\.amount: the keep ratio"):
        torch_prune(TorchPruneSettings(kwargs={"amount": 0.5}))


@pytest.mark.parametrize(
    ("method", "kwargs", "text"),
    [
        ("LnStructured", {"n": 2, "dim": 3}, r"removes channels along dim 3, and the weight has shape \(20, 48\)"),
        ("LnStructured", {}, "cannot be made with amount=0 and kwargs {}: TypeError"),
        ("CustomFromMask", {}, "cannot be made with amount"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    state_of: Callable[[str], State], method: str, kwargs: dict[str, object], text: str
) -> None:
    with pytest.raises(CompressionError, match=text):
        compressor(state_of("cnn"), f"{TORCH}:{method}", **kwargs).compress(0.5)


def test_settings_from_a_file() -> None:
    entry = METHODS["TorchPrune"]
    made = configure(entry, {"method": f"{TORCH}:LnStructured", "kwargs": {"n": 2, "dim": 0}}).settings
    assert made == TorchPruneSettings(f"{TORCH}:LnStructured", {"n": 2, "dim": 0})
    assert configure(entry, {}).settings == TorchPruneSettings()
