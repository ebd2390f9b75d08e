"""Groups of channels as plain data: indices against sets, sizes against counting the sliced network."""

import copy
import itertools

import numpy as np
from torch import nn

from experiment.layers.channels.group_data import ChannelGroup, Member, alive_channels, kept_of, sizes_of
from experiment.layers.channels.labels import Labels
from experiment.layers.channels.slicing import slice_channels
from experiment.layers.plan import Kept
from experiment.measure import count, example_input

GROUPS = [
    ChannelGroup(
        "0",
        4,
        (
            Member("0", "out", 4, ((0,), (1,), (2,), (3,))),
            Member("1", "out", 4, ((0,), (1,), (2,), (3,))),
            Member("3", "in", 4, ((0,), (1,), (2,), (3,))),
        ),
        ("0",),
    ),
    ChannelGroup(
        "3",
        2,
        (Member("3", "out", 3, ((0,), (1,))), Member("5", "in", 12, ((0, 1, 2, 3), (4, 5, 6, 7)))),
        ("3",),
    ),
]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(12, 5)
    ).eval()


def test_kept_names_only_what_loses_something() -> None:
    assert kept_of(GROUPS, [range(4), range(2)]) == {}
    assert kept_of(GROUPS, [(3, 0), (0, 1)]) == {
        "0": Kept((0, 3)),
        "1": Kept((0, 3)),
        "3": Kept(None, (0, 3)),
    }
    assert kept_of(GROUPS, [range(4), (1,)]) == {
        "3": Kept((1, 2), None),
        "5": Kept(None, (4, 5, 6, 7, 8, 9, 10, 11)),
    }


def test_alive_channels_are_what_kept_left() -> None:
    for some in itertools.product([(0, 1, 2, 3), (1,), (0, 2)], [(0, 1), (1,)]):
        assert alive_channels(GROUPS, kept_of(GROUPS, some)) == list(some)


def test_a_channel_that_lost_a_part_is_gone() -> None:
    assert alive_channels(GROUPS, {"5": Kept(None, (0, 4, 5, 6, 7))}) == [(0, 1, 2, 3), (1,)]


def test_sizes_equal_counts_of_the_sliced_network() -> None:
    example, whole = example_input((2, 6, 6)), network()
    sizes = sizes_of(whole, example, GROUPS, count(whole, example).flops)
    for numbers in itertools.product(range(1, 5), range(1, 3)):
        sliced = copy.deepcopy(whole)
        slice_channels(sliced, kept_of(GROUPS, [range(n) for n in numbers]))
        counted = count(sliced, example)
        assert sizes.parameters_of(numbers) == counted.parameters
        assert sizes.flops_of(numbers) == counted.flops


def test_labels_join_channels_that_meet() -> None:
    labels = Labels()
    first, second = labels.made(("a", "out"), 3), labels.made(("b", "out"), 3)
    assert (labels.made(("a", "out"), 3) == first).all()  # a second call makes the same ones
    labels.read(("sum", "in"), 4, np.array([*first, 0]))
    labels.read(("sum", "in"), 4, np.array([second[2], second[1], 0, second[0]]))  # b's last meets a's first

    found = {str(places): reason for places, reason, _ in labels.channels()}

    other = "'sum' also reads something else there"
    assert found == {
        str({("a", "out"): [0], ("b", "out"): [2], ("sum", "in"): [0]}): None,
        str({("a", "out"): [1], ("b", "out"): [1], ("sum", "in"): [1]}): None,
        str({("a", "out"): [2], ("sum", "in"): [2]}): other,
        str({("b", "out"): [0], ("sum", "in"): [3]}): other,
    }


def test_a_reason_holds_for_all_that_a_channel_is_tied_to() -> None:
    labels = Labels()
    channels = labels.made(("a", "out"), 3) - 1
    labels.flag(channels[2:].tolist(), "why")
    labels.note(channels[:1].tolist(), "softmax")
    labels.tie(channels[1:].tolist())
    found = {tuple(places["a", "out"]): (reason, lost) for places, reason, lost in labels.channels()}
    assert found == {(0,): (None, "softmax"), (1, 2): ("why", None)}
