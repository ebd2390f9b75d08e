"""Residual networks for small images such as CIFAR's.

    conv1 bn1 -> layer1 (16 wide) -> layer2 (32, half the grid) -> layer3 (64, a quarter) -> mean over the grid -> fc

Source: He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2: depth = 6n + 2, n blocks per stage.
Differs: if a block changes width or grid, its shortcut is a strided 1x1 convolution with BatchNorm (option B of the
paper; its CIFAR networks use option A). From depth 44 on, blocks are bottlenecks of three convolutions, as in
torchprune: `resnet44`, `resnet56` and `resnet110` have 9n + 2 = 65, 83 and 164 layers. The last one is called
ResNet-164 in the literature.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from experiment.networks.convolutional_parts import blocks_per_stage, conv1x1, conv3x3, global_mean, he_normal

_BOTTLENECK_FROM_DEPTH = 44


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the first convolution has the stride."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1 down to `width`, 3x3 with the stride, 1x1 up to 4 * `width`, and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)))
        out = relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return relu(out + (x if self.downsample is None else self.downsample(x)))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """A residual network of three stages with n = (depth - 2) / 6 blocks each.

    Args:
        in_channels: channels of the images.
        output_size: number of classes; the network returns logits.
        depth: 6n + 2; blocks are bottlenecks from 44 on.
    """

    def __init__(self, in_channels: int, output_size: int, depth: int) -> None:
        super().__init__()
        num_blocks = blocks_per_stage(depth, 2)
        block = BasicBlock if depth < _BOTTLENECK_FROM_DEPTH else Bottleneck
        self.conv1 = conv3x3(in_channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(block, 16, 16, num_blocks, stride=1)
        self.layer2 = _stage(block, 16 * block.expansion, 32, num_blocks, stride=2)
        self.layer3 = _stage(block, 32 * block.expansion, 64, num_blocks, stride=2)
        self.fc = nn.Linear(64 * block.expansion, output_size)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))  # (N, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 64 or 256, H / 4, W / 4)
        logits: Tensor = self.fc(global_mean(x))
        return logits


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, num_blocks: int, stride: int
) -> nn.Sequential:
    first = block(in_channels, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(num_blocks - 1)))


def resnet20(input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    """ResNet-20 with basic blocks: 272,474 parameters and 40.81 M multiply-adds for CIFAR-10."""
    return ResNet(input_shape[0], output_size, depth=20)


def resnet32(input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    """ResNet-32 with basic blocks: 466,906 parameters for CIFAR-10."""
    return ResNet(input_shape[0], output_size, depth=32)


def resnet44(input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    """7 bottleneck blocks per stage (65 layers)."""
    return ResNet(input_shape[0], output_size, depth=44)


def resnet56(input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    """9 bottleneck blocks per stage (83 layers)."""
    return ResNet(input_shape[0], output_size, depth=56)


def resnet110(input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    """18 bottleneck blocks per stage (164 layers)."""
    return ResNet(input_shape[0], output_size, depth=110)
