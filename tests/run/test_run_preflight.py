"""What is found wrong before the first epoch, with nothing but the untrained network at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiment.main import main


def test_patterns_that_name_nothing(write: Any, small: dict[str, Any], in_tmp: Path, capsys: Any) -> None:
    prune = {"name": "Prune", "settings": {"density": 0.1, "ignore": ["head"]}}
    small["experiments"] |= {
        "methods": [
            {"name": "FT", "settings": {"ignore": ["layer*", "fc1"]}},
            {"name": "Quantize", "settings": {"layers": {"fc*": "int8", "conv1": "float16"}}},
            {"name": "SVD", "settings": {"layers": ["fc4"]}},
            {"name": "Compose", "settings": {"schemes": [prune, {"name": "Quantize"}]}},
        ]
    }
    assert main([str(write(small)), "-j", "1", "-q"]) == 2
    said = [line.partition(": experiments.methods")[2] for line in capsys.readouterr().err.splitlines()]
    end = "The layers are fc1, fc2, fc3."
    assert said == [
        f"[0].settings.ignore: nothing is called 'layer*'. {end}",
        f"[1].settings.layers: nothing is called 'conv1'. {end}",
        f"[2].settings.layers: nothing is called 'fc4'. {end}",
        f"[3].settings.schemes[0].settings.ignore: nothing is called 'head'. {end}",
    ]
    assert not (in_tmp / "data/trained_networks").exists(), "nothing has been trained"


def test_methods_with_a_size_of_their_own_that_do_not_fit(
    write: Any, small: dict[str, Any], in_tmp: Path, capsys: Any
) -> None:
    blocks = {"name": "BlockPrune", "settings": {"density": 0.1, "block_size": [7, 7]}}
    small["experiments"] |= {
        "methods": [
            {"name": "Prune", "settings": {"density": 0.1, "ignore": ["*"]}},
            blocks,
            {"name": "Compose", "settings": {"schemes": [blocks, "Quantize"]}},
            {"name": "FilterPrune", "settings": {"density": 0.1, "layers": {"fc2": {"density": 0.5}}}},
            {"name": "NeuronPrune", "settings": {"density": 0.1, "refit": True}},  # has no data here, will have them
        ]
    }
    assert main([str(write(small)), "-j", "1", "-q"]) == 2
    said = [line.partition(": experiments.methods")[2] for line in capsys.readouterr().err.splitlines()]
    divide = "BlockPrune: block_size (7, 7) must divide the weights of all layers, and does not divide those of 'fc1'"
    assert said[0] == "[0]: Prune: there is no convolution or linear layer to prune that `ignore` does not name."
    assert said[1].startswith(f"[1]: {divide}")
    assert said[2].startswith(f"[2]: {divide}")
    assert said[3].startswith("[3]: FilterPrune")
    assert len(said) == 4
    assert not (in_tmp / "data/trained_networks").exists(), "nothing has been trained"


def test_settings_of_the_network_are_blamed_where_they_stand(write: Any, small: dict[str, Any], capsys: Any) -> None:
    small["network"]["settings"] = {"rank": 0}
    path = write(small)
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "rank: 0" in text)
    assert main([str(path), "-j", "1", "-q"]) == 2
    assert capsys.readouterr().err == f"param/small.yaml:{line}: network.settings.rank: must be at least 1. Got 0.\n"
