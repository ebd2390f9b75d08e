"""Residual blocks found by trying out, and plans that skip them."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.build import build, expand, write_whole
from experiment.layers.plan import Kept, Plan
from experiment.layers.residual_blocks import residual_blocks, silence
from experiment.networks.make_network import make_network
from experiment.random_streams import generator, seeded


def network_of(name: str) -> nn.Module:
    with seeded("test_blocks", name):
        network = make_network(name, {}, (3, 32, 32), 10)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


def images(number: int = 1) -> Tensor:
    return torch.randn(number, 3, 32, 32, generator=generator("test_blocks"))


BASIC = ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet20", BASIC),
        ("resnet44", [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(1, 7)]),
        ("wrn16_8", ["layer1.1", "layer2.1", "layer3.1"]),
        ("densenet22", []),
        ("cnn5", []),
    ],
)
def test_blocks_are_those_with_an_identity_shortcut(name: str, blocks: list[str]) -> None:
    assert residual_blocks(network_of(name), images()) == blocks


class Branch(nn.Module):
    """y = act(shortcut(x) + f(x))."""

    def __init__(self, branch: nn.Module, act: Callable[[Tensor], Tensor], scale: float = 1.0) -> None:
        super().__init__()
        self.branch, self.act, self.scale = branch, act, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.scale * x + self.branch(x))


def same(x: Tensor) -> Tensor:
    return x


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))


def test_what_is_no_block() -> None:
    twice, shared = Branch(linear(), same), nn.Linear(6, 6)
    network = nn.Sequential(
        Branch(linear(), torch.relu),  # 0: its input has negative values, which the ReLU behind changes
        nn.ReLU(),
        Branch(linear(), torch.relu),  # 2: a block
        Branch(linear(), same, 0.5),  # 3: half of the input
        Branch(linear(), torch.sigmoid),  # 4
        twice,  # 5, 6: used twice
        twice,
        Branch(shared, same),  # 7: holds a layer that is used outside too
        shared,
        nn.Sequential(Branch(linear(), same), Branch(linear(), same)),  # 9: two blocks, not one
        nn.Linear(6, 2),
    )
    assert residual_blocks(network, torch.ones(1, 6)) == ["2", "9.0", "9.1"]


def test_finding_them_leaves_the_network_as_it_was() -> None:
    network = network_of("resnet20").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    residual_blocks(network, images())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(module.training and not module._forward_pre_hooks for module in network.modules())


def skipping(network: nn.Module, *names: str) -> tuple[Plan, nn.Module]:
    plan = Plan(skipped=names)
    built = build(network, plan).eval()
    write_whole(built, network, plan)
    return plan, built


@pytest.mark.parametrize(("name", "blocks"), [("resnet20", ("layer1.1", "layer3.2")), ("wrn16_8", ("layer2.1",))])
def test_skipped_is_silenced_is_expanded(name: str, blocks: tuple[str, ...]) -> None:
    network, x = network_of(name), images(3)
    plan, built = skipping(network, *blocks)
    gone = sum(p.numel() for block in blocks for p in network.get_submodule(block).parameters())
    assert sum(p.numel() for p in built.parameters()) == sum(p.numel() for p in network.parameters()) - gone

    state = expand(built, network, plan, x[:1])

    assert state.skipped == blocks
    assert state.network.state_dict().keys() == network.state_dict().keys()
    silenced = network
    for block in blocks:
        silence(silenced.get_submodule(block))
    with torch.no_grad():
        assert torch.equal(state.network(x), silenced(x))
        torch.testing.assert_close(built(x), silenced(x), rtol=1e-4, atol=1e-4)


def test_a_plan_with_blocks_and_channels_goes_through_json() -> None:
    network = network_of("resnet20")
    kept = {"layer1.0.conv1": Kept((0, 3, 5)), "layer1.0.bn1": Kept((0, 3, 5)), "layer1.0.conv2": Kept(None, (0, 3, 5))}
    plan = Plan(skipped=("layer2.1",), kept=kept)
    built = build(network, plan).eval()
    write_whole(built, network, plan)
    again = Plan.from_data(json.loads(json.dumps(plan.to_data())), network)
    assert again == plan
    rebuilt = build(network, again).eval()
    rebuilt.load_state_dict(built.state_dict())
    assert torch.equal(rebuilt(images()), built(images()))
    state = expand(built, network, plan, images())
    torch.testing.assert_close(state.network(images()), built(images()), rtol=1e-4, atol=1e-4)
    assert (state.kept, state.skipped) == (kept, ("layer2.1",))


def test_a_plan_that_contradicts_itself_is_refused() -> None:
    network = network_of("resnet20")
    with pytest.raises(CompressionError, match="layer2.1.conv1: the plan skips the block"):
        build(network, Plan(skipped=("layer2.1",), kept={"layer2.1.conv1": Kept((0,))}))
    with pytest.raises(CompressionError, match="another network: this one has no 'layer9'"):
        build(network, Plan(skipped=("layer9",)))
