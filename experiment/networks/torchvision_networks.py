"""Torchvision's networks for ImageNet-like images, with fresh weights or those that torchvision publishes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from experiment.errors import ConfigError, DataError


def resnet18(input_shape: tuple[int, int, int], output_size: int, pretrained: bool = False) -> nn.Module:
    """ResNet-18: 11,689,512 parameters for ImageNet."""
    return _make(models.resnet18, models.ResNet18_Weights.IMAGENET1K_V1, input_shape, output_size, pretrained)


def resnet34(input_shape: tuple[int, int, int], output_size: int, pretrained: bool = False) -> nn.Module:
    """ResNet-34: 21,797,672 parameters for ImageNet."""
    return _make(models.resnet34, models.ResNet34_Weights.IMAGENET1K_V1, input_shape, output_size, pretrained)


def resnet50(input_shape: tuple[int, int, int], output_size: int, pretrained: bool = False) -> nn.Module:
    """ResNet-50: 25,557,032 parameters for ImageNet."""
    return _make(models.resnet50, models.ResNet50_Weights.IMAGENET1K_V1, input_shape, output_size, pretrained)


def resnet101(input_shape: tuple[int, int, int], output_size: int, pretrained: bool = False) -> nn.Module:
    """ResNet-101: 44,549,160 parameters for ImageNet."""
    return _make(models.resnet101, models.ResNet101_Weights.IMAGENET1K_V1, input_shape, output_size, pretrained)


def wide_resnet50_2(input_shape: tuple[int, int, int], output_size: int, pretrained: bool = False) -> nn.Module:
    """Wide ResNet-50-2: 68,883,240 parameters for ImageNet."""
    weights = models.Wide_ResNet50_2_Weights.IMAGENET1K_V1
    return _make(models.wide_resnet50_2, weights, input_shape, output_size, pretrained)


def mobilenet_v2(input_shape: tuple[int, int, int], output_size: int, pretrained: bool = False) -> nn.Module:
    """MobileNetV2: 3,504,872 parameters for ImageNet."""
    return _make(models.mobilenet_v2, models.MobileNet_V2_Weights.IMAGENET1K_V1, input_shape, output_size, pretrained)


def vgg16_bn(input_shape: tuple[int, int, int], output_size: int, pretrained: bool = False) -> nn.Module:
    """VGG-16 with BatchNorm and three linear layers: 138,365,992 parameters for ImageNet."""
    return _make(models.vgg16_bn, models.VGG16_BN_Weights.IMAGENET1K_V1, input_shape, output_size, pretrained)


def alexnet(input_shape: tuple[int, int, int], output_size: int, pretrained: bool = False) -> nn.Module:
    """AlexNet without BatchNorm: 61,100,840 parameters for ImageNet."""
    return _make(models.alexnet, models.AlexNet_Weights.IMAGENET1K_V1, input_shape, output_size, pretrained)


def _make(
    factory: Callable[..., nn.Module],
    weights: WeightsEnum,
    input_shape: tuple[int, int, int],
    output_size: int,
    pretrained: bool,
) -> nn.Module:
    name = factory.__name__
    if input_shape[0] != 3:
        raise ConfigError(
            f"network '{name}' takes images of 3 channels. Got {input_shape[0]}. "
            f"Add the transform Grayscale with num_output_channels: 3, or choose another network."
        )
    if not pretrained:
        return factory(weights=None, num_classes=output_size)
    if output_size != 1000:
        raise ConfigError(
            f"network '{name}': pretrained weights are for ImageNet's 1000 classes. Got outputSize {output_size}. "
            f"Set pretrained: false, or outputSize: 1000."
        )
    try:
        return factory(weights=weights)
    except (URLError, OSError, RuntimeError) as error:  # no connection, no room on the disk, a damaged download
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise DataError(
            f"network '{name}': torchvision's weights cannot be had: {error}. "
            f"A machine with a network downloads them by itself. Or place {weights.url} at {place}."
        ) from error
