"""Training in several processes: each computes a part of every batch, and all take the same step.

All processes hold the same weights. Each computes the logits of its images; these are gathered, so each process has
the loss of the whole batch. DistributedDataParallel averages the gradients, and BatchNorm uses the statistics of the
whole batch.
"""

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

# Buffers need no synchronisation: those of BatchNorm are equal in all processes, and masks do not change.
_ARGUMENTS = inspect.signature(DistributedDataParallel).parameters
_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _ARGUMENTS else "broadcast_buffers"  # before torch 2.14
_NO_BUFFERS: dict[str, Any] = {_BUFFERS: False, "init_sync": False}


@dataclass(frozen=True)
class Team:
    """The processes that train one network together.

    Attributes:
        rank: of this process.
        size: number of processes; torch's process group must be initialised if it is greater than 1.
    """

    rank: int = 0
    size: int = 1

    @property
    def share(self) -> Share | None:
        """The part of a batch that this process computes; None for the whole batch."""
        return None if self.size == 1 else (self.rank, self.size)

    def own(self, stream: tuple[Part, ...]) -> tuple[Part, ...]:
        """The random stream of this process, for dropout."""
        return stream if self.size == 1 else (*stream, "rank", self.rank)

    def problem(self, num_images: int, batch_size: int) -> str | None:
        """Why batches of this size cannot be split over the processes; None if they can."""
        rest = num_images % batch_size
        smallest = min(batch_size, rest if rest > 1 else batch_size, num_images)  # a last batch of one image is skipped
        if self.size == 1 or smallest >= self.size:
            return None
        which = "batchSize" if smallest == batch_size else "the last batch of an epoch"
        return (
            f"batchSize: {self.size} processes train together, and each needs at least one image of every batch. Got "
            f"{smallest} ({which}; {num_images} training images). Use another batchSize or fewer processes."
        )

    @contextmanager
    def training(self, network: nn.Module) -> Iterator[nn.Module]:
        """The module to call instead of the network in training; its BatchNorm layers share their statistics."""
        if self.size == 1:
            yield network
            return
        with sharing_statistics(network), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
            # A parameter on which the logits of no process depend, or not those of this one, keeps its own gradient.
            yield DistributedDataParallel(network, find_unused_parameters=True, **_NO_BUFFERS)

    def whole(self, logits: Tensor, y: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
        """Logits and labels of the whole batch, in order, from the part of each process.

        Gradients flow to the logits of this process only, multiplied by the number of processes, by which
        DistributedDataParallel divides them.
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
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(sums)
        return sums

    def joined(self, rows: Tensor) -> Tensor:
        """The rows (n, ...) of all processes, in the order of the processes; each may have another n."""
        if self.size == 1:
            return rows
        sizes = torch.zeros(self.size, dtype=torch.int64, device=rows.device)
        sizes[self.rank] = len(rows)
        return torch.cat(_gathered(rows, self.total(sizes).tolist()))

    def first_state(self, state: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """The state (tensors and plain values) of the first process, on the CPU."""
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
    """The parts (size, ...) of all processes."""
    longest = max(sizes)
    padded = part.new_zeros((longest, *part.shape[1:]))
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]
