"""Every registered network: sizes against the literature, multiply-adds against torch's own counter, behaviour."""

import inspect
import io
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from experiment import random_streams
from experiment.inputs import scored
from experiment.measure import count, example_input
from experiment.networks import NETWORKS
from experiment.networks.densenet import DenseNet
from experiment.networks.make_network import make_network
from experiment.networks.resnet import ResNet
from experiment.networks.wide_resnet import WideResNet
from experiment.registry import resolve

MNIST, CIFAR, IMAGENET = (1, 28, 28), (3, 32, 32), (3, 224, 224)
SCENES, VOC = (1, 64, 64), (3, 520, 520)


def resnet_parameters(depth: int, expansion: int) -> int:
    """He et al. 2016 with 1x1 shortcuts, counted block by block; expansion 1: basic blocks, 4: bottlenecks."""
    total, inputs = 27 * 16 + 32, 16
    for width in (16, 32, 64):
        for block in range((depth - 2) // 6):
            outputs = width * expansion
            if expansion == 1:
                total += 9 * inputs * width + 9 * width * width + 4 * width
            else:
                total += inputs * width + 9 * width * width + width * outputs + 4 * width + 2 * outputs
            if block == 0 and (width > 16 or inputs != outputs):
                total += inputs * outputs + 2 * outputs
            inputs = outputs
    return total + inputs * 10 + 10


def densenet_parameters(depth: int, growth: int) -> int:
    """DenseNet-BC of Huang et al. 2017, counted layer by layer."""
    channels = 2 * growth
    total = 27 * channels
    for block in range(3):
        for _ in range((depth - 4) // 6):
            total += 2 * channels + channels * 4 * growth + 8 * growth + 9 * 4 * growth * growth
            channels += growth
        if block < 2:
            total += 2 * channels + channels * (channels // 2)
            channels //= 2
    return total + 2 * channels + channels * 10 + 10


def unet_parameters(width: int, depth: int) -> int:
    """Pairs of 3x3 convolutions with BatchNorm, counted level by level, and a 1x1 convolution to 11 classes."""
    total, inputs = 11 * width + 11, 1
    for level in range(depth + 1):
        w = width * 2**level
        total += 9 * inputs * w + 9 * w * w + 4 * w
        if level < depth:
            total += 9 * 3 * w * w + 9 * w * w + 4 * w  # on the way up: w from across and 2 w from below
        inputs = w
    return total


# name -> (input shape, outputs, parameters)
EXPECTED = {
    # LeCun et al. 1998 and Caffe's example; 267K and 431K in Han et al. 2015, table 1
    "lenet300_100": (MNIST, 10, 784 * 300 + 300 * 100 + 100 * 10 + 410),
    "fcnet_nettrim": (MNIST, 10, 784 * 300 + 300 * 1000 + 1000 * 100 + 100 * 10 + 1410),
    "mlp": (MNIST, 10, 784 * 300 + 300 * 100 + 100 * 10 + 410),
    "lenet5": (MNIST, 10, 431_080),
    # 156 + 2,416 + 48,120 + 10,164 + 850: LeCun et al. 1998, figure 2, with C3 fully connected
    "lenet5_small": (MNIST, 10, 61_706),
    "mnist_fc": (MNIST, 10, 784 * 1000 + 1000 * 1000 + 1000 * 10 + 2010),
    # Nakkiran et al. 2019 give 1,558,026 for k = 64: with 64 + 128 + 256 + 512 biases in the convolutions
    "cnn5": (CIFAR, 10, 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 2 * (64 + 128 + 256 + 512) + 5_130),
    # He et al. 2016, table 6: 0.27 M and 0.46 M with parameter-free shortcuts; the two 1x1 ones here add 2,752
    "resnet20": (CIFAR, 10, 269_722 + 2_752),
    "resnet32": (CIFAR, 10, 464_154 + 2_752),
    "resnet44": (CIFAR, 10, resnet_parameters(44, 4)),
    "resnet56": (CIFAR, 10, resnet_parameters(56, 4)),
    "resnet110": (CIFAR, 10, resnet_parameters(110, 4)),
    # https://github.com/kuangliu/pytorch-cifar: 14.73 M; 14,710,464 weights + 4,224 biases + 8,448 BatchNorm + 5,130
    "vgg16_bn": (CIFAR, 10, 14_728_266),
    "densenet22": (CIFAR, 10, densenet_parameters(22, 12)),
    # Zagoruyko & Komodakis 2016, table 4: 11.0 M and 36.5 M; WRN-28-2: 1.5 M in Oliver et al. 2018
    "wrn16_8": (CIFAR, 10, 10_961_370),
    "wrn28_2": (CIFAR, 10, 1_467_610),
    "wrn28_10": (CIFAR, 10, 36_479_194),
    # torchvision's documentation, num_params
    "resnet18": (IMAGENET, 1000, 11_689_512),
    "resnet34": (IMAGENET, 1000, 21_797_672),
    "resnet50": (IMAGENET, 1000, 25_557_032),
    "resnet101": (IMAGENET, 1000, 44_549_160),
    "wide_resnet50_2": (IMAGENET, 1000, 68_883_240),
    "mobilenet_v2": (IMAGENET, 1000, 3_504_872),
    "alexnet": (IMAGENET, 1000, 61_100_840),
    # torchvision's alexnet with the biases of its first seven layers replaced by two BatchNorm parameters each
    "alexnet_bn": (IMAGENET, 1000, 61_100_840 + (64 + 192 + 384 + 256 + 256 + 4096 + 4096)),
    # the notebook of Condensa for CIFAR-10: 2,471,104 weights and 1,162 biases
    "alexnet_cifar": (CIFAR, 10, 2_471_104 + 1_162),
    "unet": (SCENES, 11, unet_parameters(16, 3)),
    **{
        name: (VOC, 21, models.get_model_weights(name)["COCO_WITH_VOC_LABELS_V1"].meta["num_params"])
        for name in (
            "deeplabv3_resnet50",
            "deeplabv3_resnet101",
            "deeplabv3_mobilenet_v3_large",
            "fcn_resnet50",
            "fcn_resnet101",
            "lraspp_mobilenet_v3_large",
        )
    },
}
TEXT = ("gpt_small", "bert")  # in test_gpt.py and test_transformers.py
IMAGES = [n for n in NETWORKS if n not in TEXT]
SEGMENTATION = [n for n, (shape, *_) in EXPECTED.items() if shape in (SCENES, VOC)]
OWN = [
    n
    for n in IMAGES
    if not {"torchvision_networks", "segmentation_networks"} & set(re.split(r"[.:]", NETWORKS[n].target))
]
SAME = {"resnet32", "resnet56", "resnet110", "wrn16_8", "wrn28_10"}  # other depths and widths of the same classes
SMALL = [n for n in OWN if n not in {"alexnet_bn", *SAME}]  # one per implementation, cheap enough to compute with
TORCHVISION = [n for n in IMAGES if n not in OWN and n not in SEGMENTATION]


def make_meta(name: str, input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    with torch.device("meta"):
        return make_network(name, {}, input_shape, output_size)


def make_random(name: str, input_shape: tuple[int, int, int], output_size: int, seed: int = 0) -> nn.Module:
    with random_streams.seeded("test", seed):
        return make_network(name, {}, input_shape, output_size)


def answers(output: object) -> Tensor:
    """The scores (N, K), of maps their means over the pixels."""
    found = scored(output)
    return found.reshape(*found.shape[:2], -1).mean(dim=2) if found.dim() > 2 else found


def test_every_network_is_expected() -> None:
    assert EXPECTED.keys() == set(IMAGES)
    assert all(name == entry.name for name, entry in NETWORKS.items())


@pytest.mark.parametrize("name", IMAGES)
def test_parameters_and_flops(name: str) -> None:
    shape, output_size, parameters = EXPECTED[name]
    network, example = make_meta(name, shape, output_size).eval(), example_input(shape, "meta")
    counted = count(network, example)
    assert counted.parameters == sum(p.numel() for p in network.parameters()) == parameters
    with FlopCounterMode(display=False) as counter:  # counts an addition and a multiplication each
        network(example)
    assert counted.flops == counted.flops_unmasked == counter.get_total_flops() / 2


@pytest.mark.parametrize("name", TORCHVISION)
def test_large_networks_are_torchvisions(name: str) -> None:
    meta = models.get_model_weights(name)["IMAGENET1K_V1"].meta
    counted = count(make_meta(name, IMAGENET, 1000), example_input(IMAGENET, "meta"))
    assert counted.parameters == meta["num_params"]
    assert counted.flops / 1e9 == pytest.approx(meta["_ops"], abs=6e-4)


def test_large_vgg_is_torchvisions() -> None:
    counted = count(make_meta("vgg16_bn", IMAGENET, 1000), example_input(IMAGENET, "meta"))
    assert counted.parameters == 138_365_992
    assert counted.flops / 1e9 == pytest.approx(15.47, abs=6e-3)


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("lenet5", 500 * 24 * 24 + 25_000 * 8 * 8 + 800 * 500 + 500 * 10),
        ("lenet300_100", 784 * 300 + 300 * 100 + 100 * 10),
        ("resnet20", 40_813_184),  # 40.81 M
        ("vgg16_bn", 313_201_664),  # 313 M
    ],
)
def test_flops_known(name: str, flops: int) -> None:
    shape, output_size, _ = EXPECTED[name]
    assert count(make_meta(name, shape, output_size), example_input(shape, "meta")).flops == flops


def test_families_beyond_the_registry() -> None:
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in network.parameters())
            for network in (
                DenseNet(3, 10, depth=100),  # DenseNet-BC (L=100, k=12): 0.8 M in Huang et al. 2017, table 2
                ResNet(3, 10, depth=38),
                WideResNet(3, 10, depth=40, widen=4),  # 8.9 M in Zagoruyko & Komodakis 2016, table 4
            )
        ]
    assert sizes == [769_162, resnet_parameters(38, 1), 8_949_210]


@pytest.mark.parametrize("name", [n for n in IMAGES if n not in SAME])
def test_other_classes_and_sizes(name: str) -> None:
    shape = (3, 96, 80) if EXPECTED[name][0] in (IMAGENET, VOC) else (3, 40, 36)
    output = scored(make_meta(name, shape, 7)(torch.zeros(3, *shape, device="meta")))
    assert output.shape == ((3, 7, *shape[1:]) if name in SEGMENTATION else (3, 7))


@pytest.mark.parametrize("name", SMALL)
def test_grey_28_pixel_images(name: str) -> None:
    assert answers(make_meta(name, MNIST, 10)(torch.zeros(3, *MNIST, device="meta"))).shape == (3, 10)


@pytest.mark.parametrize("name", [*SMALL, "resnet18", "mobilenet_v2"])
def test_state_dict_round_trip(name: str) -> None:
    shape, output_size = ((3, 64, 64), 5) if name in TORCHVISION else EXPECTED[name][:2]
    network, other = (make_random(name, shape, output_size, seed=seed).eval() for seed in (0, 1))
    x = torch.randn(2, *shape, generator=random_streams.generator("x"))
    with torch.inference_mode():
        before = network(x)
        assert answers(before).shape == (2, output_size)
        assert before.isfinite().all()
        assert not torch.equal(before, other(x))
        file = io.BytesIO()
        torch.save(network.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True), strict=True)
        assert torch.equal(before, other(x))


@pytest.mark.parametrize("name", SMALL)
def test_initialisation_is_the_streams(name: str) -> None:
    shape, output_size, _ = EXPECTED[name]
    outside = torch.get_rng_state()
    first, again, other = (make_random(name, shape, output_size, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), outside)
    assert all(torch.equal(first[key], again[key]) for key in first)
    weights = [key for key, value in first.items() if value.dim() > 1]
    assert weights
    assert not any(torch.equal(first[key], other[key]) for key in weights)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns_and_inputs_stay(name: str) -> None:
    shape = (EXPECTED[name][0][0], 28, 28)
    network = make_random(name, shape, 10)
    assert network.training
    x = torch.randn(4, *shape, generator=random_streams.generator("x"))
    kept = x.clone()
    with random_streams.seeded("dropout"):
        cross_entropy(answers(network(x)), torch.tensor([0, 1, 2, 3])).backward()
    assert torch.equal(x, kept)
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    assert not [m for m in network.modules() if isinstance(m, nn.ReLU) and m.inplace]


def test_resnet20_names() -> None:
    """The names under which the checkpoints of this variant are stored."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "fc.weight", "fc.bias"} | {f"bn1.{n}" for n in norm}
    for layer in (1, 2, 3):
        for block in (0, 1, 2):
            prefix = f"layer{layer}.{block}"
            expected |= {f"{prefix}.conv{i}.weight" for i in (1, 2)} | {
                f"{prefix}.bn{i}.{n}" for i in (1, 2) for n in norm
            }
        if layer > 1:
            expected |= {f"layer{layer}.0.downsample.0.weight"} | {f"layer{layer}.0.downsample.1.{n}" for n in norm}
    assert set(make_meta("resnet20", CIFAR, 10).state_dict()) == expected


def test_resnet_blocks_by_depth() -> None:
    shallow, deep = make_meta("resnet32", CIFAR, 10), make_meta("resnet44", CIFAR, 10)
    assert not [n for n, _ in shallow.named_modules() if n.endswith("conv3")]
    assert len([n for n, _ in deep.named_modules() if n.endswith("conv3")]) == 3 * 7
    convolutions = [m for n, m in deep.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
    assert len(convolutions) + 1 == 9 * 7 + 2
    assert deep.get_submodule("fc").weight.shape == (10, 256)


def test_residual_block_adds_its_input() -> None:
    network = make_random("resnet20", CIFAR, 10).eval()
    block = network.get_submodule("layer1.1")
    nn.init.zeros_(block.get_parameter("bn2.weight"))
    x = torch.randn(2, 16, 8, 8, generator=random_streams.generator("x"))
    assert torch.equal(block(x), x.relu())


def test_dropout_setting() -> None:
    settings = {"hidden": [8, 6], "activation": "Tanh", "batch_norm": True, "dropout": 0.25}
    steps = [type(m).__name__ for m in make_network("mlp", settings, (5,), 2).modules()][1:]
    assert steps == ["Flatten", *2 * ("Linear", "BatchNorm1d", "Tanh", "Dropout"), "Linear"]
    network = make_network("mnist_fc", {"dropout": 0.25}, MNIST, 10)
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.25, 0.25]
    assert not [m for m in make_network("mnist_fc", {"dropout": 0}, MNIST, 10).modules() if isinstance(m, nn.Dropout)]
    wide = make_network("wrn28_2", {"dropout": 0.3}, CIFAR, 10)
    assert {m.p for m in wide.modules() if isinstance(m, nn.Dropout)} == {0.3}


def test_width_setting() -> None:
    network = make_network("cnn5", {"width": 4}, CIFAR, 10)
    assert [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)] == [4, 8, 16, 32]


@pytest.mark.parametrize("name", ["resnet20", "vgg16_bn", "densenet22", "wrn28_2"])
def test_he_initialisation(name: str) -> None:
    network = make_random(name, CIFAR, 10)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    scaled = torch.cat(
        [(m.weight * math.sqrt(math.prod(m.kernel_size) * m.out_channels / 2)).flatten().detach() for m in convolutions]
    )
    assert scaled.std().item() == pytest.approx(1, abs=0.02)
    assert scaled.mean().item() == pytest.approx(0, abs=0.02)
    assert not [m for m in convolutions if m.bias is not None and m.bias.any()]


@pytest.mark.parametrize("name", NETWORKS)
def test_factories_have_one_signature(name: str) -> None:
    factory = resolve(NETWORKS[name].target)
    assert callable(factory)
    assert factory.__name__ == name
    first, second, *rest = inspect.signature(factory).parameters.values()
    assert (first.name, second.name) == ("input_shape", "output_size")
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty for p in rest)


def test_registry_needs_no_torch() -> None:
    code = "import sys, experiment.networks; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
