"""Filter thresholding: scores by hand, budgets met exactly, and what stays in a cascade."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError, ConfigError, InfeasibleBudget
from experiment.layers.build import build, expand
from experiment.layers.channels.slicing import mask_channels
from experiment.layers.masks import bake_masks, named_masks
from experiment.layers.plan import Kept, State
from experiment.measure import count, example_input
from experiment.methods.base import Compressor
from experiment.methods.filters.ft import ft
from experiment.methods.filters.settings import ScoredFilterSettings
from experiment.random_streams import generator, seeded

StateOf = Callable[[str], State]


def compressor(network: nn.Module, example: Tensor, state: State | None = None, **settings: object) -> Compressor:
    state = state or State(network, example)
    return Compressor(ft(ScoredFilterSettings(**settings)), state, count(network, example), None, generator("test_ft"))


TWO_EACH = 30 / 54  # of the parameters of `small()` with two channels in both layers


def small() -> nn.Module:
    """Two layers of filters with l1 norms 3, 1, 5, 2 and 4, 9, 1, and a readout."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1, bias=False), nn.Flatten(), nn.Linear(12, 2)
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([3.0, -1.0, -5.0, 2.0]).reshape(4, 1, 1, 1))
        network[3].weight.copy_(torch.tensor([[1.0] * 4, [-2, 2, 3, 2], [0, 0, -1, 0]]).reshape(3, 4, 1, 1))
    return network.eval()


class Residual(nn.Module):
    """Two layers that a sum ties, and what reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(1, 3, bias=False), nn.Linear(1, 3, bias=False), nn.Linear(3, 2)
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor([[4.0], [3.0], [-1.0]]))
            self.b.weight.copy_(torch.tensor([[-1.0], [3.0], [3.5]]))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.c(torch.relu(self.a(x) + self.b(x)))
        return output


def test_the_filters_of_largest_l1_norm_stay() -> None:
    network, example = small(), example_input((1, 2, 2))

    plan = compressor(network, example).compress(TWO_EACH).plan

    assert plan.kept["0"] == Kept((0, 2))
    assert plan.kept["1"] == Kept((0, 2))
    assert plan.kept["3"] == Kept((0, 1), (0, 2))
    assert plan.kept["5"] == Kept(None, (0, 1, 2, 3, 4, 5, 6, 7))
    assert plan.details["0"] == {"channels": 2, "channels_before": 4}
    assert plan.details["5"] == {"channels": 2, "channels_before": 2}


def test_filters_that_a_sum_ties_are_scored_together() -> None:
    network = Residual()
    method = compressor(network, torch.ones(1, 1))  # 3 + 3 + 8 parameters; scores 5, 6, 4.5
    assert method.compress(10 / 14).plan.kept == {"a": Kept((0, 1)), "b": Kept((0, 1)), "c": Kept(None, (0, 1))}
    assert method.compress(6 / 14).plan.kept == {"a": Kept((1,)), "b": Kept((1,)), "c": Kept(None, (1,))}


def test_equal_filters_go_from_the_last_on() -> None:
    network = nn.Sequential(nn.Linear(2, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False))
    nn.init.ones_(network[0].weight)
    assert compressor(network, torch.ones(1, 2)).compress(0.5).plan.kept["0"].out == (0, 1, 2)


def test_every_layer_keeps_the_same_share(state_of: StateOf) -> None:
    state = state_of("residual")
    details = compressor(state.network, state.example).compress(0.4).plan.details

    low, high = 0.0, 1.0
    for name, detail in details.items():
        kept, before = detail["channels"], detail["channels_before"]
        assert isinstance(kept, int)
        assert isinstance(before, int)
        if name != "fc":
            low, high = max(low, (kept - 0.5) / before), min(high, (kept + 0.5) / before)
    assert low <= high  # some rho gives max(1, round(rho n)) in all of them
    assert details["fc"]["channels"] == 10


@pytest.mark.parametrize("name", ["residual", "mixed"])
def test_sliced_is_the_network_with_the_removed_channels_at_zero(state_of: StateOf, name: str) -> None:
    network, example = state_of(name).network, state_of(name).example
    compressed = compressor(network, example).compress(0.3)
    masked = copy.deepcopy(network)
    mask_channels(masked, compressed.plan.kept)
    with torch.no_grad():
        torch.testing.assert_close(compressed.network(example), masked(example), atol=1e-5, rtol=1e-5)


def test_weights_of_kept_channels_are_untouched() -> None:
    network, example = small(), example_input((1, 2, 2))
    compressed = compressor(network, example).compress(TWO_EACH).network

    assert torch.equal(compressed[0].weight, network[0].weight[[0, 2]])
    assert torch.equal(compressed[5].bias, network[5].bias)
    whole = compressor(network, example).compress(1.0)
    assert not whole.plan.kept
    assert all(map(torch.equal, whole.network.state_dict().values(), network.state_dict().values()))


def test_ignored_layers_keep_their_filters(state_of: StateOf) -> None:
    state = state_of("residual")
    details = compressor(state.network, state.example, ignore=("shortcut*", "stem.*")).compress(0.8).plan.details

    assert [details[name]["channels"] for name in ("stem.0", "shortcut.0", "conv2")] == [8, 12, 12]  # a sum ties two
    assert details["conv1"]["channels"] != 12


def test_a_pattern_that_ignores_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"no layer is called 'layer9\*'.* 0, 3, 5"):
        compressor(small(), example_input((1, 2, 2)), ignore=("0", "layer9*"))


def test_too_small_a_budget_names_the_smallest_network() -> None:
    network, example = small(), example_input((1, 2, 2))
    method = compressor(network, example)
    smallest = 1 + 1 + 2 + 1 + 4 * 2 + 2  # one channel everywhere: conv, its bias, BatchNorm, conv, readout, its bias
    with pytest.raises(InfeasibleBudget) as caught:
        method.compress(0.2)
    assert caught.value.smallest == smallest
    assert method.compress(smallest / caught.value.original).count.parameters == smallest
    with pytest.raises(InfeasibleBudget, match="flops"):
        method.compress(0.01, "flops")


@pytest.mark.parametrize("name", ["residual", "mixed"])
def test_a_cascade_never_revives_a_channel(state_of: StateOf, name: str) -> None:
    network, example = state_of(name).network, state_of(name).example
    first = compressor(network, example).compress(0.6)
    state = expand(first.network, network, first.plan, example)
    with torch.no_grad():
        for module in state.network.modules():  # what is gone must not come back even if it looks largest
            if isinstance(module, nn.Conv2d):
                dead = module.weight.flatten(1).abs().sum(1) == 0
                module.weight[dead] = 100
    second = compressor(network, example, state).compress(0.3)

    assert second.count.parameters <= 0.3 * count(network, example).parameters
    for module, kept in first.plan.kept.items():
        now = second.plan.kept[module]
        assert kept.out is None or (now.out is not None and set(now.out) <= set(kept.out))
        assert kept.inputs is None or (now.inputs is not None and set(now.inputs) <= set(kept.inputs))
    idle = compressor(network, example, state).compress(0.9)
    assert idle.plan.kept == first.plan.kept


def test_a_plan_is_filled_from_another_state() -> None:
    network, example = small(), example_input((1, 2, 2))
    method = compressor(network, example)
    plan = method.compress(TWO_EACH).plan
    with seeded("test_ft", "other"):
        other = nn.Sequential(*(type(m)(*a) for m, a in zip(network, _arguments(), strict=True))).eval()

    rewound = method.instantiate(plan, State(other, example))

    assert torch.equal(rewound[0].weight, other[0].weight[[0, 2]])
    assert torch.equal(rewound[3].weight, other[3].weight[[0, 1]][:, [0, 2]])
    assert torch.equal(rewound[5].bias, other[5].bias)


def _arguments() -> list[tuple[object, ...]]:
    return [(1, 4, 1), (4,), (), (4, 3, 1, 1, 0, 1, 1, False), (), (12, 2)]


def test_folding_keeps_what_removed_channels_emit() -> None:
    network, example = small(), torch.randn(4, 1, 2, 2, generator=generator("fold"))
    network[3].bias = nn.Parameter(torch.zeros(3))
    with torch.no_grad():
        network[1].bias.copy_(torch.tensor([0.1, 2.0, 0.3, 3.0]))
        network[0].bias.zero_()
    zeroed = copy.deepcopy(network)
    with torch.no_grad():
        zeroed[0].weight[[1, 3]] = 0
        zeroed[3].weight[2] = 0

    plain = compressor(network, example[:1]).compress(32 / 57)
    folded = compressor(network, example[:1], fold="constant").compress(32 / 57)

    assert folded.plan.kept == plain.plan.kept
    assert not torch.allclose(plain.network(example), zeroed(example), atol=1e-2)
    torch.testing.assert_close(folded.network(example), zeroed(example), atol=1e-5, rtol=1e-5)


def test_masks_of_the_state_stay_on_what_stays() -> None:
    network, example = small(), example_input((1, 2, 2))
    mask = torch.ones(3, 4, 1, 1, dtype=torch.bool)
    mask[1, 0] = mask[0, 3] = False
    with torch.no_grad():
        network[3].weight.mul_(mask)
    state = State(network, example, {"3.weight": mask})

    compressed = compressor(small(), example, state).compress(TWO_EACH)

    assert compressed.plan.kept["3"] == Kept((0, 1), (0, 2))
    assert named_masks(compressed.network)["3.weight"].flatten().tolist() == [True, True, False, True]
    assert compressed.plan.parameters == compressed.count.parameters
    torch.testing.assert_close(bake_masks(compressed.network)[3].weight.flatten(), torch.tensor([1.0, 1, 0, 3]))


def test_weights_that_are_not_numbers_are_named() -> None:
    network = small()
    with torch.no_grad():
        network[3].weight[0, 0] = math.nan
    with pytest.raises(CompressionError, match="layer '3': weights must be finite"):
        compressor(network, example_input((1, 2, 2)))


def test_the_structure_is_rebuilt_from_the_plan_alone(state_of: StateOf) -> None:
    network, example = state_of("residual").network, state_of("residual").example
    compressed = compressor(network, example, fold="constant").compress(0.3)
    rebuilt = build(copy.deepcopy(network).to("meta"), compressed.plan).to_empty(device="cpu")
    rebuilt.load_state_dict(compressed.network.state_dict())
    assert torch.equal(rebuilt.eval()(example), compressed.network(example))
