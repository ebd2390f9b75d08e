"""The size of a network without some of its channels, including products of activations such as attention's."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from experiment.layers.build import build
from experiment.layers.channels.group_data import ChannelGroup, Integers, Sizes, kept_of, sizes_of
from experiment.layers.plan import Plan, State
from experiment.measure import Count, count


def sizes_with_products(state: State, groups: Sequence[ChannelGroup], whole: Count) -> Sizes:
    """The network's size as a function of channel counts, including products of activations such as attention's.

    Which dimensions of a product are channels is found by counting networks with half the channels of some groups, and
    verified with a quarter of all. Other products count as if all channels stayed: the network then has fewer
    multiply-adds than planned, never more.
    """
    sizes = sizes_of(state.network, state.example, groups, whole.flops)
    numbers = [group.size for group in groups]

    def part(divisor: int) -> list[int]:
        return [group.size if group.exempt else max(1, group.size // divisor) for group in groups]

    def products(counts: Sequence[int]) -> Integers:
        plan = Plan(kept=kept_of(groups, [range(n) for n in counts]))
        return np.array(count(build(state.network, plan), state.example).products, np.int64)

    full, fewest = np.array(whole.products, np.int64), products(part(4)) if whole.products else None
    if fewest is None or len(fewest) != len(full) or (fewest == full).all():
        return sizes
    halves = part(2)
    codes = {g: i + 1 for i, g in enumerate(g for g, n in enumerate(numbers) if halves[g] < n)}
    trials: list[tuple[set[int], Integers]] = []  # groups with half their channels, and the products

    def tried(some: set[int]) -> Integers:
        found = products([halves[g] if g in some else n for g, n in enumerate(numbers)])
        trials.append((some, found))
        return found

    power, beside = np.zeros((2, len(full), len(groups)), np.int64)
    # one trial for every binary digit: those in which a product shrinks spell the number of the group in it
    digits = range(len(codes).bit_length())
    shrinks = [tried({g for g, code in codes.items() if code >> digit & 1}) != full for digit in digits]
    spelled = sum((shrunk.astype(np.int64) << digit for digit, shrunk in enumerate(shrinks)), np.zeros_like(full))
    for g, code in codes.items():
        for p in np.flatnonzero(spelled == code):
            found = next(found for some, found in trials if g in some)
            power[p, g], beside[p, g] = _dimensions(halves[g], numbers[g], int(found[p]), int(full[p]))

    def exact() -> npt.NDArray[np.bool_]:
        followed = sizes.with_products(numbers, full, power, beside)
        cases = [([halves[g] if g in some else n for g, n in enumerate(numbers)], found) for some, found in trials]
        cases.append((part(4), fewest))
        same: npt.NDArray[np.bool_] = np.array([followed.products_of(counts) == found for counts, found in cases])
        return np.asarray(same.all(0))

    several = np.flatnonzero(~exact())  # products with channels of several groups
    power[several] = 0
    for g, code in codes.items():
        among = [p for p in several if code & ~spelled[p] == 0]
        found = tried({g}) if among else full
        for p in among:
            power[p, g], beside[p, g] = _dimensions(halves[g], numbers[g], int(found[p]), int(full[p]))
    power[~exact()] = 0
    return sizes.with_products(numbers, full, power, beside)


def _dimensions(few: int, n: int, less: int, all_: int) -> tuple[int, int]:
    """The number of dimensions of a product that are n channels, and of b others in each, from its size with `few`.

    With a dimension of n + b, less / all = (few + b) / (n + b).
    """
    if less == all_:
        return 0, 0
    b, rest = divmod(less * n - all_ * few, all_ - less)
    if b >= 0 and rest == 0:
        return 1, b
    return (2, 0) if less * n**2 == all_ * few**2 else (0, 0)
