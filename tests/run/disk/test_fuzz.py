"""Every reader of stored files, fed with damaged and hostile ones: a result or one error of ours, in bounded memory."""

import ast
import importlib.util
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import experiment
from experiment import load_network
from experiment.errors import ConfigError, Damaged, ExperimentError, StoreError
from experiment.files import read_file, read_json
from experiment.layers.plan import Plan
from experiment.networks import NETWORKS
from experiment.networks.make_network import make_network
from experiment.registry import InputShape
from experiment.run.disk.network_file import save_weights
from experiment.run.disk.store import Store

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[2] / "benchmark" / "fuzz.py"
NUMBER = 300  # per reader; tests/benchmark/fuzz.py tries as many as asked for
READERS = (
    "network.pt", "network.weights", "result.json", "parameter file", "results.csv", "checkpoint", "latency.json",
)  # fmt: skip


def program() -> Any:
    specification = importlib.util.spec_from_file_location("fuzz", PROGRAM)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["fuzz"] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("reader", READERS)
def test_no_damaged_file_ends_in_anything_but_our_error(tmp_path: Path, reader: str) -> None:
    torch.manual_seed(0)
    fuzz = program()
    found = fuzz.targets(tmp_path)
    assert found.keys() == set(READERS)
    outcomes = fuzz.fuzz(found[reader], NUMBER, "suite")
    assert sum(outcomes.values()) == NUMBER
    assert outcomes["read"] > 0


def saved(path: Path, plan: Any = None, **architecture: Any) -> Path:
    """A network.pt of lenet5, of which the specification says something else."""
    network = make_network("lenet5", {}, (1, 28, 28), 10)
    made = {"name": "lenet5", "settings": {}, "output_size": 10, "input_shape": [1, 28, 28]}
    save_weights(path, network, Plan(), made)
    content = torch.load(path, weights_only=True)
    content["specification"]["architecture"].update(architecture)
    content["specification"]["plan"].update(plan or {})
    torch.save(content, path)
    return path


PROMISES: dict[str, dict[str, Any]] = {
    "outputs": {"output_size": 10**9},
    "many outputs": {"output_size": 10**6},
    "inputs": {"input_shape": [1, 10**6, 10**6]},
    "large inputs": {"input_shape": [1, 4096, 4096]},
    "rank": {"plan": {"factors": {"fc1": {"rank": 10**9, "bias": True}}}},
    "mask of a factor": {"plan": {"factor_masks": {"fc1.encoder.weight": [10**6, 10**6]}}},
    "settings": {"settings": {5: 1}},
    "factors": {"plan": {"factors": None}},
    "number": {"plan": {"kept": {"conv1": {"out": [10**400]}}}},
    "skipped": {"plan": {"skipped": "conv1"}},
}


@pytest.mark.parametrize("promise", PROMISES)
def test_what_a_specification_promises_takes_no_memory(tmp_path: Path, forked: Any, promise: str) -> None:
    import resource

    path = saved(tmp_path / "network.pt", **PROMISES[promise])

    def load() -> int:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, resource.RLIM_INFINITY))
        with pytest.raises(StoreError, match="network.pt"):
            load_network(path)
        return 0

    process = forked(load)
    assert process.wait() == 0, process.said


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([float("nan")] * 10),
        torch.tensor([float("inf")] * 10),
        torch.ones(10, dtype=torch.int8),
        torch.ones(10, dtype=torch.complex64),
    ],
    ids=["nan", "infinity", "codes", "complex"],
)
def test_what_cannot_be_a_weight_is_refused_by_name(tmp_path: Path, tensor: torch.Tensor) -> None:
    path = saved(tmp_path / "network.pt")
    content = torch.load(path, weights_only=True)
    name = next(n for n, t in content["state_dict"].items() if t.shape == (10,))
    content["state_dict"][name] = tensor
    torch.save(content, path)
    with pytest.raises(Damaged, match=f"{name} holds"):
        load_network(path)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "bert"])  # an optional package's
def test_a_registered_network_is_all_in_its_state_dict(name: str) -> None:
    """So that it can be made without memory and take the tensors of a file as its own."""
    size = 32 if name in ("densenet22", "cnn5") or name.startswith(("resnet20", "wrn")) else 64
    size = 28 if name.startswith(("lenet", "mnist")) else 224 if name == "alexnet" else size
    shape = (1 if size == 28 else 3, size, size)
    form = InputShape((16,), tokens=True) if name == "gpt_small" else shape
    with torch.device("meta"):
        network = make_network(name, {}, form, 10, outputs=None)
    named = {name for name, _ in network.named_parameters(remove_duplicate=False)} | dict(
        network.named_buffers()
    ).keys()
    assert named == network.state_dict().keys()
    loose = [v for m in network.modules() for v in vars(m).values() if isinstance(v, torch.Tensor)]
    assert not loose


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are POSIX")
def test_special_files_are_not_read(tmp_path: Path) -> None:
    cell = tmp_path / "cells" / "x-0"
    cell.mkdir(parents=True)
    path = cell / "result.json"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    def fifo() -> None:
        os.mkfifo(path)

    for make in (fifo, lambda: path.symlink_to("/dev/zero"), lambda: path.symlink_to(tmp_path / "loop"), path.mkdir):
        make()
        with pytest.raises(Damaged, match="not a regular file"):
            read_file(path)
        assert Store(tmp_path).read(cell, repair=False) is None
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError):
        read_json(path)


def test_a_message_is_short_and_keeps_its_ends() -> None:
    assert len(str(ExperimentError("a: " + "x" * 10**6 + ". Do b."))) < 2000
    assert str(ExperimentError("a: " + "x" * 10**6 + ". Do b.")).endswith("Do b.")
    error = ConfigError([f"f:{i}: key: {'y' * 5000}" for i in range(5000)])
    assert len(str(error)) < 2000
    assert str(error).startswith("f:0: key: ")
    assert "more lines" in str(error)
    assert len(error.problems) == 5000


def test_a_bytearray_of_a_promised_size_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    torch.save({}, path)
    with zipfile.ZipFile(path) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in contents.items():
            pickled = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x10\xa5\xd4\xe8\x85R."
            new.writestr(name, pickled if name.endswith("data.pkl") else data)
    with pytest.raises(Damaged, match="a bytearray"):
        load_network(path)


def test_readers_of_files_need_no_assertions() -> None:
    """`python -O` removes them: what a file holds is checked by statements that stay."""
    folder = Path(experiment.__file__).parent
    readers = [
        folder / "files.py",
        folder / "tensor_file.py",
        folder / "layers/plan.py",
        folder / "training/checkpoint.py",
    ]
    for path in (*readers, *(folder / "run/disk").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)], path
