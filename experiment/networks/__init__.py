"""The registry of networks, torch-free: an entry names the factory that makes the network."""

from __future__ import annotations

from experiment.registry import NetworkEntry

NETWORKS: dict[str, NetworkEntry] = {
    entry.name: entry
    for entry in (
        NetworkEntry("lenet300_100", "experiment.networks.lenet:lenet300_100"),
        NetworkEntry("lenet5", "experiment.networks.lenet:lenet5"),
        NetworkEntry("lenet5_small", "experiment.networks.lenet:lenet5_small"),
        NetworkEntry("mnist_fc", "experiment.networks.lenet:mnist_fc"),
        NetworkEntry("cnn5", "experiment.networks.lenet:cnn5"),
        NetworkEntry("resnet20", "experiment.networks.resnet:resnet20"),
        NetworkEntry("resnet32", "experiment.networks.resnet:resnet32"),
        NetworkEntry("resnet44", "experiment.networks.resnet:resnet44"),
        NetworkEntry("resnet56", "experiment.networks.resnet:resnet56"),
        NetworkEntry("resnet110", "experiment.networks.resnet:resnet110"),
        NetworkEntry("vgg16_bn", "experiment.networks.vgg:vgg16_bn"),
        NetworkEntry("densenet22", "experiment.networks.densenet:densenet22"),
        NetworkEntry("wrn16_8", "experiment.networks.wide_resnet:wrn16_8"),
        NetworkEntry("wrn28_2", "experiment.networks.wide_resnet:wrn28_2"),
        NetworkEntry("wrn28_10", "experiment.networks.wide_resnet:wrn28_10"),
        NetworkEntry("resnet18", "experiment.networks.torchvision_networks:resnet18"),
        NetworkEntry("resnet34", "experiment.networks.torchvision_networks:resnet34"),
        NetworkEntry("resnet50", "experiment.networks.torchvision_networks:resnet50"),
        NetworkEntry("resnet101", "experiment.networks.torchvision_networks:resnet101"),
        NetworkEntry("wide_resnet50_2", "experiment.networks.torchvision_networks:wide_resnet50_2"),
        NetworkEntry("mobilenet_v2", "experiment.networks.torchvision_networks:mobilenet_v2"),
        NetworkEntry("alexnet", "experiment.networks.torchvision_networks:alexnet"),
        NetworkEntry("alexnet_bn", "experiment.networks.alexnet:alexnet_bn"),
    )
}
