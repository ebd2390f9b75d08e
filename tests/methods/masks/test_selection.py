"""The selection by thresholds is that of one stable sort of all scores: ties, masked weights, both budgets."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from experiment.methods.masks import selection
from experiment.methods.masks.selection import common_dtype, elementwise, histograms, longest_prefix, same_shares
from experiment.random_streams import generator

DTYPES = {
    "float32": (torch.float32,),
    "float64": (torch.float64,),
    "half": (torch.float16, torch.bfloat16),
    "mixed": (torch.float32, torch.float64, torch.bfloat16),
}
SIZES = (40, 0, 1, 25, 133)
COSTS = {"parameters": (1, 1, 1, 1, 1), "flops": (3, 1, 7, 49, 3)}


def scores_of(kind: str, size: int, random: torch.Generator) -> Tensor:
    normal = torch.randn(size, generator=random)
    few = torch.randint(-2, 3, (size,), generator=random).float()
    return {"all different": normal, "few values": few, "zeros of both signs": 0 * few, "tiny": few * 1e-42}[kind]


def sorted_first(scores: Tensor, alive: Tensor, costs: Tensor, limit: int) -> Tensor:
    """Which scores a plain stable sort keeps."""
    order = torch.argsort(scores.masked_fill(~alive, -torch.inf), descending=True, stable=True)[: int(alive.sum())]
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[order[: int(torch.searchsorted(costs[order].cumsum(0), limit, right=True))]] = True
    return kept


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("budget", COSTS)
@pytest.mark.parametrize(("held", "few", "chunk"), [(2**20, 2**12, 2**18), (0, 0, 50), (60, 5, 64)])
def test_the_longest_prefix_is_that_of_a_stable_sort(
    dtypes: str, budget: str, held: int, few: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the bin's scores sorted, or counted digit by digit down to equal ones."""
    monkeypatch.setattr(selection, "HELD", held)
    monkeypatch.setattr(selection, "FEW", few)
    monkeypatch.setattr(selection, "CHUNK", {"cpu": chunk})
    random, costs = generator("test_selection", dtypes, budget, few), COSTS[budget]
    for kind, masked in product(("all different", "few values", "zeros of both signs", "tiny"), (False, True)):
        values = [
            scores_of(kind, size, random).to(DTYPES[dtypes][i % len(DTYPES[dtypes])]) for i, size in enumerate(SIZES)
        ]
        alive = [
            torch.rand(size, generator=random) < 0.7 if masked and i != 3 else None for i, size in enumerate(SIZES)
        ]
        parts = [elementwise(v, alive=a) for v, a in zip(values, alive, strict=True)]
        live = torch.cat(
            [torch.ones(n, dtype=torch.bool) if a is None else a for a, n in zip(alive, SIZES, strict=True)]
        )
        each = torch.repeat_interleave(torch.tensor(costs), torch.tensor(SIZES))
        total, dtype = int(each[live].sum()), common_dtype(parts)
        leading = histograms(parts, costs, dtype)
        for limit in {0, 1, total - 1, total, total + 1, *range(2, total, max(1, total // 3))}:
            found = torch.cat(longest_prefix(parts, costs, limit, dtype, leading))
            expected = sorted_first(torch.cat([v.double() for v in values]), live, each, limit)
            assert torch.equal(found, expected), (kind, masked, limit)


def test_scores_are_computed_in_parts() -> None:
    """Of 2^22 equal scores, in the order of the network: no list of the ties."""
    ones = torch.ones(2**11, 2**11)
    parts = [elementwise(ones, torch.neg)] * 2
    leading = histograms(parts, [1, 1], torch.float32)
    kept = longest_prefix(parts, [1, 1], 2**22 + 12345, torch.float32, leading)
    assert kept[0].all()
    assert kept[1].shape == ones.shape
    assert int(kept[1].flatten()[:12345].sum()) == int(kept[1].sum()) == 12345


@pytest.mark.parametrize("seed", range(5))
def test_shares_grow_together(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes, costs = random.integers(0, 60, 6).tolist(), random.integers(1, 9, 6).tolist()
    steps = sorted(((k - 0.5) / n, group) for group, n in enumerate(sizes) for k in range(1, n + 1))
    spent = np.cumsum([costs[group] for _, group in steps])
    for limit in range(0, int(spent[-1]) + 2, 7):
        taken = [group for _, group in steps[: int(np.searchsorted(spent, limit, side="right"))]]
        assert same_shares(sizes, costs, limit) == [taken.count(group) for group in range(6)]
