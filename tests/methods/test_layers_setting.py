"""The setting `layers`: which layers low-rank methods may touch, and a grid of keep ratios as a grid of one's ranks."""

import numpy as np
import pytest
import torch
from torch import nn

from experiment.errors import ConfigError, InfeasibleBudget
from experiment.layers.factored_layers import product
from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Calibration, Compressor, make_method
from experiment.methods.configure import configure
from experiment.random_streams import generator, seeded
from experiment.run.grid.keys import settings_without_defaults

LABELS = [label for label, entry in METHODS.items() if entry.kind == "lowrank"]


def compressor(label: str, **settings: object) -> Compressor:
    with seeded("test_layers_setting"):
        network = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 6)).eval()
    state = State(network, torch.ones(1, 30))
    with seeded("inputs"):
        calibration = Calibration(torch.randn(64, 30), torch.randint(6, (64,)))
    entry = METHODS[label]
    method = make_method(entry, configure(entry, settings).settings)
    return Compressor(method, state, count(network, state.example), calibration, generator("test_layers_setting"))


@pytest.mark.parametrize("label", LABELS)
def test_other_layers_stay_as_they_are(label: str) -> None:
    made = compressor(label, layers=["2"])
    compressed = made.compress(0.8)
    assert list(compressed.plan.factors or compressed.plan.masks) != []
    assert {name.partition(".")[0] for name in (*compressed.plan.factors, *compressed.plan.masks)} == {"2"}
    for name in ("0", "4"):
        assert torch.equal(compressed.network.get_submodule(name).weight, made.state.network.get_submodule(name).weight)
    assert compressed.count.parameters <= 0.8 * made.original.parameters


@pytest.mark.parametrize("label", ["SVD", "RSVD"])
def test_keep_ratios_are_ranks_of_one_layer(label: str) -> None:
    made = compressor(label, layers=["2"])
    total, others = made.original.parameters, made.original.parameters - 1600
    for rank in (1, 7, 19):
        compressed = made.compress((others + 80 * rank) / total)
        assert compressed.plan.factors["2"].rank == rank
        if label == "SVD":
            U, S, Vt = np.linalg.svd(made.state.network[2].weight.detach().double().numpy())
            best = (U[:, :rank] * S[:rank]) @ Vt[:rank]
            assert product(compressed.network[2]).numpy() == pytest.approx(best, abs=1e-6)
    with pytest.raises(InfeasibleBudget):
        made.compress((others + 79) / total)


def test_a_pattern_that_names_no_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="no layer is called 'fc2'. The layers are 0, 2, 4."):
        compressor("SVD", layers=["fc2", "0"])


@pytest.mark.parametrize("label", LABELS)
def test_all_layers_are_the_default_and_enter_no_key(label: str) -> None:
    settings = METHODS[label].settings
    assert "layers" not in settings_without_defaults(settings())
    assert settings_without_defaults(settings(layers=("fc2",))) == {"layers": ["fc2"]}
