"""Densely connected networks with bottlenecks and compression (DenseNet-BC) for small images such as CIFAR's.

    conv1 -> dense1 trans1 -> dense2 trans2 -> dense3 -> bn relu -> mean over the grid -> fc

Every layer of a dense block reads the concatenation of all earlier outputs and adds `growth` channels. A transition
divides the number of channels by `compression` and halves the grid.

Source: Huang et al. 2017, https://arxiv.org/abs/1608.06993
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from experiment.networks.convolutional_parts import blocks_per_stage, conv1x1, conv3x3, global_mean, he_normal


class DenseLayer(nn.Module):
    """x becomes (x, conv2(relu(bn2(conv1(relu(bn1(x))))))): 1x1 to 4 * `growth` channels, then 3x3 to `growth`."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, 4 * growth)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv3x3(4 * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(relu(self.bn1(x)))
        out = self.conv2(relu(self.bn2(out)))
        return torch.cat((x, out), 1)


class Transition(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution, 2x2 mean pooling."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = conv1x1(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(self.conv(relu(self.bn(x))), 2)


class DenseNet(nn.Module):
    """Three dense blocks of (depth - 4) / 6 layers.

    Args:
        in_channels: channels of the images.
        output_size: number of classes; the network returns logits.
        depth: 6n + 4.
        growth: channels that every dense layer adds; the first convolution has twice as many.
        compression: factor by which a transition divides the channels.
    """

    def __init__(self, in_channels: int, output_size: int, depth: int, growth: int = 12, compression: int = 2) -> None:
        super().__init__()
        num_layers = blocks_per_stage(depth, 4)
        first = 2 * growth
        second = (first + num_layers * growth) // compression
        third = (second + num_layers * growth) // compression
        last = third + num_layers * growth
        self.conv1 = conv3x3(in_channels, first)
        self.dense1 = _block(first, growth, num_layers)
        self.trans1 = Transition(first + num_layers * growth, second)
        self.dense2 = _block(second, growth, num_layers)
        self.trans2 = Transition(second + num_layers * growth, third)
        self.dense3 = _block(third, growth, num_layers)
        self.bn = nn.BatchNorm2d(last)
        self.fc = nn.Linear(last, output_size)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.dense3(self.trans2(self.dense2(x)))
        logits: Tensor = self.fc(global_mean(relu(self.bn(x))))
        return logits


def _block(in_channels: int, growth: int, num_layers: int) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(in_channels + i * growth, growth) for i in range(num_layers)))


def densenet22(input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    """DenseNet-BC with 22 layers, growth 12, compression 2."""
    return DenseNet(input_shape[0], output_size, depth=22)
