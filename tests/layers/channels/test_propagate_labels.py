"""Channels followed where eval mode or one input does not show them all; sliced = masked in every run."""

import copy
import logging
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.shufflenetv2 import InvertedResidual
from torchvision.models.swin_transformer import SwinTransformer

from experiment import compress
from experiment.layers.channels.check_slicing import Run, alike
from experiment.layers.channels.find_groups import channel_groups
from experiment.layers.channels.group_data import ChannelGroup, kept_of
from experiment.layers.channels.slicing import mask_channels, slice_channels
from experiment.layers.deterministic_forward import fixed_draws
from experiment.random_streams import generator, seeded


class TrainingHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.bn, self.c2 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 12, 3, padding=1)
        self.fc, self.aux = nn.Linear(12, 10), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> object:
        x = functional.relu(self.bn(self.c1(x)))
        out = self.fc(functional.dropout(functional.relu(self.c2(x)), 0.5, self.training).mean((2, 3)))
        return (out, self.aux(x.mean((2, 3)))) if self.training else out


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.experts = nn.Linear(8, 32), nn.ModuleList(nn.Linear(32, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h, which = functional.relu(self.trunk(x)), (x[:, 0] > 0).long()
        out = h.new_zeros(len(x), 4)
        for i, expert in enumerate(self.experts):
            if (which == i).any():
                out[which == i] = expert(h[which == i])
        return out


class Noisy(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.draw = nn.Linear(8, 24), nn.Linear(24, 4), draw

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.draw(functional.relu(self.a(x))))
        return out


class Rotary(nn.Module):
    """Attention with rotary positions and a gated unit, as in Llama: slices, negation, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16, bias=False) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.angles = nn.Buffer(
            torch.outer(torch.arange(5.0), torch.rand(2, generator=generator("angles"))).repeat(1, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        def heads(h: Tensor) -> Tensor:
            return h.view(*h.shape[:2], -1, 4).transpose(1, 2)

        def turned(h: Tensor) -> Tensor:
            half = torch.cat([-h[..., 2:], h[..., :2]], -1)
            return h * self.angles.cos() + half * self.angles.sin()

        q, k, v = turned(heads(self.q(x))), turned(heads(self.k(x))), heads(self.v(x))
        x = x + self.o((q @ k.transpose(-1, -2)).softmax(-1).matmul(v).transpose(1, 2).flatten(2))
        out: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return x + out


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator("test_follow"))


def cut(groups: list[ChannelGroup], network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Masked and sliced, without every other channel of what may go."""
    chosen = [range(group.size) if group.exempt else range(0, group.size, 2) for group in groups]
    masked, sliced = copy.deepcopy(network), copy.deepcopy(network)
    mask_channels(masked, kept_of(groups, chosen))
    slice_channels(sliced, kept_of(groups, chosen))
    return masked, sliced


def free(groups: list[ChannelGroup]) -> set[str]:
    return {name for group in groups if group.exempt is None for name in group.producers}


def test_a_head_that_only_training_calls_is_cut_along() -> None:
    network, x = TrainingHead(), inputs(4, 3, 8, 8)
    state, before = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    groups = channel_groups(network, x[:1])

    assert free(groups) == {"c1", "c2"}
    assert all(map(torch.equal, state.values(), network.state_dict().values()))
    assert torch.equal(before, torch.get_rng_state())
    masked, sliced = cut(groups, network)
    for training in (False, True):  # with BatchNorm's own statistics of the batch, too
        with fixed_draws(), torch.no_grad():
            expected, output = masked.train(training)(x), sliced.train(training)(x)
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("method", ["PFP", "ThiNet", "Global Filters"])
def test_methods_with_data_cut_along_it_too(method: str) -> None:
    x = inputs(8, 3, 8, 8)
    network = compress(TrainingHead(), method, keep=0.5, example=x, data=x).network
    assert [output.shape for output in network.train()(x)] == [(8, 10), (8, 10)]


def test_experts_of_other_samples_are_cut_along() -> None:
    x = inputs(16, 8)
    assert bool((x[0, 0] > 0) != (x[1:, 0] > 0).all())
    network = Experts()
    groups = channel_groups(network, x[:1], [x[1:]])

    assert free(groups) == {"trunk"}
    masked, sliced = cut(groups, network)
    torch.testing.assert_close(sliced(x), masked(x))
    assert compress(network, "FT", keep=0.6, example=x).network(x).shape == (16, 4)
    assert compress(network, "FT", keep=0.6, example=x[:1], data=x).network(x).shape == (16, 4)


def test_what_nothing_calls_keeps_what_it_may_read(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="experiment"):
        groups = channel_groups(Experts(), inputs(1, 8))
    assert not free(groups)
    assert "All channels of 'trunk' are kept: 'experts." in caplog.text


@pytest.mark.parametrize(
    "draw",
    [
        lambda h: functional.dropout(h, 0.3),
        lambda h: functional.dropout1d(h[..., None], 0.3)[..., 0],
        lambda h: functional.rrelu(h - 1, training=True),
        lambda h: h + torch.randn_like(h) * (h / 2).exp(),
        lambda h: h * torch.bernoulli(torch.full_like(h, 0.5)),
        lambda h: h + torch.normal(h, 1.0),
        lambda h: h * torch.rand(h.shape) + random.random() + np.random.rand(),
    ],
    ids=["dropout", "dropout1d", "rrelu", "randn_like", "bernoulli", "normal", "rand and others"],
)
def test_random_forward_passes_do_not_stop_it(draw: Callable[[Tensor], Tensor]) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist()
    assert free(channel_groups(Noisy(draw), inputs(2, 8))) == {"a"}
    assert states == (random.getstate(), np.random.get_state()[1].tolist())


def test_a_pass_that_no_seed_reaches_is_called_random() -> None:
    source = np.random.default_rng(0)
    first, _ = channel_groups(Noisy(lambda h: h * float(source.random())), inputs(2, 8))
    assert first.exempt is not None
    assert "the forward pass is random" in first.exempt


def test_a_channel_shuffle_moves_channels() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(functional.relu(self.a(x))[:, torch.arange(8).view(2, 4).T.flatten()])
            return out

    class Block(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 16, 1), InvertedResidual(16, 16, 1), nn.Conv2d(16, 4, 1))

    (member,) = (m for m in channel_groups(Shuffled(), inputs(1, 3, 4, 4))[0].members if m.module == "b")
    assert member.positions == ((0,), (2,), (4,), (6,), (1,), (3,), (5,), (7,))  # an index list is not cut along
    with seeded("test_follow"):
        assert free(channel_groups(Block(), inputs(1, 3, 8, 8))) == {"1.branch2.0", "1.branch2.3"}


def test_rotary_attention_comes_to_an_end() -> None:
    groups = channel_groups(Rotary(), inputs(1, 5, 16))
    assert {"gate", "up"} <= free(groups)
    (pair,) = (group for group in groups if "gate" in group.producers)
    assert pair.producers == ("gate", "up")


def test_window_attention_comes_to_an_end() -> None:
    with seeded("test_follow"):
        network = SwinTransformer([4, 4], 16, [1, 1], [2, 2], [2, 2], num_classes=10)
    groups = channel_groups(network, inputs(1, 3, 32, 32))
    assert free(groups) == {"features.1.0.mlp.0", "features.3.0.mlp.0"}


def test_reasons_are_told_in_few_words(caplog: pytest.LogCaptureFixture) -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))

        def forward(self, x: Tensor) -> Tensor:
            for part in self.parts[:-1]:
                x = x + part(x)
            out: Tensor = self.parts[-1](x)
            return out

    with caplog.at_level(logging.WARNING, logger="experiment"):
        channel_groups(Sums(), inputs(1, 4))
    layers = "'parts.0', 'parts.1', 'parts.2' and 5 more layers"
    told = f"All channels of {layers} are kept: they are combined with the network's input."
    assert [record.getMessage() for record in caplog.records] == [told]


def test_operations_in_place_keep_the_channels_of_several_samples() -> None:
    network = nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True), nn.Linear(6, 2))
    assert free(channel_groups(network, inputs(3, 8))) == {"0"}


@pytest.mark.parametrize(
    ("read", "same"),
    [
        (lambda h, training: functional.relu(h), True),
        (lambda h, training: functional.dropout(h, 0.5), True),
        (lambda h, training: functional.dropout(h, 0.5, training), False),
        (lambda h, training: h * (2.0 if training else 1.0), False),
        (lambda h, training: [h, h.sum() if training else None][0], False),
    ],
)
def test_training_mode_is_followed_only_where_it_computes_something_else(
    read: Callable[[Tensor, bool], Tensor], same: bool
) -> None:
    class Reading(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(read(self.a(x), self.training), self.b.weight)

    network = Reading(functional.relu)
    run = Run(torch.ones(4, 8))
    assert alike(network, [run, replace(run, training=True)]) is same
