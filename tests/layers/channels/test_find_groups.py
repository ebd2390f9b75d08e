"""The channel graph as plain data: groups worked out by hand, and sliced = masked on every network."""

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiment.layers.channels import check_slicing
from experiment.layers.channels.find_groups import GIVES_OUTPUT, channel_groups
from experiment.layers.channels.group_data import ChannelGroup, Member, kept_of, sizes_of
from experiment.layers.channels.slicing import mask_channels, slice_channels
from experiment.layers.grouped_linear import GroupedLinear
from experiment.measure import count, example_input
from experiment.networks.make_network import make_network
from experiment.random_streams import generator, seeded

Forward = Callable[["Toy", Tensor], object]


class Toy(nn.Module):
    """Layers by name and how they are put together."""

    def __init__(self, forward: Forward, **layers: nn.Module) -> None:
        super().__init__()
        self.body = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> object:
        return self.body(self, x)


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)


def head(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def relu(x: Tensor) -> Tensor:
    return functional.relu(x)


def groups_of(toy: nn.Module, example: Tensor | None = None) -> list[ChannelGroup]:
    return channel_groups(toy, example_input((3, 8, 8)) if example is None else example)


def shape_of(group: ChannelGroup) -> tuple[int, set[tuple[str, str, int]]]:
    """Its size, and every side with how many places a channel takes there."""
    return group.size, {(m.module, m.side, len(m.positions[0])) for m in group.members}


def member(group: ChannelGroup, module: str, side: str) -> Member:
    (found,) = (m for m in group.members if (m.module, m.side) == (module, side))
    return found


def randomised(network: nn.Module) -> nn.Module:
    """Running statistics and affine parameters that are not their defaults, so that slicing them wrongly shows."""
    random = generator("test_surgery")
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.5, 1.5, generator=random)
                module.bias.uniform_(-0.5, 0.5, generator=random)
                module.running_mean.uniform_(-0.5, 0.5, generator=random)
                module.running_var.uniform_(0.5, 1.5, generator=random)
            elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.uniform_(0, 0.5, generator=random)
    return network.eval()


def assert_sliced_is_masked(network: nn.Module, example: Tensor, share: float = 0.4) -> list[ChannelGroup]:
    """Remove random channels of every group at once; counted and computed must be what was planned and masked."""
    groups = channel_groups(network, example)
    random = generator("test_surgery", "chosen")
    chosen = []
    for group in groups:
        size = group.size if group.exempt else max(1, int(share * group.size))
        chosen.append(torch.randperm(group.size, generator=random)[:size].tolist())
    kept = kept_of(groups, chosen)
    masked, sliced = copy.deepcopy(network), copy.deepcopy(network)
    mask_channels(masked, kept)
    slice_channels(sliced, kept)

    with torch.no_grad():
        expected, output = masked(example), sliced(example)
    assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()
    counted, sizes = count(sliced, example), sizes_of(network, example, groups, count(network, example).flops)
    assert sizes.parameters_of([len(c) for c in chosen]) == counted.parameters
    assert sizes.flops_of([len(c) for c in chosen]) == counted.flops
    assert counted.parameters < 0.9 * count(network, example).parameters
    return groups


# --- what belongs together, by hand


def test_a_chain_with_flatten() -> None:
    toy = Toy(
        lambda n, x: n.fc(torch.flatten(relu(n.b(relu(n.bn(n.a(x))))), 1)),
        a=conv(3, 6), bn=nn.BatchNorm2d(6), b=conv(6, 4), fc=nn.Linear(4 * 64, 5),
    )  # fmt: skip
    first, second, last = groups_of(toy)

    assert shape_of(first) == (6, {("a", "out", 1), ("bn", "out", 1), ("b", "in", 1)})
    assert shape_of(second) == (4, {("b", "out", 1), ("fc", "in", 64)})
    assert member(second, "fc", "in").positions[2] == tuple(range(128, 192))
    assert (last.name, last.exempt) == ("fc", GIVES_OUTPUT)
    assert (first.exempt, first.producers) == (None, ("a",))


def test_a_sum_ties_the_layers_that_feed_it() -> None:
    toy = Toy(
        lambda n, x: head(n.d(relu((lambda h: n.c(relu(n.b(h))) + n.s(h))(relu(n.a(x)))))),
        a=conv(3, 6), b=conv(6, 4), c=conv(4, 8), s=conv(6, 8, 1), d=conv(8, 5),
    )  # fmt: skip
    groups = {group.producers: shape_of(group) for group in groups_of(toy)}

    assert groups == {
        ("a",): (6, {("a", "out", 1), ("b", "in", 1), ("s", "in", 1)}),
        ("b",): (4, {("b", "out", 1), ("c", "in", 1)}),
        ("c", "s"): (8, {("c", "out", 1), ("s", "out", 1), ("d", "in", 1)}),
        ("d",): (5, {("d", "out", 1)}),
    }


def test_concatenation_shifts_indices() -> None:
    toy = Toy(
        lambda n, x: head(n.c(relu(n.bn(torch.cat([n.a(x), n.b(x), x], 1))))),
        a=conv(3, 4), b=conv(3, 2), bn=nn.BatchNorm2d(9), c=conv(9, 5),
    )  # fmt: skip
    first, second, _ = groups_of(toy)

    assert member(first, "c", "in").positions == ((0,), (1,), (2,), (3,))
    assert member(second, "bn", "out").positions == ((4,), (5,))
    assert member(second, "c", "in").positions == ((4,), (5,))
    assert member(second, "c", "in").size == 9


def test_flatten_with_channels_last_interleaves_them() -> None:
    toy = Toy(lambda n, x: n.b(relu(n.a(x)).permute(0, 2, 3, 1).flatten(1)), a=conv(3, 6), b=nn.Linear(6 * 64, 5))
    assert member(assert_sliced_is_masked(randomised(toy), example_input((3, 8, 8)))[0], "b", "in").positions[1] == (
        tuple(range(1, 6 * 64, 6))
    )


def test_a_tensor_concatenated_with_itself_goes_from_both_places() -> None:
    toy = Toy(lambda n, x: head(n.b((lambda h: torch.cat([h, h], 1))(relu(n.a(x))))), a=conv(3, 4), b=conv(8, 5))
    assert member(groups_of(toy)[0], "b", "in").positions == ((0, 4), (1, 5), (2, 6), (3, 7))


def test_depthwise_layers_follow_and_produce() -> None:
    toy = Toy(lambda n, x: head(n.c(relu(n.b(relu(n.a(x)))))), a=conv(3, 4), b=conv(4, 4, groups=4), c=conv(4, 5))
    first, _ = groups_of(toy)

    assert shape_of(first) == (4, {("a", "out", 1), ("b", "out", 1), ("b", "in", 1), ("c", "in", 1)})
    assert first.producers == ("a", "b")


def test_grouped_layers_lose_whole_groups() -> None:
    toy = Toy(lambda n, x: head(n.c(relu(n.b(relu(n.a(x)))))), a=conv(3, 8), b=conv(8, 12, groups=4), c=conv(12, 5))
    first, _ = groups_of(toy)

    assert shape_of(first) == (4, {("a", "out", 2), ("b", "out", 3), ("b", "in", 2), ("c", "in", 3)})
    assert member(first, "b", "out").positions[1] == (3, 4, 5)
    assert member(first, "b", "in").positions[1] == (2, 3)


def test_group_normalisation_makes_its_groups_go_together() -> None:
    toy = Toy(lambda n, x: head(n.c(relu(n.n(n.a(x))))), a=conv(3, 8), n=nn.GroupNorm(4, 8), c=conv(8, 5))
    assert shape_of(groups_of(toy)[0]) == (4, {("a", "out", 2), ("n", "out", 2), ("c", "in", 2)})


def test_a_layer_called_twice_ties_what_it_reads_and_what_it_makes() -> None:
    toy = Toy(lambda n, x: head(n.c(relu(n.b(relu(n.b(relu(n.a(x)))))))), a=conv(3, 6), b=conv(6, 6), c=conv(6, 5))
    assert shape_of(groups_of(toy)[0]) == (6, {("a", "out", 1), ("b", "out", 1), ("b", "in", 1), ("c", "in", 1)})


def test_part_of_a_layer_can_be_tied_to_each_of_two_others() -> None:
    toy = Toy(
        lambda n, x: head(n.d(relu(n.c(x) + torch.cat([n.a(x), n.b(x)], 1)))),
        a=conv(3, 6), b=conv(3, 10), c=conv(3, 16), d=conv(16, 5),
    )  # fmt: skip
    groups = {group.producers: group for group in groups_of(toy)}

    assert groups["a", "c"].size == 6
    assert member(groups["b", "c"], "c", "out").positions[0] == (6,)


def test_the_norm_that_alone_reads_a_layer_is_known() -> None:
    toy = Toy(
        lambda n, x: head(n.c((lambda h: relu(n.bn(h)) + h)(n.b(relu(n.m(n.a(x))))))),
        a=conv(3, 6), m=nn.BatchNorm2d(6), b=conv(6, 4), bn=nn.BatchNorm2d(4), c=conv(4, 5),
    )  # fmt: skip
    (first, second, _) = groups_of(toy)
    assert member(first, "b", "in").norm is None  # the sum reads it too

    toy = Toy(
        lambda n, x: head(n.c(relu(n.bn(n.b(relu(n.a(x))))))),
        a=conv(3, 6), b=conv(6, 4), bn=nn.BatchNorm2d(4), c=conv(4, 5),
    )  # fmt: skip
    (first, second, _) = groups_of(toy)
    assert member(first, "b", "in").norm == "bn"
    assert member(second, "c", "in").norm is None


# --- what may not go


def tied() -> Toy:
    toy = Toy(
        lambda n, x: head(n.d(relu(n.c(relu(n.b(relu(n.a(x)))))))),
        a=conv(3, 6), b=conv(6, 6), c=conv(6, 6), d=conv(6, 5),
    )  # fmt: skip
    toy.c.weight = toy.b.weight
    return toy


def with_kernels() -> Toy:
    toy = Toy(lambda n, x: head(n.b(functional.conv2d(n.a(x), n.kernels))), a=conv(3, 6), b=conv(4, 5))
    toy.register_parameter("kernels", nn.Parameter(torch.ones(4, 6, 3, 3)))
    return toy


EXEMPT: dict[str, tuple[Toy, str, str]] = {
    "tied weights": (tied(), "b", "'b' shares its parameters"),
    "bare parameter": (with_kernels(), "a", "bare parameter 'kernels'"),
    "sum with the input": (
        Toy(lambda n, x: head(n.b(relu(n.a(x) + x))), a=conv(3, 3), b=conv(3, 5)),
        "a",
        "the network's input",
    ),
    "softmax over channels": (
        Toy(lambda n, x: head(n.b(n.a(x).softmax(1))), a=conv(3, 6), b=conv(6, 5)),
        "a",
        "not the same as setting them to zero (see '_softmax')",
    ),
    "a shape written into the forward pass": (
        Toy(lambda n, x: n.b(relu(n.a(x)).view(-1, 6 * 64)), a=conv(3, 6), b=nn.Linear(6 * 64, 5)),
        "a",
        "does not run when some of them are removed",
    ),
    "halves of one layer": (
        Toy(
            lambda n, x: head(n.c((lambda h: n.b(h[0]) * h[1])(relu(n.a(x)).chunk(2, 1)))),
            a=conv(3, 12), b=conv(6, 6), c=conv(6, 5),
        ),
        "a",
        "does not run when some of them are removed",
    ),
    "grouped transposed convolution": (
        Toy(lambda n, x: head(n.b(n.t(n.a(x)))), a=conv(3, 6), t=nn.ConvTranspose2d(6, 4, 2, groups=2), b=conv(4, 5)),
        "a",
        "'t' (grouped ConvTranspose2d)",
    ),
    "parametrized layer": (
        Toy(lambda n, x: head(n.b(relu(n.a(x)))), a=nn.utils.parametrizations.weight_norm(conv(3, 6)), b=conv(6, 5)),
        "a",
        "'a' (ParametrizedConv2d)",
    ),
    "grouped layer on the input": (
        Toy(lambda n, x: head(n.b(relu(n.a(x)))), a=conv(3, 6, groups=3), b=conv(6, 5)),
        "a",
        "'a' is grouped",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("toy", "name", "reason"), EXEMPT.values(), ids=EXEMPT)
def test_what_cannot_be_cut_stays_with_a_reason_and_a_warning(
    toy: Toy, name: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="experiment"):
        groups = groups_of(toy)

    exempt = [group for group in groups if name in group.producers]
    assert exempt
    assert all(group.exempt is not None and reason in group.exempt for group in exempt)
    assert any(name in record.getMessage() and reason in record.getMessage() for record in caplog.records)


def test_the_search_for_what_cannot_be_cut_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    toy = EXEMPT["a shape written into the forward pass"][0]
    chain = Toy(lambda n, x: n.toy(relu(n.first(x))), first=conv(3, 3), toy=toy)
    free = [group.name for group in groups_of(chain) if group.exempt is None]
    assert free == ["first"]
    monkeypatch.setattr(check_slicing, "MOST_WORK", 1)  # one trial: that all of them fail together
    with caplog.at_level(logging.WARNING, logger="experiment"):
        groups = groups_of(chain)
    assert all(group.exempt is not None for group in groups)
    assert "the search for layers that can lose channels ended after 1 networks were tried" in caplog.text


def test_channels_are_followed_through_layer_normalisation() -> None:
    toy = Toy(
        lambda n, x: n.d(n.norm(n.a(x) + n.c(relu(n.b(x))))),
        a=nn.Linear(6, 8), b=nn.Linear(6, 7), c=nn.Linear(7, 8), norm=nn.LayerNorm(8), d=nn.Linear(8, 5),
    )  # fmt: skip
    groups = {group.producers: group.exempt for group in groups_of(toy, example_input((4, 6)))}

    assert groups == {("b",): None, ("a", "c"): None, ("d",): GIVES_OUTPUT}


def test_every_output_of_a_network_stays_quietly(caplog: pytest.LogCaptureFixture) -> None:
    toy = Toy(
        lambda n, x: (lambda h: {"features": h, "scores": [head(n.b(relu(h)))]})(n.a(x)), a=conv(3, 6), b=conv(6, 5)
    )
    with caplog.at_level(logging.WARNING, logger="experiment"):
        groups = groups_of(toy)

    assert [group.exempt for group in groups] == [GIVES_OUTPUT] * 2
    assert not caplog.records


def test_a_network_that_is_one_layer() -> None:
    (group,) = groups_of(nn.Conv2d(3, 5, 3))
    assert (group.name, group.exempt) == ("", GIVES_OUTPUT)


def test_half_precision_is_not_mistaken_for_wrong_channels() -> None:
    toy = Toy(lambda n, x: head(n.b(relu(n.a(x)))), a=conv(3, 6), b=conv(6, 5)).to(torch.bfloat16)
    assert groups_of(toy, example_input((3, 8, 8)).to(torch.bfloat16))[0].exempt is None


def test_networks_of_other_kinds_keep_what_cannot_be_followed() -> None:
    toy = Toy(
        lambda n, x: n.fc(relu(n.hidden(n.lstm(n.words(x))[0][:, -1]))),
        words=nn.Embedding(7, 4), lstm=nn.LSTM(4, 6, batch_first=True), hidden=nn.Linear(6, 8), fc=nn.Linear(8, 2),
    )  # fmt: skip
    groups = {group.name: group.exempt for group in groups_of(toy, torch.tensor([[1, 2, 3]]))}

    assert groups.pop("words") == "channels cannot be removed from 'lstm' (LSTM)"
    assert groups == {"hidden": None, "fc": GIVES_OUTPUT}


def test_the_network_is_left_as_it_was() -> None:
    toy = Toy(lambda n, x: head(n.b(relu(n.bn(n.a(x))))), a=conv(3, 6), bn=nn.BatchNorm2d(6), b=conv(6, 5))
    toy.a.weight.requires_grad_(False)
    toy.train()
    before = copy.deepcopy(toy.state_dict())

    with torch.no_grad():
        groups = groups_of(toy)

    assert groups[0].exempt is None
    assert toy.training
    assert toy.bn.training
    assert not toy.a.weight.requires_grad
    assert all(map(torch.equal, before.values(), toy.state_dict().values()))


def test_the_groups_do_not_depend_on_the_weights() -> None:
    toy = Toy(lambda n, x: head(n.b(relu(n.a(x)))), a=conv(3, 6), b=conv(6, 5))
    before = groups_of(toy)
    with torch.no_grad():
        for parameter in toy.parameters():
            parameter.zero_()  # a dead network would agree with any slicing
    assert groups_of(toy) == before


# --- sliced = masked


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.Sigmoid(), nn.Softplus(), nn.PReLU(6)])
def test_sliced_is_masked_whatever_the_activation_is_at_zero(activation: nn.Module) -> None:
    toy = Toy(lambda n, x: head(n.b(n.act(n.a(x)))), a=conv(3, 6), act=activation, b=conv(6, 5))
    assert_sliced_is_masked(randomised(toy), example_input((3, 8, 8)))


GREY, SMALL, LARGE = (1, 28, 28), (3, 32, 32), (3, 64, 64)
FAMILIES = {  # the smallest network of each kind, and the deepest one
    "lenet300_100": GREY, "lenet5": GREY, "cnn5": SMALL, "vgg16_bn": SMALL, "resnet20": SMALL, "resnet110": (3, 8, 8),
    "densenet22": SMALL, "wrn28_2": (3, 8, 8), "resnet18": SMALL, "resnet50": SMALL, "mobilenet_v2": SMALL,
    "alexnet_bn": LARGE,
}  # fmt: skip


@pytest.mark.parametrize(("name", "shape"), FAMILIES.items(), ids=FAMILIES)
def test_sliced_is_masked_on_every_kind_of_network(name: str, shape: tuple[int, int, int]) -> None:
    with seeded("test_surgery", name):
        network = randomised(make_network(name, {}, shape, 10))

    groups = assert_sliced_is_masked(network, torch.randn(2, *shape, generator=generator(name)))

    assert [group.name for group in groups if group.exempt is not None] == [groups[-1].name]  # the output alone stays


def test_grouped_linear_layers_stay_and_the_others_can_go() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
    x = torch.randn(2, 64, generator=generator("grouped"))
    network[1] = GroupedLinear(64, 30, 2)
    groups = {group.name: group.exempt for group in channel_groups(network, x)}
    assert groups == {"3": None, "5": GIVES_OUTPUT}


class _Detector(nn.Module):
    """A head for what is found, which may be nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.scores = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).relu()
        scores = self.scores(features)
        return scores, self.head(features[scores[:, 0] > 1e6])


def test_a_head_that_gets_an_empty_batch_keeps_what_it_may_read() -> None:
    torch.manual_seed(0)
    groups = channel_groups(_Detector(), torch.randn(3, 6))
    reasons = {group.name: group.exempt for group in groups}
    assert reasons["body"] == "'head' may read them, and no forward pass on the given inputs calls it"
