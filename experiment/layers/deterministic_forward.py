"""Deterministic forward passes: random operations return fixed numbers, whatever the shape of their output."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from experiment.random_streams import seeded_everywhere

_PERMUTING = frozenset({"randperm", "multinomial", "randint", "randint_like"})  # draw indices


@contextmanager
def fixed_draws() -> Iterator[None]:
    """Make random operations inside return numbers that do not depend on shapes; all random states are restored.

    A network and its sliced copy then draw the same: a random operation fills its output with one number, a different
    one at every call, and dropout keeps everything. The global generators of Python, numpy and torch are seeded.
    """
    with seeded_everywhere("draws"), _Fixed():
        yield


class _Fixed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        name = func.overloadpacket.__name__
        if torch.Tag.nondeterministic_seeded not in func.tags or name in _PERMUTING:
            return func(*args, **(kwargs or {}))
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        for argument, value in (("dropout_p", 0.0), ("training", False)):  # for attention and RReLU
            args, kwargs, found = _replaced(func, args, kwargs or {}, argument, value)
            if found:
                return func(*args, **kwargs)
        self.calls += 1
        value = 1.0 if "bernoulli" in name else 0.25 + 0.5 * ((self.calls * 0.618034) % 1)
        fill: Callable[[object], object] = lambda x: x.fill_(value) if isinstance(x, Tensor) else x  # noqa: E731
        with torch.no_grad():
            return tree_map(fill, func(*args, **(kwargs or {})))


def _replaced(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], argument: str, value: object
) -> tuple[tuple[Any, ...], Mapping[str, Any], bool]:
    """The arguments of a call with one of them replaced, and whether the operation has it."""
    names = [a.name for a in func._schema.arguments]
    if argument not in names:
        return args, kwargs, False
    place = names.index(argument)
    if place < len(args):
        return (*args[:place], value, *args[place + 1 :]), kwargs, True
    return args, {**kwargs, argument: value}, True
