"""What is found wrong before the first epoch: name patterns of layers that the network does not have."""

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
