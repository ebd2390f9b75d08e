"""Depth pruning: which blocks go, budgets from below, cascades, rewinding, and networks without blocks."""

import copy

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError, ConfigError, InfeasibleBudget
from experiment.layers.build import expand
from experiment.layers.plan import State
from experiment.measure import Count, count
from experiment.methods.base import Budget, Calibration, Compressor, Quantity
from experiment.methods.filters.blocks import Blocks
from experiment.methods.filters.settings import BlocksSettings
from experiment.methods.layer_table import layer_rows
from experiment.networks.make_network import make_network
from experiment.random_streams import generator, seeded

EXAMPLE = torch.randn(1, 3, 8, 8, generator=generator("test_blocks"))
ALL = ("layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2")


def resnet() -> nn.Module:
    with seeded("test_blocks"):
        network = make_network("resnet20", {}, (3, 32, 32), 10)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


def compressor(state: State, original: Count | None = None, **settings: tuple[str, ...]) -> Compressor:
    original = original or count(state.network, state.example)
    return Compressor(Blocks(BlocksSettings(**settings)), state, original, None, generator("test_blocks", 1))


def weight_of(network: nn.Module, layer: str) -> Tensor:
    return network.get_submodule(layer).get_parameter("weight")


def in_order(network: nn.Module) -> list[str]:
    """By the mean l1 norm of the filters, the loop way."""
    norms = {
        name: [row.abs().sum().item() for part in ("conv1", "conv2") for row in weight_of(network, f"{name}.{part}")]
        for name in ALL
    }
    return sorted(ALL, key=lambda name: sum(norms[name]) / len(norms[name]))


@pytest.mark.parametrize("quantity", ["parameters", "flops"])
def test_as_few_blocks_go_as_the_budget_needs_in_the_order_of_their_norms(quantity: Quantity) -> None:
    """Each size is enough for its network, and one less is not."""
    network = resnet()
    made, order = compressor(State(network, EXAMPLE)), in_order(network)
    whole = count(network, EXAMPLE)
    total = whole.parameters if quantity == "parameters" else whole.flops
    sizes = [total]
    for name in order:
        block = {n: layer for n, layer in whole.layers.items() if n.startswith(f"{name}.")}
        parameters = sum(p.numel() for p in network.get_submodule(name).parameters())
        sizes.append(sizes[-1] - (parameters if quantity == "parameters" else sum(b.flops for b in block.values())))
    for num_gone, size in enumerate(sizes):
        if num_gone:
            larger = made.method.plan(made.analysis, Budget(quantity, sizes[num_gone - 1] - 1, total))
            assert larger.skipped == tuple(order[:num_gone])
        compressed = made.compress(size / total, quantity)
        assert compressed.plan.skipped == tuple(order[:num_gone])
        assert compressed.plan.parameters == compressed.count.parameters
        assert (compressed.count.parameters if quantity == "parameters" else compressed.count.flops) == size
    with pytest.raises(InfeasibleBudget) as caught:
        made.compress((sizes[-1] - 1) / total, quantity)
    assert caught.value.smallest == sizes[-1]


def test_the_network_computes_without_the_blocks() -> None:
    network, x = resnet(), torch.randn(3, 3, 8, 8, generator=generator("test_blocks", 2))
    before = copy.deepcopy(network.state_dict())
    compressed = compressor(State(network, EXAMPLE)).compress(0.5)
    expected = copy.deepcopy(network)
    for name in compressed.plan.skipped:
        parent, _, child = name.rpartition(".")
        expected.get_submodule(parent)[int(child)] = nn.Identity()
    with torch.no_grad():
        assert torch.equal(compressed.network(x), expected(x))
    assert all(map(torch.equal, before.values(), network.state_dict().values()))
    whole = compressor(State(network, EXAMPLE)).compress(1.0)
    assert not whole.plan.skipped
    assert all(map(torch.equal, before.values(), whole.network.state_dict().values()))


def test_a_cascade_never_revives_a_block() -> None:
    network = resnet()
    original = count(network, EXAMPLE)
    first = compressor(State(network, EXAMPLE)).compress(0.8)
    state = expand(first.network, network, first.plan, EXAMPLE)
    second = compressor(state, original).compress(0.5)
    assert set(first.plan.skipped) < set(second.plan.skipped)
    assert second.count.parameters == second.plan.parameters <= 0.5 * original.parameters
    idle = compressor(state, original).compress(0.9)
    assert idle.plan.skipped == first.plan.skipped
    assert all(map(torch.equal, idle.network.state_dict().values(), first.network.state_dict().values()))


def test_a_plan_is_filled_from_another_state() -> None:
    network = resnet()
    made = compressor(State(network, EXAMPLE))
    plan = made.compress(0.5).plan
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    rewound = made.instantiate(plan, State(other, EXAMPLE))
    assert rewound.state_dict().keys() == made.instantiate(plan).state_dict().keys()
    assert all(torch.equal(p, other.get_parameter(name)) for name, p in rewound.named_parameters())


def test_ignored_blocks_stay() -> None:
    state = State(resnet(), EXAMPLE)
    made = compressor(state, ignore=("layer3.*",))
    assert all(not name.startswith("layer3") for name in made.compress(0.85).plan.skipped)
    with pytest.raises(ConfigError, match="no block is called 'conv1'. The blocks are layer1.0"):
        compressor(state, ignore=("conv1",))


def test_layers_that_are_gone_are_told() -> None:
    made = compressor(State(resnet(), EXAMPLE))
    compressed = made.compress(0.5)
    rows = {str(row["layer"]): row for row in layer_rows(made.original, compressed)}
    assert rows["conv1"]["kept"] is True
    gone = rows[f"{compressed.plan.skipped[0]}.conv1"]
    assert (gone["kept"], gone["parameters"], gone["flops"]) == (False, 0, 0)


def test_it_trains_and_recalibrates() -> None:
    network, x = resnet(), torch.randn(8, 3, 8, 8, generator=generator("test_blocks", 3))
    made = Compressor(
        Blocks(BlocksSettings()), State(network, EXAMPLE), count(network, EXAMPLE), Calibration(x),
        generator("test_blocks"), recalibrated=True,
    ).compress(0.5)  # fmt: skip
    made.network.train()(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.network.parameters())


def test_a_network_without_blocks_is_refused() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    network = nn.Sequential(nn.Linear(4, 4), Plain(), nn.Linear(4, 2))
    with pytest.raises(CompressionError, match="Blocks removes residual blocks"):
        compressor(State(network, torch.ones(1, 4)))
