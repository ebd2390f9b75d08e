"""The L-C optimizer against its formulas written out, a problem solved by brute force, and itself after a kill."""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment.config.schema.budget import Budget
from experiment.datasets.python_samples import PairData
from experiment.errors import CompressionError, TrainingDiverged
from experiment.lc import optimizer as module
from experiment.lc.optimizer import LCOptimizer
from experiment.lc.projection import FunctionProjection, MethodProjection
from experiment.lc.schedule import LCSettings
from experiment.lc.state import LCRecord
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Calibration, make_method
from experiment.training.evaluation import Metrics
from experiment.training.settings import DistillationSpec, PenaltySpec, TrainSettings

SGD = TrainSettings(
    num_epochs=1, batch_size=16, optimizer="SGD",
    optimizer_kwargs={"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
)  # fmt: skip
ADAM = TrainSettings(num_epochs=1, batch_size=16, optimizer="Adam", optimizer_kwargs={"lr": 0.01})
SETTINGS = LCSettings(
    steps=5, iterations=3, iterations_first=7, mu_init=0.05, mu_multiplier=2.0, mu_cap=0.15, lr_decay=0.5
)


class Killed(Exception):
    pass


def largest(share: float) -> Callable[[nn.Module], nn.Module]:
    """Zero all but this share of every layer's weights, in place."""

    def shrink(network: nn.Module) -> nn.Module:
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                bound = layer.weight.abs().flatten().quantile(1 - share)
                layer.weight.data *= layer.weight.abs() >= bound
        return network

    return shrink


def make(
    network: nn.Module, data: dict[str, Any], settings: LCSettings = SETTINGS, training: TrainSettings = SGD,
    project: Any = None, **more: Any,
) -> LCOptimizer:  # fmt: skip
    project = project or FunctionProjection(largest(0.25), lambda small: small)
    return LCOptimizer(
        network, project, data["train"], data["valid"], settings, training, example=data["example"], stream=("t",),
        **more,
    )  # fmt: skip


def method_projection(
    network: nn.Module, data: dict[str, Any], label: str, keep: float, **settings: Any
) -> MethodProjection:
    entry, example = METHODS[label], data["example"]
    method = make_method(entry, entry.settings(**settings))
    calibration = Calibration(*data["valid"].first(40))
    original = count(network, example)
    return MethodProjection(method, keep, Budget.read("parameters"), None, example, original, calibration, ("m",))


def timeless(rows: list[LCRecord]) -> list[LCRecord]:
    return [dataclasses.replace(row, seconds=0.0) for row in rows]


def test_the_steps_are_those_of_the_formulas(network: nn.Sequential, data: dict[str, Any]) -> None:
    """Four steps in plain torch: Condensa's Nesterov, v <- m v - r g, w <- w - r g + m v; BatchNorm in train mode."""
    network[3] = nn.Identity()  # no dropout, whose draws are the optimizer's own
    optimizer = make(network, data)
    optimizer.run()
    w = copy.deepcopy(network)
    weights = [w[0].weight, w[4].weight]
    prune, batches = largest(0.25), iterator(data["train"])
    multipliers, mu, rows = [torch.zeros_like(p) for p in weights], 0.0, []
    theta = prune(copy.deepcopy(w).eval())
    expected = [measured(theta, weights)]
    for j in range(1, 5):
        mu = [0.05, 0.1, 0.2, 0.2][j - 1]  # 0.2 is over the cap, and stays
        learn(
            w,
            weights,
            [theta[0].weight, theta[4].weight],
            multipliers,
            mu,
            0.05 * 0.5 ** (j - 1),
            7 if j == 1 else 3,
            batches,
        )
        target = copy.deepcopy(w).eval()
        for layer, multiplier in zip((target[0], target[4]), multipliers, strict=True):
            layer.weight.data -= multiplier / mu
        theta = prune(target)
        expected.append(measured(theta, weights))
        multipliers = [
            m - mu * (p.detach() - t)
            for m, p, t in zip(multipliers, weights, (theta[0].weight.data, theta[4].weight.data), strict=True)
        ]
        rows.append(mu)
    found = optimizer.records
    assert [row.mu for row in found] == [0.0, *rows]
    assert [row.iterations for row in found] == [0, 7, 10, 13, 16]
    assert [row.learning_rate for row in found] == [None, *(pytest.approx(0.05 * 0.5**j) for j in range(4))]
    assert [row.distance for row in found] == pytest.approx(expected, rel=1e-5)
    for name, parameter in w.named_parameters():
        assert torch.allclose(optimizer._network.get_parameter(name), parameter, atol=1e-5)
    for name, multiplier in zip("04", multipliers, strict=True):
        assert torch.allclose(optimizer._state.multipliers[name], multiplier, atol=1e-5)


def iterator(train: PairData) -> Any:
    for epoch in itertools.count():
        yield from train.batches(16, stream=("t", "epoch", epoch))


def measured(theta: nn.Module, weights: list[Tensor]) -> float:
    gaps = [(p - t.weight).square().sum() for p, t in zip(weights, (theta[0], theta[4]), strict=True)]
    return float(torch.stack(gaps).sum().sqrt().detach())


def learn(
    w: nn.Module, weights: list[Tensor], theta: list[Tensor], multipliers: list[Tensor], mu: float, rate: float,
    iterations: int, batches: Any,
) -> None:  # fmt: skip
    w.train()
    velocity = {id(p): torch.zeros_like(p) for p in w.parameters()}
    for _ in range(iterations):
        x, y = next(batches)
        parameters = list(w.parameters())
        gradients = torch.autograd.grad(nn.functional.cross_entropy(w(x), y), parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                g = g + 1e-3 * p
                for weight, t, multiplier in zip(weights, theta, multipliers, strict=True):
                    if weight is p:
                        g = g + mu * (p - t) - multiplier
                v = velocity[id(p)] = 0.9 * velocity[id(p)] - rate * g
                p += -rate * g + 0.9 * v


def test_it_finds_the_optimum_of_a_convex_problem() -> None:
    """Logistic regression whose weights must be a S, for one number a: direct compression takes the wrong a."""
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([2.0, 1.0, 0.5])
    y = (x[:, 0] + x[:, 2] + torch.randn(200, generator=torch.Generator().manual_seed(2)) > 0).long()
    images = PairData("all", (x, y), torch.device("cpu"))
    S = torch.tensor([[-1.0, -2.0, 0.5], [1.0, 0.0, 3.0]])

    def on_the_line(module: nn.Module) -> nn.Module:
        module.weight.data = (module.weight.data * S).sum() / S.square().sum() * S
        return module

    network = nn.Linear(3, 2, bias=False)
    W = torch.zeros(2, 3, requires_grad=True)
    minimise(W, lambda: nn.functional.cross_entropy(x @ W.T, y))
    network.weight.data = W.detach()
    a = torch.zeros((), requires_grad=True)
    best = minimise(a, lambda: nn.functional.cross_entropy(x @ (a * S).T, y))
    settings = LCSettings(steps=40, iterations=30, iterations_first=30, mu_init=0.05, mu_multiplier=1.1, mu_cap=1.0)
    whole = TrainSettings(num_epochs=1, batch_size=200, optimizer_kwargs={"lr": 0.3, "momentum": 0.9, "nesterov": True})
    data = {"train": images, "valid": images, "example": x[:1]}
    optimizer = make(network, data, settings, whole, FunctionProjection(on_the_line, lambda small: small))
    found = optimizer.run().network.weight.detach()
    rows = optimizer.records
    assert rows[0].valid_loss > 1.02 * best
    assert rows[-1].valid_loss == pytest.approx(best, rel=1e-5)
    assert torch.allclose(found, a.detach() * S, rtol=0.01)
    assert rows[-1].relative_distance < 1e-3 < rows[0].relative_distance


def minimise(variable: Tensor, loss: Callable[[], Tensor]) -> float:
    """The smallest loss, the variable being where it is."""
    solver = torch.optim.LBFGS([variable], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss()
        value.backward()
        return value

    solver.step(closure)
    return float(loss().detach())


@pytest.mark.parametrize(
    ("training", "kill"),
    [(SGD, ("step", 1)), (SGD, ("step", 3)), (SGD, ("step", 5)), (SGD, ("batch", 10)), (ADAM, ("step", 2))],
    ids=str,
)
def test_killed_is_uninterrupted_bit_for_bit(
    network: nn.Sequential, data: dict[str, Any], tmp_path: Path, training: TrainSettings, kill: tuple[str, int]
) -> None:
    path = tmp_path / "checkpoint.pt"
    project = method_projection(network, data, "WT", 0.4)
    whole = make(network, data, training=training, project=project)
    expected = whole.run().network.state_dict()
    if kill[0] == "step":
        steps = make(network, data, training=training, project=project, checkpoint=path).steps()
        for _ in range(kill[1]):
            next(steps)
    else:
        dying = data | {"train": Dying(data["train"], kill[1])}
        with pytest.raises(Killed):
            make(network, dying, training=training, project=project, checkpoint=path).run()
    again = make(network, data, training=training, project=project, checkpoint=path)
    result = again.run().network.state_dict()
    assert timeless(again.records) == timeless(whole.records)
    assert all(torch.equal(result[name], value) for name, value in expected.items())
    finished = make(network, data, training=training, project=project, checkpoint=path)
    assert list(finished.steps()) == []
    assert torch.equal(next(finished.best.network.parameters()), next(again.best.network.parameters()))


PRICED = {"price": 0.02, "cost": "parameters"}
RISING = LCSettings(steps=6, iterations=3, iterations_first=7, mu_init=0.02, mu_multiplier=8.0)


def test_ranks_with_a_price_grow_with_mu(network: nn.Sequential, data: dict[str, Any]) -> None:
    """Step 0, where mu is 0, takes the first mu; a pair of functions is not told."""
    project = method_projection(network, data, "L-Rank", 1.0, **PRICED)
    seen: list[tuple[float, int]] = []

    def watched(module: nn.Module, mu: float) -> Any:
        projected = project(module, mu)
        seen.append((mu, projected.compressed.count.parameters))
        return projected

    optimizer = make(network, data, RISING, project=watched)
    optimizer.run()
    assert [mu for mu, _ in seen] == [0.02, *(row.mu for row in optimizer.records[1:])]
    assert [row.mu for row in optimizer.records] == [0.0, *(pytest.approx(0.02 * 8**j) for j in range(5))]
    sizes = [size for _, size in seen]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == project.original.parameters


@pytest.mark.parametrize("best", range(6))
@pytest.mark.parametrize("after", [3, 6])
def test_a_resumed_best_has_the_ranks_of_its_own_mu(
    network: nn.Sequential, data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int, after: int
) -> None:
    """Whichever step has the smallest loss: what is compressed again after an interruption is the same network."""
    path, project = tmp_path / "checkpoint.pt", method_projection(network, data, "L-Rank", 1.0, **PRICED)
    losses = [0.5 + 0.1 * abs(j - best) for j in range(6)]
    calls: list[float] = []
    monkeypatch.setattr(
        module, "validate", lambda *_: Metrics(calls.append(0.0) or losses[(len(calls) - 1) % 6], {}, 40)
    )
    whole = make(network, data, RISING, project=project)
    expected = whole.run()
    calls.clear()
    steps = make(network, data, RISING, project=project, checkpoint=path).steps()
    for _ in range(after):
        next(steps)
    again = make(network, data, RISING, project=project, checkpoint=path)
    result = again.run()
    assert timeless(again.records) == timeless(whole.records)
    assert (result.compressed.plan, result.compressed.count) == (expected.compressed.plan, expected.compressed.count)
    state = expected.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in result.network.state_dict().items())


class Dying:
    """Training samples that end the process after a number of batches."""

    def __init__(self, images: PairData, batches: int) -> None:
        self._images, self._left = images, batches

    def __len__(self) -> int:
        return len(self._images)

    def batches(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for batch in self._images.batches(*args, **kwargs):
            yield batch
            self._left -= 1
            if self._left == 0:
                raise Killed


@pytest.mark.parametrize("damage", ["cut", "settings", "network"])
def test_a_file_of_another_optimization_is_set_aside(
    network: nn.Sequential, data: dict[str, Any], tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "checkpoint.pt"
    make(network, data, checkpoint=path).run()
    settings = SETTINGS
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "settings":
        settings = dataclasses.replace(SETTINGS, mu_init=0.06)
    else:
        network[0].weight.data += 1.0
    assert len(list(make(network, data, settings, checkpoint=path).steps())) == 5
    assert "renamed to" in caplog.text
    assert (tmp_path / "checkpoint.pt.damaged").is_file()


def test_the_best_is_chosen_by_the_validation_loss_alone(
    network: nn.Sequential, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[nn.Module] = []
    losses = [0.9, float("nan"), 0.3, 0.3, 0.4]

    def validate(compressed: nn.Module, images: object, *_: object) -> Metrics:
        assert images is data["valid"]
        seen.append(compressed)
        return Metrics(losses[len(seen) - 1], {"top1": 1.0 - 0.1 * len(seen)}, 40)

    monkeypatch.setattr(module, "validate", validate)
    assert make(network, data).run().network is seen[2]
    seen.clear()
    losses[:] = [float("nan")] * 5
    with pytest.raises(TrainingDiverged, match="muInit"):
        make(network, data).run()


def test_divergence_is_told(network: nn.Sequential, data: dict[str, Any]) -> None:
    wild = dataclasses.replace(SGD, optimizer_kwargs={"lr": 1e30})
    with pytest.raises(TrainingDiverged, match=r"^step 1 of learning and compressing, mu .*: training diverged"):
        make(network, data, training=wild).run()


def test_the_network_is_left_as_it_is(network: nn.Sequential, data: dict[str, Any]) -> None:
    before = copy.deepcopy(network.state_dict())
    make(network, data).run()
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_layer_that_is_left_whole_is_free(network: nn.Sequential, data: dict[str, Any]) -> None:
    """Drawn by nothing, it ends where it would without any compression."""

    def first(module: nn.Module) -> nn.Module:
        module[0].weight.data *= 0.0
        return module

    optimizer = make(network, data, project=FunctionProjection(first, lambda small: small))
    optimizer.run()
    assert set(optimizer._state.theta) == {"0"}
    free = make(network, data, project=FunctionProjection(lambda small: small, lambda small: small))
    free.run()
    assert free._state.theta == {}
    assert {row.distance for row in free.records} == {0.0}


class Small(nn.Module):
    """Somebody's own compressed form: rank one in every layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.shape = network
        for name, layer in network.named_children():
            if isinstance(layer, nn.Linear):
                u, s, v = torch.linalg.svd(layer.weight, full_matrices=False)
                self.register_buffer(f"u{name}", u[:, :1] * s[:1])
                self.register_buffer(f"v{name}", v[:1])
                layer.weight.data = self.get_buffer(f"u{name}") @ self.get_buffer(f"v{name}")

    def forward(self, x: Tensor) -> Tensor:
        return self.shape(x)


def test_functions_of_ones_own(network: nn.Sequential, data: dict[str, Any]) -> None:
    best = make(network, data, project=FunctionProjection(Small, lambda small: small.shape)).run().network
    assert isinstance(best, Small)
    assert not best.training
    assert int(torch.linalg.matrix_rank(best.shape[0].weight)) == 1


@pytest.mark.parametrize(
    ("shrink", "restore", "told"),
    [
        (lambda n: None, lambda n: n, "compress must return a torch.nn.Module. Got a NoneType"),
        (lambda n: n, lambda n: 3, "decompress must return a torch.nn.Module. Got an int"),
        (lambda n: n, lambda n: n[0], "layer '0' with a weight of shape (16, 6)"),
    ],
)
def test_functions_that_return_something_else(
    network: nn.Sequential, data: dict[str, Any], shrink: Any, restore: Any, told: str
) -> None:
    with pytest.raises(CompressionError, match=told.replace("(", r"\(").replace(")", r"\)")):
        make(network, data, project=FunctionProjection(shrink, restore)).run()


@pytest.mark.parametrize("label", ["WT", "SNIP", "FT", "ThiNet", "SVD", "ALDS", "PCA", "Messi3", "Fake"])
def test_every_method_is_a_scheme(network: nn.Sequential, data: dict[str, Any], label: str) -> None:
    project = method_projection(network, data, label, 0.65)
    optimizer = make(network, data, project=project)
    best = optimizer.run()
    assert best.compressed is not None
    assert label == "Fake" or best.compressed.count.parameters <= 0.65 * project.original.parameters
    with torch.no_grad():
        assert torch.allclose(best.dense.eval()(data["example"]), best.network(data["example"]), atol=1e-5)


def test_pruned_weights_come_back(network: nn.Sequential, data: dict[str, Any]) -> None:
    project = method_projection(network, data, "WT", 0.4)
    supports = []

    def watched(module: nn.Module, mu: float) -> Any:
        projected = project(module, mu)
        supports.append({name: mask.clone() for name, mask in projected.compressed.plan.masks.items()})
        return projected

    make(network, data, project=watched).run()
    assert any(bool((supports[-1][name] & ~mask).any()) for name, mask in supports[0].items())


def test_the_weights_meet_the_compressed_ones_as_mu_grows(network: nn.Sequential, data: dict[str, Any]) -> None:
    settings = LCSettings(steps=24, iterations=30, iterations_first=30, mu_init=0.01, mu_multiplier=1.5, lr_decay=0.9)
    slow = dataclasses.replace(SGD, optimizer_kwargs={"lr": 0.005, "momentum": 0.5})
    optimizer = make(network, data, settings, slow, method_projection(network, data, "WT", 0.4))
    optimizer.run()
    gaps = [row.relative_distance for row in optimizer.records]
    assert gaps[-1] < 0.03 * gaps[0]


def test_a_teacher_can_take_the_place_of_the_labels(network: nn.Sequential, data: dict[str, Any]) -> None:
    """With alpha 1 what is learnt is what the network before compression answers, whatever the labels say."""
    training = dataclasses.replace(SGD, distillation=DistillationSpec(temperature=2.0, alpha=1.0))
    x, y = data["train"].take(torch.arange(70))
    other = data | {"train": PairData("train", (x, (y + 1) % 4), torch.device("cpu"))}
    found, shifted = (make(network, d, training=training) for d in (data, other))
    for optimizer in (found, shifted):
        optimizer.run()
    assert [row.valid_loss for row in found.records] == [row.valid_loss for row in shifted.records]
    plain = make(network, other)
    plain.run()
    assert plain.records[-1].valid_loss > shifted.records[-1].valid_loss


def test_penalties_act_in_every_step(network: nn.Sequential, data: dict[str, Any]) -> None:
    penalty = PenaltySpec(layers=("0",), l1=1e3, proximal=True)
    training = dataclasses.replace(SGD, penalties=(penalty,))
    best = make(network, data, dataclasses.replace(SETTINGS, steps=2), training)
    best.run()
    assert best.records[-1].valid["top1"] < 0.5, "nothing is left of the first layer"


def test_every_network_of_a_process_is_compiled(data: dict[str, Any], graphs: list[Any]) -> None:
    """More networks of one class than torch compiles if it remembers them all; each once for all of its steps."""
    settings = dataclasses.replace(SETTINGS, steps=3, iterations=1, iterations_first=1)
    for i in range(torch._dynamo.config.recompile_limit + 2):
        network = nn.Sequential(nn.Linear(6, 4 + i, bias=False))
        make(network, data, settings, dataclasses.replace(SGD, compiled=True)).run()
        assert len(graphs) == i + 1, "one graph each"
