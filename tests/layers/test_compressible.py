"""Which layers are found, on which grids."""

import pytest
import torch
from torch import Tensor, nn

from experiment.layers.compressible import LayerInfo, compressible_layers, trace_layers
from experiment.layers.forward_pass import evaluating
from experiment.layers.grouped_linear import GroupedLinear
from experiment.layers.masks import add_masks


class Mixed(nn.Module):
    """A strided convolution used on two grids, a depthwise one, a linear layer, and layers that are never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, (3, 1), stride=(2, 1), padding=(1, 0))
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.unused = nn.Conv2d(1, 1, 1)
        self.grouped = GroupedLinear(4, 2, 2)
        self.fc = nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.depthwise(self.conv(self.conv(x))))
        y: Tensor = self.fc(self.grouped(x.mean((2, 3))))
        return y


def test_layers_and_grids() -> None:
    layers = trace_layers(Mixed(), torch.zeros(2, 4, 12, 5))
    assert list(layers) == ["conv", "depthwise", "grouped", "fc"]
    assert layers["conv"] == LayerInfo(
        "conv", "conv", 4, 4, (3, 1), 1, True, input_grids=((12, 5), (6, 5)), output_grids=((6, 5), (3, 5))
    )
    conv = layers["conv"]
    assert (conv.calls, conv.positions, conv.weight_numel) == (2, 45, 48)
    assert layers["depthwise"].groups == 4
    assert layers["depthwise"].weight_numel == 36
    assert not layers["depthwise"].bias
    grouped = LayerInfo("grouped", "linear", 2, 4, (), 2, False, input_grids=((1,),), output_grids=((1,),))
    assert layers["grouped"] == grouped
    assert layers["grouped"].weight_numel == 4
    assert layers["fc"].positions == 1


def test_compressible_layers() -> None:
    assert list(compressible_layers(Mixed(), torch.zeros(1, 4, 12, 5))) == ["conv", "depthwise", "fc"]


@pytest.mark.parametrize("shared", ["weight", "bias"])
def test_shared_parameters_are_not_compressible(shared: str) -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    setattr(network[2], shared, getattr(network[0], shared))
    assert list(trace_layers(network, torch.zeros(1, 3))) == ["0", "1", "2"]
    assert list(compressible_layers(network, torch.zeros(1, 3))) == ["1"]


def test_one_module_under_two_names_is_one_compressible_layer() -> None:
    layer = nn.Linear(3, 3)
    layers = compressible_layers(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(1, 3))
    assert list(layers) == ["0"]
    assert layers["0"].calls == 2


def test_masked_layers_are_still_found() -> None:
    network = Mixed()
    add_masks(network, {"fc.weight": torch.ones(5, 2, dtype=torch.bool)})
    assert list(compressible_layers(network, torch.zeros(1, 4, 12, 5))) == ["conv", "depthwise", "fc"]


def test_network_that_is_one_layer() -> None:
    assert list(compressible_layers(nn.Linear(3, 2), torch.zeros(1, 3))) == [""]


@pytest.mark.parametrize(("shape", "positions"), [((1, 3), 1), ((6, 3), 1), ((1, 7, 3), 7), ((2, 7, 5, 3), 35)])
def test_linear_positions(shape: tuple[int, ...], positions: int) -> None:
    info = trace_layers(nn.Linear(3, 2), torch.zeros(shape))[""]
    assert info.output_grids == info.input_grids == ((positions,),)


def test_layer_that_ignores_the_batch_counts_whole() -> None:
    class Table(nn.Module):
        """Computes something from a constant of its own, once for the whole batch."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.fc(torch.ones(1, 3))

    assert trace_layers(Table(), torch.zeros(4, 3))["fc"].positions == 1


def test_evaluating_restores_every_mode() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(0.5))).train()
    network[0].eval()
    with evaluating(network):
        assert not any(m.training for m in network.modules())
        assert not torch.is_grad_enabled()
    assert [m.training for m in network.modules()] == [True, False, True, True]
    assert torch.is_grad_enabled()
    with pytest.raises(KeyError), evaluating(network):
        raise KeyError
    assert network[1][0].training


def test_tracing_leaves_the_network_alone() -> None:
    network = Mixed()
    trace_layers(network, torch.ones(2, 4, 12, 5))
    assert network.norm.num_batches_tracked == 0
    assert not [m for m in network.modules() if m._forward_hooks]
