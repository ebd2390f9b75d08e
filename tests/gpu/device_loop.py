"""A training loop made for speed alone, as in KellerJordan/cifar10-airbench: what is left to gain over the engine.

Everything lies on the device: images are normalised once, in half precision and channels-last, flipped and cropped by
whole epochs. The network has half-precision weights; its BatchNorm layers stay in float32. No account is kept.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

DEVICE_LOOP = "made for speed"
PADDING = 4


def device_loop(
    network: nn.Module, images: Any, a: Namespace, device: torch.device, *, compiled: bool
) -> Callable[[], int]:
    """One epoch; gives the number of images."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[a.precision]
    x, y = images.take(torch.arange(len(images)))
    x = pad(x.to(dtype), (PADDING,) * 4, "reflect")
    network = network.to(dtype, memory_format=torch.channels_last).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    model = torch.compile(network, mode="reduce-overhead") if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True, fused=True)

    def run() -> int:
        count = 0
        for batch, labels in epoch(x, y, a.batch_size):
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(model(batch).float(), labels, label_smoothing=0.2).backward()
            optimizer.step()
            count += len(labels)
        return count

    return run


def epoch(x: Tensor, y: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in random order, each image flipped and cropped by itself; the last, smaller one is left out."""
    n, size = len(x), x.shape[-1] - 2 * PADDING
    order = torch.randperm(n, device=x.device)
    shifts = torch.randint(0, 2 * PADDING + 1, (2, n, 1), device=x.device)
    rows, columns = (torch.arange(size, device=x.device) + shift for shift in shifts)  # (N, size)
    columns = torch.where(torch.rand(n, 1, device=x.device) < 0.5, columns.flip(1), columns)
    for start in range(0, n - batch_size + 1, batch_size):
        places = order[start : start + batch_size]
        cropped = x[places[:, None, None], :, rows[places][:, :, None], columns[places][:, None, :]]  # (B, H, W, C)
        yield cropped.permute(0, 3, 1, 2), y[places]  # a view that is channels-last
