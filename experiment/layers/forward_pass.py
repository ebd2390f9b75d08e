"""Forward passes in eval mode, and what modules receive and return in them: the one place that registers hooks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.inputs import Inputs, batch_size, call_network, described, device_of, split


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        name: the module's name, as `observing` was given it.
        args, named: positional and keyword arguments.
        output: what the module returned; None before it has computed.
        inputs: the network's inputs in this forward pass, where the observer was given them.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    named: Mapping[str, Any]
    output: Any = None
    inputs: Inputs = None

    @property
    def input(self) -> Any:
        """The first argument, which layers also accept as the keyword `input`."""
        return self.args[0] if self.args else self.named.get("input")


def forward_of(what: str, network: nn.Module, inputs: Inputs, advice: str = "") -> Any:
    """What a network returns for the first samples of data, in eval mode.

    Args:
        what: the name of the data, for the error.
        advice: what to do about the error.
    Raises: CompressionError: the network fails on them.
    """
    try:
        with evaluating(network):
            return call_network(network, inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        reason, n = str(error).partition("\n")[0].rstrip("."), batch_size(inputs)
        raise CompressionError(
            f"{what}: the network fails on its first {'sample' if n == 1 else f'{n} samples'}, {described(inputs)} on "
            f"{device_of(inputs)}: {reason}. {advice or 'Pass a batch of inputs in the form that the network expects.'}"
        ) from error


@contextmanager
def evaluating(network: nn.Module, *, keeping_buffers: bool = True) -> Iterator[None]:
    """Eval mode without gradients inside; afterwards every module has its own mode and all buffers are as before.

    Args:
        keeping_buffers: whether changes to buffers, such as counters in a forward pass, are reverted.
    """
    modes = {module: module.training for module in network.modules()}
    held = [(m, name, b) for m in modes for name, b in m._buffers.items() if keeping_buffers and b is not None]
    buffers = [(m, name, b, b.clone()) for m, name, b in held if not b.is_meta]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextmanager
def observing(
    modules: Mapping[str, nn.Module],
    *,
    before: Callable[[Call], None] | None = None,
    after: Callable[[Call], Tensor | None] | None = None,
    inputs_now: Callable[[], Inputs] = lambda: None,
) -> Iterator[None]:
    """Report every call of these modules inside.

    Args:
        before: called before a module computes.
        after: called when it has; a tensor that it returns replaces the module's output.
        inputs_now: returns the network's inputs in the current forward pass.
    """
    handles = []
    for name, module in modules.items():
        if before is not None:
            handles.append(module.register_forward_pre_hook(_hook(name, before, inputs_now), with_kwargs=True))
        if after is not None:
            # before hooks of the network's own, so that it sees what the module itself computed
            hook = _hook(name, after, inputs_now)
            handles.append(module.register_forward_hook(hook, prepend=True, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def observed_pass(
    network: nn.Module,
    modules: Mapping[str, nn.Module],
    inputs: Inputs,
    *,
    batch_size: int | None = None,
    before: Callable[[Call], None] | None = None,
    after: Callable[[Call], Tensor | None] | None = None,
    keeping_buffers: bool = True,
) -> None:
    """Pass all inputs through a network in eval mode without gradients, observing some of its modules.

    Args:
        inputs: of any number of samples, on the network's device.
        batch_size: number of inputs per forward pass; None passes all of them at once.
        before, after: as for `observing`.
        keeping_buffers: as for `evaluating`.
    """
    now: list[Inputs] = [None]
    observers = observing(modules, before=before, after=after, inputs_now=lambda: now[0])
    with evaluating(network, keeping_buffers=keeping_buffers), observers:
        for now[0] in [inputs] if batch_size is None else split(inputs, batch_size):
            call_network(network, now[0])


def _hook(
    name: str, observer: Callable[[Call], Tensor | None], inputs_now: Callable[[], Inputs]
) -> Callable[..., Tensor | None]:
    def hook(module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Any = None) -> Tensor | None:
        return observer(Call(name, module, args, named, output, inputs_now()))

    return hook
