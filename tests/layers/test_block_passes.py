"""Passes that go on where the last one stopped: the same calls as in whole passes, and every block once."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from experiment.layers.block_passes import BlockPasses
from experiment.layers.forward_pass import Call, observed_pass
from experiment.random_streams import generator, seeded

BLOCKS = 5


class Block(nn.Module):
    """A residual block that takes what all blocks share by keyword, as in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)
        self.calls = 0

    def forward(self, x: Tensor, *, shift: Tensor) -> Tensor:
        self.calls += 1
        return x + self.down(torch.relu(self.up(x + shift)))


class Blocks(nn.Module):
    """A chain of blocks between an embedding and a head, or something that is not quite one."""

    def __init__(self, kind: str = "chain") -> None:
        super().__init__()
        self.kind = kind
        self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        shift, first = x.mean(1, keepdim=True), x
        order = [*self.blocks, self.blocks[0]] if self.kind == "first block twice" else self.blocks
        for i, block in enumerate(order):
            x = block(x * 2 if self.kind == "work between blocks" else x, shift=shift)
            first = x if i == 0 else first
        return self.head(x + first if self.kind == "skip from the first block" else x)


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Embedding | nn.Conv2d)}


def whole(network: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    observed_pass(network, layers_of(network), inputs, batch_size=3, after=recording(found))
    return {name: torch.cat(parts) for name, parts in found.items()}


def recording(found: dict[str, list[Tensor]]) -> Callable[[Call], None]:
    return lambda call: found.setdefault(call.name, []).append(call.output.clone())


def in_parts(network: nn.Module, passes: BlockPasses, parts: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    every, found = layers_of(network), dict[str, list[Tensor]]()
    for part, later in zip(parts, [*parts[1:], ()], strict=True):
        passes.observe({name: every[name] for name in part}, recording(found), later)
    return {name: torch.cat(outputs) for name, outputs in found.items()}


def made(kind: str = "chain") -> tuple[Blocks, Tensor]:
    with seeded("test_block_passes"):
        return Blocks(kind).eval(), torch.randint(0, 11, (8, 3), generator=generator("test_block_passes"))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12])
def test_parts_of_any_size_see_what_whole_passes_see(size: int) -> None:
    network, tokens = made()
    names = list(layers_of(network))
    names = [names[0], *names[2:], names[1]]  # the head is defined before the blocks
    passes = BlockPasses(network, tokens, 3)
    assert passes.resume
    parts = [names[i : i + size] for i in range(0, len(names), size)]
    assert_same(in_parts(network, passes, parts), whole(network, tokens))


def test_parts_in_another_order() -> None:
    network, tokens = made()
    names = list(layers_of(network))[::-1]
    parts = [names[:4], names[4:6], names[8:], names[6:8]]
    assert_same(in_parts(network, BlockPasses(network, tokens, 3), parts), whole(network, tokens))


def test_every_block_computes_once() -> None:
    network, tokens = made()
    passes = BlockPasses(network, tokens, 8)
    for block in network.blocks:
        block.calls = 0
    parts = [["table"], *([f"blocks.{i}.up", f"blocks.{i}.down"] for i in range(BLOCKS)), ["head"]]
    in_parts(network, passes, parts)
    assert [block.calls for block in network.blocks] == [1, 1, 1, 1, 2]  # the head is called after the last block
    assert not any("forward" in vars(block) for block in network.blocks)


@pytest.mark.parametrize("kind", ["skip from the first block", "first block twice", "work between blocks"])
def test_what_is_no_chain_is_passed_as_a_whole(kind: str) -> None:
    network, tokens = made(kind)
    passes = BlockPasses(network, tokens, 3)
    assert not passes.resume
    parts = [[name] for name in layers_of(network)]
    assert_same(in_parts(network, passes, parts), whole(network, tokens))


def test_blocks_that_change_their_input_in_place() -> None:
    with seeded("test_block_passes"):
        layers = [nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)]
        network = nn.Sequential(*layers, nn.Conv2d(4, 1, 3)).eval()
    images = torch.randn(7, 2, 9, 9, generator=generator("test_block_passes"))
    passes = BlockPasses(network, images, 3)
    assert passes.resume
    assert_same(in_parts(network, passes, [["0"], ["2"], ["4"]]), whole(network, images))


def test_a_block_keeps_a_forward_of_its_own() -> None:
    network, tokens = made()
    block = network.blocks[1]
    own = vars(block)["forward"] = block.forward
    in_parts(network, BlockPasses(network, tokens, 3), [["blocks.0.up"], ["blocks.3.up"]])
    assert vars(block)["forward"] is own
