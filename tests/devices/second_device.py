"""A device `second` that computes on the CPU and refuses what CUDA refuses, to find wrong devices without a GPU.

A tensor on it is a true tensor of torch's PrivateUse1 backend: its storage says `second`, so views, autograd, deep
copies and `.data` work as on any device. Its memory is ordinary memory, which DLPack relabels without a copy. Every
operation that the CPU has gets a kernel here, which checks the devices of the arguments and computes on the CPU.

Fake tensors have no values, which methods read. A tensor subclass is no plain `Tensor`, so that parameters, tracing and
saving take other ways than on a GPU. Neither is needed here.

Refused: tensors of both devices in one operation, CPU generators for draws on the device, `.numpy()`, and `fork_rng`
without a list of devices, which touches every GPU of a machine.
Allowed, as on CUDA: CPU tensors without dimensions in elementwise operations, indices on the CPU, and copies.
Not seen: what only runs if the type of the device is `cuda` or `cpu`, the limits of CUDA's own kernels, a generator of
the device for draws on the CPU, copies that wait for the device, and a second GPU.
"""

import ctypes
from collections.abc import Callable
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import backend_registration

SECOND = "second"
CPU, EXTENSION = 1, 12  # DLDeviceType
Generator = torch.Generator  # torch's own
aten = torch.ops.aten
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
READ_ON_HOST = {aten.fill_, aten.index_fill_, *INDEXED}  # their values may be CPU tensors without dimensions
_alive: list[object] = []  # registrations last as long as these


class WrongDevice(RuntimeError):
    """An operation that CUDA refuses."""


class _IsGenerator(type(Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, Generator)


class AnyGenerator(Generator, metaclass=_IsGenerator):
    """`torch.Generator` for both devices: torch makes none for a device written in Python."""

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        return SecondGenerator() if _is_second(device) else Generator(device)


class SecondGenerator(Generator):
    """A generator on the device. It gives the numbers of a CPU generator with the same seed."""

    known: ClassVar[list[Generator]] = []  # kept, so that no other generator takes an address

    def __init__(self) -> None:
        self.known.append(self)

    @property
    def device(self) -> torch.device:
        return torch.device(SECOND)


class Module(backend_registration._DummyBackendModule):
    """What `torch.second` offers."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


@cache
def register() -> None:
    """Add the device to torch, for good: the process should end after the tests."""
    backend_registration._setup_privateuseone_for_python_backend(SECOND, Module())
    kernels, others = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU"):
        namespace, _, rest = name.partition("::")
        if namespace == "aten" and rest not in KERNELS:
            packet, _, overload = rest.partition(".")
            kernels.impl(rest, computing(getattr(getattr(aten, packet), overload or "default")), "PrivateUse1")
    for rest, kernel in KERNELS.items():
        kernels.impl(rest, kernel, "PrivateUse1")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _alive.extend((kernels, others))
    torch.Generator = AnyGenerator
    torch.accelerator.synchronize = lambda device=None: None  # as timers of torch do
    torch.storage._StorageBase.clone = _cloning(torch.storage._StorageBase.clone)


def computing(op: Any) -> Callable[..., Any]:
    """The kernel of an operation: checks the arguments, and computes on the CPU.

    It raises WrongDevice where CUDA refuses the arguments.
    """
    arguments, returns = op._schema.arguments, op._schema.returns
    if op.overloadpacket is aten.set_ or any(r.alias_info and not r.alias_info.is_write for r in returns):
        return partial(op._op_dk, torch._C.DispatchKey.CPU)  # makes views, without a look at the device
    names, written = [a.name for a in arguments], [a.name for a in arguments if a.is_write]
    in_place = any(r.alias_info for r in returns)
    dense = [a.name for a in arguments if str(a.type) == "Tensor"]

    def run(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        host = {name: _checked(op, name, value, name in written) for name, value in given.items()}
        if _is_second(given.get("device")):
            host["device"] = "cpu"
        unsized = [name for name in kwargs if name in written and not given[name].numel()]
        host |= {name: torch.empty(0, dtype=given[name].dtype) for name in unsized}
        bare = any(isinstance(host.get(name), int | float) for name in dense)  # torch passes numbers as such
        result = (op.overloadpacket if bare else op)(**host)
        for name in unsized:
            given[name].set_(_relabelled(host[name], EXTENSION))
        if in_place:
            return given[written[0]] if len(returns) == 1 else tuple(given[name] for name in written)
        return _moved(result)

    return run


def _moved(result: Any) -> Any:
    """A result with tensors on the device."""
    if isinstance(result, list | tuple):
        return tuple(_moved(each) for each in result)
    return _relabelled(result, EXTENSION) if isinstance(result, Tensor) else result


def _checked(op: Any, name: str, value: Any, written: bool) -> Any:
    """An argument as one on the CPU."""
    if isinstance(value, list | tuple):
        return [_checked(op, name, each, written) for each in value]
    if isinstance(value, Tensor):
        if _is_second(value.device):
            return _relabelled(value, CPU)
        free = torch.Tag.pointwise in op.tags or op.overloadpacket in READ_ON_HOST
        right = (value.dim() == 0 and free and not written) or (name == "indices" and op.overloadpacket in INDEXED)
    else:
        right = not isinstance(value, Generator) or any(value._cdata == own._cdata for own in SecondGenerator.known)
    if not right:
        raise WrongDevice(f"{op}: {name}: expected one on {SECOND}. Got one on {value.device}.")
    return value


def _is_second(device: torch.device | str | None) -> bool:
    return device is not None and (device if isinstance(device, torch.device) else torch.device(device)).type == SECOND


def _on_host(tensor: Tensor) -> Tensor:
    return _relabelled(tensor, CPU) if _is_second(tensor.device) else tensor


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32)]


_content = ctypes.pythonapi.PyCapsule_GetPointer
_content.restype, _content.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _relabelled(tensor: Tensor, device_type: int) -> Tensor:
    """The same memory as a tensor on the other device."""
    capsule = torch._C._to_dlpack(tensor)
    _DLTensor.from_address(_content(capsule, b"dltensor")).device_type = device_type
    return torch._C._from_dlpack(capsule)


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _on_host(target).copy_(_on_host(source))
    return target


def _resize_(tensor: Tensor, size: list[int], *, memory_format: torch.memory_format | None = None) -> Tensor:
    return tensor.set_(torch.empty(size, dtype=tensor.dtype, device=SECOND))


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *args: Any) -> Any:
    return computing(aten.convolution_backward.default)(grad, x, weight, [grad.shape[1]], *args)


KERNELS: dict[str, Callable[..., Any]] = {  # that differ from those of the CPU, or are not there
    "_copy_from": _copy_from,
    "resize_": _resize_,
    "convolution_overrideable": computing(aten.convolution.default),
    "convolution_backward_overrideable": _convolution_backward,
    "_fused_sdp_choice": lambda *args, **kwargs: 0,  # attention in plain operations
}


def _cloning(clone: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Storages that clone themselves, for deep copies: torch makes new ones with an allocator in C++ alone."""

    def cloned(storage: Any) -> Any:
        if not _is_second(storage.device):
            return clone(storage)
        return torch.empty(0, dtype=torch.uint8, device=SECOND).set_(storage).clone().untyped_storage()

    return cloned
