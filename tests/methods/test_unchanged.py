"""Reference and Fake: nothing changes, and the counts are honest."""

import pytest
import torch

from experiment.layers.build import expand
from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Compressor, make_method
from experiment.random_streams import generator


@pytest.mark.parametrize("label", ["Reference", "Fake"])
def test_every_keep_ratio_gives_the_whole_network(label: str, state: State) -> None:
    entry, original = METHODS[label], count(state.network, state.example)
    made = Compressor(make_method(entry, entry.settings()), state, original, None, generator("test"))
    for keep in (1.0, 0.5, 0.001):
        compressed = made.compress(keep)
        assert compressed.count == original
        assert torch.equal(compressed.network(state.example), state.network(state.example))
        plan = compressed.plan
        assert {**plan.factors, **plan.masks, **plan.kept} == {}


def test_support_of_an_earlier_step_stays(state: State) -> None:
    original = count(state.network, state.example)
    pruned = Compressor(
        make_method(METHODS["WT"], METHODS["WT"].settings()), state, original, None, generator("test")
    ).compress(0.5)
    middle = expand(pruned.network, state.network, pruned.plan, state.example)
    fake = make_method(METHODS["Fake"], METHODS["Fake"].settings())
    compressed = Compressor(fake, middle, original, None, generator("test")).compress(0.1)
    assert compressed.count == pruned.count
    assert torch.equal(compressed.network(state.example), pruned.network(state.example))
