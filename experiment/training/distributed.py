"""One training in several processes: each computes its part of every batch, and all make the same step.

The processes hold the same weights. Every one computes the logits of its images; these are gathered, so that each has
the loss of the whole batch, whatever loss that is, and decides by it as a single process would. Gradients are averaged
by torch's DistributedDataParallel, and BatchNorm's statistics are those of the whole batch.
"""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from experiment.datasets.image_data import Share, share_size
from experiment.layers.shared_batchnorm import sharing_statistics
from experiment.random_streams import Part

# Its buffers are BatchNorm's, which are the same everywhere, and masks, which do not change: there is nothing to send.
_ARGUMENTS = inspect.signature(DistributedDataParallel).parameters
_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _ARGUMENTS else "broadcast_buffers"  # before torch 2.14
_NO_BUFFERS: dict[str, Any] = {_BUFFERS: False, "init_sync": False}


@dataclass(frozen=True)
class Team:
    """The processes that train one network together, as one of them sees them; of size 1, this process alone.

    Args:
        rank: which of them this is; the first has rank 0.
        size: how many there are; torch's process group must have been made if there are several.
    """

    rank: int = 0
    size: int = 1

    @property
    def share(self) -> Share | None:
        """Which images fall to this process; None for all."""
        return None if self.size == 1 else (self.rank, self.size)

    def own(self, stream: tuple[Part, ...]) -> tuple[Part, ...]:
        """The stream of what every process draws for itself (dropout)."""
        return stream if self.size == 1 else (*stream, "rank", self.rank)

    def problem(self, num_images: int, batch_size: int) -> str | None:
        """Why so many images cannot be shared out in batches of that size, if they cannot."""
        rest = num_images % batch_size
        smallest = min(batch_size, rest if rest > 1 else batch_size, num_images)  # a rest of one image is left out
        if self.size == 1 or smallest >= self.size:
            return None
        which = "batchSize" if smallest == batch_size else "the last batch of an epoch"
        return (
            f"batchSize: {self.size} processes train together, and each needs an image of every batch. Got {smallest} "
            f"({which}; {num_images} training images). Take another batchSize, or fewer processes."
        )

    @contextmanager
    def training(self, network: nn.Module) -> Iterator[nn.Module]:
        """What to call in the place of the network, which all processes hold alike, while it is trained.

        The network itself keeps its structure, names and tensors: inside, its BatchNorm layers share statistics.
        """
        if self.size == 1:
            yield network
            return
        with sharing_statistics(network), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")  # to be safe, it is
            # A parameter that no process's logits depend on, or this one's do not, gets the gradient it has alone.
            yield DistributedDataParallel(network, find_unused_parameters=True, **_NO_BUFFERS)

    def whole(self, logits: Tensor, y: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
        """Logits and labels of the whole batch, from those of every process's part of it, in their order.

        A gradient reaches this process's logits alone, times the number of processes, by which it will be divided.
        """
        if self.size == 1:
            return logits, y
        sizes = [share_size(num_images, (rank, self.size)) for rank in range(self.size)]
        pieces = _gathered(logits.detach(), sizes)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * self.size)  # type: ignore[no-untyped-call]
        pieces[self.rank] = logits
        return torch.cat(pieces), torch.cat(_gathered(y, sizes))

    def total(self, sums: Tensor) -> Tensor:
        """The sums over all processes, in place of those of this one."""
        if self.size > 1:
            dist.all_reduce(sums)
        return sums

    def first_state(self, state: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """The state (tensors and plain values) that the first process has, on the CPU, for all of them."""
        if self.size == 1:
            return state
        buffer = io.BytesIO()
        if self.rank == 0:
            torch.save(state, buffer)
        length = torch.tensor([buffer.tell()], device=device)
        dist.broadcast(length, src=0)
        content = torch.zeros(int(length), dtype=torch.uint8, device=device)
        if self.rank == 0:
            content.copy_(torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8))
        dist.broadcast(content, src=0)
        if self.rank == 0:
            return state
        return dict(torch.load(io.BytesIO(content.cpu().numpy().tobytes()), map_location="cpu", weights_only=True))


ALONE = Team()


def _gathered(part: Tensor, sizes: list[int]) -> list[Tensor]:
    """The parts (size, ...) of all processes, of which this process's is one."""
    longest = max(sizes)
    padded = part.new_zeros((longest, *part.shape[1:]))
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]
