"""Groups of channels as plain data, and the size of a network as a function of their channel counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from experiment.inputs import Inputs
from experiment.layers.channels import channel_axes
from experiment.layers.channels.module_numbers import Number
from experiment.layers.compressible import WEIGHT_LAYERS, trace_layers
from experiment.layers.plan import Kept

Integers = npt.NDArray[np.int64]
Indices = tuple[int, ...] | None


@dataclass(frozen=True)
class Member:
    """One side of a module through which a group of channels passes.

    Attributes:
        module: dotted name, or that of a bare parameter, which has one side, `out`.
        side: `out` (rows of the weight; also the one side of BatchNorm, PReLU) or `in` (columns); in a stream, `made`
            and `taken`: the channels of the tensor behind, or before, the module.
        size: number of channels of that side.
        positions: channel of the group -> the indices that it occupies there: several where Flatten multiplies a
            channel by the grid, or where a grouped layer loses whole groups only. Equally many for all channels.
        norm: for an `in` side, the BatchNorm that directly and alone reads the layer's output.
        swapped: whether the module's weight holds output channels along dimension 1.
        shared: whether other groups may occupy the same indices, which are there as long as one of their channels is.
    """

    module: str
    side: channel_axes.Side
    size: int
    positions: tuple[tuple[int, ...], ...]
    norm: str | None = None
    swapped: bool = False
    shared: bool = False


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that occupy the same sides of the same modules: each can be removed, from all of these at once.

    Attributes:
        name: the first layer that produces the channels.
        size: number of channels (where a grouped layer takes part: of its groups).
        members: every side of every module that they occupy.
        producers: the convolutions and linear layers whose filters compute them, in module order.
        exempt: why they cannot be removed; None if they can.
        numbers: of modules and configs, which are proportional to the channels.
        streams: the sides `made` and `taken`, where a tensor may have more channels than the module.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    producers: tuple[str, ...]
    exempt: str | None = None
    numbers: tuple[Number, ...] = ()
    streams: tuple[Member, ...] = ()

    @property
    def has_heads(self) -> bool:
        """Whether a channel takes several places in a layer that makes it, as an attention head does."""
        made = [len(m.positions[0]) for m in self.members if m.side == "out" and m.module in self.producers]
        return max(made, default=1) > 1


def kept_of(groups: Sequence[ChannelGroup], chosen: Sequence[Collection[int]]) -> dict[str, Kept]:
    """What stays of every module when each group keeps only the `chosen` channels; whole modules are not named."""
    stays = _stays(groups, chosen)
    sides = {key: tuple(np.flatnonzero(alive).tolist()) for key, alive in stays.items() if not alive.all()}
    numbers = _numbers_of(groups, stays)
    swapped = {member.module for group in groups for member in group.members if member.swapped}
    names = dict.fromkeys((*(name for name, side in sides if side in ("out", "in")), *numbers))
    streams = {(side.module, side.side): range(side.size) for group in groups for side in group.streams}
    two_sided = {member.module for group in groups for member in group.members if member.side == "in"}

    def stream(name: str, side: channel_axes.Side, own: Indices) -> Indices:
        wide = sides.get((name, side), tuple(streams.get((name, side), ())))
        return None if own is None or not wide or len(wide) == len(own) else wide

    found = {}
    for name in names:
        out, inputs = sides.get((name, "out")), sides.get((name, "in"))
        taken = stream(name, "taken", inputs if name in two_sided else out)
        found[name] = Kept(out, inputs, name in swapped, numbers.get(name, {}), stream(name, "made", out), taken)
    return found


def _stays(
    groups: Sequence[ChannelGroup], chosen: Sequence[Collection[int]]
) -> dict[tuple[str, channel_axes.Side], npt.NDArray[np.bool_]]:
    """What stays of the sides that lose something."""
    stays: dict[tuple[str, channel_axes.Side], npt.NDArray[np.bool_]] = {}
    needed: dict[tuple[str, channel_axes.Side], Integers] = {}  # by how many groups' channels, where several may meet
    lost = [sorted(set(range(group.size)) - set(channels)) for group, channels in zip(groups, chosen, strict=True)]
    for group, gone in zip(groups, lost, strict=True):
        for member in (*group.members, *group.streams) if gone else ():
            key = (member.module, member.side)
            alive = stays.setdefault(key, np.ones(member.size, bool))
            alive[[p for channel in gone for p in member.positions[channel]]] = False
            if member.shared:
                needed.setdefault(key, np.zeros(member.size, np.int64))
    for group, gone in zip(groups, lost, strict=True) if needed else ():
        left = sorted(set(range(group.size)) - set(gone))
        for member in (*group.members, *group.streams):
            if (key := (member.module, member.side)) in needed:
                needed[key][[p for channel in left for p in member.positions[channel]]] += 1
    return {key: alive | (needed[key] > 0) if key in needed else alive for key, alive in stays.items()}


def _numbers_of(
    groups: Sequence[ChannelGroup], stays: Mapping[tuple[str, channel_axes.Side], npt.NDArray[np.bool_]]
) -> dict[str, dict[str, int]]:
    """The numbers that change; one that several layers contradict, such as those of a config, stays."""
    values: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for number in (number for group in groups for number in group.numbers):
        alive = stays.get((number.layer, number.side))
        value, rest = (number.value, 0) if alive is None else divmod(number.value * int(alive.sum()), len(alive))
        values.setdefault((number.module, number.attribute), set()).add((number.value if rest else value, number.value))
    found: dict[str, dict[str, int]] = {}
    for (name, attribute), options in values.items():
        value, before = next(iter(options))
        if len(options) == 1 and value != before:
            found.setdefault(name, {})[attribute] = value
    return found


def alive_channels(groups: Sequence[ChannelGroup], kept: Mapping[str, Kept]) -> list[tuple[int, ...]]:
    """For each group the channels that are left where modules have already lost some."""
    alive = []
    for group in groups:
        left = set(range(group.size))
        for member in group.members:
            sides = kept.get(member.module, Kept())
            indices = sides.out if member.side == "out" else sides.inputs
            if indices is not None:
                here = set(indices)
                left = {channel for channel in left if here.issuperset(member.positions[channel])}
        alive.append(tuple(sorted(left)))
    return alive


@dataclass(frozen=True)
class Sizes:
    """Parameters and multiply-adds as functions of the number of channels that every group keeps.

    With n_G kept channels, layer l has out_l = out_fixed_l + (out_by_group n_G)_l rows, and in_l columns likewise, so

        parameters = constant + sum_l out_l (weight_l in_l + extra_l)
        flops      = constant + sum_l out_l weight_l in_l positions_l + sum_p each_p prod_g (n_g + beside_pg)^power_pg

    which is exactly what counting the sliced network gives. Shape suffixes: L = layers, G = groups, P = products of
    activations, such as attention's, of which channels are dimensions.

    Where groups share sides, what stays must be known (`kept`), since counts do not tell how many of them meet.

    Attributes:
        layers: (L,) their names. grouped: those whose columns are one group's and stay.
        out_whole, in_whole: (L,) rows and columns of the whole layers.
        out_fixed, in_fixed: (L,) rows and columns that belong to no group. out_by_group, in_by_group: (L, G) those per
            channel of a group.
        weight: (L,) weights per row and column. extra: (L,) other parameters per row. positions: (L,) outputs per
            sample.
        constant_parameters, constant_flops: of everything that does not depend on any group.
        power, beside: (P, G) number of dimensions of a product that are a group's channels, and their other elements.
        each: (P,) the product of the other dimensions.
    """

    out_fixed: Integers
    out_by_group: Integers
    in_fixed: Integers
    in_by_group: Integers
    weight: Integers
    extra: Integers
    positions: Integers
    constant_parameters: int = 0
    constant_flops: int = 0
    power: Integers = field(default_factory=lambda: np.zeros((0, 1), np.int64))
    beside: Integers = field(default_factory=lambda: np.zeros((0, 1), np.int64))
    each: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    layers: tuple[str, ...] = ()
    grouped: frozenset[str] = frozenset()
    out_whole: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    in_whole: Integers = field(default_factory=lambda: np.zeros(0, np.int64))

    def parameters_of(self, counts: Sequence[int], kept: Mapping[str, Kept] | None = None) -> int:
        """Elements of all parameters of the network whose groups keep `counts` channels."""
        out_L, in_L = self._extents(counts, kept)
        return self.constant_parameters + int((out_L * (self.weight * in_L + self.extra)).sum())

    def flops_of(self, counts: Sequence[int], kept: Mapping[str, Kept] | None = None) -> int:
        """Multiply-adds of one sample's forward pass of that network."""
        out_L, in_L = self._extents(counts, kept)
        layers = int((out_L * self.weight * in_L * self.positions).sum())
        return self.constant_flops + layers + int(self.products_of(counts).sum())

    def products_of(self, counts: Sequence[int]) -> Integers:
        """Multiply-adds of every product that shrinks with channels: (P,)."""
        return self.each * _channel_products(counts, self.power, self.beside)

    def with_products(self, counts: Sequence[int], flops: Integers, power: Integers, beside: Integers) -> Sizes:
        """The same with products, until now part of the constant, that shrink with the channels of groups.

        Args:
            counts, flops: channels of every group, and (P,) multiply-adds of every product with these counts.
            power, beside: (P, G).
        """
        each = flops // _channel_products(counts, power, beside)
        constant = self.constant_flops - int(flops.sum())
        return replace(self, constant_flops=constant, power=power, beside=beside, each=each)

    def _extents(self, counts: Sequence[int], kept: Mapping[str, Kept] | None) -> tuple[Integers, Integers]:
        if kept is not None:
            out_L, in_L = self.out_whole.copy(), self.in_whole.copy()
            for i, sides in ((i, kept[name]) for i, name in enumerate(self.layers) if name in kept):
                out_L[i] = out_L[i] if sides.out is None else len(sides.out)
                in_L[i] = in_L[i] if sides.inputs is None or self.layers[i] in self.grouped else len(sides.inputs)
            return out_L, in_L
        counts_G = np.asarray(counts, np.int64)
        return self.out_fixed + self.out_by_group @ counts_G, self.in_fixed + self.in_by_group @ counts_G


def _channel_products(counts: Sequence[int], power: Integers, beside: Integers) -> Integers:
    """For every product, the product of its channel dimensions: (P,)."""
    found: Integers = np.prod((np.asarray(counts, np.int64) + beside) ** power, axis=1)
    return found


def sizes_of(network: nn.Module, example: Inputs, groups: Sequence[ChannelGroup], flops: int) -> Sizes:
    """A network's size as a function of channel counts.

    Args:
        groups: what `channel_groups(network, example)` gave.
        flops: multiply-adds of the whole network.
    """
    layers = trace_layers(network, example, WEIGHT_LAYERS)
    rows = {name: row for row, name in enumerate(dict.fromkeys(m.module for group in groups for m in group.members))}
    modules = dict(network.named_modules())
    shapes = np.array([_shape(network, modules, name) for name in rows], np.int64).reshape(len(rows), 4)
    out_L, in_L, weight_L, extra_L = shapes.T
    positions_L = np.array([layers[name].positions if name in layers else 0 for name in rows], np.int64)
    out_LG, in_LG = np.zeros((2, len(rows), len(groups)), np.int64)
    for g, group in enumerate(groups):
        for member in group.members:
            if member.side == "out":
                out_LG[rows[member.module], g] = len(member.positions[0])
            elif not _is_grouped(modules[member.module]):  # a filter of a grouped layer keeps all of its columns
                in_LG[rows[member.module], g] = len(member.positions[0])
    counts_G = np.array([group.size for group in groups], np.int64)
    sizes = Sizes(
        out_L - out_LG @ counts_G, out_LG, in_L - in_LG @ counts_G, in_LG, weight_L, extra_L, positions_L,
        layers=tuple(rows), grouped=frozenset(name for name in rows if _is_grouped(modules.get(name))),
        out_whole=out_L, in_whole=in_L,
    )  # fmt: skip
    parameters = sum(p.numel() for p in network.parameters())
    return replace(
        sizes,
        constant_parameters=parameters - sizes.parameters_of(counts_G.tolist()),
        constant_flops=flops - sizes.flops_of(counts_G.tolist()),
    )


def _shape(network: nn.Module, modules: Mapping[str, nn.Module], name: str) -> tuple[int, int, int, int]:
    """Rows, columns of one filter, weights per row and column, and other parameters per row."""
    if name not in modules:
        parameter = network.get_parameter(name)
        rows = parameter.shape[channel_axes.parameter_dim(parameter.shape) or 0]
        return rows, 0, 0, parameter.numel() // rows
    module = modules[name]
    if isinstance(module, nn.Embedding):
        counted = any(m.weight is module.weight for m in modules.values() if isinstance(m, nn.Linear))
        first = next(m for m in modules.values() if isinstance(m, nn.Embedding) and m.weight is module.weight)
        return module.embedding_dim, 0, 0, 0 if counted or first is not module else module.num_embeddings
    if isinstance(module, channel_axes.CHANNEL_MAKERS):
        weight: Tensor = module.weight
        rows, columns = (
            weight.shape[:2] if not isinstance(module, channel_axes.TRANSPOSED) else reversed(weight.shape[:2])
        )
        return rows, columns, weight[0, 0].numel(), 0 if module.bias is None else 1
    return channel_axes.channel_counts(module)[0], 0, 0, len(list(module.parameters(recurse=False)))


def _is_grouped(module: nn.Module | None) -> bool:
    return isinstance(module, channel_axes.CONVOLUTIONS) and module.groups > 1
