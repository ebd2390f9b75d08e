"""Codebooks: the K values that best replace those of a tensor, by k-means in one dimension.

    min over v_1 < ... < v_K of  sum_n min_k (x_n - v_k)^2

Clusters are intervals of the sorted values, so K - 1 cuts describe them, and prefix sums give the mean of any interval:
a step of Lloyd's algorithm is K binary searches. Nothing is random: equal values give equal codebooks, on any device.

Suffixes: N = values, C = candidates for cuts, K = clusters.

Source: Carreira-Perpinan and Idelbayev 2017, https://arxiv.org/abs/1707.04319 (adaptive codebook); Han et al. 2016,
Deep Compression, https://arxiv.org/abs/1510.00149 (shared weights); Lloyd 1982,
https://doi.org/10.1109/TIT.1982.1056489; Panter and Dite 1951, https://doi.org/10.1109/JRPROC.1951.230500 (the density
of the values of large codebooks). Differs: the first codebook is not drawn at random.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
CANDIDATES = 255  # cuts among which the exact search chooses the first ones
MOST_SEARCHED = 16  # clusters; more start from the density, which fits many better
BINS = 4096  # of the density


def fit_codebook(values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The codebook of finite values, and which of its entries replaces which value.

    At most `size` distinct values are their own codebook. Others: the best cuts among some candidates or, for large
    codebooks, cuts by density; then Lloyd's algorithm, and exchanges of cuts as long as they reduce the error.

    Args:
        values: (N,), finite, of any device; there may be none.
        size: K, at least 2.
    Returns: the entries in rising order, (K,), the last one repeated if there are fewer; and the largest value that the
        first, second, ... of them replaces, (K - 1,): x becomes the first entry whose bound is at least x. In float32.
    """
    if not len(values):
        return torch.zeros(size, device=values.device), torch.zeros(size - 1, device=values.device)
    sorted_N = _sorted(values)
    ends = np.flatnonzero(sorted_N[1:] != sorted_N[:-1]) + 1
    cuts = ends if len(ends) < size else _Line.of(sorted_N).cuts(ends, size)
    edges = np.concatenate([[0], cuts, [len(sorted_N)]])
    entries = sorted_N[edges[:-1]].astype(np.float64)
    if cuts is not ends:
        entries = np.add.reduceat(sorted_N, edges[:-1], dtype=np.float64) / np.diff(edges)
    bounds = sorted_N[edges[1:] - 1]
    missing = (0, size - len(entries))
    found = np.pad(entries, missing, mode="edge"), np.pad(bounds, missing, mode="edge")[:-1]
    table, tops = (torch.from_numpy(own.astype(np.float32)).to(values.device) for own in found)
    return table, tops


def _sorted(values: Tensor) -> NDArray[np.float32]:
    """The values in rising order; numpy sorts faster than torch does on a CPU."""
    if values.device.type == "cpu":
        found: NDArray[np.float32] = np.sort(values.detach().float().numpy())
        return found
    return values.detach().float().sort().values.cpu().numpy()


@dataclass(frozen=True)
class _Line:
    """Sorted values less their mean, in float64, and their prefix sums, from 0 on: (N,) and (N + 1,)."""

    values: Floats
    sums: Floats

    @classmethod
    def of(cls, sorted_N: NDArray[np.float32]) -> "_Line":
        x_N = sorted_N.astype(np.float64)
        x_N -= x_N.mean()
        return cls(x_N, np.concatenate([[0.0], np.cumsum(x_N)]))

    def cuts(self, ends: Integers, size: int) -> Integers:
        """Where the clusters start, except the first: at most K - 1, fewer than K - 1 only where a split gains nothing.

        Args:
            ends: where values change, at least K.
        """
        start = self._by_density(ends)
        if size <= MOST_SEARCHED:
            start = self._best_of(start, size)
        best = self._lloyd(start)
        while True:
            other = self._lloyd(self._exchanged(best, size))
            if self._explained(other) <= self._explained(best):
                return best
            best = other

    def _clusters(self, cuts: Integers) -> tuple[Integers, Floats, Integers]:
        """The edges of all clusters (K + 1,), the sums of their values and how many they are (K,)."""
        edges = np.concatenate([[0], cuts, [len(self.values)]])
        return edges, np.diff(self.sums[edges]), np.diff(edges)

    def _explained(self, cuts: Integers) -> float:
        """The sum of squares less the error of the clusters."""
        _, sums_K, numbers_K = self._clusters(cuts)
        return float((sums_K**2 / numbers_K).sum())

    def _lloyd(self, cuts: Integers) -> Integers:
        """Lloyd's algorithm until nothing changes. Clusters that become empty are dropped."""
        explained = self._explained(cuts)
        while True:
            _, sums_K, numbers_K = self._clusters(cuts)
            means_K = sums_K / numbers_K
            found = self._within(np.searchsorted(self.values, (means_K[1:] + means_K[:-1]) / 2, side="right"))
            before, explained = explained, self._explained(found)
            if explained <= before:  # no change, or one of the last bit
                return cuts
            cuts = found

    def _within(self, cuts: Integers) -> Integers:
        """Rising cuts without those that make empty clusters."""
        cuts = np.maximum.accumulate(cuts)  # means of values that differ by many orders of magnitude are inexact
        found: Integers = cuts[(np.diff(cuts, prepend=0) > 0) & (cuts < len(self.values))]
        return found

    def _by_density(self, ends: Integers) -> Integers:
        """CANDIDATES cuts of equal integrals of the cube root of the density; all `ends` if they are no more."""
        if len(ends) <= CANDIDATES:
            return ends
        places = np.unique(np.linspace(0, len(self.values) - 1, BINS + 1).astype(np.int64))
        mass = np.cbrt(np.diff(self.values[places]) ** 2 * np.diff(places))
        total = np.concatenate([[0.0], np.cumsum(mass)])
        wanted = total[-1] * np.arange(1, CANDIDATES + 1) / (CANDIDATES + 1)
        cuts = np.ceil(np.interp(wanted, total, places)).astype(np.int64)
        return self._within(ends[np.minimum(np.searchsorted(ends, cuts), len(ends) - 1)])

    def _best_of(self, candidates: Integers, size: int) -> Integers:
        """The K - 1 candidates with the smallest error, by dynamic programming."""
        edges = np.concatenate([[0], candidates, [len(self.values)]])
        numbers_CC = edges - edges[:, None]
        squares_CC = (self.sums[edges] - self.sums[edges][:, None]) ** 2
        gain_CC = np.where(numbers_CC > 0, squares_CC / np.maximum(numbers_CC, 1), -np.inf)
        best_C, before = gain_CC[0], []
        for _ in range(size - 1):
            total_CC = best_C[:, None] + gain_CC
            before.append(total_CC.argmax(0))
            best_C = total_CC.max(0)
        path = [len(edges) - 1]
        for last_C in reversed(before):
            path.append(int(last_C[path[-1]]))
        return self._within(edges[path[::-1]])

    def _exchanged(self, cuts: Integers, size: int) -> Integers:
        """Other cuts: clusters split at their means for as many pairs of neighbours that lose less when they merge.

        The first splits replace clusters that are missing.
        """
        edges, sums_K, numbers_K = self._clusters(cuts)
        means_K = sums_K / numbers_K
        split_K = np.clip(np.searchsorted(self.values, means_K, side="right"), edges[:-1], edges[1:])
        low_K, high_K = split_K - edges[:-1], edges[1:] - split_K
        low_means_K = (self.sums[split_K] - self.sums[edges[:-1]]) / np.maximum(low_K, 1)
        high_means_K = (self.sums[edges[1:]] - self.sums[split_K]) / np.maximum(high_K, 1)
        gains_K = low_K * high_K / numbers_K * (high_means_K - low_means_K) ** 2
        losses = numbers_K[1:] * numbers_K[:-1] / (numbers_K[1:] + numbers_K[:-1]) * np.diff(means_K) ** 2
        free = size - len(numbers_K)
        splits, merges = np.argsort(-gains_K, kind="stable"), np.argsort(losses, kind="stable")
        splits = splits[gains_K[splits] > 0]
        pairs = list(zip(gains_K[splits[free:]], losses[merges], strict=False))
        number = next((i for i, (gain, loss) in enumerate(pairs) if gain <= loss), len(pairs))
        found: Integers = np.union1d(np.delete(cuts, merges[:number]), split_K[splits[: free + number]])
        return found
