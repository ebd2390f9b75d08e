"""Following channels without tying those that are added: every branch of a sum may lose channels alone.

A value is a channel as one tensor carries it. It stems from sources, the channels that layers make; a sum stems from
those of its summands, and is there as long as one of them is. Values that are added, or otherwise combined at the same
index, lie in tensors of equal width, so these have a channel there as long as any of them does: a stream.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from experiment.layers.channels.channel_axes import Side
from experiment.layers.channels.labels import Integers, Key, Labels, Places


class UncoupledLabels(Labels):
    """Labels of which channels are united only if they are the same or multiplied, not if they are added.

    Sides of modules hold values. Besides their own, `channels` gives the places of `made` and `taken`: the channels
    that the tensor behind, or before, a module has in a stream, where these may be more than the module's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sources: dict[int, frozenset[int]] = {}  # of values that no layer makes
        self._streams: list[int] = []  # union-find of the values in a stream
        self._sums: dict[tuple[int, int], int] = {}
        self._passed: dict[Key, Integers] = {}
        self._made: set[int] = set()  # the channels that some layer makes, known in `channels`

    def new(self, count: int, maker: Key | None = None) -> Integers:
        """Add `count` new values, each in a stream of its own."""
        made = super().new(count, maker)
        self._streams.extend(made.tolist())
        return made

    def passed(self, key: Key, labels: Integers) -> Integers:
        """The values behind a module that treats each channel separately: of the same sources, in another stream."""
        behind = self._passed.setdefault(key, np.full(len(labels), -1, np.int64))
        found = labels.copy()
        for place, label in enumerate(labels.tolist()):
            if label > 0:
                if behind[place] < 0:
                    behind[place] = self._stemming(self._of(label - 1), self._makers[label - 1])
                found[place] = behind[place] + 1
        return found

    def filtered(self, key: Key, size: int, labels: Integers, groups: int) -> Integers:
        """The values behind a convolution: those of a depthwise one stem from its input's."""
        if groups < 2 or groups != len(labels) or (labels <= 0).any():
            return self.made(key, size)
        behind = self.passed(key, np.repeat(labels, size // groups))
        self.at(key, size)[:] = behind - 1
        return behind

    def added(self, first: int, second: int) -> int:
        """The label of a sum; of the same channel, it is that channel."""
        pair = (min(first, second) - 1, max(first, second) - 1)
        self._join(*pair)
        if self._roots(pair[0]) == self._roots(pair[1]):
            return first
        if pair not in self._sums:
            self._sums[pair] = self._stemming(self._of(pair[0]) | self._of(pair[1]), (f"sum {pair}", "out"))
            self._join(pair[0], self._sums[pair])
        return self._sums[pair] + 1

    def tie_group(self, channels: Collection[int]) -> None:
        """Unite the sources of these, which a grouped layer reads and makes; its sides are different streams."""
        if len({self._roots(channel) for channel in channels}) > 1:
            self._couple(source for channel in channels for source in self._of(channel))

    def flag(self, channels: Iterable[int], reason: str) -> None:
        """Exempt the sources of these from removal; the first reason counts."""
        super().flag((source for channel in channels for source in self._of(int(channel))), reason)

    def note(self, channels: Iterable[int], operation: str) -> None:
        """Note the operation through which these cannot be followed; the first one counts."""
        super().note((source for channel in channels for source in self._of(int(channel))), operation)

    def channels(self) -> Iterator[tuple[Places, str | None, str | None]]:
        """Every channel that a layer makes, as for `Labels`; a place of a sum is one of each of its channels."""
        self._flag_closed()
        reasons, notes = self._by_root(self._reasons), self._by_root(self._notes)
        streams = self._sources_of_streams()
        found: dict[int, Places] = {}

        def add(key: Key, channels: Sequence[frozenset[int]]) -> None:
            for place, roots in enumerate(channels):
                for root in roots:
                    found.setdefault(root, {}).setdefault(key, []).append(place)

        for key, values in self._at.items():
            whole = key in self.bare  # as nothing can put its channels in places
            own = [streams[self._stream(v)] if whole else self._alive_with(v, streams) for v in values.tolist()]
            if any(len(roots) > 1 for roots in own):
                self.shared.add(key)
            for side, behind in self._tensors(key, values).items():
                wide = [streams[self._stream(v)] if v >= 0 else frozenset() for v in behind.tolist()]
                if wide != own:
                    add((key[0], side), wide)
            add(key, own)
        for root, places in found.items():
            yield places, reasons.get(root), notes.get(root)

    def _tensors(self, key: Key, values: Integers) -> dict[Side, Integers]:
        """The values in the tensors before and behind one side of a module."""
        if key[1] == "in":
            return {"taken": values}
        if (key[0], "in") in self._at or key not in self._passed:
            return {"made": values}
        return {"taken": values, "made": self._passed[key]}  # its one side is what it takes

    def _of(self, value: int) -> frozenset[int]:
        return self._sources.get(value, frozenset((value,)))

    def _stemming(self, sources: frozenset[int], maker: Key | None) -> int:
        value = int(self.new(1, maker)[0])
        self._sources[value] = sources
        return value

    def _roots(self, value: int) -> frozenset[int]:
        return frozenset(self._root(source) for source in self._of(value))

    def _alive_with(self, value: int, streams: Mapping[int, frozenset[int]]) -> frozenset[int]:
        """The channels with which a value is there; those of bare parameters alone are there with their stream."""
        sources = self._of(value) if value >= 0 else frozenset()
        bare = {source for source in sources if self._root(source) not in self._made}
        whole = (streams.get(self._stream(source), frozenset()) for source in bare)
        return frozenset(self._root(source) for source in sources - bare).union(*whole)

    def _sources_of_streams(self) -> dict[int, frozenset[int]]:
        """Stream -> the channels with which it is there."""
        derived = set(self._sources).union(*(self._at[key].tolist() for key in self.bare))
        self._made = {self._root(value) for value in range(len(self._streams)) if value not in derived}
        streams: dict[int, frozenset[int]] = {}
        for _ in range(2):  # bare parameters' streams, then what those are added to
            found: dict[int, set[int]] = {}
            for value in range(len(self._streams)):
                found.setdefault(self._stream(value), set()).update(self._alive_with(value, streams))
            streams = {stream: frozenset(roots) for stream, roots in found.items()}
        return streams

    def _unite(self, a: int, b: int) -> None:
        if a != b:
            self._join(a, b)
            if self._roots(a) != self._roots(b):
                self._couple(self._of(a) | self._of(b))

    def _couple(self, sources: Iterable[int]) -> None:
        known = list(sources)
        for other in known[1:]:
            super()._unite(known[0], other)

    def _join(self, a: int, b: int) -> None:
        self._streams[self._stream(b)] = self._stream(a)

    def _stream(self, value: int) -> int:
        streams = self._streams
        while streams[value] != value:
            streams[value] = streams[streams[value]]
            value = streams[value]
        return value
