"""BatchNorm with the statistics of a batch that is split over several processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def sharing_statistics(network: nn.Module) -> Iterator[None]:
    """Replace the network's BatchNorm layers, inside, by ones that normalise by the statistics of all processes.

    They have the same parameters and buffers under the same names. Afterwards the original layers are restored.
    """
    replaced = [
        (network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], child)
        for name, child in network.named_modules(remove_duplicate=False)
        if name and isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm)
    ]
    for parent, name, child in replaced:
        setattr(parent, name, shared_form(child))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            child.train(getattr(parent, name).training)
            setattr(parent, name, child)


def shared_form(layer: _BatchNorm) -> _BatchNorm:
    """A layer with the same tensors and shared statistics: SyncBatchNorm on a GPU, which does not support CPUs."""
    tensors = [*layer.parameters(), *layer.buffers()]
    make = nn.SyncBatchNorm if tensors and tensors[0].is_cuda else SharedBatchNorm
    shared = make(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    for name in ("weight", "bias"):
        shared.register_parameter(name, getattr(layer, name))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        shared.register_buffer(name, getattr(layer, name))
    return shared.train(layer.training)


class SharedBatchNorm(_BatchNorm):
    """BatchNorm over the images of all processes of torch's default group, for any device.

    y = (x - m) / sqrt(v + eps) * weight + bias, with m and v of the whole batch, of which each process has a part.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {x.dim()}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        channels = [1, -1] + [1] * (x.dim() - 2)  # a vector of channels against x
        others = [0, *range(2, x.dim())]
        own = wide.new_full((1,), x.numel() // x.shape[1])
        sums: Tensor = _Sum.apply(torch.cat([wide.sum(others), own]))
        num = sums[-1].detach()
        mean = sums[:-1] / num
        centred = wide - mean.view(channels)
        squares: Tensor = _Sum.apply(centred.square().sum(others))
        variance = squares / num
        self._track(mean.detach(), variance.detach() * num / (num - 1))
        y = centred * torch.rsqrt(variance + self.eps).view(channels)
        if self.weight is not None:
            y = y * self.weight.view(channels)
        if self.bias is not None:
            y = y + self.bias.view(channels)
        return y.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Running statistics as `_BatchNorm` keeps them: the mean, and the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _Sum(torch.autograd.Function):
    """The sum over all processes. Each of them depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total
