"""Networks for small images: fully connected networks, two LeNet-5 and a five-layer CNN. All return logits."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from experiment.errors import ConfigError

ACTIVATIONS = ("ReLU", "LeakyReLU", "ELU", "GELU", "SiLU", "Tanh", "Sigmoid")


def lenet300_100(input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    """LeNet-300-100: pixels-300-100-classes; 266,610 parameters for MNIST.

    Source: LeCun et al. 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf
    Differs: ReLU, a linear output layer.
    """
    return nn.Sequential(_linear_layers((math.prod(input_shape), 300, 100, output_size)))


def fcnet_nettrim(input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    """pixels-300-1000-100-classes; 637,610 parameters for MNIST.

    Source: Aghasi et al. 2020 (Net-Trim), https://doi.org/10.1137/19M1246468
    """
    return nn.Sequential(_linear_layers((math.prod(input_shape), 300, 1000, 100, output_size)))


def mnist_fc(input_shape: tuple[int, int, int], output_size: int, dropout: float = 0.5) -> nn.Module:
    """pixels-1000-1000-classes with dropout after both hidden layers; 1,796,010 parameters for MNIST.

    Args:
        dropout: probability of dropping a hidden activation in training, in [0, 1].
    """
    return nn.Sequential(_linear_layers((math.prod(input_shape), 1000, 1000, output_size), dropout))


def mlp(
    input_shape: tuple[int, ...],
    output_size: int,
    hidden: Sequence[int] = (300, 100),
    activation: str = "ReLU",
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """A fully connected network for inputs of any shape, such as rows of a table; by default LeNet-300-100.

    Args:
        hidden: units of each hidden layer.
        activation: ReLU, LeakyReLU, ELU, GELU, SiLU, Tanh or Sigmoid.
        batch_norm: normalize before every activation.
        dropout: probability of dropping a hidden activation in training, in [0, 1].
    """
    if activation not in ACTIVATIONS:
        raise ConfigError(f"settings.activation: must be one of {', '.join(ACTIVATIONS)}. Got {activation!r}.")
    widths = (math.prod(input_shape), *hidden, output_size)
    return nn.Sequential(_linear_layers(widths, dropout, activation, batch_norm))


def lenet5(input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    """Caffe's LeNet-5: convolutions with 20 and 50 channels, 500 hidden units; 431,080 parameters for MNIST.

    Source: https://github.com/BVLC/caffe/tree/master/examples/mnist
    Differs: ReLU after the convolutions, too.
    """
    return _lenet5(input_shape, (20, 50), (500, output_size), padding=0)


def lenet5_small(input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    """LeNet-5: convolutions with 6 and 16 channels, 120 and 84 hidden units; 61,706 parameters for MNIST.

    Images below 32 pixels are padded with two zero pixels on each side, so that MNIST's 28 become the paper's 32.

    Source: LeCun et al. 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf
    Differs: ReLU, max pooling, every channel connected to every other, a linear output layer.
    """
    padding = 2 if min(input_shape[1:]) < 32 else 0
    return _lenet5(input_shape, (6, 16), (120, 84, output_size), padding)


def cnn5(input_shape: tuple[int, int, int], output_size: int, width: int = 64) -> nn.Module:
    """Four 3x3 convolutions with BatchNorm, ReLU and max pooling, one linear layer; 1,557,066 parameters for CIFAR-10.

    The convolutions have k, 2k, 4k, 8k channels. 2x2 pools follow the second and the third, and a maximum over the
    remaining grid (8 x 8 for CIFAR) follows the last.

    Args:
        width: number k of channels of the first convolution.

    Source: Nakkiran et al. 2019, https://arxiv.org/abs/1912.02292
    Differs: convolutions have no bias, because BatchNorm follows.
    """
    channels = (input_shape[0], width, 2 * width, 4 * width, 8 * width)
    pools = (None, nn.MaxPool2d(2), nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(1))
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    for i, pool in enumerate(pools, start=1):
        steps[f"conv{i}"] = nn.Conv2d(channels[i - 1], channels[i], 3, padding=1, bias=False)
        steps[f"bn{i}"] = nn.BatchNorm2d(channels[i])
        steps[f"relu{i}"] = nn.ReLU()
        if pool is not None:
            steps[f"pool{i}"] = pool
    return nn.Sequential(steps | OrderedDict(flatten=nn.Flatten(), fc=nn.Linear(channels[-1], output_size)))


def _lenet5(
    input_shape: tuple[int, int, int], channels: tuple[int, int], features: tuple[int, ...], padding: int
) -> nn.Module:
    """Two 5x5 convolutions with ReLU and 2x2 max pooling, then linear layers with `features` outputs."""
    grid = [((side + 2 * padding - 4) // 2 - 4) // 2 for side in input_shape[1:]]
    if min(grid) < 1:
        least = 16 - 2 * padding
        raise ValueError(f"images must have at least {least} x {least} pixels.")
    steps = OrderedDict(
        conv1=nn.Conv2d(input_shape[0], channels[0], 5, padding=padding),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(channels[0], channels[1], 5),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
    )
    return nn.Sequential(steps | _linear_layers((channels[1] * math.prod(grid), *features)))


def _linear_layers(
    widths: tuple[int, ...], dropout: float = 0.0, activation: str = "ReLU", batch_norm: bool = False
) -> OrderedDict[str, nn.Module]:
    """`flatten`, then linear layers `fc1`, `fc2`, ... with optional BatchNorm, activation, optional dropout between."""
    steps: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (in_features, out_features) in enumerate(itertools.pairwise(widths), start=1):
        if i > 1:
            if batch_norm:
                steps[f"fc{i - 1}_bn"] = nn.BatchNorm1d(in_features)
            steps[f"fc{i - 1}_{activation.lower()}"] = vars(nn)[activation]()
            if dropout:
                steps[f"fc{i - 1}_dropout"] = nn.Dropout(dropout)
        steps[f"fc{i}"] = nn.Linear(in_features, out_features)
    return steps
