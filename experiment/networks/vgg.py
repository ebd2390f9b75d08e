"""VGG-16 with BatchNorm: a variant for small images, and torchvision's for large ones."""

from collections import OrderedDict

from torch import nn

from experiment.errors import ConfigError
from experiment.networks import torchvision_networks
from experiment.networks.convolutional_parts import he_normal

_LARGE = 64  # pixels of the shorter side from which torchvision's network is used
_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
_POOL_AFTER = (2, 4, 7, 10, 13)


def vgg16_bn(input_shape: tuple[int, int, int], output_size: int, pretrained: bool = False) -> nn.Module:
    """VGG-16 with BatchNorm, depending on the size of the images.

    Shorter side below 64 pixels: one linear layer after the convolutions, 14,728,266 parameters for CIFAR-10.
    Otherwise torchvision's, with three linear layers: 138,365,992 parameters for ImageNet.

    Args:
        pretrained: torchvision's ImageNet weights; large images and 1000 outputs only.

    Source: Simonyan & Zisserman 2014, https://arxiv.org/abs/1409.1556, configuration D.
    Differs: a single linear layer for small images, as is common for CIFAR.
    """
    if min(input_shape[1:]) >= _LARGE:
        return torchvision_networks.vgg16_bn(input_shape, output_size, pretrained)
    if pretrained:
        raise ConfigError(
            f"network 'vgg16_bn': no pretrained weights for images below {_LARGE} pixels. "
            f"Got {input_shape[1]} x {input_shape[2]}. Set pretrained: false, or resize the images."
        )
    return _small_vgg16_bn(input_shape, output_size)


def _small_vgg16_bn(input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    channels, height, width = input_shape
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    for i, out_channels in enumerate(_WIDTHS, start=1):
        steps[f"conv{i}"] = nn.Conv2d(channels, out_channels, 3, padding=1)
        steps[f"bn{i}"] = nn.BatchNorm2d(out_channels)
        steps[f"relu{i}"] = nn.ReLU()
        if i in _POOL_AFTER and min(height, width) > 1:  # 28 x 28 images are a single pixel before the last pool
            steps[f"pool{i}"] = nn.MaxPool2d(2)
            height, width = height // 2, width // 2
        channels = out_channels
    fc = nn.Linear(channels * height * width, output_size)
    network = nn.Sequential(steps | OrderedDict(flatten=nn.Flatten(), fc=fc))
    he_normal(network)
    nn.init.normal_(fc.weight, std=0.01)
    nn.init.zeros_(fc.bias)
    return network
