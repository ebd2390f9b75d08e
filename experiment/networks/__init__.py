"""The registry of networks. Does not import torch: an entry names the factory of the network."""

from experiment.registry import NetworkEntry

_FACTORIES = {  # module -> its factories, which are called like the networks
    "lenet": ("lenet300_100", "fcnet_nettrim", "lenet5", "lenet5_small", "mnist_fc", "mlp", "cnn5"),
    "resnet": ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
    "vgg": ("vgg16_bn",),
    "densenet": ("densenet22",),
    "wide_resnet": ("wrn16_8", "wrn28_2", "wrn28_10"),
    "torchvision_networks": (
        "resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2", "mobilenet_v2", "alexnet",
    ),
    "alexnet": ("alexnet_bn", "alexnet_cifar"),
    "gpt": ("gpt_small",),
    "external_networks": ("bert",),
    "segmentation_networks": (
        "deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large", "fcn_resnet50", "fcn_resnet101",
        "lraspp_mobilenet_v3_large",
    ),
    "unet": ("unet",),
}  # fmt: skip

NETWORKS: dict[str, NetworkEntry] = {
    name: NetworkEntry(name, f"experiment.networks.{module}:{name}")
    for module, names in _FACTORIES.items()
    for name in names
}
