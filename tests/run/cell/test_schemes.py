"""Condensa's schemes and their composition in parameter files: keys, labels, errors with their line, and a run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from experiment import load_network
from experiment.config import load
from experiment.errors import ConfigError
from experiment.layers.masks import bake_masks
from experiment.main import main
from experiment.run.grid.cells import Cell
from experiment.run.grid.plan import Machine, plan_experiment

STRUCTURE = {"name": "StructurePrune", "settings": {"density": 0.5}}
PRUNE = {"name": "Prune", "settings": {"density": 0.1}}


def compose(*schemes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "Compose", "settings": {"schemes": list(schemes)}, **more}


def cells(write: Any, small: dict[str, Any], *methods: Any) -> list[Cell]:
    small["experiments"]["methods"] = list(methods)
    plan = plan_experiment(load(write(small)), Machine("cpu"))
    return [cell for cell in plan.cells if cell.method != "Reference"]


def key(write: Any, small: dict[str, Any], method: Any) -> str:
    return cells(write, small, method)[-1].key


def test_what_a_scheme_is_enters_the_key_and_defaults_do_not(write: Any, small: dict[str, Any]) -> None:
    base = key(write, small, compose(STRUCTURE, {"name": "SVD"}))
    same = [
        compose(STRUCTURE, {"name": "SVDNet", "settings": {"folding": 0}}),
        compose(STRUCTURE, {"name": "SVD"}, label="another"),
        compose({"name": "StructurePrune", "settings": {"density": 0.5, "align": 1, "layers": {}}}, {"name": "SVD"}),
    ]
    others = [
        compose(STRUCTURE, {"name": "SVD", "settings": {"groups": 2}}),
        compose(STRUCTURE, {"name": "RSVD"}),
        compose({"name": "StructurePrune", "settings": {"density": 0.6}}, {"name": "SVD"}),
        compose({"name": "FilterPrune", "settings": {"density": 0.5}}, {"name": "SVD"}),
    ]
    assert {key(write, small, method) for method in same} == {base}
    assert len({base, *(key(write, small, method) for method in others)}) == 1 + len(others)
    assert key(write, small, compose(STRUCTURE, PRUNE)) != key(write, small, compose(PRUNE, STRUCTURE))


def test_densities_of_layers_enter_the_key_in_any_order(write: Any, small: dict[str, Any]) -> None:
    def of(layers: dict[str, float]) -> str:
        own = {pattern: {"density": density} for pattern, density in layers.items()}
        return key(write, small, {"name": "Prune", "settings": {"density": 0.1, "layers": own}})

    assert of({"a": 0.1, "b": 0.2}) == of({"b": 0.2, "a": 0.1})
    assert len({of({}), of({"a": 0.1}), of({"a": 0.2}), of({"b": 0.1})}) == 4
    assert of({}) == key(write, small, PRUNE)


def test_a_users_own_scheme_enters_the_key_with_its_source(
    write: Any, small: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "from experiment.methods.masks.settings import WeightSettings\nfrom experiment.registry import MethodEntry\n"
        "ENTRY = MethodEntry('Mine', WeightSettings, 'experiment.methods.masks.magnitude:wt', 'weight')\n"
    )
    for name, more in (("own_one", ""), ("own_two", "# changed\n")):
        (in_tmp / f"{name}.py").write_text(text + more)
    monkeypatch.syspath_prepend(in_tmp)
    found = cells(write, small, compose(PRUNE, {"name": "own_one:ENTRY"}))
    assert found[0].label == "Prune + Mine"
    assert found[0].key != cells(write, small, compose(PRUNE, {"name": "own_two:ENTRY"}))[0].key


def test_a_composition_is_called_what_its_schemes_are(write: Any, small: dict[str, Any]) -> None:
    made = cells(write, small, compose(STRUCTURE, PRUNE), compose(STRUCTURE, {"name": "SVDNet"}))
    assert [(c.method, c.label, c.fixed_size) for c in made] == [
        ("Compose", "StructurePrune + Prune", True),
        ("Compose", "StructurePrune + SVD", False),
        ("Compose", "StructurePrune + SVD", False),
    ]
    with pytest.raises(ConfigError, match=r"a second method with the label 'Prune \+ WT'. Give one of them another"):
        cells(write, small, compose(PRUNE, {"name": "WT"}), compose(PRUNE, {"name": "ThresNet"}))
    named = cells(write, small, compose(PRUNE, {"name": "WT"}), compose(PRUNE, {"name": "WT"}, label="again"))
    assert list(dict.fromkeys(c.label for c in named)) == ["Prune + WT", "again"]


def test_all_that_is_wrong_with_schemes_comes_at_once_with_its_place(write: Any, small: dict[str, Any]) -> None:
    wrong = [
        compose(STRUCTURE, {"name": "Prune", "settings": {"densty": 0.1}}),
        compose({"name": "Strukture"}, label="b"),
        compose({"name": "SVD"}, PRUNE, label="c"),
        {"name": "BlockPrune", "settings": {"density": 0.1}},
        {"name": "NeuronPrune", "settings": {"criteria": "l2"}},
    ]
    with pytest.raises(ConfigError) as caught:
        cells(write, small, *wrong)
    told = [problem.partition("experiments.")[2] for problem in caught.value.problems]
    assert [text.partition(": ")[0] for text in told] == [
        "methods[0].settings.schemes[1].settings.densty",
        "methods[1].settings.schemes[0].name",
        "methods[2].settings.schemes[0]",
        "methods[3].settings.block_size",
        "methods[4].settings.criteria",
    ]
    assert "Did you mean 'density'?" in told[0]
    assert "SVD cannot be followed by Prune" in told[2]
    assert all(problem.startswith("param/small.yaml:") for problem in caught.value.problems)


def test_a_plan_of_schemes_imports_no_torch(write: Any, small: dict[str, Any]) -> None:
    small["experiments"]["methods"] = [PRUNE, compose(STRUCTURE, {"name": "SVD"})]
    code = "import sys; from experiment.main import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, str(write(small)), "--plan"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "StructurePrune + SVD" in done.stdout


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("mode", ["cascade", "retrain-rewind"])
def test_schemes_are_retrained_stored_and_loaded(write: Any, small: dict[str, Any], in_tmp: Path, mode: str) -> None:
    small["experiments"] |= {"methods": [PRUNE, compose(STRUCTURE, PRUNE), compose(STRUCTURE, {"name": "SVD"})]}
    small["experiments"]["mode"] = mode
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    frame = pd.read_csv(in_tmp / "data/results/small/results.csv")
    assert set(frame["status"]) == {"done"}
    weights, biases = 784 * 300 + 300 * 100 + 100 * 10, 300 + 100 + 10
    by_label = frame.set_index("label")["parameters"]
    assert by_label["Prune"] == int(0.1 * weights) + biases
    assert by_label["StructurePrune + Prune"] == int(0.1 * weights) + 200 + 10
    assert list(frame[frame["label"] == "StructurePrune + SVD"]["keep_target"]) == [0.5, 0.1]
    network = load_network(in_tmp / "data/results/small", method="StructurePrune + Prune")
    plain = bake_masks(network)
    linear = [m for m in plain.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(int((m.weight != 0).sum()) for m in linear) <= int(0.1 * weights)
    assert sum(m.out_features for m in linear) == 200 + 10
