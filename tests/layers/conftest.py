"""What several test files of unfused modules check."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from experiment.layers.prepare_network import Prepared
from experiment.layers.unfused.replace import join_state, split_state


@pytest.fixture
def assert_states_convert() -> Callable[[nn.Module, Prepared], None]:
    """Checks that state_dicts go there and back, and that the unfused network shares the original's memory."""

    def check(network: nn.Module, plain: Prepared) -> None:
        before, after = network.state_dict(), plain.network.state_dict()
        assert split_state(before, plain.unfused).keys() == after.keys()
        back = join_state(after, plain.unfused)
        assert back.keys() == before.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in before.items())
        places = {tensor.untyped_storage().data_ptr() for tensor in before.values()}
        assert all(tensor.untyped_storage().data_ptr() in places for tensor in after.values())  # no weight was copied

    return check
