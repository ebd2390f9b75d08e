"""Wide residual networks for small images such as CIFAR's.

    conv1 -> layer1 (16k wide) -> layer2 (32k, half the grid) -> layer3 (64k, a quarter) -> bn relu -> mean -> fc

WRN-d-k has depth d = 6n + 4, n blocks per stage, and widening factor k.

Source: Zagoruyko & Komodakis 2016, https://arxiv.org/abs/1605.07146
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from experiment.networks.convolutional_parts import blocks_per_stage, conv1x1, conv3x3, global_mean, he_normal


class PreActivationBlock(nn.Module):
    """y = x' + conv2(drop(relu(bn2(conv1(a))))), a = relu(bn1(x)); x' is x, or a 1x1 convolution of a."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = None if same else conv1x1(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = relu(self.bn1(x))
        out = relu(self.bn2(self.conv1(activated)))
        out = self.conv2(self.dropout(out))
        y: Tensor = out + (x if self.shortcut is None else self.shortcut(activated))
        return y


class WideResNet(nn.Module):
    """Three stages of n = (depth - 4) / 6 blocks.

    Args:
        in_channels: channels of the images.
        output_size: number of classes; the network returns logits.
        depth: 6n + 4.
        widen: widening factor k.
        dropout: probability of dropping an activation between the convolutions of a block, in [0, 1].
    """

    def __init__(self, in_channels: int, output_size: int, depth: int, widen: int, dropout: float = 0.0) -> None:
        super().__init__()
        num_blocks = blocks_per_stage(depth, 4)
        self.conv1 = conv3x3(in_channels, 16)
        self.layer1 = _stage(16, 16 * widen, num_blocks, 1, dropout)
        self.layer2 = _stage(16 * widen, 32 * widen, num_blocks, 2, dropout)
        self.layer3 = _stage(32 * widen, 64 * widen, num_blocks, 2, dropout)
        self.bn = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, output_size)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))  # (N, 64k, H / 4, W / 4)
        logits: Tensor = self.fc(global_mean(relu(self.bn(x))))
        return logits


def _stage(in_channels: int, out_channels: int, num_blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = PreActivationBlock(in_channels, out_channels, stride, dropout)
    return nn.Sequential(
        first, *(PreActivationBlock(out_channels, out_channels, 1, dropout) for _ in range(num_blocks - 1))
    )


def wrn16_8(input_shape: tuple[int, int, int], output_size: int, dropout: float = 0.0) -> nn.Module:
    """WRN-16-8: 10,961,370 parameters for CIFAR-10."""
    return WideResNet(input_shape[0], output_size, depth=16, widen=8, dropout=dropout)


def wrn28_2(input_shape: tuple[int, int, int], output_size: int, dropout: float = 0.0) -> nn.Module:
    """WRN-28-2: 1,467,610 parameters for CIFAR-10."""
    return WideResNet(input_shape[0], output_size, depth=28, widen=2, dropout=dropout)


def wrn28_10(input_shape: tuple[int, int, int], output_size: int, dropout: float = 0.0) -> nn.Module:
    """WRN-28-10: 36,479,194 parameters for CIFAR-10."""
    return WideResNet(input_shape[0], output_size, depth=28, widen=10, dropout=dropout)
