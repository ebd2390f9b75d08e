"""From a name and settings of a parameter file to a network that is known to fit the data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError, ConfigError, ExperimentError, described, raised_at
from experiment.layers.forward_pass import evaluating
from experiment.layers.prepare_network import check_kind, computed_weights, unwrapped
from experiment.networks import NETWORKS
from experiment.networks.factored import NAMES, Factoring, factor, make_factoring
from experiment.registry import InputShape, is_import_path, resolve, suggestion


def make_network(
    name: str, settings: Mapping[str, object], input_shape: tuple[int, ...], output_size: int
) -> nn.Module:
    """Make a network and check that it takes the dataset's inputs and gives its outputs.

    Weights are drawn from torch's default generator: call under `experiment.random_streams.seeded`.

    Args:
        name: a registered network, or the user's own factory as `package.module:factory`.
        settings: keyword arguments of the factory beside `input_shape` and `output_size`; and, for every network whose
            factory has no arguments of these names, those of `experiment.networks.factored`.
        input_shape: (channels, height, width) of one input.
        output_size: number of outputs, such as classes.

    Returns: the network, in training mode, giving (N, output_size) for (N, channels, height, width).
    Raises: ConfigError: an unknown name, settings that the factory does not take, or a network that does not fit.
    """
    factory = _factory(name)
    own, factoring = _shared_out(factory, settings)
    _check_arguments(name, factory, own)
    try:
        network = factory(input_shape, output_size, **own)
    except ExperimentError:
        raise
    except Exception as error:  # the user's own code, or torch refusing a value: either way the file must change
        raise ConfigError(
            f"network '{name}' cannot be made for inputs {_shape(input_shape)}, outputSize {output_size} and settings "
            f"{_said(own)}: {type(error).__name__}: {error}{raised_at(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"network '{name}' must be a torch.nn.Module. The factory returned {type(network).__name__}. "
            f"Let it build the network and return it."
        )
    network = _plain(name, network)
    _check_fit(name, network, input_shape, output_size)
    if factoring is not None:
        network = factor(network, _example(network, input_shape), factoring)
    return network.train()


def _plain(name: str, network: nn.Module) -> nn.Module:
    """The network without wrappers.

    Raises: ConfigError: it cannot be compressed, or does not hold its weights.
    """
    network = unwrapped(network)
    if computed := computed_weights(network):
        raise ConfigError(
            f"network '{name}': {', '.join(computed[:8])} are computed at every use, by a mask, weight_norm or another "
            "parametrization. Experiments train and compress networks that hold their weights. Let the factory return "
            "experiment.layers.prepare_network.plain_copy(network)."
        )
    try:
        check_kind(network)
    except CompressionError as error:
        raise ConfigError(f"network '{name}': {error}") from error
    return network


def _factory(name: str) -> Callable[..., object]:
    if is_import_path(name):
        target = name
    elif name in NETWORKS:
        target = NETWORKS[name].target
    else:
        raise ConfigError(
            f"unknown network '{name}'.{suggestion(name, NETWORKS)} Known: {', '.join(NETWORKS)}; "
            f"or your own as package.module:factory."
        )
    factory = resolve(target)
    if not callable(factory):
        raise ConfigError(
            f"network '{name}' must be a function (input_shape, output_size, **settings) that returns a network. "
            f"It is {type(factory).__name__}."
        )
    return factory


def _shared_out(
    factory: Callable[..., object], settings: Mapping[str, object]
) -> tuple[dict[str, object], Factoring | None]:
    """The factory's own settings, and those that make factors of its layers."""
    takes = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    ours = {key for key in NAMES if key in settings and key not in takes and not takes_any}
    own = {key: value for key, value in settings.items() if key not in ours}
    return own, make_factoring({key: settings[key] for key in NAMES if key in ours})


def _check_arguments(name: str, factory: Callable[..., object], settings: Mapping[str, object]) -> None:
    signature = inspect.signature(factory)
    try:
        signature.bind((1, 1, 1), 1, **settings)
    except TypeError as error:
        known = [p for p in signature.parameters if p not in ("input_shape", "output_size")]
        meant = [*known, *NAMES]
        near = next((text for key in settings if key not in known and (text := suggestion(key, meant))), "")
        raise ConfigError(
            f"network '{name}': {error}.{near} It is called with the input shape (channels, height, width), the output "
            f"size and the settings of the file; its signature is {signature}. Got settings {_said(settings)}."
        ) from error


def _check_fit(name: str, network: nn.Module, input_shape: tuple[int, ...], output_size: int) -> None:
    try:
        with evaluating(network):
            output = network(_example(network, input_shape))
    except ExperimentError:
        raise
    except Exception as error:  # as above
        raise ConfigError(
            f"network '{name}' does not take inputs {_shape(input_shape)}: {type(error).__name__}: {error}"
            f"{raised_at(error)}. Choose one for such inputs, or transform these (transformsTrain, transformsTest)."
        ) from error
    got, hint = f"a {type(output).__name__}", ""
    if isinstance(output, torch.Tensor):
        got, hint = _shape(output.shape), " Does it use its output_size?"
    if not isinstance(output, torch.Tensor) or output.shape != (2, output_size):
        raise ConfigError(
            f"network '{name}' must give a tensor of shape 2 x {output_size} (2 x outputSize) for a batch of 2 inputs "
            f"{_shape(input_shape)}. It gives {got}.{hint}"
        )
    if not output.is_meta and not bool(torch.isfinite(output).all()):
        raise ConfigError(f"network '{name}' gives NaN or infinite outputs for inputs of zeros, before any training.")


def _example(network: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """A batch of two, on the network's device."""
    parameter = next(network.parameters(), None)
    tokens = isinstance(input_shape, InputShape) and input_shape.tokens
    device = None if parameter is None else parameter.device
    return torch.zeros(2, *input_shape, dtype=torch.int64 if tokens else None, device=device)


def _said(settings: Mapping[str, object]) -> str:
    return "{" + ", ".join(f"{described(key)}: {described(value)}" for key, value in settings.items()) + "}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
