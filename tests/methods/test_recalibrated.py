"""A compressor that re-estimates BatchNorm statistics: what it compares with when it rewinds."""

import copy
from collections.abc import Callable

import torch

from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Calibration, Compressor, make_method
from experiment.methods.settings import FakeSettings
from experiment.random_streams import generator


def test_a_rewound_network_is_compared_with_the_state_that_it_is_rewound_to(state_of: Callable[[str], State]) -> None:
    """Nothing is compressed, so nothing may change, however far the two states' activations lie apart."""
    state = state_of("residual")
    other = State(copy.deepcopy(state.network), state.example)
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.mul_(2)
    fake = make_method(METHODS["Fake"], FakeSettings())
    images = torch.randn(6, *state.example.shape[1:], generator=generator("test_recalibrated"))
    made = Compressor(
        fake, state, count(state.network, state.example), Calibration(images), generator("test"), recalibrated=True
    )
    rewound = made.instantiate(made.compress(1.0).plan, other)
    before = other.network.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in rewound.state_dict().items())
