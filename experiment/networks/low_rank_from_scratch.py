"""Networks trained in low-rank form from scratch: layers are pairs of factors, y = U(Vx) + b.

Shape suffixes: R = rows of a layer's weight as a matrix (output features), N = its columns (fan-in), J = rank.
"""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from experiment.errors import ConfigError
from experiment.layers.build import build, write_whole
from experiment.layers.compressible import LayerInfo, compressible_layers
from experiment.layers.factored_layers import fold, max_rank, parameters, write_factors
from experiment.layers.plan import Factors, Plan
from experiment.layers.prepare_network import prepared


@dataclass(frozen=True)
class Factoring:
    """Settings of the low-rank form, part of the network's settings.

    Attributes:
        rank: rank J of every factored layer.
        factored: name patterns (fnmatch) of the layers to factor; by default, all layers that get smaller.
        factored_init: spectral: best approximation of rank J of the layer's initial weights; gaussian: independent
            normal values whose variance preserves the scale of activations in a ReLU network.
    """

    rank: Annotated[int, Ge(1)]
    factored: tuple[str, ...] | None = None
    factored_init: Literal["spectral", "gaussian"] = "spectral"


NAMES = tuple(f.name for f in fields(Factoring))


def make_factoring(settings: Mapping[str, object]) -> Factoring | None:
    """The checked settings; None if there are none.

    Raises: ConfigError: a value has the wrong type or is out of range, or the rank is missing.
    """
    from pydantic import TypeAdapter, ValidationError  # expensive to import, and rarely needed

    from experiment.config.error_messages import expectation

    if not settings:
        return None
    if "rank" not in settings:
        raise ConfigError(
            f"network.settings.{next(iter(settings))}: has no effect without a rank. Add one, such as rank: 50."
        )
    try:
        return TypeAdapter(Factoring).validate_python(dict(settings))
    except ValidationError as error:
        faults = error.errors()
        raise ConfigError(
            [f"network.settings.{'.'.join(map(str, e['loc']))}: {expectation(e)}" for e in faults]
        ) from None


def factor(network: nn.Module, example: Tensor, settings: Factoring) -> nn.Module:
    """A copy of a network whose layers consist of an encoder V and a decoder U (linear layers or convolutions).

    Fused modules, such as attention, are replaced by plain layers first.

    Both factors have the same norm, so that one learning rate fits both; weight decay on such factors penalizes the
    nuclear norm of the product. Biases and all other layers keep their values.

    Args:
        network: a network as its factory returns it. Gaussian factors are drawn from torch's default generator.
        example: a batch of inputs.

    Raises: ConfigError: a pattern matches no layer, the rank exceeds a layer's full rank, or no layer gets smaller.
    Source: Khodak et al. 2021, https://arxiv.org/abs/2105.01029 (spectral initialization)
    """
    network = prepared(network).network
    layers = _chosen(compressible_layers(network, example), settings)
    plan = Plan({name: Factors(settings.rank, bias=info.bias) for name, info in layers.items()})
    built = build(network, plan)
    write_whole(built, network, plan)
    with torch.no_grad():
        for name in layers:
            W_RN = fold(network.get_submodule(name).get_parameter("weight").detach())[0]
            make = spectral if settings.factored_init == "spectral" else gaussian
            U_RJ, V_JN = make(W_RN, settings.rank)
            write_factors(built.get_submodule(name), U_RJ[None], V_JN[None])
    return built


def spectral(W_RN: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U (R, J) = L S^1/2 and V (J, N) = S^1/2 R^T of the truncated SVD L S R^T of W, in float64."""
    L, S, Rt = torch.linalg.svd(W_RN.double(), full_matrices=False)
    root_J = S[:rank].sqrt()
    return L[:, :rank] * root_J, root_J[:, None] * Rt[:rank]


def gaussian(W_RN: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U (R, J) and V (J, N) with independent elements from N(0, s^2), J s^4 = 2 / N: the product has He's variance.

    Source: He et al. 2015, https://arxiv.org/abs/1502.01852 (2 / fan-in)
    """
    rows, columns = W_RN.shape
    deviation = (2 / (rank * columns)) ** 0.25
    return torch.randn(rows, rank) * deviation, torch.randn(rank, columns) * deviation


def _chosen(layers: Mapping[str, LayerInfo], settings: Factoring) -> dict[str, LayerInfo]:
    """The layers to factor, in the network's order."""
    rank, patterns = settings.rank, settings.factored
    if patterns is None:
        smaller = {name: info for name, info in layers.items() if parameters(info, rank) < info.weight_numel}
        if not smaller:
            raise ConfigError(
                f"network.settings.rank: no layer gets smaller with factors of rank {rank}. Choose a lower rank."
            )
        return smaller
    known = f"The layers are {', '.join(layers)}."
    wrong = [f"no layer is called '{p}'. {known}" for p in patterns if not fnmatch.filter(layers, p)]
    if wrong or not patterns:
        raise ConfigError([f"network.settings.factored: {text}" for text in wrong or [f"must not be empty. {known}"]])
    named = {n: info for n, info in layers.items() if any(fnmatch.fnmatchcase(n, p) for p in patterns)}
    over = [f"'{name}' has full rank {max_rank(info)}" for name, info in named.items() if max_rank(info) < rank]
    if over:
        raise ConfigError(f"network.settings.rank: must be at most a layer's full rank. Got {rank}; {', '.join(over)}.")
    return named
