"""Common parts of the convolutional networks for small images: depth, 3x3 convolutions, pooling, initialization."""

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d


def blocks_per_stage(depth: int, other_layers: int) -> int:
    """The number n of blocks of two layers in each of three stages, where depth = 6n + other_layers.

    Raises: ValueError: no positive n fits.
    """
    if depth < 6 + other_layers or (depth - other_layers) % 6:
        examples = ", ".join(str(6 * n + other_layers) for n in (1, 2, 3))
        raise ValueError(f"depth must be 6n + {other_layers}: {examples}, .... Got {depth}.")
    return (depth - other_layers) // 6


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the grid, or divides it by the stride."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


def global_mean(x: Tensor) -> Tensor:
    """Mean over the grid: (N, C, H, W) to (N, C)."""
    return torch.flatten(adaptive_avg_pool2d(x, 1), 1)


def he_normal(network: nn.Module) -> None:
    """Draw the weights of convolutions from N(0, 2 / (k1 k2 f)) in place, f = output channels; biases become zero.

    Weights are drawn from torch's default generator: call under `experiment.random_streams.seeded`.

    Source: He et al. 2015, https://arxiv.org/abs/1502.01852 (fan-out variant).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
