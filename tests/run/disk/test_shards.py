"""Weights in safetensors files: whole or in shards, one tensor at a time, and what is wrong with them."""

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import Damaged, StoreError
from experiment.random_streams import seeded
from experiment.run.disk.load_weights import load_given
from experiment.run.disk.shards import Shards
from experiment.run.grid.weights_file import INDEX, GivenWeights, find_given

save_file = pytest.importorskip("safetensors.torch").save_file


class Tied(nn.Module):
    """A head that has the weight of the embedding, which files hold under one name."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(7, 4), nn.BatchNorm1d(4)
        self.hidden, self.head = nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(self.table(tokens)))
        return logits


def made(seed: int = 0) -> Tied:
    with seeded("test_shards", seed):
        network = Tied()
        nn.init.normal_(network.norm.running_mean)  # type: ignore[arg-type]
    return network


def contents() -> dict[str, Tensor]:
    return {name: tensor for name, tensor in made().state_dict().items() if name != "head.weight"}


def write(folder: Path, tensors: dict[str, Tensor], index: Any = None) -> Path:
    """Two shards and their index, as `save_pretrained` writes them."""
    names = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(names.values()):
        save_file({name: tensor for name, tensor in tensors.items() if names[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names if index is None else index}))
    return folder


def given(place: Path) -> GivenWeights:
    found = find_given(str(place), place.parent)
    assert found is not None
    return found


def load(network: nn.Module, place: Path) -> nn.Module:
    load_given(network, given(place))
    return network


def assert_equal(network: nn.Module) -> None:
    wanted = made().state_dict()
    assert network.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", ["", INDEX])
def test_shards_by_their_folder_or_index(tmp_path: Path, name: str) -> None:
    assert_equal(load(made(1), write(tmp_path, contents()) / name))


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_one_file(tmp_path: Path, name: str) -> None:
    save_file(contents(), tmp_path / "model.safetensors")
    assert_equal(load(made(1), tmp_path / name))


def test_a_network_on_meta_stays_tied(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = Tied()
    load(network, write(tmp_path, contents()))
    assert_equal(network)
    assert network.head.weight is network.table.weight


def test_the_network_decides_the_dtype_and_wrappers_add_prefixes(tmp_path: Path) -> None:
    halves = {f"module.{n}": t.bfloat16() if t.is_floating_point() else t for n, t in contents().items()}
    network = load(made(1), write(tmp_path, halves))
    assert network.get_parameter("hidden.weight").dtype == torch.float32
    assert torch.equal(network.get_parameter("hidden.weight"), halves["module.hidden.weight"].float())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_one_tensor_at_a_time_is_there(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, alive, most = Shards.__getitem__, list[weakref.ref[Any]](), [0]

    def counted(shards: Shards, name: str) -> Tensor:
        tensor = read(shards, name)
        alive.append(weakref.ref(tensor))
        most[0] = max(most[0], sum(other() is not None for other in alive))
        return tensor

    monkeypatch.setattr(Shards, "__getitem__", counted)
    with torch.device(device):
        network = Tied()
    load(network, write(tmp_path, contents()))
    gc.collect()
    assert len(alive) > 2 * len(contents())
    assert most[0] <= 2  # the loop's own, and the next


def broken(change: Callable[[dict[str, Tensor]], object]) -> dict[str, Tensor]:
    tensors = contents()
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "kind", "text"),
    [
        (broken(lambda t: t.pop("hidden.bias")), StoreError, "missing: hidden.bias"),
        (broken(lambda t: t.update(more=torch.ones(2))), StoreError, "unexpected: more"),
        (
            broken(lambda t: t.update({"hidden.bias": torch.ones(3)})),
            StoreError,
            r"hidden.bias \(4,\), in the file \(3,",
        ),
        (broken(lambda t: t["hidden.bias"].fill_(torch.nan)), Damaged, "hidden.bias holds NaN"),
        (broken(lambda t: t.update({"hidden.bias": torch.ones(4).int()})), Damaged, "hidden.bias holds torch.int32"),
    ],
)
def test_other_weights_change_nothing(tmp_path: Path, tensors: Any, kind: type[StoreError], text: str) -> None:
    network = made(1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(kind, match=text):
        load(network, write(tmp_path, tensors))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, contents())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(StoreError, match=r"names the shard 'model-00002-of-00002.safetensors', which is not beside it"):
        load(made(), tmp_path)


def test_the_single_file_of_a_folder_comes_before_its_index(tmp_path: Path) -> None:
    write(tmp_path, broken(lambda t: t["hidden.weight"].zero_()))
    save_file(contents(), tmp_path / "model.safetensors")
    assert_equal(load(made(1), tmp_path))


def test_unexpected_names_are_listed_in_the_order_of_the_shards(tmp_path: Path) -> None:
    write(tmp_path, {f"more.{i}": torch.ones(1) for i in range(6)})
    with pytest.raises(StoreError, match=r"unexpected: more.0, more.2, more.4, more.1, more.3, more.5\."):
        load(made(1), tmp_path)


@pytest.mark.parametrize(
    ("index", "text"),
    [
        ({}, "It has none"),
        ([1, 2], "It is a list"),
        ({"a": "../a.safetensors"}, "names a shard"),
        ({"a": 3}, "names a shard 3"),
        ({"a": "network.pt"}, "names a shard 'network.pt'"),
    ],
)
def test_a_damaged_index(tmp_path: Path, index: Any, text: str) -> None:
    with pytest.raises(Damaged, match=f"{INDEX}: .*{text}"):
        load(made(), write(tmp_path, contents(), index))


def test_a_truncated_shard(tmp_path: Path) -> None:
    write(tmp_path, contents())
    file = tmp_path / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(Damaged, match="model-00001-of-00002.safetensors: is damaged"):
        load(made(), tmp_path)


def test_a_changed_shard_is_another_start(tmp_path: Path) -> None:
    before = given(write(tmp_path, contents()))
    assert given(tmp_path) == before
    write(tmp_path, broken(lambda t: t["hidden.weight"].zero_()))
    assert given(tmp_path).content != before.content
    with pytest.raises(StoreError, match="has changed since the experiment was planned"):
        load_given(made(), before)
