"""Finds the parts of a network that a method cannot compress, with the reasons."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from experiment.inputs import Inputs
from experiment.layers.compressible import PLAIN_FORWARDS, WEIGHT_LAYERS, holders
from experiment.layers.forward_pass import observed_pass
from experiment.layers.read_parameters import Sources, is_matrix, may_be_computed

NOT_CALLED = "not called for the example"
NOT_READ = "not used for the example"
INTEGERS = "not floating-point"
IN_CONTAINER = "held by a container of modules"
READ_ONLY = "not called, only its weight is read"
GROUPED = "grouped"
RENORMALISED = "scales its rows down to max_norm in the forward pass"
OWN_FORWARD = "has a forward pass of its own"
NO_LAYER = "not a linear layer, convolution or embedding"
OTHER_KIND = "not of a kind that this method compresses"


@dataclass(frozen=True)
class Unreached:
    """A module, or a bare parameter, that cannot be compressed.

    Attributes:
        name: dotted name; '' if the network itself is the layer.
        kind: the class of the module, or `Parameter`.
        parameters: number of elements, including biases and inner modules.
        reason: why.
    """

    name: str
    kind: str
    parameters: int
    reason: str

    def __str__(self) -> str:
        return f"{self.name or 'the network itself'} ({self.kind}, {self.reason})"


def unreached(
    network: nn.Module, example: Inputs, reached: Collection[str], reasons: Mapping[str, str] | None = None
) -> tuple[Unreached, ...]:
    """Everything with a matrix (a parameter with two or more dimensions above 1) that is not reached, in module order.

    Parts of a fused torch module (attention's out_proj) belong to it. Modules that the example does not call are one
    entry for the outermost of them. Shared parameters count once.

    Args:
        example: an input batch, for one forward pass.
        reached: names of parameters.
        reasons: module name -> the method's own reason.
    """
    held, modules = holders(network), dict(network.named_modules())
    called, read = _used(network, example)
    parameters = dict(network.named_parameters(remove_duplicate=False))
    touched = {parameters[name] for name in reached}
    found: dict[str, Unreached] = {}
    counted: set[nn.Parameter] = set()
    for name, module in modules.items():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter in touched or not is_matrix(parameter):
                continue
            owner = _owner(name, modules, called, found)
            if owner in found or (owner != name and parameter in counted):
                continue
            if owner == name and _is_container(module):  # a parameter of a user-defined module
                full = f"{name}.{key}" if name else key
                found[full] = Unreached(
                    full, "Parameter", parameter.numel(), _reason_of_bare(network, full, parameter, read)
                )
                counted.add(parameter)
            else:
                inside = [p for p in modules[owner].parameters() if p not in touched and p not in counted]
                reason = (reasons or {}).get(owner) or _reason(owner, modules[owner], parameter, held, called, read)
                size = sum(p.numel() for p in inside)
                found[owner] = Unreached(owner, type(modules[owner]).__name__, size, reason)
                counted.update(inside)
    return tuple(found.values())


def _owner(name: str, modules: Mapping[str, nn.Module], called: Collection[str], found: Collection[str]) -> str:
    """The module with which a parameter's module is listed: an outer one, or itself."""
    parts = name.split(".")
    around = [".".join(parts[:i]) for i in range(1, len(parts))]
    for outer in around:
        if outer in found or not any(inner == outer or inner.startswith(f"{outer}.") for inner in called):
            return outer
    return name


def _is_container(module: nn.Module) -> bool:
    home = type(module).__module__
    fused = home.startswith("torch.nn.") and home != nn.Sequential.__module__
    return any(True for _ in module.children()) and not fused


def _reason_of_bare(network: nn.Module, name: str, parameter: nn.Parameter, read: Collection[nn.Parameter]) -> str:
    if not parameter.is_floating_point():
        return INTEGERS
    if parameter not in read:
        return NOT_READ
    return OTHER_KIND if may_be_computed(network, name) else IN_CONTAINER


def _reason(
    name: str,
    module: nn.Module,
    parameter: nn.Parameter,
    held: Mapping[nn.Parameter, list[str]],
    called: Collection[str],
    read: Collection[nn.Parameter],
) -> str:
    shared = [other for p in module.parameters(recurse=False) for other in held[p] if other != name]
    if shared:
        return f"shares parameters with {shared[0] or 'the network itself'}"
    if name not in called:
        return READ_ONLY if parameter in read else NOT_CALLED
    if getattr(module, "groups", 1) != 1:
        return GROUPED
    if getattr(module, "max_norm", None) is not None:
        return RENORMALISED
    if not isinstance(module, WEIGHT_LAYERS):
        return NO_LAYER
    return OTHER_KIND if type(module).forward in PLAIN_FORWARDS else OWN_FORWARD


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the names of all parameters that operations read."""

    def __init__(self, sources: Sources) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sources, self.names = sources, set[str]()

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        self.names.update(self.sources.of(args, kwargs))
        return func(*args, **(kwargs or {}))


def _used(network: nn.Module, example: Inputs) -> tuple[set[str], set[nn.Parameter]]:
    """The modules that a forward pass calls, and the parameters that it reads."""
    called: set[str] = set()
    parameters = dict(network.named_parameters())
    with _Reads(Sources(parameters)) as reads:
        observed_pass(network, dict(network.named_modules()), example, after=lambda call: called.add(call.name))
    return called, {parameters[name] for name in reads.names}
