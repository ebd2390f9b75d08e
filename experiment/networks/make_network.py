"""Make a network from its name and settings, and check that it fits the data."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError, ConfigError, ExperimentError, described, kind_of, raised_at
from experiment.inputs import Inputs, as_form, batch_size, call_network, example_of, moved, output_tensors, scored
from experiment.layers.forward_pass import evaluating
from experiment.layers.prepare_network import check_kind, computed_weights, unwrapped
from experiment.networks import NETWORKS
from experiment.networks.external_networks import external_factory
from experiment.networks.low_rank_from_scratch import NAMES, Factoring, factor, make_factoring
from experiment.registry import InputForm, InputShape, is_import_path, resolve, suggestion


def make_network(
    name: str,
    settings: Mapping[str, object],
    input_shape: InputForm,
    output_size: int,
    *,
    example: Inputs | None = None,
    outputs: Callable[[Any], Tensor] | None = scored,
) -> nn.Module:
    """Make a network and check that it accepts the dataset's inputs and returns as many outputs as there are classes.

    Weights are drawn from torch's default generator: call under `experiment.random_streams.seeded`.

    Args:
        name: a registered network, the user's own factory as `package.module:factory`, or one of transformers or timm
            (see `experiment.networks.external_networks`).
        settings: further keyword arguments of the factory. Those of `low_rank_from_scratch.Factoring` apply to every
            network whose factory has no arguments of these names.
        input_shape: (channels, height, width) of one input, or the shapes of several by keyword or position.
        output_size: number of outputs, such as classes.
        example: a batch of inputs. Without it, one tensor per input is checked with zeros, several are not.
        outputs: what the network returns -> the outputs (N, outputSize, ...) that the task scores; None if their
            number is not checked.

    Returns: the network in training mode; it maps (N, channels, height, width) to (N, output_size).
    Raises: ConfigError: unknown name, unknown settings, or a network that does not fit.
    """
    factory = _factory(name)
    own, factoring = _split(factory, settings)
    _check_arguments(name, factory, own)
    try:
        network = factory(input_shape, output_size, **own)
    except ExperimentError:
        raise
    except Exception as error:  # from the user's own code, or from torch
        raise ConfigError(
            f"network '{name}': its factory failed for inputs {_shape(input_shape)}, outputSize {output_size} and "
            f"settings {_shown(own)}: {type(error).__name__}: {error}{raised_at(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"network '{name}': the factory must return a torch.nn.Module. It returned {type(network).__name__}."
        )
    network = _plain(name, network)
    inputs = _example(network, input_shape) if example is None else moved(example, _device(network))
    if example is not None or isinstance(as_form(input_shape), InputShape):
        returned = _check_call(name, network, inputs, _shape(input_shape))
        if outputs is not None:
            _check_outputs(name, returned, outputs, batch_size(inputs), _shape(input_shape), output_size)
    if factoring is not None:
        network = factor(network, inputs, factoring)
    return network.train()


def _plain(name: str, network: nn.Module) -> nn.Module:
    """The network without wrappers."""
    network = unwrapped(network)
    if computed := computed_weights(network):
        raise ConfigError(
            f"network '{name}': {', '.join(computed[:8])} are computed in every forward pass, by a mask, weight_norm "
            "or another parametrization, which experiments cannot compress. Return "
            "experiment.layers.prepare_network.plain_copy(network) from the factory."
        )
    try:
        check_kind(network)
    except CompressionError as error:
        raise ConfigError(f"network '{name}': {error}") from error
    return network


def _factory(name: str) -> Callable[..., object]:
    if (of_library := external_factory(name)) is not None:
        return of_library
    if is_import_path(name):
        target = name
    elif name in NETWORKS:
        target = NETWORKS[name].target
    else:
        raise ConfigError(
            f"unknown network '{name}'.{suggestion(name, NETWORKS)} Known: {', '.join(NETWORKS)}; "
            "your own as package.module:factory; or transformers:ClassName, timm:name."
        )
    factory = resolve(target)
    if not callable(factory):
        raise ConfigError(
            f"network '{name}': must be a function (input_shape, output_size, **settings) that returns a network. "
            f"Got {described(factory)}."
        )
    return factory


def _split(
    factory: Callable[..., object], settings: Mapping[str, object]
) -> tuple[dict[str, object], Factoring | None]:
    """The settings of the factory, and those of low-rank form."""
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
        unknown = [key for key in settings if key not in known]
        near = "".join(f" '{key}' is unknown.{suggestion(key, meant)}" for key in unknown[:3])
        raise ConfigError(
            f"network '{name}': {error}.{near} It is called with input_shape (of one input), output_size "
            f"and the settings of the file; its signature is {signature}. Got settings {_shown(settings)}."
        ) from error


def _check_call(name: str, network: nn.Module, inputs: Inputs, shape: str) -> object:
    try:
        with evaluating(network):
            return call_network(network, inputs)
    except ExperimentError:
        raise
    except Exception as error:  # as above
        where = "(transformsTrain, transformsTest)"
        if not isinstance(inputs, Tensor):
            where = "in the dataset: keys are passed as keyword arguments, parts of a tuple by position"
        raise ConfigError(
            f"network '{name}': fails for inputs {shape}: {type(error).__name__}: "
            f"{str(error).rstrip('.')}{raised_at(error)}. Choose another network, or change the inputs {where}."
        ) from error


def _check_outputs(
    name: str, returned: object, outputs: Callable[[Any], Tensor], n: int, shape: str, output_size: int
) -> None:
    output = outputs(returned) if output_tensors(returned) else None
    if output is None or output.shape[:2] != (n, output_size):
        got = f"{kind_of(returned)}." if output is None else f"{_shape(output.shape)}. Does it use its output_size?"
        raise ConfigError(
            f"network '{name}': must return a tensor of shape {n} x {output_size} ({n} x outputSize) for a batch of "
            f"{n} inputs {shape}. It returns {got}"
        )
    if not output.is_meta and not bool(torch.isfinite(output).all()):
        raise ConfigError(f"network '{name}': returns NaN or infinity before any training, for inputs {shape}.")


def _example(network: nn.Module, input_shape: InputForm) -> Inputs:
    """A batch of two zero inputs on the network's device; ones where one of several may be a mask."""
    device, form = _device(network), as_form(input_shape)
    fill = 0.0 if isinstance(form, InputShape) else 1.0

    def make(shape: InputShape) -> Tensor:
        if shape.tokens:
            return torch.zeros(2, *shape, dtype=torch.int64, device=device)
        return torch.full((2, *shape), fill, device=device)

    return example_of(form, make)


def _device(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.get_default_device())


def _shown(settings: Mapping[str, object]) -> str:
    return "{" + ", ".join(f"{described(key)}: {described(value)}" for key, value in settings.items()) + "}"


def _shape(form: InputForm | tuple[int, ...]) -> str:
    if isinstance(form, dict):
        return "{" + ", ".join(f"{key}: {_shape(part)}" for key, part in form.items()) + "}"
    if form and not isinstance(form[0], int):
        return f"({', '.join(_shape(part) for part in form)})"
    return " x ".join(map(str, form))
