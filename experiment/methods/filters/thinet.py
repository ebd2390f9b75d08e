"""ThiNet: removes the channels whose removal changes the outputs of the next layers least.

Shape suffixes: C = channels of a group, S = sampled outputs, P = places drawn in one batch, K = kernel elements.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from experiment.errors import CompressionError
from experiment.inputs import Inputs, batch_size, moved_like
from experiment.layers.channels.group_data import ChannelGroup, Member
from experiment.layers.compressible import channel_dim
from experiment.layers.forward_pass import Call, observed_pass
from experiment.layers.plan import Kept
from experiment.layers.sampled_patches import input_patches, num_positions
from experiment.methods.base import GIVE_DATA, Calibration
from experiment.methods.filters.allocation import same_share
from experiment.methods.filters.base import Channels, ChannelScores, FilterMethod, has_data, readers
from experiment.methods.filters.settings import ThiNetSettings

SAMPLES = 8  # calibration inputs in one forward pass


def thinet(settings: ThiNetSettings) -> FilterMethod:
    """Greedy selection by the error of the next layers, the same share of every group, then least squares.

    The output of a layer that reads the channels, y = sum_q x_q + bias with x_q = sum_{u,v} W[g, q, u, v] a_q, is
    sampled at random inputs, filters g and positions. Without a set T of channels its error is sum_{q in T} x_q. T
    grows by the channel that minimises

        cost(T) = sum over readers of (sum_s (sum_{q in T} x_qs)^2 / sum_s (sum_q x_qs)^2),

    so the first one is the least important. Then `refit` fits the readers' weights to the channels that are left.

    Source: Luo et al. 2017, ThiNet: A Filter Level Pruning Method, https://arxiv.org/abs/1707.06342.
    Differs: where several layers read a channel, their relative errors are added; the share of all layers is found from
    the budget; all weights on the channels are fitted (theirs scales every channel by one number).
    """

    def score(filters: Channels, calibration: Calibration | None, generator: torch.Generator) -> ChannelScores:
        if not has_data(calibration):
            raise CompressionError(f"ThiNet needs calibration data. {GIVE_DATA}")
        inputs = moved_like(calibration.inputs, filters.state.example)
        sampled = _contributions(filters, inputs, settings.samples, generator)
        return [_importance(_relative(group, sampled)) for group in filters.groups]

    return FilterMethod(settings, "ThiNet", score, same_share)


def greedy_order(X_CS: Tensor) -> list[int]:
    """All channels, each next one minimising the sum over s of (sum over those so far of x_qs)^2."""
    gram_CC = X_CS @ X_CS.T
    own_C, cross_C = gram_CC.diagonal(), X_CS.new_zeros(len(X_CS))  # cross_C: with the sum of those so far
    left, order = torch.ones(len(X_CS), dtype=torch.bool), list[int]()
    for _ in range(len(X_CS)):
        order.append(int((own_C + 2 * cross_C).masked_fill(~left, torch.inf).argmin()))
        left[order[-1]] = False
        cross_C += gram_CC[order[-1]]
    return order


def _importance(X_CS: Tensor) -> Tensor:
    """The rank of each channel in the order of removal."""
    scores = torch.zeros(len(X_CS), dtype=torch.float64)
    scores[greedy_order(X_CS)] = torch.arange(len(X_CS), dtype=torch.float64)
    return scores


def _relative(group: ChannelGroup, sampled: Mapping[str, Tensor]) -> Tensor:
    """The contributions of a group's channels to the outputs of all its readers, relative to each reader's outputs."""
    parts = [torch.zeros(group.size, 1, dtype=torch.float64)]
    for member in _readers(group, sampled):
        X_CS = sampled[member.module][torch.tensor(member.positions)].sum(1)
        scale = float(X_CS.sum(0).square().sum()) or float(X_CS.square().sum())
        parts.append(X_CS / (scale or 1.0) ** 0.5)
    return torch.cat(parts, 1)


def _readers(group: ChannelGroup, sampled: Mapping[str, Tensor]) -> Iterator[Member]:
    return (member for member in group.members if member.side == "in" and member.module in sampled)


def _contributions(filters: Channels, inputs: Inputs, samples: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Layer name -> x for each layer that reads removable channels: input channels by sampled outputs, float64, CPU.

    Grouped layers are not readers: their filters are removed with their channels, and their own readers count.
    """
    network, found = filters.state.network, dict[str, list[Tensor]]()
    for group, free in zip(filters.groups, filters.free, strict=True):
        found |= {member.module: [] for member in (readers(network, group) if free else ())}
    num_batches = -(-batch_size(inputs) // SAMPLES)
    each = -(-samples // num_batches)

    def record(call: Call) -> None:
        name, module, y = call.name, call.module, call.output
        rows = filters.state.kept.get(name, Kept()).out or range(y.shape[channel_dim(module)])
        places = torch.randint(num_positions(y, module), (each,), generator=generator)
        chosen = torch.tensor(rows)[torch.randint(len(rows), (each,), generator=generator)]
        patches_CKP = input_patches(call.input, module, y.shape, places)
        weight = module.get_parameter("weight")[chosen.to(y.device)]
        weight_PCK = weight.reshape(*weight.shape[:2], -1)
        X_CP = torch.einsum("ckp,pck->cp", patches_CKP, weight_PCK).cpu().double()
        if not X_CP.isfinite().all():
            raise CompressionError(
                f"layer '{name}': its responses to the calibration data must be finite. Got NaN or infinity: are the "
                f"inputs scaled as in training, and did training converge?"
            )
        found[name].append(X_CP)

    layers = {name: network.get_submodule(name) for name in found}
    observed_pass(network, layers, inputs, batch_size=SAMPLES, after=record)
    return {name: torch.cat(parts, 1) for name, parts in found.items() if parts}
