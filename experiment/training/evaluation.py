"""Loss and accuracy of a network on images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiment.datasets.image_data import Images
from experiment.errors import ConfigError, DataError
from experiment.layers.forward_pass import evaluating
from experiment.training.distributed import ALONE, Team
from experiment.training.factories import loss_weight, make_loss, mean_loss, summed
from experiment.training.settings import Precision

TOP = 5
MOST = {"cuda": 4096}  # images a batch, halved until they fit
OTHERWISE = 128  # on a CPU larger batches outgrow its caches
_DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Metrics:
    """Mean loss and accuracies, fractions in [0, 1], over `samples` images.

    With class weights the loss is the weighted mean: the sum of weighted losses by the sum of weights.
    """

    loss: float
    top1: float
    top5: float
    samples: int


def evaluate(
    network: nn.Module,
    data: Images,
    *,
    loss: str = "CrossEntropyLoss",
    loss_kwargs: Mapping[str, object] | None = None,
    device: torch.device | str,
    precision: Precision = "fp32",
    batch_size: int | None = None,
    channels_last: bool | None = None,
    team: Team = ALONE,
) -> Metrics:
    """Test a network, in eval mode; its own mode is restored afterwards.

    Sums are kept in float64 on the device and fetched once. A network that gives NaN is tested like any other: its loss
    is NaN, and its answers count as wrong. With fewer than six classes top5 is the accuracy among all of them.

    Args:
        batch_size: of images at a time; by default as many as the device's memory holds. Half of it, and so on, where
            they do not fit. The sums' last digits depend on it.
        channels_last: memory format of images and weights meanwhile; by default on CPUs, where it is faster.
        team: the processes that share the batches out among them; all get the figures of all images.

    Raises: DataError: no images.
    """
    if len(data) == 0:
        raise DataError("there are no images to test the network on.")
    device = torch.device(device)
    size = batch_size or MOST.get(device.type, OTHERWISE)
    channels_last = device.type == "cpu" if channels_last is None else channels_last
    while True:
        try:
            with memory_format(network, channels_last):
                return _evaluate(network, data, loss, loss_kwargs, device, precision, size, channels_last, team)
        except torch.OutOfMemoryError:
            if size == 1 or team.size > 1:  # the others would go on with the larger batches
                raise
        size //= 2  # outside the handler, whose traceback holds on to what did not fit
        torch.cuda.empty_cache()


def _evaluate(
    network: nn.Module,
    data: Images,
    loss: str,
    loss_kwargs: Mapping[str, object] | None,
    device: torch.device,
    precision: Precision,
    batch_size: int,
    channels_last: bool,
    team: Team,
) -> Metrics:
    criterion = make_loss(loss, dict(loss_kwargs or {}), device)
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, what it is divided by, top-1 hits, top-5 hits
    with evaluating(network), torch.inference_mode():
        for x, y in data.batches(batch_size, stream=None, channels_last=channels_last, share=team.share):
            with forward_precision(device, precision):
                logits = network(x)
            logits = logits.float()
            weight = loss_weight(criterion, y)
            sums += torch.stack([summed(criterion, criterion(logits, y), weight), weight, *_hits(logits, y)])
    total, weights, top1, top5 = team.total(sums).cpu()
    return Metrics(mean_loss(total, weights), float(top1) / len(data), float(top5) / len(data), len(data))


@contextmanager
def forward_precision(device: torch.device, precision: Precision) -> Iterator[None]:
    """Autocast of the forward pass to bfloat16 or float16; nothing at all for float32.

    Raises: ConfigError: float16 on the CPU.
    """
    if precision == "fp32":
        yield
        return
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"precision: fp16 needs a CUDA device, this is {device.type}. Use bf16 or fp32.")
    with torch.autocast(device.type, dtype=_DTYPES[precision]):
        yield


@contextmanager
def memory_format(network: nn.Module, channels_last: bool) -> Iterator[None]:
    """Weights in channels-last order inside; contiguous again outside, as everybody else expects them.

    A network whose weights lie in that order already keeps it.
    """
    if not channels_last or all(
        p.is_contiguous(memory_format=torch.channels_last) for p in network.parameters() if p.dim() == 4
    ):
        yield
        return
    _lay_out(network, torch.channels_last)
    try:
        yield
    finally:
        _lay_out(network, torch.contiguous_format)


def _lay_out(network: nn.Module, order: torch.memory_format) -> None:
    """Four-dimensional weights alone: torch refuses this order for those of volumes (Conv3d)."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=order)  # `contiguous` leaves the strides of one channel


def _hits(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the answers (N, classes) are right, at the first place and among the first five."""
    answered = ~logits.isnan().any(dim=1)
    best = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
    right = (best == y.unsqueeze(1)) & answered.unsqueeze(1)
    return right[:, 0].sum().double(), right.sum().double()
