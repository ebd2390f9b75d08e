"""Masked weights stay at zero, through optimizers, copies and files, and nothing else does."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from experiment import random_streams
from experiment.layers.masks import add_masks, bake_masks, named_masks

MASKED = ("0.weight", "0.bias", "1.weight", "1.bias", "4.weight")
OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: Adam(p, lr=0.1, weight_decay=0.1),
    "adamw": lambda p: AdamW(p, lr=0.1, weight_decay=0.1),
    "rmsprop": lambda p: RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1),
}


def make_network(seed: int = 0) -> nn.Sequential:
    """A small CNN whose weights, biases and BatchNorm are all away from zero."""
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 3)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=random_streams.generator("weights", seed, parameter.numel()))
    return network


def make_masks(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Half of every parameter of MASKED, at random."""
    generator = random_streams.generator("masks", seed)
    parameters = dict(network.named_parameters())
    return {n: torch.rand(parameters[n].shape, generator=generator) < 0.5 for n in MASKED}


def masked_network(seed: int = 0) -> tuple[nn.Sequential, dict[str, Tensor]]:
    network = make_network(seed)
    masks = make_masks(network)
    add_masks(network, masks)
    return network, masks


def inputs() -> Tensor:
    return torch.randn(8, 2, 5, 5, generator=random_streams.generator("inputs"))


def values(network: nn.Module) -> dict[str, Tensor]:
    """Every weight and bias as the network computes with it."""
    return {
        f"{name}.{parameter}": getattr(module, parameter)
        for name, module in network.named_children()
        for parameter in ("weight", "bias")
        if hasattr(module, parameter)
    }


def train(network: nn.Module, optimizer: Optimizer, steps: int = 5) -> None:
    network.train()
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(inputs()), torch.arange(8).add(step) % 3)
        loss.backward()
        optimizer.step()


class _Caching(nn.Linear):
    """Keeps what it has computed, as torchvision's RAFT does."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = [super().forward(x)]
        return self.seen[0]


def test_networks_that_keep_what_they_computed_are_baked() -> None:
    network = nn.Sequential(_Caching(4, 3))
    add_masks(network, {"0.weight": torch.arange(12).view(3, 4) % 2 > 0})
    y = network(torch.ones(2, 4))
    torch.testing.assert_close(bake_masks(network)(torch.ones(2, 4)), y)


def test_masked_places_are_zero_and_others_untouched() -> None:
    plain = dict(make_network().named_parameters())
    network, masks = masked_network()
    for name, value in values(network).items():
        mask = masks.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value[mask], plain[name][mask])
        assert not value[~mask].any()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_keeps_zeros_and_moves_the_rest(optimizer: str) -> None:
    network, masks = masked_network()
    before = {n: v.detach().clone() for n, v in values(network).items()}
    train(network, OPTIMIZERS[optimizer](network.parameters()))
    after = values(network)
    for name, mask in masks.items():
        assert not after[name][~mask].any(), name
    assert (after["4.weight"] != before["4.weight"])[masks["4.weight"]].all()
    assert (after["1.bias"] != before["1.bias"])[masks["1.bias"]].any()
    assert torch.equal(named_masks(network)["4.weight"], masks["4.weight"])


def test_training_equals_training_with_zeros_put_back() -> None:
    """The mask acts like a projection after every step whose gradients and momenta are masked too."""
    network, masks = masked_network()
    reference = make_network()
    parameters = dict(reference.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask)
            parameters[name].register_hook(lambda gradient, mask=mask: gradient * mask)
    train(network, OPTIMIZERS["sgd"](network.parameters()))
    train(reference, OPTIMIZERS["sgd"](reference.parameters()))
    for name, value in values(network).items():
        torch.testing.assert_close(value, parameters[name])


def test_stale_momentum_does_not_revive() -> None:
    """Masks that are added in the middle of a training hold against the momentum gathered before."""
    network = make_network()
    optimizer = OPTIMIZERS["sgd"](network.parameters())
    train(network, optimizer)
    masks = make_masks(network)
    add_masks(network, masks)
    train(network, optimizer)
    assert not any(value[~masks[n]].any() for n, value in values(network).items() if n in masks)


def test_a_zero_bias_that_is_not_masked_learns() -> None:
    network, _ = masked_network()
    nn.init.zeros_(network[4].bias)
    train(network, OPTIMIZERS["sgd"](network.parameters()), steps=1)
    assert network[4].bias.all()
    assert "4.bias" not in named_masks(network)


def test_zero_weights_that_are_not_masked_learn() -> None:
    network = make_network()
    nn.init.zeros_(network[4].weight)
    mask = torch.ones(3, 100, dtype=torch.bool)
    mask[:, 0] = False
    add_masks(network, {"4.weight": mask})
    train(network, OPTIMIZERS["sgd"](network.parameters()), steps=1)
    assert network[4].weight[:, 1:].any()
    assert not network[4].weight[:, 0].any()


def test_damaged_values_are_overwritten() -> None:
    network = nn.Linear(2, 2)
    with torch.no_grad():
        network.weight[0] = torch.tensor([torch.nan, torch.inf])
    add_masks(network, {"weight": torch.tensor([[False, False], [True, True]])})
    assert torch.equal(network.weight[0], torch.zeros(2))


def test_named_masks() -> None:
    network, masks = masked_network()
    found = named_masks(network)
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[n], masks[n]) for n in masks)
    assert named_masks(make_network()) == {}
    nested = nn.Sequential(nn.Sequential(), network)
    assert set(named_masks(nested)) == {f"1.{n}" for n in MASKED}
    single = nn.Linear(2, 1)
    add_masks(single, {"bias": torch.tensor([False])})
    assert set(named_masks(single)) == {"bias"}


def test_the_mask_is_copied() -> None:
    network = nn.Linear(2, 2)
    mask = torch.eye(2, dtype=torch.bool)
    add_masks(network, {"weight": mask})
    mask.fill_(True)
    assert torch.equal(named_masks(network)["weight"], torch.eye(2, dtype=torch.bool))


def test_masking_again_keeps_both() -> None:
    network, first = masked_network()
    second = make_masks(network_without_masks := make_network(), seed=1)
    add_masks(network, second)
    for name, mask in named_masks(network).items():
        assert torch.equal(mask, first[name] & second[name])
        plain = network_without_masks.get_parameter(name)
        assert torch.equal(values(network)[name], plain * (first[name] & second[name]))
    train(network, OPTIMIZERS["adamw"](network.parameters()))
    assert not any(v[~(first[n] & second[n])].any() for n, v in values(network).items() if n in first)


def test_unknown_parameter_is_refused() -> None:
    with pytest.raises(AttributeError, match="gamma"):
        add_masks(make_network(), {"0.gamma": torch.ones(1, dtype=torch.bool)})


def test_deepcopy_is_independent() -> None:
    network, masks = masked_network()
    before = network.eval()(inputs())
    other = copy.deepcopy(network)
    assert torch.equal(other(inputs()), before)
    train(other, OPTIMIZERS["sgd"](other.parameters()))
    add_masks(
        other, {"0.weight": torch.zeros(4, 2, 3, 3, dtype=torch.bool), "4.bias": torch.zeros(3, dtype=torch.bool)}
    )
    assert torch.equal(network(inputs()), before)
    assert network[4].bias.all()
    assert torch.equal(named_masks(network)["0.weight"], masks["0.weight"])
    assert not other[0].weight.any()
    assert not other[4].bias.any()


def test_state_dict_round_trip() -> None:
    """A file brings masks and weights into a network that was masked elsewhere."""
    network, masks = masked_network()
    train(network, OPTIMIZERS["sgd"](network.parameters()))
    other = make_network(seed=1)
    add_masks(other, {n: torch.ones_like(m) for n, m in masks.items()})
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert all(torch.equal(named_masks(other)[n], m) for n, m in masks.items())
    assert torch.equal(other.eval()(inputs()), network.eval()(inputs()))
    train(other, OPTIMIZERS["sgd"](other.parameters()))
    assert not any(v[~masks[n]].any() for n, v in values(other).items() if n in masks)


def test_bake_masks() -> None:
    network, masks = masked_network()
    network.eval()
    before = network(inputs())
    baked = bake_masks(network)
    assert torch.equal(baked(inputs()), before)
    assert [type(m) for m in baked] == [type(m) for m in make_network()]
    assert set(baked.state_dict()) == set(make_network().state_dict())
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in baked.parameters())
    make_network().load_state_dict(baked.state_dict(), strict=True)
    assert all(torch.equal(dict(baked.named_parameters())[n] != 0, masks[n]) for n in masks)


def test_baking_leaves_the_network_and_its_copies_alone() -> None:
    network, masks = masked_network()
    twin = copy.deepcopy(network)
    before = network.eval()(inputs())
    bake_masks(network)
    bake_masks(twin)
    for each in (network, twin.eval(), copy.deepcopy(network)):
        assert torch.equal(each(inputs()), before)
        assert named_masks(each).keys() == masks.keys()
        train(each, OPTIMIZERS["sgd"](each.parameters()), steps=1)
        assert not any(v[~masks[n]].any() for n, v in values(each).items() if n in masks)


def test_baking_a_plain_network_copies_it() -> None:
    network = make_network().eval()
    baked = bake_masks(network)
    assert baked is not network
    assert torch.equal(baked(inputs()), network(inputs()))


def test_masks_follow_the_network() -> None:
    network, masks = masked_network()
    half = copy.deepcopy(network).double()
    assert half[0].weight.dtype == torch.float64
    assert all(m.dtype == torch.bool for m in named_masks(half).values())
    assert not half[0].weight[~masks["0.weight"]].any()
    assert all(m.device.type == "meta" for m in named_masks(copy.deepcopy(network).to("meta")).values())


class EveryKind(nn.Module):
    """Recurrent layers and cells, a bilinear layer, a raw parameter, attention, and an embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 6, 2, bidirectional=True, proj_size=3, batch_first=True)
        self.gru, self.cell, self.bilinear = nn.GRU(6, 8, batch_first=True), nn.LSTMCell(8, 8), nn.Bilinear(8, 8, 8)
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.gru(self.lstm(self.embedding(tokens) + self.position)[0])[0]
        x = self.bilinear(x, x)
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(x + self.cell(x[:, 0])[0][:, None])


def every_kind() -> tuple[EveryKind, Tensor, dict[str, Tensor]]:
    with random_streams.seeded("every kind"):
        network, tokens = EveryKind().eval(), torch.randint(0, 20, (3, 5))
        masks = {name: torch.rand(p.shape) < 0.5 for name, p in network.named_parameters() if p.dim() > 1}
    return network, tokens, masks


def trained(network: nn.Module, tokens: Tensor) -> nn.Module:
    optimizer = AdamW(network.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        network(tokens).square().sum().backward()
        optimizer.step()
    return network.eval()


@pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:The tensor attributes")  # of any LSTM's export
def test_matrices_of_every_kind_stay_at_zero() -> None:
    """In training, copies, files and plain layers, where torch keeps lists of recurrent weights, and shares them."""
    network, tokens, masks = every_kind()
    reference, masked = copy.deepcopy(network), copy.deepcopy(network)
    with torch.no_grad():
        for name, mask in masks.items():
            reference.get_parameter(name).mul_(mask)
    add_masks(masked, masks)
    torch.testing.assert_close(masked(tokens), reference(tokens))
    for each in (trained(masked, tokens), trained(copy.deepcopy(masked), tokens)):
        baked = bake_masks(each)
        torch.testing.assert_close(baked(tokens), each(tokens))
        assert type(baked.lstm) is nn.LSTM
        assert baked.head.weight is baked.embedding.weight
        for name, mask in masks.items():
            assert not baked.get_parameter(name)[~mask].any(), name
            assert baked.get_parameter(name)[mask].all(), name
        assert copy.deepcopy(each).double()(tokens).dtype == torch.float64
        torch.testing.assert_close(torch.export.export(baked, (tokens,)).module()(tokens), each(tokens))
    loaded = copy.deepcopy(network)
    add_masks(loaded, {name: torch.ones_like(mask) for name, mask in masks.items()})
    loaded.load_state_dict(masked.state_dict())
    torch.testing.assert_close(loaded(tokens), masked(tokens))
    assert all(torch.equal(named_masks(loaded)[name], mask) for name, mask in masks.items())


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_file_does_not_write_into_the_masks_that_were_given() -> None:
    network, tokens, masks = every_kind()
    ones = {name: torch.ones_like(mask) for name, mask in masks.items()}
    given, other = copy.deepcopy(network), copy.deepcopy(network)
    add_masks(given, ones, unfilled=True)
    add_masks(other, masks)
    given.load_state_dict(other.state_dict())
    assert all(mask.all() for mask in ones.values())
    assert torch.equal(given(tokens), other(tokens))
