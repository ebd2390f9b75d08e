r"""U-Net for small images: classes of pixels from a path down, a path up, and connections across.

    x -> down1 -> down2 -> ... -> bottom -> ... -> up2 -> up1 -> head
            \________\_______________________/______/

Down: two 3x3 convolutions with BatchNorm and ReLU, then 2x2 max pooling; every level has twice the channels of the one
above. Up: the grid enlarged to that of the level above and concatenated with its output, then two convolutions.

Source: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597
Differs: padded convolutions, BatchNorm, nearest-neighbour enlargement instead of transposed convolutions.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from experiment.networks.convolutional_parts import conv3x3, he_normal


class UNet(nn.Module):
    """`depth` levels above the bottom.

    Args:
        in_channels: channels of the images.
        output_size: number of classes; the network returns logits (N, output_size, H, W).
        width: channels of the first level.
        depth: how often the grid is halved.
    """

    def __init__(self, in_channels: int, output_size: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _two_layers(before, after) for before, after in zip([in_channels, *widths], widths[:-1], strict=False)
        )
        self.bottom = _two_layers(widths[-2], widths[-1])
        self.up = nn.ModuleList(_two_layers(3 * above, above) for above in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, output_size, 1)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for layers in self.down:
            x = layers(x)
            levels.append(x)
            x = max_pool2d(x, 2)
        x = self.bottom(x)
        for layers in self.up:
            across = levels.pop()
            x = layers(torch.cat((across, interpolate(x, size=across.shape[-2:])), 1))
        logits: Tensor = self.head(x)
        return logits


def _two_layers(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        conv3x3(in_channels, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU(),
        conv3x3(out_channels, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU(),
    )  # fmt: skip


def unet(input_shape: tuple[int, int, int], output_size: int, width: int = 16, depth: int = 3) -> nn.Module:
    """U-Net with BatchNorm for segmentation: `depth` halvings of the grid, `width` channels in the first level."""
    if width < 1 or depth < 1:
        raise ValueError(f"width and depth must be at least 1. Got {width} and {depth}.")
    if min(input_shape[1:]) < 2**depth:
        raise ValueError(f"images must have at least {2**depth} x {2**depth} pixels for depth {depth}.")
    return UNet(input_shape[0], output_size, width, depth)
