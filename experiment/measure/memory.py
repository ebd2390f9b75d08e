"""Peak memory of a forward pass: the tensors that exist at one time, weights included.

On a CPU, the storages that a pass allocates and frees are tracked while it runs on fake tensors, which have shapes and
no values: the figure is the same on every machine, and costs no arithmetic. What kernels allocate inside an operator is
not seen. On a GPU it is the peak of torch's allocator, workspaces included.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiment.inputs import Inputs, call_network, mapped, tensors
from experiment.layers.forward_pass import evaluating
from experiment.measure.latency import repeated
from experiment.registry import InputForm


@dataclass(frozen=True)
class Memory:
    """Bytes during a forward pass.

    Attributes:
        batch: samples per batch.
        weights: bytes of parameters and buffers; shared ones count once.
        activations: the most bytes that inputs, intermediate results and outputs have at one time.
    """

    batch: int
    weights: int
    activations: int

    @property
    def peak(self) -> int:
        """All of them."""
        return self.weights + self.activations


def peak_memory(network: nn.Module, inputs: Inputs | InputForm | tuple[int, ...], batch: int) -> int:
    """The peak bytes of a forward pass without gradients: weights, buffers, inputs and activations.

        peak_memory(nn.Linear(10, 5), (10,), batch=2)      # 4 * (50 + 5) + 4 * 2 * (10 + 5) = 340

    Arguments as for `measure_memory`.
    """
    return measure_memory(network, inputs, batch).peak


def measure_memory(network: nn.Module, inputs: Inputs | InputForm | tuple[int, ...], batch: int) -> Memory:
    """Measure the memory of a forward pass in eval mode, without gradients.

    Args:
        network: in its deployed form; it is unchanged. Masks that are not baked in are computed in the pass.
        inputs: a batch of inputs, whose first sample is repeated, or the shape of one sample.
        batch: samples per batch.
    """
    x = repeated(network, inputs, batch)
    held = {id(t): t for t in (*network.parameters(), *network.buffers())}.values()
    with evaluating(network):
        measure = _cuda_peak if any(tensor.is_cuda for tensor in tensors(x)) else _tracked_peak
        activations = measure(network, x)
    return Memory(batch, _bytes_of(held), activations)


def _bytes_of(parts: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in parts)


def _cuda_peak(network: nn.Module, x: Inputs) -> int:
    device = next(tensor.device for tensor in tensors(x) if tensor.is_cuda)
    call_network(network, x)  # libraries allocate their workspaces once
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call_network(network, x)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before + _bytes_of(tensors(x))


def _tracked_peak(network: nn.Module, x: Inputs) -> int:
    """The peak by fake tensors; by real ones for networks that read values, or whose operators have no shape rules."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            held = (*network.named_parameters(), *network.named_buffers())
            state = {name: fake.from_tensor(tensor) for name, tensor in held}

            def call(inputs: Inputs) -> Any:
                named = inputs if isinstance(inputs, dict) else {}
                return functional_call(network, state, () if named else inputs, named)  # type: ignore[arg-type]

            return _peak_of(call, mapped(x, fake.from_tensor), state)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return _peak_of(lambda inputs: call_network(network, inputs), x, network.state_dict())


def _peak_of(call: Callable[[Inputs], Any], x: Inputs, state: Any) -> int:
    with _Storages([*tree_leaves(state), *tensors(x)], _bytes_of(tensors(x))) as storages:
        call(x)
        peak: int = storages.peak
    return peak


class _Storages(TorchDispatchMode):
    """Bytes of the storages that operators have allocated and that are still there.

    Args:
        known: tensors that are there before.
        now: how many of their bytes to count.
    """

    def __init__(self, known: list[Any], now: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = now
        self._there: dict[int, weakref.ref[Any]] = {}
        for tensor in known:
            if isinstance(tensor, Tensor):
                self._note(tensor, 0)

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._note(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self.now)
        return output

    def _note(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._there:
            self.now += size
            self._there[key] = weakref.ref(storage, lambda _: self._freed(key, size))

    def _freed(self, key: int, size: int) -> None:
        del self._there[key]
        self.now -= size
