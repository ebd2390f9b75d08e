"""The setting `ignore` of masks and low-rank methods: these layers are whole, and the others pay for the budget."""

from dataclasses import fields

import pytest
import torch
from torch import nn

from experiment.errors import ConfigError
from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Calibration, Compressor, make_method
from experiment.methods.configure import configure
from experiment.random_streams import generator, seeded
from experiment.run.grid.keys import settings_without_defaults

LABELS = [
    label for label, entry in METHODS.items()
    if entry.kind in ("lowrank", "weight", "mixed") and any(f.name == "ignore" for f in fields(entry.settings))
]  # fmt: skip
OWN = {"BlockPrune": {"block_size": (2, 2)}}  # settings without a default


def compressor(label: str, **settings: object) -> Compressor:
    with seeded("test_ignore_setting"):
        network = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 6)).eval()
        calibration = Calibration(torch.randn(64, 30), torch.randint(6, (64,)))
    state, entry = State(network, torch.ones(1, 30)), METHODS[label]
    method = make_method(entry, configure(entry, {**OWN.get(label, {}), **settings}).settings)
    return Compressor(method, state, count(network, state.example), calibration, generator("test_ignore_setting"))


@pytest.mark.parametrize("label", LABELS)
def test_what_is_ignored_stays_and_the_budget_is_met(label: str) -> None:
    made = compressor(label, ignore=["0", "4"])
    compressed = made.compress(0.7)
    plan = compressed.plan
    touched = {name.partition(".")[0] for name in (*plan.factors, *plan.masks)}
    assert touched == {"2"}
    for name in ("0", "4"):
        layer, before = compressed.network.get_submodule(name), made.state.network.get_submodule(name)
        assert torch.equal(layer.weight, before.weight)
    assert compressed.count.parameters <= 0.7 * made.original.parameters


@pytest.mark.parametrize("label", ["WT", "SVD", "Tucker", "LAMP", "Wanda"])
def test_patterns_that_leave_nothing_or_match_nothing_are_refused(label: str) -> None:
    with pytest.raises(ConfigError, match="ignore: matches every layer"):
        compressor(label, ignore=["*"])
    with pytest.raises(ConfigError, match="no layer is called 'fc2'"):
        compressor(label, ignore=["fc2"])


@pytest.mark.parametrize("label", ["WT", "SVD", "ALDS"])
def test_nothing_is_ignored_by_default_which_enters_no_key(label: str) -> None:
    settings = METHODS[label].settings
    assert "ignore" not in settings_without_defaults(settings())
    assert settings_without_defaults(settings(ignore=("fc2",))) == {"ignore": ["fc2"]}


def test_layers_and_ignore_go_together() -> None:
    compressed = compressor("SVD", layers=["0", "2"], ignore=["0"]).compress(0.7)
    assert set(compressed.plan.factors) == {"2"}


def test_ignored_layers_are_not_reported_as_out_of_reach() -> None:
    assert compressor("WT", ignore=["2"]).out_of_reach.told("weight") == ""
