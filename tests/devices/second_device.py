"""A device `second` that computes on the CPU and refuses what CUDA refuses, to find wrong devices without a GPU.

A tensor on it is a true tensor of torch's PrivateUse1 backend: its storage says `second`, so views, autograd, deep
copies and `.data` work as on any device. Its memory is ordinary memory, which DLPack relabels without a copy. All
operations run through one fallback that checks the devices of the arguments and computes on the CPU.

Fake tensors have no values, which methods read. A tensor subclass is no plain `Tensor`, so that parameters, tracing and
saving take other ways than on a GPU. Neither is needed here.

Refused: tensors of both devices in one operation, CPU generators for draws on the device, `.numpy()`.
Allowed, as on CUDA: CPU tensors without dimensions in elementwise operations, indices on the CPU, and copies.
Not seen: what only runs if the type of the device is `cuda` or `cpu`, and the limits of CUDA's own kernels.
"""

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map_only

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

    known: list[Generator] = []  # kept, so that no other generator takes an address

    def __init__(self) -> None:
        self.known.append(self)

    @property
    def device(self) -> torch.device:
        return torch.device(SECOND)


class Module(backend_registration._DummyBackendModule):
    """What `torch.second` offers."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def register() -> None:
    """Add the device to torch. The process should end after the tests: torch cannot forget a device."""
    backend_registration._setup_privateuseone_for_python_backend(SECOND, Module())
    fallback, kernels = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    fallback.fallback(run, "PrivateUse1")
    fallback.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name, kernel in KERNELS.items():
        kernels.impl(name, kernel, "PrivateUse1")
    _alive.extend((fallback, kernels))
    torch.Generator = AnyGenerator
    torch.storage._StorageBase.clone = _cloning(torch.storage._StorageBase.clone)


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute an operation of which an argument or the result is on the device.

    Raises: WrongDevice: CUDA refuses these arguments.
    """
    schema = op._schema
    if op.overloadpacket is aten.set_ or any(r.alias_info and not r.alias_info.is_write for r in schema.returns):
        return op._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)  # makes views, without a look at the device
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    written = {a.name: given[a.name] for a in schema.arguments if a.is_write and given.get(a.name) is not None}
    _check(op, given, set(written))
    host = tree_map_only(Tensor, _on_host, given)
    if _is_second(given.get("device")):
        host["device"] = "cpu"
    unsized = [name for name in kwargs if name in written and not given[name].numel()]
    host |= {name: torch.empty(0, dtype=given[name].dtype) for name in unsized}
    bare = any(isinstance(host.get(a.name), int | float | bool) for a in schema.arguments if str(a.type) == "Tensor")
    result = (op.overloadpacket if bare else op)(**host)
    for name in unsized:
        given[name].set_(_relabelled(host[name], EXTENSION))
    if any(r.alias_info for r in schema.returns):
        return next(iter(written.values())) if len(schema.returns) == 1 else tuple(written.values())
    return tree_map_only(Tensor, lambda tensor: _relabelled(tensor, EXTENSION), result)


def _check(op: Any, given: dict[str, Any], written: set[str]) -> None:
    for name, leaf in ((name, leaf) for name, value in given.items() for leaf in tree_leaves(value)):
        if isinstance(leaf, Generator):
            wrong = all(leaf._cdata != own._cdata for own in SecondGenerator.known)
        elif not isinstance(leaf, Tensor) or _is_second(leaf.device):
            continue
        else:
            free = torch.Tag.pointwise in op.tags or op.overloadpacket in READ_ON_HOST
            scalar = leaf.dim() == 0 and free and name not in written
            wrong = not scalar and not (name == "indices" and op.overloadpacket in INDEXED)
        if wrong:
            raise WrongDevice(f"{op}: {name}: expected one on {SECOND}. Got one on {leaf.device}.")


def _is_second(device: torch.device | str | None) -> bool:
    return device is not None and torch.device(device).type == SECOND


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
    return run(aten.convolution_backward.default, grad, x, weight, [grad.shape[1]], *args)


KERNELS: dict[str, Callable[..., Any]] = {  # of composites, and what torch calls beside its modes
    "empty_strided": partial(run, aten.empty_strided.default),
    "empty.memory_format": partial(run, aten.empty.memory_format),
    "_copy_from": _copy_from,
    "resize_": _resize_,
    "convolution_overrideable": lambda *args: run(aten.convolution.default, *args),
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
