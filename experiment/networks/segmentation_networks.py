"""Torchvision's networks for segmentation. They return a dictionary: logits (N, K, H, W) as "out", and maybe "aux".

"aux" is the output of an auxiliary head, which serves training only (`CrossEntropyLossWithAuxiliary`). A network that
has one keeps it: it is compressed like the other layers, and counts as parameters and FLOPs.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torchvision import models

from experiment.errors import ConfigError
from experiment.networks.torchvision_networks import require_colours, with_weights

NUM_PRETRAINED = 21  # classes of Pascal VOC, on which torchvision's weights were trained with images of COCO


def _factory(name: str, parameters: str, backbone: str) -> Callable[..., nn.Module]:
    """The factory of one of the networks with an auxiliary head, called like it.

    Args:
        parameters: their number with the 21 classes of Pascal VOC and the auxiliary head.
        backbone: the network for ImageNet that it is built on.
    """

    def make(
        input_shape: tuple[int, int, int], output_size: int, auxiliary: bool = True, pretrained: bool | str = False
    ) -> nn.Module:
        network = _make(name, backbone, input_shape, output_size, pretrained, {"aux_loss": auxiliary})
        if not auxiliary:
            network.aux_classifier = None  # type: ignore[assignment]  # pretrained weights have one
        return network

    make.__name__ = name
    make.__doc__ = (
        f"Torchvision's {name}: {parameters} parameters for Pascal VOC. `pretrained` loads its weights, `backbone` "
        "those of the backbone. `auxiliary` is the head that only training uses: it is compressed and counted."
    )
    return make


deeplabv3_resnet50 = _factory("deeplabv3_resnet50", "42,004,074", "resnet50")
deeplabv3_resnet101 = _factory("deeplabv3_resnet101", "60,996,202", "resnet101")
deeplabv3_mobilenet_v3_large = _factory("deeplabv3_mobilenet_v3_large", "11,029,328", "mobilenet_v3_large")
fcn_resnet50 = _factory("fcn_resnet50", "35,322,218", "resnet50")
fcn_resnet101 = _factory("fcn_resnet101", "54,314,346", "resnet101")


def lraspp_mobilenet_v3_large(
    input_shape: tuple[int, int, int], output_size: int, pretrained: bool | str = False
) -> nn.Module:
    """Torchvision's lraspp_mobilenet_v3_large: 3,221,538 parameters for Pascal VOC, without an auxiliary head."""
    return _make("lraspp_mobilenet_v3_large", "mobilenet_v3_large", input_shape, output_size, pretrained, {})


def _make(
    name: str, backbone: str, input_shape: tuple[int, int, int], output_size: int, pretrained: bool | str,
    heads: Mapping[str, Any],
) -> nn.Module:  # fmt: skip
    require_colours(name, input_shape)
    if pretrained is False:
        return models.get_model(  # type: ignore[no-any-return]
            name, weights=None, weights_backbone=None, num_classes=output_size, **heads
        )
    if pretrained == "backbone":
        weights = models.get_model_weights(backbone)["IMAGENET1K_V1"]
        return with_weights(name, weights, weights_backbone=weights, num_classes=output_size, **heads)
    if pretrained is not True or output_size != NUM_PRETRAINED:
        raise ConfigError(
            f"network '{name}': pretrained must be false, backbone, or true with outputSize {NUM_PRETRAINED}, the "
            f"classes of Pascal VOC. Got {pretrained!r} and outputSize {output_size}."
        )
    weights = models.get_model_weights(name)["COCO_WITH_VOC_LABELS_V1"]
    return with_weights(name, weights, weights=weights)
