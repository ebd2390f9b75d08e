"""Penalties against the optimizers that have them built in, against steps written out, and against closed forms."""

import copy
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.datasets.in_memory import MemoryImages
from experiment.layers.factored_layers import FactoredLinear
from experiment.layers.grouped_linear import GroupedLinear
from experiment.layers.masks import add_masks
from experiment.random_streams import generator, seeded
from experiment.training import factories
from experiment.training.loop import TrainingLoop
from experiment.training.penalty import make_penalties, soft_threshold, unmatched
from experiment.training.schedule import Schedule
from experiment.training.settings import PenaltySpec, SchedulerSpec, TrainSettings
from experiment.training.step import TrainingStep

SGD = {"lr": 0.1, "momentum": 0.9}
ADAM = {"lr": 0.01}
WARMUP = (SchedulerSpec("WarmupLR", {}, {"warmup_epoch": 1}), SchedulerSpec("StepLR", {"gamma": 0.5}, {"step_size": 1}))
WEIGHTS = ("0.weight", "6.weight")


def settings_with(*penalties: PenaltySpec, optimizer: str = "SGD", **changes: object) -> TrainSettings:
    kwargs = SGD if optimizer == "SGD" else ADAM
    plain = {"num_epochs": 2, "batch_size": 16, "optimizer": optimizer, "optimizer_kwargs": kwargs}
    return TrainSettings(**{**plain, "schedulers": WARMUP, "penalties": penalties, **changes})  # type: ignore[arg-type]


def trained(network: nn.Module, images: MemoryImages, settings: TrainSettings) -> dict[str, Tensor]:
    TrainingLoop(network, images, settings, valid=None, stream=("t",), device="cpu").run()
    return network.state_dict()


def trained_by_torch(
    network: nn.Module, images: MemoryImages, optimizer: str, monkeypatch: pytest.MonkeyPatch, decay: float
) -> dict[str, Tensor]:
    """The same training with the optimizer's own decay, of the weights of layers alone."""

    def grouped(parameters: object, name: str, kwargs: dict[str, float]) -> torch.optim.Optimizer:
        named = dict(network.named_parameters())
        groups = [
            {"params": [p for n, p in named.items() if n in WEIGHTS], "weight_decay": decay},
            {"params": [p for n, p in named.items() if n not in WEIGHTS], "weight_decay": 0.0},
        ]
        return getattr(torch.optim, optimizer)(groups, **kwargs)  # type: ignore[no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr(factories, "make_optimizer", grouped)
        return trained(network, images, settings_with(optimizer=optimizer))


@pytest.mark.parametrize(
    ("ours", "decoupled", "torchs"), [("SGD", False, "SGD"), ("Adam", False, "Adam"), ("Adam", True, "AdamW")]
)
def test_l2_is_the_weight_decay_of_the_layers_weights(
    network: nn.Sequential, images: MemoryImages, monkeypatch: pytest.MonkeyPatch,
    ours: str, decoupled: bool, torchs: str,
) -> None:  # fmt: skip
    network[0].bias.requires_grad_(False)  # behind BatchNorm its gradient is rounding, which Adam would blow up
    other = copy.deepcopy(network)
    without = trained(copy.deepcopy(network), images, settings_with(optimizer=ours))
    penalty = PenaltySpec(l2=0.5, decoupled=decoupled)
    mine = trained(network, images, settings_with(penalty, optimizer=ours))
    theirs = trained_by_torch(other, images, torchs, monkeypatch, 0.5)
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-6)
    assert (mine["6.weight"] - without["6.weight"]).abs().max() > 1e-3
    assert mine["6.weight"].norm() < without["6.weight"].norm()


def one_step(network: nn.Sequential, images: MemoryImages, penalty: PenaltySpec) -> tuple[np.ndarray, np.ndarray, ...]:
    """One step of plain SGD on one batch: the linear layer's weight before it, its gradient, and the weight after."""
    before, twin = network[6].weight.detach().numpy().astype(np.float64), copy.deepcopy(network)
    kwargs = {"batch_size": len(images), "num_epochs": 1, "schedulers": (), "optimizer_kwargs": {"lr": 0.1}}
    trained(twin, images, settings_with(**kwargs))
    gradient = (before - twin[6].weight.detach().numpy().astype(np.float64)) / 0.1
    trained(network, images, settings_with(penalty, **kwargs))
    return before, gradient, network[6].weight.detach().numpy()


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_one_proximal_step_is_decoupled_decay_and_the_soft_threshold(
    network: nn.Sequential, images: MemoryImages, decay: float
) -> None:
    penalty = PenaltySpec(l1=0.5, l2=decay, proximal=True, decoupled=True)
    before, gradient, after = one_step(network, images, penalty)
    stepped = before - 0.1 * gradient - 0.1 * decay * before
    expected = np.sign(stepped) * np.maximum(np.abs(stepped) - 0.1 * 0.5, 0)
    np.testing.assert_allclose(after, expected, atol=1e-6)
    small = np.abs(stepped) < 0.05 - 1e-6
    assert 0 < small.sum() < small.size
    assert (after[small] == 0).all()


def test_one_subgradient_step(network: nn.Sequential, images: MemoryImages) -> None:
    with torch.no_grad():
        network[6].weight[0, :5] = 0  # where the subgradient is 0
    before, gradient, after = one_step(network, images, PenaltySpec(l1=0.5))
    np.testing.assert_allclose(after, before - 0.1 * (gradient + 0.5 * np.sign(before)), atol=1e-6)


def test_the_threshold_follows_the_schedule(network: nn.Sequential, images: MemoryImages) -> None:
    """Against all steps written out: SGD with momentum, the rate of every step by hand."""
    reference = copy.deepcopy(network).train()
    trained(network, images, settings_with(PenaltySpec(("6",), l1=0.05, proximal=True)))
    velocity = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    steps = math.ceil(90 / 16)
    for epoch in range(2):
        with seeded("t", "epoch", epoch):
            for i, (x, y) in enumerate(images.batches(16, stream=("t", "epoch", epoch))):
                rate = 0.1 * min(epoch + i / steps, 1.0) * 0.5**epoch
                loss = nn.functional.cross_entropy(reference(x), y)
                gradients = torch.autograd.grad(loss, list(reference.parameters()))
                with torch.no_grad():
                    for (name, p), g in zip(reference.named_parameters(), gradients, strict=True):
                        velocity[name] = 0.9 * velocity[name] + g
                        p -= rate * velocity[name]
                    w = reference[6].weight
                    w.copy_(torch.where(w.abs() <= rate * 0.05, 0.0, w - rate * 0.05 * w.sign()))
    weight = network[6].weight
    torch.testing.assert_close(weight, reference[6].weight, rtol=1e-3, atol=1e-5)
    assert int((weight == 0).sum()) == int((reference[6].weight == 0).sum()) > 0
    assert int((network[0].weight == 0).sum()) == 0


def test_soft_threshold_minimises_what_it_says() -> None:
    """Brute force: the minimiser of (u - v)^2 / 2 + t |u| on a fine grid."""
    grid = torch.linspace(-3, 3, 60001, dtype=torch.float64)
    for v in (-2.0, -0.3, 0.0, 0.29, 1.7):
        best = grid[((grid - v) ** 2 / 2 + 0.3 * grid.abs()).argmin()]
        assert float(soft_threshold(torch.tensor(v, dtype=torch.float64), 0.3)) == pytest.approx(float(best), abs=1e-4)


@pytest.mark.parametrize(
    "penalty", [PenaltySpec(l1=0.01, l2=0.1), PenaltySpec(l1=0.01, l2=0.1, proximal=True, decoupled=True)]
)
def test_masked_weights_stay_out(network: nn.Sequential, images: MemoryImages, penalty: PenaltySpec) -> None:
    """What is kept is trained as if the rest had never been there."""
    mask = torch.rand(4, 64, generator=generator("mask")) < 0.5
    add_masks(network, {"6.weight": mask})
    without = trained(copy.deepcopy(network), images, settings_with())
    state = trained(network, images, settings_with(penalty))
    original = "6.parametrizations.weight.original"
    assert (state[original][~mask] == 0).all()
    assert state[original][mask].abs().sum() < without[original][mask].abs().sum()


def test_names() -> None:
    """Factors answer to the layer's name and their own; modules that only share the names are no factors."""
    network = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 2, 3),
            norm=nn.BatchNorm2d(2),
            low=FactoredLinear(OrderedDict(encoder=GroupedLinear(4, 2, 2), decoder=nn.Linear(2, 3))),
            own=nn.Sequential(OrderedDict(encoder=nn.Linear(3, 3), decoder=nn.Linear(3, 3))),
        )
    )

    def penalised(*patterns: str) -> list[str]:
        found = {id(term.weight) for term in make_penalties(network, [PenaltySpec(patterns, l2=1.0)]).terms}
        return [name for name, parameter in network.named_parameters() if id(parameter) in found]

    assert penalised("low") == ["low.encoder.weight", "low.decoder.weight"]
    assert penalised("low.dec*") == ["low.decoder.weight"]
    assert penalised("own") == []
    assert penalised("own.*", "conv") == ["conv.weight", "own.encoder.weight", "own.decoder.weight"]
    assert penalised("*") == [n for n, p in network.named_parameters() if p.dim() > 1]
    assert penalised("norm") == []
    specs = [PenaltySpec(("conv",)), PenaltySpec(("conv", "norm"))]
    assert unmatched(network, specs) == [
        (
            1,
            "no convolution or linear layer is named 'norm'. "
            "There are conv, low.encoder, low.decoder, own.encoder, own.decoder.",
        )
    ]


def test_a_shared_weight_counts_once_an_entry_and_entries_add_up() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    penalties = make_penalties(network, [PenaltySpec(l2=0.5), PenaltySpec(("1",), l2=0.25)])
    network[0].weight.grad = torch.zeros(3, 3)
    penalties.add_gradients()
    torch.testing.assert_close(network[0].weight.grad, 0.75 * network[0].weight.detach())


def test_frozen_and_unreached_weights_are_left_alone() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[0].weight.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    penalties = make_penalties(network, [PenaltySpec(l1=0.5, l2=0.5, proximal=True, decoupled=True)])
    penalties.add_gradients()
    penalties.shrink(1.0, penalties.decay(1.0))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_with_scaled_gradients(optimizer: str) -> None:
    """As float16 has them: a step is what it is without scaling, and one that overflows moves nothing."""
    penalty = PenaltySpec(l1=0.1, l2=0.3, proximal=True, decoupled=True)
    settings = settings_with(penalty, PenaltySpec(l1=0.1, l2=0.3), optimizer=optimizer, schedulers=())
    x, y = torch.rand(8, 3, generator=generator("x")), torch.arange(8) % 2

    def after_steps(scaled: bool, *factors: float) -> Tensor:
        with seeded("layer"):
            layer, factor = nn.Linear(3, 2), iter(factors)
        step = TrainingStep(layer, settings, Schedule(settings, 1), torch.device("cpu"), model=layer)
        step.loss = lambda z, y: nn.functional.cross_entropy(z, y) * next(factor)
        step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, enabled=scaled)
        for _ in factors:
            step(x, y, 8)
        return layer.weight.detach()

    start = after_steps(False)
    assert torch.equal(after_steps(True, 1e38), start)
    torch.testing.assert_close(after_steps(True, 1.0, 1e38, 2.0), after_steps(False, 1.0, 2.0))
    assert (after_steps(False, 1.0) - start).abs().min() > 0
