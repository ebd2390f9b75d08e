"""What the networks compute, against torchvision's blocks and against formulas written out here."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.models.densenet import _DenseLayer, _Transition
from torchvision.models.resnet import BasicBlock as ReferenceBasicBlock
from torchvision.models.resnet import Bottleneck as ReferenceBottleneck

from experiment import random_streams
from experiment.networks.densenet import DenseLayer, Transition
from experiment.networks.make_network import make_network
from experiment.networks.resnet import BasicBlock, Bottleneck
from experiment.networks.wide_resnet import PreActivationBlock


def randomise(network: nn.Module) -> nn.Module:
    """BatchNorm's parameters and statistics away from their start, so that leaving one out is seen; eval mode."""
    generator = random_streams.generator("norms")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.detach().uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=random_streams.generator("image"))


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Load a state whose tensors stand in the same order under other names."""
    target.load_state_dict(dict(zip(target.state_dict(), source.state_dict().values(), strict=True)))


@pytest.mark.parametrize(("in_channels", "stride"), [(8, 1), (8, 2), (6, 1)])
def test_basic_block(in_channels: int, stride: int) -> None:
    with random_streams.seeded("block"):
        block = randomise(BasicBlock(in_channels, 8, stride))
    reference = ReferenceBasicBlock(in_channels, 8, stride, block.downsample).eval()
    reference.load_state_dict(block.state_dict(), strict=True)
    x = image(2, in_channels, 9, 7)
    torch.testing.assert_close(block(x), reference(x))


@pytest.mark.parametrize(("in_channels", "stride"), [(16, 1), (16, 2), (6, 1)])
def test_bottleneck(in_channels: int, stride: int) -> None:
    with random_streams.seeded("block"):
        block = randomise(Bottleneck(in_channels, 4, stride))
    reference = ReferenceBottleneck(in_channels, 4, stride, block.downsample).eval()
    reference.load_state_dict(block.state_dict(), strict=True)
    x = image(2, in_channels, 9, 7)
    torch.testing.assert_close(block(x), reference(x))


def test_dense_layer() -> None:
    """Torchvision's gives the new channels alone."""
    with random_streams.seeded("block"):
        layer = randomise(DenseLayer(6, 5))
    reference = _DenseLayer(6, growth_rate=5, bn_size=4, drop_rate=0).eval()
    copy_in_order(layer, reference)
    x = image(2, 6, 8, 8)
    torch.testing.assert_close(layer(x), torch.cat((x, reference(x)), 1))


def test_transition() -> None:
    with random_streams.seeded("block"):
        transition = randomise(Transition(6, 3))
    reference = _Transition(6, 3).eval()
    copy_in_order(transition, reference)
    x = image(2, 6, 8, 8)
    torch.testing.assert_close(transition(x), reference(x))


@pytest.mark.parametrize(("in_channels", "stride"), [(5, 1), (5, 2), (8, 1)])
def test_pre_activation_block(in_channels: int, stride: int) -> None:
    with random_streams.seeded("block"):
        block = randomise(PreActivationBlock(in_channels, 8, stride, dropout=0.5))
    x = image(2, in_channels, 8, 8)
    activated = block.bn1(x).clamp(min=0)
    h = functional.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
    h = functional.conv2d(block.bn2(h).clamp(min=0), block.conv2.weight, padding=1)
    same = in_channels == 8 and stride == 1
    assert (block.shortcut is None) == same
    expected = h + (x if same else functional.conv2d(activated, block.shortcut.weight, stride=stride))
    torch.testing.assert_close(block(x), expected)


def test_vgg_features_are_torchvisions() -> None:
    with random_streams.seeded("vgg"):
        network = randomise(make_network("vgg16_bn", {}, (3, 32, 32), 10))
    features = nn.Sequential(*list(network)[:-2])
    reference = models.vgg16_bn(weights=None, num_classes=1).features.eval()
    copy_in_order(features, reference)
    x = image(2, 3, 32, 32)
    torch.testing.assert_close(network(x), network.fc(reference(x).flatten(1)))


def test_lenet5() -> None:
    network = make_network("lenet5", {}, (1, 28, 28), 10).eval()
    x = image(2, 1, 28, 28)
    p = dict(network.named_parameters())
    h = x
    for name in ("conv1", "conv2"):
        h = functional.conv2d(h, p[f"{name}.weight"], p[f"{name}.bias"]).clamp(min=0)
        h = h.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    h = (h.reshape(2, 800) @ p["fc1.weight"].T + p["fc1.bias"]).clamp(min=0)
    torch.testing.assert_close(network(x), h @ p["fc2.weight"].T + p["fc2.bias"])


def test_cnn5_pools_over_what_is_left() -> None:
    network = randomise(make_network("cnn5", {"width": 4}, (3, 32, 32), 10))
    before_last_pool = nn.Sequential(*list(network)[:-3])
    x = image(2, 3, 32, 32)
    h = before_last_pool(x)
    assert h.shape == (2, 32, 8, 8)
    torch.testing.assert_close(network(x), network.fc(h.amax((2, 3))))


@pytest.mark.parametrize("name", ["resnet20", "densenet22", "wrn28_2"])
def test_whole_networks_by_their_parts(name: str) -> None:
    """The parts in order, the mean over the grid and the linear layer."""
    with random_streams.seeded("network"):
        network = randomise(make_network(name, {}, (3, 16, 16), 10))
    n = dict(network.named_children())
    x = n["conv1"](image(2, 3, 16, 16))
    if name == "resnet20":
        x = n["layer3"](n["layer2"](n["layer1"](n["bn1"](x).clamp(min=0))))
    elif name == "wrn28_2":
        x = n["bn"](n["layer3"](n["layer2"](n["layer1"](x)))).clamp(min=0)
    else:
        x = n["trans2"](n["dense2"](n["trans1"](n["dense1"](x))))
        x = n["bn"](n["dense3"](x)).clamp(min=0)
    assert x.shape[2:] == (4, 4)
    torch.testing.assert_close(network(image(2, 3, 16, 16)), n["fc"](x.mean((2, 3))))


def test_mlp_drops_in_training_only() -> None:
    with random_streams.seeded("network"):
        network = make_network("mnist_fc", {}, (1, 28, 28), 10)
    x = image(2, 1, 28, 28)
    with random_streams.seeded("dropout"):
        assert not torch.equal(network(x), network(x))
    network.eval()
    p = dict(network.named_parameters())
    h = x.flatten(1)
    for name in ("fc1", "fc2"):
        h = (h @ p[f"{name}.weight"].T + p[f"{name}.bias"]).clamp(min=0)
    torch.testing.assert_close(network(x), h @ p["fc3.weight"].T + p["fc3.bias"])
