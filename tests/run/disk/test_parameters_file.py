"""parameters.yaml: what it holds is what the parameter file means, variant by variant."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from experiment.config import Parameters, load
from experiment.config.modes import base_mode, retraining, rewinding
from experiment.errors import StoreError
from experiment.run.disk.parameters_file import PARAMETERS, read_parameters, write_parameters

PARAM = Path(__file__).resolve().parents[3] / "param"
FILES = ["digits/prune/lenet5.yaml", "mnist/lottery", "mnist/rank", "mnist/retrainsweep", "cifar/prune/resnet20.yaml"]


def meaning(p: Parameters) -> dict[str, Any]:
    """The settings with the mode taken apart, and the retraining that is run."""
    values = p.model_dump(exclude={"customizations"})
    values["experiments"] |= {"mode": base_mode(p.experiments), "rewind": rewinding(p.experiments)}
    return values | {"retraining": retraining(p).model_dump()}


@pytest.mark.parametrize("name", FILES)
def test_settings_and_variants_come_back(name: str, tmp_path: Path) -> None:
    place = PARAM / name
    for path in [place] if place.is_file() else sorted(place.glob("*.yaml")):
        file = load(path)
        write_parameters(tmp_path / path.stem, file, tmp_path / "lock")
        found = read_parameters(tmp_path / path.stem)
        assert meaning(found.parameters) == meaning(file.parameters)
        assert [v.name for v in found.variants] == [v.name for v in file.variants]
        for stored, variant in zip(found.variants, file.variants, strict=True):
            assert meaning(stored.parameters) == meaning(variant.parameters)
            assert bool(stored.sets) == (meaning(variant.parameters) != meaning(file.parameters))


def test_defaults_are_filled_in_and_retraining_is_merged(tmp_path: Path) -> None:
    write_parameters(tmp_path / "e", load(PARAM / "digits/prune/lenet5.yaml", ["seed=3"]), tmp_path / "lock")
    values = yaml.safe_load((tmp_path / "e" / PARAMETERS).read_text())
    assert (values["seed"], values["threads"]) == (3, 1)
    assert values["retraining"]["optimizer"] == values["training"]["optimizer"]
    assert values["variants"] == [{"name": "", "sets": {}}]


@pytest.mark.parametrize(
    "change", [{"variants": None}, {"variants": [3]}, {"training": 5}, {"unknown": 1}, {"variants": [{"name": "x"}]}]
)
def test_other_content_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write_parameters(tmp_path / "e", load(PARAM / "digits/prune/lenet5.yaml"), tmp_path / "lock")
    path = tmp_path / "e" / PARAMETERS
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change) + "...\n")
    with pytest.raises(StoreError, match="does not hold the resolved settings"):
        read_parameters(tmp_path / "e")
