"""Loss and accuracy of a network on images."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiment.datasets.image_data import Batch, Images
from experiment.errors import ConfigError, DataError
from experiment.inputs import call_network, scored
from experiment.layers.forward_pass import evaluating
from experiment.training.distributed import ALONE, Team
from experiment.training.factories import Loss, loss_weight, make_loss, mean_loss, summed
from experiment.training.settings import Precision, TrainSettings

TOP = 5
CUDA_BATCH_SIZE = 4096  # halved until it fits
CPU_BATCH_SIZE = 128  # larger batches outgrow the caches
_DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Metrics:
    """Mean loss, and accuracies in [0, 1], over `samples` images; with class weights the mean is weighted."""

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
    """Evaluate a network in eval mode; its mode is restored afterwards.

    Outputs that are NaN count as wrong answers. With fewer than six classes top5 is 1.

    Args:
        batch_size: halved until a batch fits into memory; default: 4096 on CUDA, 128 on the CPU. The last digits of
            the loss depend on it.
        channels_last: memory format of images and weights; default: True on the CPU, where it is faster.
        team: the processes that evaluate together; each returns the metrics over all images.

    Raises: DataError: there are no images.
    """
    if len(data) == 0:
        raise DataError("there are no images to evaluate the network on.")
    device = torch.device(device)
    size = batch_size or (CUDA_BATCH_SIZE if device.type == "cuda" else CPU_BATCH_SIZE)
    channels_last = device.type == "cpu" if channels_last is None else channels_last
    criterion = make_loss(loss, loss_kwargs or {}, device)
    while True:
        batches = data.batches(size, stream=None, channels_last=channels_last, share=team.share)
        try:
            with memory_format(network, channels_last), evaluating(network), torch.inference_mode():
                sums = team.total(_sum_over(batches, network, criterion, device, precision))
                break
        except torch.OutOfMemoryError:
            if size == 1 or team.size > 1:  # the other processes would continue with larger batches
                raise
        size //= 2  # outside the handler, whose traceback keeps the tensors alive
        torch.cuda.empty_cache()
    loss_sum, weight_sum, top1, top5 = sums.tolist()
    return Metrics(mean_loss(loss_sum, weight_sum), top1 / len(data), top5 / len(data), len(data))


def validate(
    network: nn.Module, images: Images, settings: TrainSettings, device: torch.device, team: Team = ALONE
) -> Metrics:
    """Evaluate with the loss, at the precision and in the memory format of a training."""
    return evaluate(
        network, images, loss=settings.loss, loss_kwargs=settings.loss_kwargs, device=device,
        precision=settings.precision, channels_last=settings.channels_last, team=team,
    )  # fmt: skip


def _sum_over(
    batches: Iterable[Batch], network: nn.Module, criterion: Loss, device: torch.device, precision: Precision
) -> Tensor:
    """Loss, its divisor, top-1 hits and top-5 hits (4,), summed in float64 on the device."""
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for x, y in batches:
        with forward_precision(device, precision):
            logits = scored(call_network(network, x))
        logits = logits.float()
        weight = loss_weight(criterion, y)
        sums += torch.stack([summed(criterion, criterion(logits, y), weight), weight, *_hits(logits, y)])
    return sums


@contextmanager
def forward_precision(device: torch.device, precision: Precision) -> Iterator[None]:
    """Autocast to bfloat16 or float16; no effect for float32.

    Raises: ConfigError: float16 without CUDA.
    """
    if precision == "fp32":
        yield
        return
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"precision: fp16 needs a CUDA device. Got {device.type}. Use bf16 or fp32.")
    with torch.autocast(device.type, dtype=_DTYPES[precision]):
        yield


@contextmanager
def memory_format(network: nn.Module, channels_last: bool) -> Iterator[None]:
    """Convert the weights to channels-last inside, and back outside unless they were channels-last before."""
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
    """Only weights with four dimensions: torch has no such format for those of Conv3d."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=order)  # `contiguous` ignores the strides of a single channel


def _hits(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Number of images whose label is the first, and among the first five, of the logits (N, classes)."""
    answered = ~logits.isnan().any(dim=1)
    best = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
    right = (best == y.unsqueeze(1)) & answered.unsqueeze(1)
    return right[:, 0].sum().double(), right.sum().double()
