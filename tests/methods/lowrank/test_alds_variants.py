"""The ablations of ALDS on networks so small that every allocation follows by hand."""

import pytest
import torch
from torch import nn

from experiment.errors import InfeasibleBudget
from experiment.layers.plan import Factors, State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Compressed, Compressor, make_method
from experiment.methods.configure import configure
from experiment.methods.lowrank.layer_options import nearest_divisor
from experiment.random_streams import generator


def compressor(label: str, state: State) -> Compressor:
    method = make_method(METHODS[label], configure(METHODS[label], {}).settings)
    return Compressor(method, state, count(state.network, state.example), None, generator("test_alds_variants"))


def at_most(made: Compressor, parameters: int) -> Compressed:
    return made.compress(parameters / made.original.parameters)


def test_alds_k_by_hand() -> None:
    """Columns of norm 4, 2, 3, 1 and 5, 4, 1, 1/2 that are orthogonal: all singular values are known.

    4 by 4: rank 1 costs 8 and leaves 3/4; of two groups (4, 2), (3, 1) it costs 12 and leaves 2/4. Share .5 and .75.
    8 by 4: ranks 1 and 2 cost 12 and 24 and leave 4/5 and 1/5; two groups cost 20 and leave 4/5. Shares .375 and .75.
    """
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 8, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.diag(torch.tensor([4.0, 2, 3, 1])))
        network[2].weight.copy_(torch.eye(8)[:, :4] * torch.tensor([5.0, 4, 1, 0.5]))
    state = State(network.eval(), torch.ones(1, 4))
    one, two = Factors(1), Factors(1, groups=2)
    expected = {
        20: (one, one),
        23: (one, one),
        24: (two, one),
        35: (two, one),
        36: (two, Factors(2)),
        40: (None, Factors(2)),
    }
    made = compressor("ALDS-K", state)
    for limit, choices in expected.items():
        found = at_most(made, limit).plan
        assert (found.factors.get("0"), found.factors.get("2")) == choices
        errors = [found.details[name]["relative_error"] for name in ("0", "2")]
        known = {None: 0, ("0", 1, 1): 0.75, ("0", 1, 2): 0.5, ("2", 1, 1): 0.8, ("2", 2, 1): 0.2}
        keys = [f and (name, f.rank, f.groups) for name, f in zip(("0", "2"), choices, strict=True)]
        assert errors == pytest.approx([known[key] for key in keys], abs=1e-6)
    with pytest.raises(InfeasibleBudget, match="20"):
        at_most(made, 19)


def test_alds_simple_by_hand() -> None:
    """Three groups, rank round(t S). 6x6x3x3: 72 a rank, S = 6. 9x6: 33 a rank, S = 2, so rank 2 is not smaller."""
    network = nn.Sequential(nn.Conv2d(6, 6, 3, bias=False), nn.Flatten(), nn.Linear(6, 9, bias=False))
    state = State(network.eval(), torch.ones(1, 6, 3, 3))
    made = compressor("ALDS-Simple3", state)
    #   t >= 1/4: ranks 2, 1; 5/12: 3, 1; 7/12: 4, 1; 3/4: 5 > 324 / 72, so whole, then the linear layer's 2, so whole
    for limit, conv, linear in (
        (105, 1, 1), (176, 1, 1), (177, 2, 1), (249, 3, 1), (321, 4, 1), (356, 4, 1), (357, None, 1), (377, None, 1),
    ):  # fmt: skip
        factors = at_most(made, limit).plan.factors
        expected = {"0": conv, "2": linear}
        assert factors == {name: Factors(rank, groups=3) for name, rank in expected.items() if rank}
    with pytest.raises(InfeasibleBudget, match="105"):
        at_most(made, 104)


def test_nearest_divisor_prefers_the_larger_of_two() -> None:
    assert [nearest_divisor(64, 3), nearest_divisor(3, 3), nearest_divisor(16, 3), nearest_divisor(12, 5)] == [
        4,
        3,
        4,
        6,
    ]
    assert [nearest_divisor(1, 5), nearest_divisor(7, 5), nearest_divisor(7, 3), nearest_divisor(64, 5)] == [1, 7, 1, 4]
