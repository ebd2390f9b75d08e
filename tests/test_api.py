"""compress, save_network, load_network on a network of the user's own."""

import copy
import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import experiment
from experiment import compress, compress_many, load_network, load_results, save_network
from experiment.errors import CompressionError, ConfigError, InfeasibleBudget, StoreError
from experiment.methods import METHODS
from experiment.random_streams import seeded

# the network below has no block that a shortcut could stand in for, no neurons but those of its output, and few weights
# in linear layers; Compose is nothing without schemes; Quantize takes no keep. tests/methods/ has all of these.
ELSEWHERE = ("Blocks", "NeuronPrune", "BlockPrune", "Compose", "Quantize")
COMPRESSING = [label for label, entry in METHODS.items() if entry.kind != "none" and label not in ELSEWHERE]
TARGETS = torch.tensor([0, 3])


class Own(nn.Module):
    """A network with a residual sum, a layer used twice and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)
        self.unused = nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.twice(self.twice(x)).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture
def own() -> Own:
    with seeded("own"):
        return Own().train()


@pytest.fixture
def x() -> Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)


@pytest.mark.parametrize("method", COMPRESSING)
@pytest.mark.parametrize("budget", ["parameters", "flops"])
def test_compress_leaves_the_network_as_it_was_and_keeps_the_budget(
    own: Own, x: Tensor, method: str, budget: str
) -> None:
    before = copy.deepcopy(own.state_dict())
    result = compress(own, method, keep=0.6, example=x, data=(x, TARGETS), budget=budget)  # type: ignore[arg-type]
    assert own.training
    assert all(torch.equal(before[name], value) for name, value in own.state_dict().items())
    assert result.network(x).shape == (2, 4)
    assert result.parameters < sum(p.numel() for p in own.parameters())
    assert result.amounts[budget].measured <= result.amounts[budget].limit
    if budget == "parameters":
        assert result.keep_parameters <= 0.6
    assert {"layer", "kind", "parameters_before", "parameters", "flops_before", "flops"} <= set(result.layers.columns)
    reached = result.layers[result.layers["kind"] != "unreachable"]
    assert "unused" not in set(reached["layer"])


@pytest.mark.parametrize("method", COMPRESSING)
def test_a_saved_network_of_the_users_own_comes_back(own: Own, x: Tensor, method: str, tmp_path: Path) -> None:
    result = compress(own, method, keep=0.5, example=x, data=(x, TARGETS))
    with pytest.raises(CompressionError, match="is a folder. Expected the file to write, such as .*small.pt"):
        save_network(result, tmp_path)
    save_network(result, tmp_path / "own.pt")
    loaded = load_network(tmp_path / "own.pt", network=Own())
    assert torch.equal(loaded(x), result.network.eval()(x))
    with pytest.raises(StoreError, match="network=net"):
        load_network(tmp_path / "own.pt")


def test_tensors_made_in_inference_mode(x: Tensor) -> None:
    with torch.inference_mode():
        network = Own()
    assert compress(network, "FT", keep=0.6, example=x).keep_parameters <= 0.6
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_keep_ratios_may_be_left_out_where_the_budget_says_enough(own: Own, x: Tensor) -> None:
    (result,) = compress_many(own, "FT", budget={"bytes": 0.5}, example=x)
    assert result.amounts["bytes"].measured <= result.amounts["bytes"].limit
    with pytest.raises(ConfigError, match="FT needs keep, .* or a share or amount in budget"):
        compress_many(own, "FT", budget="bytes", example=x)


def test_many_keep_ratios_shrink_in_turn(own: Own, x: Tensor) -> None:
    sizes = [result.parameters for result in compress_many(own, "ALDSNet", keeps=[0.9, 0.6, 0.4], example=x)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_settings_are_checked_and_used(own: Own, x: Tensor) -> None:
    assert compress(own, "ALDS", keep=0.5, example=x, error="exact").parameters > 0
    with pytest.raises(ConfigError, match="eror: ALDS has no such setting. Did you mean 'error'"):
        compress(own, "ALDS", keep=0.5, example=x, eror="exact")
    with pytest.raises(ConfigError, match="error: must be one of reference, exact, bound. Got 'exakt'"):
        compress(own, "ALDS", keep=0.5, example=x, error="exakt")
    with pytest.raises(ConfigError, match="Did you mean 'ALDS'"):
        compress(own, "ALSD", keep=0.5, example=x)


def test_recalibration_needs_data_and_batch_norm_and_a_method_that_changes_something(own: Own, x: Tensor) -> None:
    plain = compress(own, "WT", keep=0.3, example=x, data=x)
    made = compress(own, "WT", keep=0.3, example=x, data=x, recalibrate=True)
    assert made.parameters == plain.parameters
    assert not torch.equal(made.network.norm.running_mean, plain.network.norm.running_mean)
    with pytest.raises(CompressionError, match=r"needs calibration data.*data=inputs"):
        compress(own, "ALDS", keep=0.5, example=x, recalibrate=True)
    with pytest.raises(CompressionError, match="no BatchNorm"):
        compress(nn.Linear(9, 9), "SVD", keep=0.5, example=torch.ones(1, 9), data=torch.ones(2, 9), recalibrate=True)
    with pytest.raises(ConfigError, match="Fake does not change the network"):
        compress(own, "Fake", keep=0.5, example=x, data=x, recalibrate=True)


def test_too_small_a_budget_names_the_smallest(own: Own, x: Tensor) -> None:
    with pytest.raises(InfeasibleBudget, match="at least") as caught:
        compress(own, "SVD", keep=0.01, example=x)
    smallest = caught.value.smallest / caught.value.original
    assert compress(own, "SVD", keep=smallest, example=x).parameters == caught.value.smallest


def test_an_example_that_the_network_does_not_take_is_refused(own: nn.Module) -> None:
    with pytest.raises(CompressionError, match=r"example: .* a tensor of shape \(1, 5\) on cpu: "):
        compress(own, "SVD", keep=0.5, example=torch.zeros(2, 5))


def test_a_network_without_layers_to_compress_is_refused(x: Tensor) -> None:
    with pytest.raises(CompressionError, match="nothing to compress"):
        compress(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), "SVD", keep=0.5, example=x)


def test_of_a_masked_network_what_is_left_counts(own: Own, x: Tensor) -> None:
    masked = compress(own, "WT", keep=0.3, example=x)
    result = compress(masked.network, "FT", keep=0.9, example=x)
    assert result.keep_parameters == result.parameters / masked.parameters <= 0.9


def test_a_keep_ratio_must_be_a_number(own: Own, x: Tensor) -> None:
    with pytest.raises(CompressionError, match="must be a number"):
        compress(own, "SVD", keep="half", example=x)  # type: ignore[arg-type]


def test_missing_results_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Run the experiment first"):
        load_results(tmp_path)


def test_the_public_names_are_there() -> None:
    assert all(hasattr(experiment, name) for name in experiment.__all__)


def test_what_is_given_in_the_wrong_form_is_told() -> None:
    network, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 8)
    with pytest.raises(ConfigError, match="error: is given both in `settings` and as a keyword"):
        compress(network, "ALDS", keep=0.5, example=x, settings={"error": "exact"}, error="exact")
    with pytest.raises(ConfigError, match=r"settings must be a mapping .* Got a list"):
        compress(network, "ALDS", keep=0.5, example=x, settings=[1])  # type: ignore[arg-type]
    for data in (torch.utils.data.TensorDataset(x), x.numpy(), 3):
        with pytest.raises(CompressionError, match=r"data: expected inputs \(a tensor, .* Got "):
            compress(network, "PCA", keep=0.5, example=x, data=data)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), 0.5])
def test_a_keep_ratio_is_any_number(keep: Any) -> None:
    network, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 8)
    assert compress(network, "WT", keep=keep, example=x).parameters == 75 // 2


@pytest.mark.parametrize("keep", [True, np.True_, torch.tensor(True), math.nan, 0, 1.1, torch.ones(2), "half"])
def test_what_is_no_keep_ratio_is_refused_at_the_call(keep: Any) -> None:
    network, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 8)
    with pytest.raises(CompressionError, match=r"keep must be a number in \(0, 1\]. Got"):
        compress_many(network, "WT", keeps=[0.5, keep], example=x)


def test_many_are_checked_when_they_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="unknown method"):
        compress_many(nn.Linear(8, 6), "WTF", keeps=[0.5], example=torch.ones(1, 8))


def test_a_setting_may_be_called_like_an_argument() -> None:
    """`method` as a keyword is the setting; what is called `seed` goes into the mapping."""
    network, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 8)
    path = "torch.nn.utils.prune:RandomUnstructured"
    results = [
        compress(network, "TorchPrune", keep=0.5, example=x, method=path),
        compress(network, "TorchPrune", keep=0.5, example=x, settings={"method": path}),
    ]
    assert results[0].parameters == results[1].parameters == 75 // 2
    states = [result.network.state_dict() for result in results]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_result_says_in_a_line_what_is_left() -> None:
    network, x = nn.Sequential(nn.Linear(800, 600), nn.ReLU(), nn.Linear(600, 3)), torch.randn(2, 800)
    result = compress(network.train(), "WT", keep=0.5, example=x)
    assert repr(result) == "WT: 241,201 of 482,403 parameters (50.0 %), 0.482 of 0.482 MFLOPs (100.0 %)"
    assert (result.parameters_before, result.flops_before) == (482_403, 481_800)
    assert network.training
    assert not result.network.training


class AllButOne(prune.BasePruningMethod):
    """A user's method that does not look at the amount."""

    PRUNING_TYPE = "unstructured"

    def __init__(self, amount: float) -> None:
        assert 0 <= amount <= 1

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        return torch.arange(t.numel()).view(t.shape) == 0


def test_a_size_far_below_what_was_asked_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "mine", AllButOne, raising=False)
    network, x = nn.Linear(20, 5), torch.randn(2, 20)
    with pytest.warns(UserWarning, match=r"TorchPrune: 5\.71% of the parameters are left, but 50\.00% were requested"):
        result = compress(network, "TorchPrune", keep=0.5, example=x, method="torch.nn.utils.prune:mine")
    assert result.parameters == 6


def test_arguments_of_another_type_are_told() -> None:
    network, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 8)
    wrong: list[tuple[Any, Any, Any, Any, str]] = [
        (network.state_dict(), "SVD", [0.5], x, "net must be a torch.nn.Module. Got an OrderedDict."),
        (nn.Linear, "SVD", [0.5], x, "net must be a torch.nn.Module. Got the class Linear."),
        (network, 5, [0.5], x, "method must be text: a label or an import path. Got an int."),
        (network, "SVD", 0.5, x, "keeps must be a list of keep ratios. Got a float."),
        (
            network,
            "SVD",
            [0.5],
            x[:0],
            "example: expected at least one input. Got an empty batch, a tensor of shape (0, 8).",
        ),
        (
            network,
            "SVD",
            [0.5],
            (2, 8),
            "example: expected a tensor with a batch dimension, or a tuple or dictionary of such tensors. Got a tuple.",
        ),
    ]
    for net, method, keeps, example, told in wrong:
        with pytest.raises(ConfigError) as caught:
            next(compress_many(net, method, keeps=keeps, example=example))
        assert str(caught.value) == told


def test_what_a_loader_gives_is_taken_as_a_pair() -> None:
    network, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(20, 8)
    y = torch.randint(3, (20,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=20)
    data = [next(iter(loader)), (x, y)]  # a list of two tensors, as loaders make it
    first, second = (compress(network, "SNIP", keep=0.5, example=x, data=pair).network for pair in data)
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


def test_every_public_name_is_there() -> None:
    assert all(callable(getattr(experiment, name)) for name in experiment.__all__)


class Counting(nn.Module):
    """A network whose forward pass writes a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.b(self.a(x).relu())
        return y


@pytest.mark.parametrize("method", ["WT", "FT", "SVD", "PCA"])
def test_what_the_forward_pass_writes_stays_as_it_was(method: str) -> None:
    network, x = Counting(), torch.randn(16, 8)
    result = compress(network, method, keep=0.5, example=x, data=x)
    assert (int(network.calls), int(result.network.calls)) == (0, 0)


@pytest.mark.parametrize("method", ["WT", "FT", "SVD"])
def test_examples_with_gradients(method: str) -> None:
    x = torch.randn(4, 8).requires_grad_()
    assert compress(Counting(), method, keep=0.5, example=x).keep_parameters <= 0.5


def test_calibration_data_that_the_network_does_not_take() -> None:
    with pytest.raises(CompressionError, match=r"data: the network fails on its first sample.*\(1, 5\)"):
        compress(Counting(), "PCA", keep=0.5, example=torch.randn(4, 8), data=torch.randn(6, 5))


def test_two_batches_are_batches() -> None:
    torch.manual_seed(0)
    network, x = Counting(), torch.randn(64, 8)
    whole = compress(network, "PCA", keep=0.5, example=x, data=x)
    parts = compress(network, "PCA", keep=0.5, example=x, data=[x[:32], x[32:]])
    torch.testing.assert_close(parts.network(x), whole.network(x))


class _Subclass(nn.Parameter):
    pass


class _Bare(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        kind = type(value) if isinstance(value, nn.Parameter) else nn.Parameter
        self.bare = kind(value.detach(), requires_grad=value.is_floating_point())
        self.more, self.last = nn.ParameterList([torch.ones(3, 3)]), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(x) * (self.bare.sum() + sum(p.sum() for p in self.more))
        return y


def _hooked_container() -> nn.Module:
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    network.register_parameter("bare", nn.Parameter(torch.ones(3, 3)))
    network.register_forward_hook(lambda module, inputs, output: output * module.bare.sum())
    return network


@pytest.mark.parametrize("method", ["WT", "SNIP", "Quantize"])
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: nn.Linear(9, 4), "example: the network fails on its first sample"),
        (lambda: nn.Linear(8, 4).to("meta"), "the network is on the device meta, without values: 'weight' and 1 more"),
        (lambda: _Bare(torch.full((3, 3), torch.nan)), "layer 'bare': weights must be finite. Got 9 of 9 that are NaN"),
        (lambda: nn.LazyLinear(4), "is lazy and has no weights yet"),
        (lambda: _Bare(torch.ones(3, 3, dtype=torch.int64)), None),
        (lambda: _Bare(_Subclass(torch.ones(3, 3))), None),
        (_hooked_container, None),
        (lambda: nn.DataParallel(nn.Linear(8, 4)), None),
    ],
)
def test_unusual_networks_are_compressed_or_refused(
    method: str, make: Callable[[], nn.Module], told: str | None
) -> None:
    call: dict[str, Any] = {"example": torch.randn(2, 8), "data": (torch.randn(8, 8), torch.arange(8) % 4)}
    call |= {} if method == "Quantize" else {"keep": 0.6}
    if told is None:
        assert compress(make(), method, **call).network(call["example"]).isfinite().all()
    else:
        with pytest.raises(CompressionError, match=told):
            compress(make(), method, **call)


def test_a_network_that_is_dropped_takes_no_memory_while_the_next_one_is_made() -> None:
    """Without the garbage collector of reference cycles, which may run only after several networks."""
    network, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(4, 8)
    results = compress_many(network, "SVD", keeps=[0.8, 0.6], example=x, progress=False)
    gc.disable()
    try:
        dropped = [weakref.ref(parameter) for parameter in next(results).network.parameters()]
        next(results)
        assert all(parameter() is None for parameter in dropped)
    finally:
        gc.enable()
