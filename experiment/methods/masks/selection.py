"""The largest of many scores, exactly and without sorting them: a threshold, found digit by digit.

Floating-point numbers have the order of integers that are made of their bits. A histogram of the leading 16 bits tells
in which of its bins the last score lies that the budget pays for. All above are kept. Those in the bin are counted by
their next 16 bits until few are left, and these are sorted. Equal scores go in the order of the network.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CHUNK = {"cpu": 2**18}  # scores at a time: 1 MiB, which fits into caches; elsewhere:
MOST = 2**24
DIGIT = 16  # bits
HELD = 2**20  # scores that are copied
FEW = 2**12  # scores that are sorted
TINY = 1e-300
INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}

Chunks = Callable[[], Iterable[Tensor]]
Histograms = Mapping[int, Tensor]
"""Cost -> how many scores of this cost have each digit, the smallest score first."""


@dataclass(frozen=True)
class Part:
    """The scores of one parameter.

    Attributes:
        chunks: computes them, flattened and in parts, so that they take no memory; called once for each pass.
        shape, dtype, device: of all scores, as one tensor.
        alive: bool, in this shape, where scores count; None for all.
    """

    chunks: Chunks
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    alive: Tensor | None = None

    def scores(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """The chunks as this dtype, with the place of their first score, and where they count."""
        alive, start = None if self.alive is None else self.alive.flatten(), 0
        for chunk in self.chunks():
            stop = start + len(chunk)
            yield start, chunk.to(dtype), None if alive is None else alive[start:stop].to(chunk.device)
            start = stop

    def live(self) -> Iterator[Tensor]:
        """The scores that count, in chunks."""
        for _, scores, alive in self.scores(self.dtype):
            yield scores if alive is None else scores[alive]


def in_chunks(tensor: Tensor, change: Callable[[Tensor], Tensor] | None = None) -> Chunks:
    """The elements of a tensor, changed one by one."""

    def chunks() -> Iterator[Tensor]:
        for chunk in torch.split(tensor.detach().reshape(-1), CHUNK.get(tensor.device.type, MOST)):
            yield chunk if change is None else change(chunk)

    return chunks


def elementwise(tensor: Tensor, change: Callable[[Tensor], Tensor] | None = None, alive: Tensor | None = None) -> Part:
    """The elements of a tensor as scores, changed one by one."""
    return Part(in_chunks(tensor, change), tensor.shape, tensor.dtype, tensor.device, alive)


def common_dtype(parts: Sequence[Part]) -> torch.dtype:
    """A dtype in which the scores of all parts can be compared: float32 or float64."""
    return torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32


def histograms(parts: Sequence[Part], costs: Sequence[int], dtype: torch.dtype) -> Histograms:
    """Of the leading digits."""
    return _count(parts, costs, dtype, _bits(dtype) - DIGIT)


def longest_prefix(
    parts: Sequence[Part],
    costs: Sequence[int],
    limit: int,
    dtype: torch.dtype,
    leading: Histograms,
    few: int | None = None,
) -> list[Tensor]:
    """Which scores are kept if the largest are, as long as their costs add up to at most `limit`.

    Args:
        costs: of each score of a part, at least 1.
        leading: the histograms of the leading digits.
        few: the number of scores in question that are copied; by default `HELD`.
    Returns: bool tensors of the parts' shapes, on the devices of the scores.
    """
    few = HELD if few is None else few
    shift, low, counts = _bits(dtype) - DIGIT, -(1 << (_bits(dtype) - 1)), leading
    while True:
        sums = sum((cost * count for cost, count in counts.items()), torch.zeros(1 << DIGIT, dtype=torch.int64))
        spent = sums.flip(0).cumsum(0)
        above = int((spent <= limit).sum())  # digits that are kept as a whole
        if above == len(spent):  # then all of the parts
            return [_whole(part) for part in parts]
        digit = len(spent) - 1 - above
        limit -= int(spent[above - 1]) if above else 0
        low += digit << shift
        number = sum(int(count[digit]) for count in counts.values())
        if number <= few or not shift:
            high = low + (1 << shift)
            return _kept(parts, costs, limit, _value(low, dtype), _value(high, dtype), dtype, not shift)
        shift -= DIGIT
        counts = _count(parts, costs, dtype, shift, low >> (shift + DIGIT))


def same_shares(
    sizes: Sequence[int], costs: Sequence[int], limit: int, relative: Sequence[float] | None = None
) -> list[int]:
    """How many elements each group keeps if the shares of all groups grow together within a budget.

    The k-th of a group's n comes at the share (k - 1/2) / n, so that a share rho keeps round(rho n) of them; at equal
    shares groups alternate in order. The budget pays for the longest prefix of this sequence.

    Args:
        costs: of each element of a group, at least 1.
        relative: how fast the share of each group grows, up to 1; the same for all by default.
    """
    n, each = np.array(sizes, np.int64), np.array(costs, np.int64)
    speed = n * (np.ones(len(n)) if relative is None else np.array(relative) / max(relative, default=1.0))

    def counts(bits: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """How many of every group come at the share with these bits, or before."""
        share = float(np.int64(bits).view(np.float64))
        about = np.clip(share * speed - 1, 0, n).astype(np.int64)
        return about + sum(((about + k < n) & ((about + k + 0.5) / np.maximum(speed, TINY) <= share)) for k in range(4))

    most = max([1.0, *(n / np.maximum(speed, TINY))[n > 0]])
    fits, too_many = 0, int(np.float64(most).view(np.int64))  # positive numbers have the order of their bits
    if int((n * each).sum()) <= limit:
        return list(sizes)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if int((counts(middle) * each).sum()) <= limit else (fits, middle)
    kept = counts(fits)
    left = limit - int((kept * each).sum())
    for group in np.flatnonzero(counts(too_many) > kept).tolist():  # at the same share
        left -= costs[group]
        if left < 0:
            break
        kept[group] += 1
    return [int(number) for number in kept]


def _count(
    parts: Sequence[Part], costs: Sequence[int], dtype: torch.dtype, shift: int, prefix: int | None = None
) -> dict[int, Tensor]:
    """Histograms of one digit, of the scores with this prefix before it."""
    found: dict[int, Tensor] = defaultdict(lambda: torch.zeros(1 << DIGIT, dtype=torch.int64))
    for part, cost in zip(parts, costs, strict=True):
        for _, scores, alive in part.scores(dtype):
            keys = _keys(scores if alive is None else scores[alive])
            if prefix is None:
                digits = (keys >> shift) + (1 << (DIGIT - 1))
            else:
                digits = keys[(keys >> (shift + DIGIT)) == prefix] >> shift & ((1 << DIGIT) - 1)
            found[cost] += torch.bincount(digits, minlength=1 << DIGIT).cpu()
    return found


def _kept(
    parts: Sequence[Part], costs: Sequence[int], limit: int, low: float, high: float, dtype: torch.dtype, equal: bool
) -> list[Tensor]:
    """All scores from `high` on, and those from `low` on that the limit pays for; `equal` ones in order."""
    masks, places, questions = [], [], []
    for part, cost in zip(parts, costs, strict=True):
        mask = torch.empty(part.shape.numel(), dtype=torch.bool, device=part.device)
        own, held = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=dtype)]
        for start, scores, alive in part.scores(dtype):
            piece = _at_least(low, scores, mask[start : start + len(scores)])
            if alive is not None:
                piece &= alive
            at = _places(piece & ~_at_least(high, scores, torch.empty_like(piece)))
            if equal:
                number = min(len(at), limit // cost)
                piece[at[number:]] = False
                limit = limit - number * cost if number == len(at) else 0  # the first that is too much is the last
            elif len(at):
                own.append((at + start).cpu())
                held.append(scores[at].cpu())
        masks.append(mask)
        places.append(torch.cat(own))
        questions.append(torch.cat(held))
    if not equal:
        for mask, at, kept in zip(masks, places, _answers(questions, costs, limit, dtype), strict=True):
            mask[at[~kept].to(mask.device)] = False
    return [mask.reshape(part.shape) for mask, part in zip(masks, parts, strict=True)]


def _answers(scores: Sequence[Tensor], costs: Sequence[int], limit: int, dtype: torch.dtype) -> list[Tensor]:
    """Which of these scores are kept."""
    sizes = [len(own) for own in scores]
    if sum(sizes) > FEW:
        parts = [elementwise(own) for own in scores]
        return longest_prefix(parts, costs, limit, dtype, histograms(parts, costs, dtype), FEW)
    each = torch.repeat_interleave(torch.tensor(costs), torch.tensor(sizes))
    order = torch.argsort(torch.cat(list(scores)), descending=True, stable=True)
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order[: int(torch.searchsorted(each[order].cumsum(0), limit, right=True))]] = True
    return list(torch.split(kept, sizes))


def _at_least(bound: float, scores: Tensor, found: Tensor) -> Tensor:
    """Which scores are not below a bound, written into `found`; numpy is several times faster on a CPU."""
    if scores.device.type != "cpu":
        return torch.ge(scores, bound, out=found)
    values = scores.numpy()
    np.greater_equal(values, values.dtype.type(bound), out=found.numpy())
    return found


def _places(chosen: Tensor) -> Tensor:
    """The indices of the True elements, in order."""
    if chosen.device.type != "cpu":
        return chosen.nonzero().flatten()
    return torch.from_numpy(np.flatnonzero(chosen.numpy()))


def _whole(part: Part) -> Tensor:
    if part.alive is not None:
        return part.alive
    return torch.ones(part.shape, dtype=torch.bool, device=part.device)


def _bits(dtype: torch.dtype) -> int:
    return dtype.itemsize * 8


def _keys(scores: Tensor) -> Tensor:
    """Integers in the order of the scores; one for both zeros."""
    bits = (scores + 0.0).view(INTEGERS[scores.dtype])
    most = torch.iinfo(bits.dtype).max
    return bits ^ ((bits >> (_bits(scores.dtype) - 1)) & most)


def _value(key: int, dtype: torch.dtype) -> float:
    """The score of a key."""
    bits = key ^ torch.iinfo(INTEGERS[dtype]).max if key < 0 else key
    return float(torch.tensor(bits, dtype=INTEGERS[dtype]).view(dtype))
