"""Batches for evaluation that stay on the device: test samples are read and transformed once for many networks."""

from collections.abc import Iterator

import torch
from torch import Tensor

from experiment.datasets.image_data import Batch, Images, Share, Stream
from experiment.inputs import Inputs, mapped, tensors
from experiment.registry import InputForm

SHARE_OF_GPU = 1 / 8  # of the free memory, for each part of a dataset: networks and other cells need the rest
BYTES_ON_CPU = 250_000_000


class KeptBatches:
    """Images that keep their batches for evaluation after the first complete pass, if these are small enough.

    Later passes of the same kind give equal batches without reading. Training passes are not kept.

    Args:
        images: what is read (see `experiment.datasets.image_data.Images`).
        device: of its batches.
    """

    def __init__(self, images: Images, device: torch.device) -> None:
        self._images, self._device, self._fits = images, device, True
        self._kind: object = None
        self._kept: list[Batch] = []

    @property
    def input_shape(self) -> InputForm:
        return self._images.input_shape

    def __len__(self) -> int:
        return len(self._images)

    def take(self, indices: Tensor) -> Batch:
        return self._images.take(indices)

    def first(self, n: int) -> Batch:
        return self._images.first(n)

    def batches(
        self, batch_size: int, *, stream: Stream, channels_last: bool = False, share: Share | None = None
    ) -> Iterator[Batch]:
        kind = (batch_size, channels_last, share)
        if stream is None and kind == self._kind:
            return map(_copied, self._kept)
        batches = self._images.batches(batch_size, stream=stream, channels_last=channels_last, share=share)
        return self._keeping(batches, kind) if stream is None and self._fits else batches

    def _keeping(self, batches: Iterator[Batch], kind: object) -> Iterator[Batch]:
        self._kind, self._kept = None, []  # makes room
        kept: list[Batch] = []
        left = _room_on(self._device)
        for batch in batches:
            left -= sum(tensor.nbytes for tensor in tensors(batch))
            if left >= 0:
                kept.append(_copied(batch))
            else:
                kept.clear()
            yield batch
        self._fits = left >= 0
        if self._fits:
            self._kind, self._kept = kind, kept


def _room_on(device: torch.device) -> int:
    """The number of bytes that may be kept on a device."""
    if device.type != "cuda":
        return BYTES_ON_CPU
    return int(SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0])


def _copied(batch: Batch) -> Batch:
    """A batch that a network may change in place."""
    copies: tuple[Inputs, Tensor] = mapped(batch, torch.clone)
    return copies
