"""Optimizers and losses by name."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiment.errors import ConfigError, first_line
from experiment.registry import no_such_argument, suggestion
from experiment.training.allowed_names import LOSSES, OPTIMIZERS, REFUSED

Loss = Callable[[Tensor, Tensor], Tensor]

_FUSED = ("Adagrad", "Adam", "AdamW", "SGD")  # one kernel for all parameters, on the CPU and on CUDA alike
_IMPLEMENTATIONS = {"foreach", "fused", "differentiable", "capturable"}


class CrossEntropyLossWithAuxiliary(nn.CrossEntropyLoss):
    """Cross entropy. Training adds that of the network's output "aux", if there is one, `auxiliary` times.

    Auxiliary heads exist for training only, so the loss of an evaluation is that of the main output alone.

    Source: Zhao et al. 2017, https://arxiv.org/abs/1612.01105 (auxiliary loss), with torchprune's name and weight.
    """

    auxiliary = 0.5


OWN_LOSSES = {"CrossEntropyLossWithAuxiliary": CrossEntropyLossWithAuxiliary}


def auxiliary_outputs(raw: object) -> Tensor | None:
    """The outputs (N, K, ...) of an auxiliary head, in what a network returns; None if there are none."""
    found = raw.get("aux") if isinstance(raw, Mapping) else None
    return found if isinstance(found, Tensor) else None


def make_optimizer(parameters: Iterable[nn.Parameter], name: str, kwargs: Mapping[str, object]) -> Optimizer:
    """The optimizer of torch with this name, fused if possible and unless `kwargs` select another implementation.

    Raises: ConfigError: unknown name, or wrong arguments.
    """
    factory = find("optimizer", name, OPTIMIZERS, vars(torch.optim))
    trained, arguments = list(parameters), dict(kwargs)
    plain = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trained)
    if name in _FUSED and plain and not _IMPLEMENTATIONS & set(arguments) and not arguments.get("dampening"):
        arguments["fused"] = True
    made = cast(Optimizer, construct("optimizerKwargs", name, factory, [trained], arguments))
    if name == "SGD" and arguments.get("fused") and arguments.get("momentum"):
        made.register_step_pre_hook(_complete_buffers)
    return made


def _complete_buffers(optimizer: Optimizer, *_: object) -> None:
    """Give every parameter with a gradient a momentum buffer if any has one.

    The fused kernel of SGD fails if only some have one, as when a parameter gets its first gradient in a later step.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    missing = [p for p in parameters if optimizer.state[p].get("momentum_buffer") is None]
    if len(missing) < len(parameters):
        for parameter in missing:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def make_loss(name: str, kwargs: Mapping[str, object], device: torch.device | str = "cpu") -> Loss:
    """The loss of torch with this name, of outputs (N, K, ...) and targets; class weights may be a list.

    Raises: ConfigError: unknown name, or wrong arguments.
    """
    factory = find("loss", name, LOSSES, {**vars(nn), **OWN_LOSSES})
    arguments = dict(kwargs)
    if arguments.get("reduction", "mean") not in ("mean", "sum"):
        raise ConfigError(f"lossKwargs.reduction: must be mean or sum. Got {arguments['reduction']!r}.")
    for key in ("weight", "pos_weight"):
        if isinstance(arguments.get(key), list | tuple):
            try:
                arguments[key] = torch.tensor(arguments[key], dtype=torch.float32)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"lossKwargs.{key}: must be a list of numbers, one per class: {error}.") from error
    return cast(nn.Module, construct("lossKwargs", name, factory, [], arguments)).to(device)


def loss_weight(loss: Loss, y: Tensor) -> Tensor:
    """The weight of a batch in a mean over batches: the divisor of its mean loss, or the number of its images.

    Class numbers that are ignored do not count; with class weights it is the sum of the weights of the others.

    Args:
        y: targets (N, ...).
    Returns: a float64 scalar.
    """
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) or loss.reduction != "mean":
        return torch.full((), len(y), dtype=torch.float64, device=y.device)
    counted = y != loss.ignore_index
    if loss.weight is None:
        return counted.sum(dtype=torch.float64)
    return (loss.weight[y.where(counted, 0)] * counted).sum(dtype=torch.float64)


def counted_targets(loss: Loss, y: Tensor) -> Tensor | None:
    """Which of the targets (N, ...) the loss does not ignore; None if it knows no such value."""
    ignored = getattr(loss, "ignore_index", None)
    return None if ignored is None or y.is_floating_point() else y != ignored


def summed(loss: Loss, value: Tensor, weight: Tensor) -> Tensor:
    """The summed loss of a batch, in float64, from its loss `value`: a mean with divisor `weight`, or the sum."""
    if getattr(loss, "reduction", "mean") == "sum":
        return value.double()
    return torch.where(weight > 0, value.double() * weight, 0.0)  # the mean over ignored labels only is NaN


def mean_loss(loss_sum: Tensor | float, weight_sum: Tensor | float) -> float:
    """The mean over all batches; NaN if there are none."""
    total, weight = float(loss_sum), float(weight_sum)
    return total / weight if weight else math.nan


def find(key: str, name: str, known: Sequence[str], classes: Mapping[str, object]) -> Callable[..., object]:
    """The class of this name, if it is in `known`.

    Args:
        key: the setting with the name, for the error.

    Raises: ConfigError: unknown name.
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
    """Call the factory of this name.

    Raises: ConfigError: unknown argument, or wrong value, of the setting `key`.
    """
    known = list(inspect.signature(factory).parameters)[len(positional) :]
    unknown = [argument for argument in arguments if argument not in known]
    if unknown:
        raise ConfigError([f"{key}.{argument}: {no_such_argument(name, argument, known)}" for argument in unknown])
    try:
        return factory(*positional, **arguments)
    except Exception as error:  # of any class: torch computes with some values unchecked
        raise ConfigError(f"{key}: {name} refuses {dict(arguments)}: {first_line(error)}") from error
