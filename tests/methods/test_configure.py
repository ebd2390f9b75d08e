"""Methods by name, with their settings validated; compositions are tested in test_compose.py."""

import subprocess
import sys

import pytest

from experiment.errors import ConfigError
from experiment.methods import METHODS, TORCHPRUNE_NAMES
from experiment.methods.configure import configure
from experiment.methods.lowrank.settings import SVDSettings
from experiment.registry import resolve
from experiment.run.grid.keys import method_key


def test_a_preset_changes_defaults_that_settings_override() -> None:
    assert configure("ALDS-Simple3", {}).settings == SVDSettings(groups=3)
    assert configure("ALDS-Simple3", {"groups": 1, "round_to": 8}).settings == SVDSettings(groups=1, round_to=8)
    keys = [method_key(configure("ALDS-Simple3", values)) for values in ({}, {"groups": 3}, {"groups": 1})]
    assert keys[0] == keys[1] != keys[2]


def test_every_preset_names_settings_of_its_method() -> None:
    presets = [entry for entry in METHODS.values() if entry.preset]
    assert len(presets) > 4
    for entry in presets:
        settings = vars(configure(entry, {}).settings)
        assert {name: settings[name] for name in entry.preset} == entry.preset


def test_every_target_exists() -> None:
    assert all(callable(resolve(entry.target)) for entry in METHODS.values())


def test_names_of_torchprune_find_the_method_and_are_unique() -> None:
    assert len(TORCHPRUNE_NAMES) == sum(len(entry.aliases) for entry in METHODS.values()) > 30
    spec = configure("ALDSNetPlus", {})
    assert (spec.name, spec.label) == ("ALDS+", "ALDS+")


def test_all_wrong_settings_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        configure("SVD", {"folding": 8, "grups": 2})
    assert list(caught.value.problems) == [
        "grups: SVD has no such setting. Did you mean 'groups'? It has folding, groups, ignore, layers, "
        "randomised_above, round_to.",
        "folding: must be at most 7. Got 8.",
    ]


def test_configuring_needs_no_torch() -> None:
    code = "import sys; from experiment.methods.configure import configure; configure('ALDS+', {}); "
    code += "print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
