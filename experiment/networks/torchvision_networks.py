"""Torchvision's networks for ImageNet-like images, with random or pretrained weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn
from torchvision import models

from experiment.errors import ConfigError, DataError

Factory = Callable[..., nn.Module]


def _factory(name: str, parameters: str) -> Factory:
    """The factory of one of torchvision's networks, called like it.

    Args:
        parameters: their number with the 1000 classes of ImageNet.
    """

    def make(input_shape: tuple[int, int, int], output_size: int, pretrained: bool = False) -> nn.Module:
        return _make(name, input_shape, output_size, pretrained)

    make.__name__ = name
    make.__doc__ = f"Torchvision's {name}: {parameters} parameters for ImageNet. `pretrained` loads its weights."
    return make


def _make(name: str, input_shape: tuple[int, int, int], output_size: int, pretrained: bool) -> nn.Module:
    require_colours(name, input_shape)
    if not pretrained:
        return models.get_model(name, weights=None, num_classes=output_size)  # type: ignore[no-any-return]
    if output_size != 1000:
        raise ConfigError(
            f"network '{name}': pretrained weights have the 1000 classes of ImageNet. Got outputSize {output_size}. "
            "Set pretrained: false, or outputSize: 1000."
        )
    weights = models.get_model_weights(name)["IMAGENET1K_V1"]
    return with_weights(name, weights, weights=weights)


def require_colours(name: str, input_shape: tuple[int, int, int]) -> None:
    if input_shape[0] != 3:
        raise ConfigError(
            f"network '{name}': requires images with 3 channels. Got {input_shape[0]}. "
            "Add the transform Grayscale with num_output_channels: 3, or choose another network."
        )


def with_weights(name: str, published: Any, /, **arguments: Any) -> nn.Module:
    """The network with weights of torchvision's, which `arguments` select.

    Raises: DataError: they cannot be downloaded.
    """
    try:
        return models.get_model(name, **arguments)  # type: ignore[no-any-return]
    except (URLError, OSError, RuntimeError) as error:  # no connection, a full disk, a damaged download
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name
        raise DataError(
            f"network '{name}': cannot load torchvision's weights: {error}. "
            f"With an internet connection they are downloaded automatically. Otherwise save {published.url} as {place}."
        ) from error


resnet18 = _factory("resnet18", "11,689,512")
resnet34 = _factory("resnet34", "21,797,672")
resnet50 = _factory("resnet50", "25,557,032")
resnet101 = _factory("resnet101", "44,549,160")
wide_resnet50_2 = _factory("wide_resnet50_2", "68,883,240")
mobilenet_v2 = _factory("mobilenet_v2", "3,504,872")
vgg16_bn = _factory("vgg16_bn", "138,365,992")
alexnet = _factory("alexnet", "61,100,840")
