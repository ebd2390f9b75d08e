"""A union-find over channels: which places of which modules belong to the same channel."""

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from experiment.layers.channels.channel_axes import Side

Key = tuple[str, Side]
Places = dict[Key, list[int]]
Integers = npt.NDArray[np.int64]


class Labels:
    """Channels, which can be united, and the channel at every place of every (module, side).

    Attributes:
        bare: the sides that are bare parameters.
        shared: the sides where several channels meet at one place; known after `channels`.
    """

    def __init__(self) -> None:
        self.bare: set[Key] = set()
        self.shared: set[Key] = set()
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}
        self._notes: dict[int, str] = {}
        self._closed: dict[Key, set[int]] = {}
        self._at: dict[Key, Integers] = {}
        self._makers: list[Key | None] = []

    def new(self, count: int, maker: Key | None = None) -> Integers:
        """Add `count` new channels, which a side produces."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        self._makers.extend([maker] * count)
        return np.arange(start, start + count)

    def at(self, key: Key, size: int) -> Integers:
        """The channel at every place of a side with `size` places; -1 where it is unknown."""
        return self._at.setdefault(key, np.full(size, -1, np.int64))

    def made(self, key: Key, size: int) -> Integers:
        """The labels (channel + 1) at every place of a side that produces channels: the same ones at every call."""
        here = self.at(key, size)
        unknown = here < 0
        here[unknown] = self.new(int(unknown.sum()), key)
        return here + 1

    def made_by_one(self, labels: Iterable[int]) -> bool:
        """Whether one side produced all of these channels."""
        return len({self._makers[label - 1] for label in labels}) == 1

    def read(self, key: Key, size: int, labels: Integers) -> None:
        """Unite the channels that a side reads with those that it read before; labels below 1 cannot be removed."""
        here = self.at(key, size)
        for place, label in enumerate(labels.tolist()):
            if label > 0 and here[place] >= 0:
                self._unite(int(here[place]), label - 1)
            elif label > 0:
                here[place] = label - 1
            else:
                self._closed.setdefault(key, set()).add(place)

    def passed(self, key: Key, labels: Integers) -> Integers:
        """The labels behind a side that treats each channel separately, such as BatchNorm's."""
        return labels

    def filtered(self, key: Key, size: int, labels: Integers, groups: int) -> Integers:
        """The labels that a layer makes from those that it reads."""
        return self.made(key, size)

    def added(self, first: int, second: int) -> int:
        """The label of the sum of two channels, which are united."""
        self._unite(first - 1, second - 1)
        return first

    def tie_group(self, channels: Collection[int]) -> None:
        """Unite the channels of one group of a grouped layer."""
        self.tie(channels)

    def tie(self, channels: Iterable[int]) -> None:
        """Unite all of these."""
        known = list(channels)
        for channel in known[1:]:
            self._unite(known[0], channel)

    def flag(self, channels: Iterable[int], reason: str) -> None:
        """Exempt these from removal; the first reason counts."""
        for channel in channels:
            self._reasons.setdefault(int(channel), reason)

    def note(self, channels: Iterable[int], operation: str) -> None:
        """Note the operation through which these cannot be followed; the first one counts."""
        for channel in channels:
            self._notes.setdefault(int(channel), operation)

    def channels(self) -> Iterator[tuple[Places, str | None, str | None]]:
        """Every channel: its places, why it cannot be removed (None if it can), and the operation where it was lost."""
        self._flag_closed()
        reasons, notes = self._by_root(self._reasons), self._by_root(self._notes)
        found: dict[int, Places] = {}
        for key, here in self._at.items():
            for position, channel in enumerate(here.tolist()):
                if channel >= 0:
                    found.setdefault(self._root(channel), {}).setdefault(key, []).append(position)
        for root, places in found.items():
            yield places, reasons.get(root), notes.get(root)

    def _flag_closed(self) -> None:
        for (name, side), closed in self._closed.items():
            here = self._at[name, side]
            self.flag([int(here[p]) for p in closed if here[p] >= 0], f"'{name}' also reads something else there")

    def _by_root(self, texts: dict[int, str]) -> dict[int, str]:
        found: dict[int, str] = {}
        for channel, text in texts.items():
            found.setdefault(self._root(channel), text)
        return found

    def _root(self, channel: int) -> int:
        parents = self._parents
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel

    def _unite(self, a: int, b: int) -> None:
        self._parents[self._root(b)] = self._root(a)
