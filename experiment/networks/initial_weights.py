"""How the convolutional networks' weights start."""

from __future__ import annotations

from torch import nn


def he_normal(network: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / (k1 k2 f)), f = output channels, in place; biases of convolutions at zero.

    Draws come from torch's default generator: call under `experiment.random_streams.seeded`.

    Source: He et al. 2015, https://arxiv.org/abs/1502.01852 (the backward form, with the fan-out).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
