"""Starting from a file of trained weights: as it is, trained further, wrapped, missing, or of another network."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from experiment import compress, load_network, load_pruned_state, pruned_state, save_network
from experiment.config import load
from experiment.errors import StoreError
from experiment.layers.plan import Plan
from experiment.main import main
from experiment.networks.make_network import make_network
from experiment.random_streams import seeded
from experiment.run.disk.load_weights import load_given
from experiment.run.disk.network_file import save_weights
from experiment.run.grid.hardware import Machine
from experiment.run.grid.plan import ExperimentPlan, plan_experiment
from experiment.run.grid.weights_file import INDEX, GivenWeights, content_hash, find_given


def trained(seed: int = 1) -> dict[str, Tensor]:
    with seeded("test_run_given", seed):
        return make_network("lenet300_100", {}, (1, 28, 28), 10).state_dict()


def reference(folder: Path) -> dict[str, Tensor]:
    (path,) = folder.glob("data/trained_networks/*/network.pt")
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def given(path: Path) -> GivenWeights:
    return GivenWeights(path, content_hash(path))


def plan(path: Path, datasets: Path | None = None) -> ExperimentPlan:
    return plan_experiment(load(path), Machine("cpu"), datasets=datasets)


@pytest.mark.usefixtures("no_plots")
def test_without_training_the_network_is_used_as_it_is(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    torch.save(trained(), in_tmp / "mine.pt")
    small["network"]["weights"] = "mine.pt"
    small["training"]["numEpochs"] = 0
    small["retraining"] = {}
    path = str(write(small))
    assert main([path, "-j", "1", "-q"]) == 0
    assert all(torch.equal(tensor, trained()[name]) for name, tensor in reference(in_tmp).items())
    frame = pd.read_csv(in_tmp / "data/results/small/results.csv")
    assert set(frame["status"]) == {"done"}
    assert set(frame["epochs"]) == {0}
    assert main([path, "-j", "1", "-q"]) == 0, "nothing is left to do"


@pytest.mark.usefixtures("no_plots")
def test_training_goes_on_from_there(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    """With a learning rate of 0 the weights stay what they were, so they were not drawn anew."""
    torch.save({"epoch": 3, "model": {f"_orig_mod.module.{n}": t for n, t in trained().items()}}, in_tmp / "mine.pt")
    small["network"]["weights"] = "mine.pt"
    small["training"] |= {"numEpochs": 1, "optimizerKwargs": {"lr": 0.0}}
    small["experiments"]["mode"] = "train"
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    assert all(torch.equal(tensor, trained()[name]) for name, tensor in reference(in_tmp).items())


def test_a_trained_network_of_this_program_is_a_start_for_another(tmp_path: Path) -> None:
    net, other = nn.Linear(2, 2), nn.Linear(2, 2)
    save_weights(tmp_path / "network.pt", net, Plan(), {"name": "linear"}, net=0)
    load_given(other, given(tmp_path / "network.pt"))
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_keys_follow_the_content_and_not_the_name(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    before = plan(write(small)).cells[0].key
    for name, seed in (("a.pt", 1), ("b.pt", 2)):
        torch.save(trained(seed), in_tmp / name)
    (in_tmp / "folder/data/sets").mkdir(parents=True)
    shutil.copy("a.pt", "folder/data/sets/c.pt")

    def key(name: str, datasets: Path | None = None) -> str:
        small["network"]["weights"] = name
        made = plan(write(small), datasets)
        assert not made.problems
        return made.cells[0].key

    first = key("a.pt")
    assert len({before, first, key("b.pt")}) == 3
    assert key("c.pt", Path("folder/data/sets")) == first  # below the folder that --data names
    small["directories"] = {"training_data": "folder/data"}
    assert key("sets/c.pt") == key(str(in_tmp / "a.pt")) == first
    torch.save(trained(3), in_tmp / "a.pt")
    assert key("a.pt") != first


def test_a_missing_file_is_named_with_its_line(write: Any, small: dict[str, Any], in_tmp: Path, capsys: Any) -> None:
    small["network"]["weights"] = "absent.pt"
    path = write(small)
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "absent.pt" in text)
    expected = f"param/small.yaml:{line}: network.weights: no file 'absent.pt' in {in_tmp} or"
    assert main([str(path), "--plan"]) == 0
    told = capsys.readouterr().out
    assert f"unavailable: {expected}" in told
    assert told.rstrip().endswith("a run computes nothing until what is unavailable is corrected")
    assert main([str(path), "--plan=json"]) == 0
    cells = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert {cell["status"] for cell in cells} == {"unavailable"}
    assert main([str(path), "-j", "1", "-q"]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (
            {"a.safetensors": "", "b.safetensors": "", "config.json": "{}"},
            f"the folder FOLDER has 2 .safetensors files, but no {INDEX} and no model.safetensors. Add either",
        ),
        (
            {INDEX: '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}', "1.safetensors": ""},
            f"FOLDER/{INDEX}: names the shard '2.safetensors', which is not beside it. Expected all 2 shards",
        ),
        ({INDEX: '{"weight_map": [1, 2]}'}, f"FOLDER/{INDEX}: expected the index of safetensors files, with a "),
        ({INDEX: "{"}, f"FOLDER/{INDEX}: is damaged: it is not valid JSON."),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_with_its_line(
    write: Any, small: dict[str, Any], in_tmp: Path, capsys: Any, files: dict[str, str], text: str
) -> None:
    (in_tmp / "shards").mkdir()
    for name, content in files.items():
        (in_tmp / "shards" / name).write_text(content)
    path, set_weights = str(write(small)), "network.weights=shards"
    expected = f"--set network.weights: {text.replace('FOLDER', str(in_tmp / 'shards'))}"
    main([path, "--plan", "--set", set_weights])
    assert expected in "".join(capsys.readouterr()), "also in the plan"
    assert main([path, "-j", "1", "-q", "--set", set_weights]) == 2
    assert expected in capsys.readouterr().err


def test_weights_of_another_network_are_refused_before_the_first_epoch(
    write: Any, small: dict[str, Any], in_tmp: Path, capsys: Any
) -> None:
    state = trained()
    names = list(state)
    state["extra.weight"] = torch.zeros(3)
    state[names[0]] = state[names[0]][:7]
    del state[names[1]]
    torch.save(state, in_tmp / "mine.pt")
    small["network"]["weights"] = "mine.pt"
    path = write(small)
    assert main([str(path), "-j", "1", "-q"]) == 2
    error = capsys.readouterr().err
    assert error.count("network.weights:") == 1
    assert f"missing: {names[1]}; unexpected: extra.weight; of another shape: {names[0]} (300, 784)" in error
    assert "in the file (7, 784)" in error
    assert not list(in_tmp.glob("data/trained_networks/*lenet*"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([1, 2], "a list"),
        ({}, "a dict"),
        ({"epoch": 3, "best": 0.5}, "a dict of epoch, best"),
        ({"specification": {"plan": {"masks": ["0.weight"]}}, "state_dict": {}}, "holds a compressed network"),
        (nn.Linear(2, 2), r"holds a whole module or other Python objects, which are not unpickled\. Save net.state"),
        (os.getcwd, "holds a whole module or other Python objects"),
        ({"net": Path("a")}, "holds a whole module or other Python objects"),
        (b"not a file of torch", r"not a weights file, is damaged, or contains more than plain data \("),
    ],
)
def test_what_is_no_state_dict_is_said_to_be_none(tmp_path: Path, content: object, what: str) -> None:
    path = tmp_path / "mine.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(StoreError, match=what):
        load_given(nn.Linear(2, 2), given(path))


def test_a_long_list_of_differences_is_cut_short(tmp_path: Path) -> None:
    torch.save({f"layer{i}.weight": torch.zeros(1) for i in range(20)}, tmp_path / "mine.pt")
    with pytest.raises(StoreError, match=r"missing: weight, bias; unexpected: layer0\.weight, .* and 12 more\."):
        load_given(nn.Linear(2, 2), given(tmp_path / "mine.pt"))


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("prefix", ["model.", "model.net."])
def test_a_prefix_of_all_names_is_said(tmp_path: Path, kind: str, prefix: str) -> None:
    """In both directions; after the renaming that the error shows, the file is accepted."""

    def write(state: dict[str, Tensor]) -> GivenWeights:
        path = tmp_path / f"mine.{kind}"
        if kind == "pt":
            torch.save(state, path)
        else:
            pytest.importorskip("safetensors.torch").save_file(state, path)
        return given(path)

    plain = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    inner = nn.ModuleDict({"net": plain}) if prefix == "model.net." else plain
    wrapped = nn.ModuleDict({"model": inner})
    for network, other, whose in (
        (plain, wrapped, f"names in the file begin with '{prefix}', those of the network do not"),
        (wrapped, plain, f"names of the network begin with '{prefix}', those in the file do not"),
    ):
        state = other.state_dict()
        with pytest.raises(StoreError, match=whose) as error:
            load_given(network, write(state))
        renamed = re.search(r"Rename them: state = (\{.*\}); torch.save", str(error.value))
        assert renamed is not None
        load_given(network, write(eval(renamed[1], {"state": state})))


def test_a_prefix_is_not_blamed_if_names_would_not_fit_without_it(tmp_path: Path) -> None:
    torch.save({f"model.{name}": torch.zeros(1) for name in ("weight", "head.weight")}, tmp_path / "mine.pt")
    with pytest.raises(StoreError, match=r"missing: weight, bias; unexpected: model\.weight, model\.head\.weight"):
        load_given(nn.Linear(2, 2), given(tmp_path / "mine.pt"))


def test_a_prefix_is_said_when_a_compressed_network_is_loaded(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30))
    save_network(compress(net, "SVD", keep=0.5, example=torch.ones(2, 20)), tmp_path / "small.pt")
    with pytest.raises(
        StoreError, match=r"of the network begin with 'model\.', those in the file do not\. Pass the ne"
    ):
        load_network(tmp_path / "small.pt", network=nn.ModuleDict({"model": net}))


def test_batch_counters_may_be_missing(tmp_path: Path) -> None:
    net = nn.BatchNorm1d(2)
    state = {name: tensor + 1 for name, tensor in net.state_dict().items() if name != "num_batches_tracked"}
    torch.save(state, tmp_path / "mine.pt")
    load_given(net, given(tmp_path / "mine.pt"))
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in state.items())


class Versioned(nn.Linear):
    """Refuses states without the version of the module, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state_dict: Any, prefix: str, metadata: Any, *args: Any) -> None:
        assert metadata.get("version") == 2
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)


def test_modules_see_their_version_wherever_weights_are_loaded(tmp_path: Path) -> None:
    net = nn.Sequential(Versioned(2, 4), nn.ReLU(), nn.Linear(4, 3))
    torch.save(net.state_dict(), tmp_path / "mine.pt")
    load_given(net, given(tmp_path / "mine.pt"))
    x = torch.randn(3, 2)
    result = compress(net, "WT", keep=0.5, example=x)
    save_network(result, tmp_path / "small.pt")
    torch.testing.assert_close(load_network(tmp_path / "small.pt", network=net)(x), result.network(x))
    loaded = load_pruned_state(net, pruned_state(result.network))
    torch.testing.assert_close(loaded(x), result.network(x))


def test_a_file_that_changes_after_the_plan_is_noticed(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "mine.pt")
    found = find_given(str(tmp_path / "mine.pt"), tmp_path)
    assert found is not None
    torch.save(nn.Linear(2, 2).double().state_dict(), tmp_path / "mine.pt")
    with pytest.raises(StoreError, match="has changed since the experiment was planned"):
        load_given(nn.Linear(2, 2), found)


def test_an_original_on_meta_must_not_leave_tensors_without_values(tmp_path: Path) -> None:
    """Buffers that no state_dict holds, such as positions, come from the original."""
    net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))
    net.register_buffer("positions", torch.arange(3), persistent=False)
    result = compress(net, "WT", keep=0.5, example=torch.ones(1, 2))
    save_network(result, tmp_path / "small.pt")
    with pytest.raises(StoreError, match="does not hold 'positions', which has no values on the device meta"):
        load_network(tmp_path / "small.pt", network=net.to("meta"))
