"""Book-keeping of the channel graph: which places, in which modules, belong to the same channel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from experiment.layers.groups import Side

Key = tuple[str, Side]
Places = dict[Key, list[int]]
Integers = npt.NDArray[np.int64]

LOST = "their indices cannot be followed through the network"


class Labels:
    """A union-find over channels, with the channel that stands at every place of every (module, side)."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}
        self._at: dict[Key, Integers] = {}

    def new(self, count: int) -> Integers:
        """So many channels that are not known to be the same as others."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def at(self, key: Key, size: int) -> Integers:
        """The channel at every place of a side with `size` places; -1 where none is known to be."""
        return self._at.setdefault(key, np.full(size, -1, np.int64))

    def place(self, key: Key, size: int, positions: Sequence[int], channels: Integers) -> None:
        """Channels stand at these positions; a channel that stood there already is the same one."""
        here, where = self.at(key, size), np.asarray(positions, np.int64)
        inside = (where >= 0) & (where < size)
        self.flag(channels[~inside], LOST)
        where, channels = where[inside], channels[inside]
        for old, new in zip(here[where].tolist(), channels.tolist(), strict=True):
            if old >= 0:
                self._unite(old, new)
        here[where] = channels

    def tie(self, channels: Iterable[int]) -> None:
        """All of these are one channel from now on."""
        known = list(channels)
        for channel in known[1:]:
            self._unite(known[0], channel)

    def flag(self, channels: Iterable[int], reason: str) -> None:
        """None of these may go, for this reason; the first reason counts."""
        for channel in channels:
            self._reasons.setdefault(int(channel), reason)

    def channels(self) -> Iterator[tuple[Places, str | None]]:
        """Every channel: where it stands, and why it may not go (None: it may)."""
        reasons: dict[int, str] = {}
        for channel, reason in self._reasons.items():
            reasons.setdefault(self._root(channel), reason)
        found: dict[int, Places] = {}
        for key, here in self._at.items():
            for position, channel in enumerate(here.tolist()):
                if channel >= 0:
                    found.setdefault(self._root(channel), {}).setdefault(key, []).append(position)
        for root, places in found.items():
            yield places, reasons.get(root)

    def _root(self, channel: int) -> int:
        parents = self._parents
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel

    def _unite(self, a: int, b: int) -> None:
        self._parents[self._root(b)] = self._root(a)
