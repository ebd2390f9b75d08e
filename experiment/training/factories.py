"""Optimizers and losses by name, with errors that say which argument is wrong."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiment.errors import ConfigError
from experiment.registry import suggestion
from experiment.training.names import LOSSES, OPTIMIZERS, REFUSED

Loss = Callable[[Tensor, Tensor], Tensor]

_FUSED = ("Adagrad", "Adam", "AdamW", "SGD")  # one kernel for all parameters, on the CPU and on CUDA alike
_IMPLEMENTATIONS = {"foreach", "fused", "differentiable", "capturable"}


def make_optimizer(parameters: Iterable[nn.Parameter], name: str, kwargs: Mapping[str, object]) -> Optimizer:
    """torch's optimizer of that name, in its fused implementation where it has one and no other is asked for.

    Raises: ConfigError: an unknown name, or arguments that the optimizer refuses.
    """
    factory = find("optimizer", name, OPTIMIZERS, vars(torch.optim))
    trained, arguments = list(parameters), dict(kwargs)
    plain = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trained)
    if name in _FUSED and plain and not _IMPLEMENTATIONS & set(arguments):
        arguments["fused"] = True
    return cast(Optimizer, construct("optimizerKwargs", name, factory, [trained], arguments))


def make_loss(name: str, kwargs: Mapping[str, object], device: torch.device | str = "cpu") -> Loss:
    """torch's loss of that name, of (N, classes) and (N,); class weights may be a list.

    Raises: ConfigError: an unknown name, or arguments that the loss refuses.
    """
    factory = find("loss", name, LOSSES, vars(nn))
    arguments = dict(kwargs)
    if arguments.get("reduction", "mean") not in ("mean", "sum"):
        raise ConfigError(f"lossKwargs.reduction: must be mean or sum. Got {arguments['reduction']!r}.")
    if isinstance(arguments.get("weight"), list | tuple):
        arguments["weight"] = torch.tensor(arguments["weight"], dtype=torch.float32)
    return cast(nn.Module, construct("lossKwargs", name, factory, [], arguments)).to(device)


def find(key: str, name: str, known: Sequence[str], classes: Mapping[str, object]) -> Callable[..., object]:
    """The class of that name, if an explicit list has it.

    Args:
        key: the setting that named it, for the error.

    Raises: ConfigError: the list does not have it.
    """
    if name in known:
        return cast(Callable[..., object], classes[name])
    if name in REFUSED:
        raise ConfigError(f"{key}: {name} cannot be used here: {REFUSED[name]}.")
    near = suggestion(name, known) or f" Known are {', '.join(known)}."
    raise ConfigError(f"{key}: unknown name '{name}'.{near}")


def construct(
    key: str, name: str, factory: Callable[..., object], positional: Sequence[object], arguments: Mapping[str, object]
) -> object:
    """Call the factory of that name; what it finds wrong becomes an error about the setting `key`.

    Raises: ConfigError: an argument that it does not have, or a value that it refuses.
    """
    known = list(inspect.signature(factory).parameters)[len(positional) :]
    unknown = [argument for argument in arguments if argument not in known]
    if unknown:
        raise ConfigError(
            [
                f"{key}.{argument}: {name} has no such argument.{suggestion(argument, known)} "
                f"It takes {', '.join(known)}."
                for argument in unknown
            ]
        )
    try:
        return factory(*positional, **arguments)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ConfigError(f"{key}: {name} refuses {dict(arguments)}: {error}") from error
