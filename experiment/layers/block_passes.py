"""Forward passes for some layers after the other, each of which goes on where the last one stopped.

Many networks call a chain of blocks, each on the output of the one before. To look at the layers of one block, it is
enough to keep the output of the block before it: those before stand aside, and the pass ends when the next is called.
So looking at all blocks, one after the other, costs one forward pass, with the activations of one block in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from experiment.inputs import Inputs, call_network, first, mapped, output_tensors, scored, split
from experiment.layers.compressible import WEIGHT_LAYERS
from experiment.layers.forward_pass import Call, evaluating, observed_pass, observing


class BlockPasses:
    """Passes of the same inputs through a network in eval mode, without gradients.

    A network without a chain of blocks is passed as a whole each time.

    Args:
        inputs: of any number of samples, on the network's device.
        batch_size: number of inputs per forward pass.
    """

    def __init__(self, network: nn.Module, inputs: Inputs, batch_size: int) -> None:
        self._network, self._inputs, self._batch_size = network, inputs, batch_size
        self._blocks, self._places = _chain(network, first(inputs))
        self._start, self._outputs = 0, list[Any]()  # of block number start - 1, for every batch

    @property
    def resume(self) -> bool:
        """Whether there is a chain of blocks."""
        return bool(self._blocks)

    def observe(
        self, modules: Mapping[str, nn.Module], after: Callable[[Call], None], later: Collection[str] = ()
    ) -> None:
        """As `observed_pass`.

        Args:
            modules: layers by name. Those of earlier blocks than in the last call cost a pass from the start.
            later: the layers of the next call.
        """
        if not self._blocks:
            observed_pass(self._network, modules, self._inputs, batch_size=self._batch_size, after=after)
            return
        low, high = self._span(modules)
        start = self._start if self._start <= low else 0
        kept, outputs = min(self._span(later)[0] - 1, high) if later else -1, list[Any]()
        now: list[Inputs] = [None]
        last = {"": self._blocks[kept]} if kept >= start else {}
        keeping = observing(last, after=lambda call: outputs.append(_copied(call.output)))
        layers = observing(modules, after=after, inputs_now=lambda: now[0])
        with evaluating(self._network), layers, keeping:
            for i, now[0] in enumerate(split(self._inputs, self._batch_size)):
                with _between(self._blocks, start, self._outputs[i] if start else None, high + 1):
                    call_network(self._network, now[0])
        if last:
            self._start, self._outputs = kept + 1, outputs

    def _span(self, layers: Collection[str]) -> tuple[int, int]:
        """The numbers of the first and the last block that run when these layers are called; -1: before all blocks."""
        places = [self._places.get(name, (-1, len(self._blocks))) for name in layers]
        return min(low for low, _ in places), max(high for _, high in places)


class _Stop(Exception):
    """Ends a forward pass."""


@contextmanager
def _between(blocks: Sequence[nn.Module], start: int, output: object, end: int) -> Iterator[None]:
    """Inside, a forward pass computes the blocks from `start` on, and stops where block `end` is called.

    Args:
        output: what block start - 1 returns. Later blocks may change it in place, so they get a copy.
    """

    def stop(*args: object, **named: object) -> None:
        raise _Stop

    own = {block: vars(block).get("forward") for block in (*blocks[:start], *blocks[end : end + 1])}
    for i, block in enumerate(own):
        vars(block)["forward"] = stop if i == start else lambda *args, **named: _copied(output)
    try:
        with suppress(_Stop):
            yield
    finally:
        for block, forward in own.items():
            vars(block).pop("forward")
            if forward is not None:
                vars(block)["forward"] = forward


def _copied(output: object) -> Any:
    return mapped(output, Tensor.clone)


def _chain(network: nn.Module, sample: Inputs) -> tuple[list[nn.Module], dict[str, tuple[int, int]]]:
    """The largest list of blocks if it is a chain, and for every layer the blocks that run when it is called.

    It is one if each is called once, on what the one before returned, and if the network's output stays the same when
    the first half stands aside.
    """
    lists = [m for m in network.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 1]
    blocks = list(max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=nn.ModuleList()))
    calls, outputs, places = list[bool](), list[Any](), dict[str, tuple[int, int]]()
    latest: list[Any] = [None]

    def enter(call: Call) -> None:
        follows = not calls or any(call.input is tensor for tensor in output_tensors(latest[0])[:1])
        calls.append(follows and call.module is blocks[len(calls) % len(blocks)])

    def leave(call: Call) -> None:
        latest[0] = call.output
        outputs.append(_copied(call.output))

    def see(call: Call) -> None:
        now = len(calls) - 1
        low, high = places.get(call.name, (now, now))
        places[call.name] = min(low, now), max(high, now)

    layers = {name: m for name, m in network.named_modules() if isinstance(m, WEIGHT_LAYERS)}
    named = {str(i): block for i, block in enumerate(blocks)}
    with evaluating(network):
        with observing(named, before=enter, after=leave), observing(layers, before=see):
            whole = scored(call_network(network, sample))
        if not calls or calls != [True] * len(blocks):
            return [], {}
        half = len(blocks) // 2
        with _between(blocks, half, outputs[half - 1], len(blocks)):
            same = torch.equal(scored(call_network(network, sample)), whole)
    return (blocks, places) if same else ([], {})
