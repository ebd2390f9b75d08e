"""AlexNets: with BatchNorm after every layer but the last, for ImageNet-like images, and without, for small ones."""

import torch
from torch import Tensor, nn

_MIN_SIDE = 63  # pixels; smaller images do not survive the pooling layers


class AlexNetBN(nn.Module):
    """Five convolutions and three linear layers, without bias if BatchNorm follows.

    Args:
        in_channels: channels of the images.
        output_size: number of classes; the network returns logits.
    """

    def __init__(self, in_channels: int, output_size: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(in_channels, 64, kernel=11, stride=4, padding=2),
            nn.MaxPool2d(3, stride=2),
            *_convolution(64, 192, kernel=5, padding=2),
            nn.MaxPool2d(3, stride=2),
            *_convolution(192, 384, kernel=3, padding=1),
            *_convolution(384, 256, kernel=3, padding=1),
            *_convolution(256, 256, kernel=3, padding=1),
            nn.MaxPool2d(3, stride=2),
            nn.AdaptiveAvgPool2d(6),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(),
            *_linear(256 * 6 * 6, 4096),
            nn.Dropout(),
            *_linear(4096, 4096),
            nn.Linear(4096, output_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


def _convolution(in_channels: int, out_channels: int, kernel: int, padding: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]


def _linear(in_features: int, out_features: int) -> list[nn.Module]:
    return [nn.Linear(in_features, out_features, bias=False), nn.BatchNorm1d(out_features), nn.ReLU()]


def alexnet_bn(input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    """AlexNet with BatchNorm: 61,110,184 parameters for ImageNet.

    Source: Krizhevsky 2014, https://arxiv.org/abs/1404.5997 (the one-column version, like torchvision's `alexnet`).
    Differs: BatchNorm (Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167) replaces the biases.
    """
    if min(input_shape[1:]) < _MIN_SIDE:
        raise ValueError(f"images must have at least {_MIN_SIDE} x {_MIN_SIDE} pixels.")
    return AlexNetBN(input_shape[0], output_size)


def alexnet_cifar(input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    """AlexNet for small images: five convolutions and one linear layer; 2,472,266 parameters for CIFAR-10.

    Source: Krizhevsky 2014, https://arxiv.org/abs/1404.5997, in the size that Condensa compresses (Joseph et al. 2020,
    https://arxiv.org/abs/1911.02497): 2,471,104 weights and 1,162 biases.
    Differs: strides and pooling for images of 32 x 32; without dropout and the two wide linear layers.
    """
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for width, kernel, pooled in ((64, 11, True), (192, 5, True), (384, 3, False), (256, 3, False), (256, 3, True)):
        first = not layers
        layers += [nn.Conv2d(channels, width, kernel, stride=4 if first else 1, padding=kernel // 2), nn.ReLU()]
        layers += [nn.MaxPool2d(2, ceil_mode=True)] if pooled else []
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, output_size))
