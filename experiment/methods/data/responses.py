"""Moments of the layers' responses to calibration data, accumulated batch by batch.

Shape suffixes: F = filters (output features), P = positions of all samples in a batch.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.inputs import Inputs, attended
from experiment.layers.block_passes import BlockPasses
from experiment.layers.compressible import channel_dim, weight_of
from experiment.layers.forward_pass import Call, observed_pass
from experiment.layers.sampled_patches import counted_places

SAMPLES = 8  # in one forward pass
POSITIONS, VALUES = 4096, 2**24  # in float64 at a time, at most
MANY_FEATURES = 512  # responses of a layer with more, and fewer inputs, are described in the span of its weight


@dataclass(frozen=True)
class Responses:
    """Moments of one layer's responses, over all positions of all samples and all uses of the layer.

    Attributes:
        covariance: (F, F), or in given axes, around the mean response, divided by the number of responses.
        mean: (F,), the mean response.
        rounding: the variance that rounding of the responses alone may cause.
        inputs: for every shape of inputs, without the batch dimension, their number and mean. The inputs of a linear
            layer have the shape (features,), those of an embedding are frequencies (tokens,).
    """

    covariance: Tensor
    mean: Tensor
    rounding: float
    inputs: tuple[tuple[int, Tensor], ...]

    def mean_response(self, layer: nn.Module, filters: Tensor) -> Tensor:
        """m, the layer's mean response to its inputs with these filters instead of its own: (F,).

        The layer is affine, so its mean response is the response to the mean input, averaged over positions.
        """
        weight = precise(weight_of(layer, filters))
        others = {n: precise(p) for n, p in layer.named_parameters() if n != "weight"}

        def respond(mean: Tensor) -> Tensor:
            if isinstance(layer, nn.Embedding):
                return mean[None] @ weight
            return _rows(layer, torch.func.functional_call(layer, others | {"weight": weight}, (mean[None],)))

        responses = [(count, respond(mean)) for count, mean in self.inputs]
        total = sum(count * len(y_PF) for count, y_PF in responses)
        mean_F: Tensor = torch.stack([count * y_PF.sum(0) for count, y_PF in responses]).sum(0) / total
        return mean_F


def gather(
    network: nn.Module,
    layers: Iterable[str],
    inputs: Inputs | BlockPasses,
    axes: Mapping[str, Tensor] | None = None,
    later: Collection[str] = (),
) -> dict[str, Responses]:
    """The moments of the layers' responses, bias included, from one forward pass of all inputs in eval mode.

    Args:
        layers: names of convolutions, linear layers and embeddings; the features of the latter two are the last
            dimension.
        inputs: a batch of any size; it is passed through the network in parts. Padding does not count. Or passes of
            `SAMPLES` inputs at a time, if layers are looked at in parts.
        axes: for some layers an orthonormal basis of all responses but the bias, (F, N) in float64. Their covariance
            is that of the coordinates, (N, N).
        later: the layers of the next part.
    Raises: CompressionError: there are no inputs, a layer is not used, or a response is NaN or infinite.
    """
    sums = {name: _Sums((axes or {}).get(name)) for name in layers}
    modules = {name: network.get_submodule(name) for name in sums}

    def record(call: Call) -> None:
        sums[call.name].record(call)

    if isinstance(inputs, BlockPasses):
        inputs.observe(modules, record, later)
    else:
        observed_pass(network, modules, inputs, batch_size=SAMPLES, after=record)
    return {name: own.moments(name) for name, own in sums.items()}


def span_of(filters: Tensor, groups: int = 1) -> Tensor | None:
    """An orthonormal basis (F, N) of all responses, bias apart, in float64, if it is much smaller than (F, F)."""
    if groups > 1 or len(filters) <= max(MANY_FEATURES, filters[0].numel()):
        return None
    axes_FN: Tensor = torch.linalg.qr(precise(filters).flatten(1))[0]
    return axes_FN


def precise(tensor: Tensor) -> Tensor:
    """The values in float64, on the CPU where the device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).detach().double()


class _Sums:
    """Running sums of one layer's inputs and responses."""

    def __init__(self, axes_FN: Tensor | None) -> None:
        self.axes_FN = axes_FN
        self.count, self.epsilon = 0, 0.0
        self.mean_F = self.scatter_FF = torch.zeros(0)
        self.inputs: dict[torch.Size, tuple[int, Tensor]] = {}

    def record(self, call: Call) -> None:
        layer, response, mask = call.module, call.output, attended(call.inputs)
        rows, x = _rows(layer, response.detach()), call.input.detach()
        x = x.flatten() if isinstance(layer, nn.Embedding) else x.reshape(-1, *x.shape[channel_dim(layer) :])
        if mask is not None:
            places = counted_places(torch.arange(len(rows)), response, layer, mask).to(rows.device)
            x = x[places] if len(x) == len(rows) else x
            rows = rows[places]
        self._add_inputs(layer, x)
        self.epsilon = torch.finfo(response.dtype).eps
        size = min(POSITIONS, max(1, VALUES // rows.shape[1]))
        for y_PF in torch.split(rows, size) if len(rows) else ():
            self._add_responses(precise(y_PF))

    def _add_inputs(self, layer: nn.Module, x: Tensor) -> None:
        if isinstance(layer, nn.Embedding):
            total = precise(torch.bincount(x, minlength=layer.num_embeddings))
        else:
            total = (x.cpu() if x.device.type == "mps" else x).sum(0, dtype=torch.float64)
        count, before = self.inputs.get(total.shape, (0, torch.zeros_like(total)))
        self.inputs[total.shape] = (count + len(x), before + total)

    def _add_responses(self, y_PF: Tensor) -> None:
        """Merge the mean and the scatter around it, which stays accurate for means far from zero.

        Source: Chan, Golub and LeVeque 1983, Algorithms for computing the sample variance
        """
        mean_F = y_PF.mean(0)
        centred_PF = self._coordinates(y_PF - mean_F)
        scatter_FF = centred_PF.T @ centred_PF
        if self.count == 0:
            self.count, self.mean_F, self.scatter_FF = len(y_PF), mean_F, scatter_FF
            return
        before, self.count = self.count, self.count + len(y_PF)
        apart_F = mean_F - self.mean_F
        self.mean_F = self.mean_F + apart_F * (len(y_PF) / self.count)
        apart_F = self._coordinates(apart_F)
        self.scatter_FF += scatter_FF.add_(torch.outer(apart_F, apart_F).mul_(before * len(y_PF) / self.count))

    def _coordinates(self, y: Tensor) -> Tensor:
        return y if self.axes_FN is None else y @ self.axes_FN

    def moments(self, name: str) -> Responses:
        if self.count == 0:
            raise CompressionError(f"layer '{name}': the calibration data never reach it. Expected at least one input.")
        if not self.scatter_FF.isfinite().all():
            raise CompressionError(
                f"layer '{name}': its responses to the calibration data must be finite. Got NaN or infinity: are the "
                f"inputs scaled as in training, and did the network's training converge?"
            )
        covariance = self.scatter_FF.div_(self.count)
        square = float(covariance.trace()) + float(self.mean_F.square().sum())
        means = tuple((count, total / count) for count, total in self.inputs.values())
        return Responses(covariance, self.mean_F, self.epsilon**2 * square, means)


def _rows(layer: nn.Module, response: Tensor) -> Tensor:
    """Responses as rows, one per position: (P, F)."""
    return response.movedim(channel_dim(layer), -1).flatten(0, -2)
