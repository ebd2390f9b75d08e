"""Feed every reader of stored files with damaged and hostile ones: a result, or one error of ours, in bounded memory.

    python tests/benchmark/fuzz.py --number 20000

Cases are seeded. A case that hangs ends the program with a traceback after `MOST_SECONDS`.
"""

import argparse
import copy
import faulthandler
import io
import json
import logging
import random
import resource
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from experiment import load_network, load_results
from experiment.config import load
from experiment.errors import ExperimentError
from experiment.layers.build import build
from experiment.layers.plan import Factors, Kept, Plan
from experiment.networks.make_network import make_network
from experiment.report.results_table import read_results
from experiment.run.disk.load_weights import load_given
from experiment.run.disk.measurements import LATENCY, read_measurement
from experiment.run.disk.network_file import save_weights
from experiment.run.disk.results_table import COLUMNS
from experiment.run.disk.store import Store
from experiment.run.grid.plan import Machine, plan_experiment
from experiment.run.grid.weights_file import find_given
from experiment.training.checkpoint import read_checkpoint

MOST_SECONDS = 20
MOST_MEGABYTES = 1024  # that a whole run may grow by
MOST_LETTERS = 2000
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 5, 255, 2**31, 2**63, 2**64, 10**18, 10**400, -(10**30), 0.0, 0.5, -1.5, 1e308,
    float("nan"), float("inf"), "", "x", "x" * 5000, "\ud800", "\0", "../..", "1e9", "int8", "lenet5", "os:system",
    [], [1], [[]], [None], [10**9] * 3, ["x"] * 50, {}, {5: 1}, {"x": {}}, {"rank": 10**9},
]  # fmt: skip
ARCHITECTURE = {"name": "lenet5", "settings": {}, "output_size": 10, "input_shape": [1, 28, 28]}


def bytes_changed(content: bytes, rng: random.Random) -> bytes:
    """Flipped, cut, inserted or repeated bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
        elif kind == 3:
            data[at : at + 8] = bytes(8)
        else:
            data[at:at] = data[at : at + rng.choice((1, 16, 200))]
    return bytes(data)


def values_changed(value: Any, rng: random.Random) -> Any:
    """Plain values and tensors of which one, at any depth, is another, or gone, or there twice."""
    if rng.random() < 0.15 or not isinstance(value, dict | list) or not value:
        return tensor_changed(value, rng) if isinstance(value, torch.Tensor) else copy.deepcopy(rng.choice(VALUES))
    changed = copy.copy(value)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    kind = rng.random()
    if kind < 0.1:
        del changed[key]
    elif kind < 0.2 and isinstance(changed, dict):
        changed[rng.choice(["x", 5, "", "extra"])] = copy.deepcopy(rng.choice(VALUES))
    else:
        changed[key] = values_changed(value[key], rng)
    return changed


def tensor_changed(tensor: torch.Tensor, rng: random.Random) -> Any:
    """Another shape, type or content, views without memory of their own among them; or something else."""
    return rng.choice([
        lambda: tensor.to(rng.choice([torch.int8, torch.complex64, torch.bool, torch.float64, torch.int64])),
        lambda: torch.full_like(tensor, rng.choice([float("nan"), float("inf")])) if tensor.is_floating_point() else 1,
        lambda: torch.zeros(1).expand(10**6, 10**6),
        lambda: torch.empty(10**6, 10**6, device="meta"),
        lambda: torch.full((3,), 2**62),
        lambda: tensor.flatten()[:-1].clone(),
        lambda: tensor[None].clone(),
        lambda: torch.eye(3).to_sparse(),
        lambda: copy.deepcopy(rng.choice(VALUES)),
    ])()  # fmt: skip


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def archive_changed(content: bytes, rng: random.Random) -> bytes:
    """A torch archive whose checksums are right and whose pickle or records are not."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            data = old.read(name)
            pickled = name.endswith("data.pkl") and rng.random() < 0.7
            new.writestr(name, bytes_changed(data, rng) if data and (pickled or name == chosen) else data)
    return out.getvalue()


class Target:
    """A reader and a good file of its kind.

    Args:
        content: the file's values. encode: the values as bytes. read: the reader, of the path.
    """

    def __init__(self, path: Path, content: Any, encode: Callable[[Any], bytes], read: Callable[[], object]) -> None:
        self.path, self.content, self.encode, self.read = path, content, encode, read
        self.good = encode(content)

    def case(self, rng: random.Random) -> None:
        """Write a damaged file."""
        kind = rng.random()
        try:
            if kind < 0.55:
                data = self.encode(values_changed(self.content, rng))
            elif kind < 0.75 and self.encode is saved:
                data = archive_changed(self.good, rng)
            else:
                data = bytes_changed(self.good, rng)
        except (ValueError, TypeError, RuntimeError, yaml.YAMLError):  # no such file can be written
            data = bytes_changed(self.good, rng)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(data)


def _text(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=False).encode()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _csv(rows: Any) -> bytes:
    return "".join(",".join(map(str, row)) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def targets(folder: Path) -> dict[str, Target]:
    """Every reader by name, its files below `folder`."""
    network = make_network("lenet5", {}, (1, 28, 28), 10).eval()
    convolutions = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    first, mask = f"{layers[0]}.weight", torch.rand(network.get_parameter(f"{layers[0]}.weight").shape) < 0.02
    plan = Plan(
        factors={layers[1]: Factors(2, bias=True)}, masks={first: mask}, quantized={layers[-1]: "int8"},
        kept={convolutions[0]: Kept(None, (0,))},
    )  # fmt: skip
    compressed = folder / "network.pt"
    built = build(network, plan)
    for parameter in built.parameters():
        nn.init.normal_(parameter)  # what `build` leaves is whatever is in memory, NaN included
    save_weights(compressed, built, plan, ARCHITECTURE, method="x", keep=0.5)
    given = folder / "given.pt"
    parameters = yaml.safe_load(PARAMETERS)
    experiment = folder / "table"
    cell = folder / "store" / "cells" / "x-0"
    result = {
        "format": 1, "status": "done", "parameters": 10, "flops": 20, "top1": 0.5, "top5": 1.0, "loss": 0.1,
        "epochs": 2, "files": {"network.pt": {"bytes": 100}}, "error": None,
    }  # fmt: skip
    row = dict.fromkeys(COLUMNS, 0.5) | {"net": 0, "repetition": 0, "status": "done", "label": "WT", "cell": "0"}
    latency = {
        "format": 1,
        "device": "x",
        "threads": 1,
        "batches": [{"batch": 1, "median_ms": 1.0, "iqr_ms": 0.1, "layout": "x"}],
    }
    checkpoint = {"format": 1, "fingerprint": "x", "network": network.state_dict(), "records": [{"epoch": 0}]}

    def read_given() -> None:
        found = find_given(str(given), folder)
        assert found is not None
        load_given(copy.deepcopy(network), found)

    def read_param() -> None:
        plan_experiment(load(folder / "small.yaml"), Machine("cpu"))

    def read_cell() -> None:
        Store(folder / "store").read(cell, repair=False)

    return {
        "network.pt": Target(
            compressed, torch.load(compressed, weights_only=True), saved, lambda: load_network(compressed)
        ),
        "network.weights": Target(given, {"state_dict": dict(network.state_dict()), "epoch": 3}, saved, read_given),
        "result.json": Target(cell / "result.json", result, _json, read_cell),
        "parameter file": Target(folder / "small.yaml", parameters, _text, read_param),
        "results.csv": Target(
            experiment / "results.csv", [list(row), *[list(row.values())] * 3], _csv,
            lambda: (load_results(experiment), read_results(experiment / "results.csv")),
        ),
        "checkpoint": Target(
            folder / "checkpoint.pt", checkpoint, saved, lambda: read_checkpoint(folder / "checkpoint.pt")
        ),
        "latency.json": Target(folder / LATENCY, latency, _json, lambda: read_measurement(folder / LATENCY)),
    }  # fmt: skip


PARAMETERS = """
network: {name: lenet5, dataset: Digits, outputSize: 10}
training:
  batchSize: 64
  numEpochs: 2
  optimizer: SGD
  optimizerKwargs: {lr: 0.05, momentum: 0.9}
  lrSchedulers: [{type: MultiStepLR, stepKwargs: {milestones: [1]}, kwargs: {gamma: 0.1}}]
  transformsFinal: [{type: ToTensor}, {type: Normalize, kwargs: {mean: [0.3], std: [0.3]}}]
retraining: {numEpochs: 1}
experiments:
  methods: [WT, {name: SVD, label: low rank}]
  mode: retrain
  numNets: 1
  spacing: [{type: manual, values: [0.5, 0.1]}]
customizations: [{key: [training, numEpochs], value: 3}]
"""


def fuzz(target: Target, number: int, seed: str) -> Counter[str]:
    """Read so many damaged files: how many were read, and how many refused.

    Raises: AssertionError: of another exception, a long message, or memory. The damaged file stays where it is.
    """
    outcomes: Counter[str] = Counter()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(number):
        target.case(random.Random(f"{seed} {i}"))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target.read()
            outcomes["read"] += 1
        except ExperimentError as error:
            outcomes["refused"] += 1
            if len(str(error)) > MOST_LETTERS:
                raise AssertionError(f"{target.path}, case {seed} {i}: {len(str(error))} characters") from error
        except Exception as error:
            raise AssertionError(f"{target.path}, case {seed} {i}: {type(error).__name__}") from error
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024
        if grown > MOST_MEGABYTES:
            raise AssertionError(f"{target.path}, case {seed} {i}: {grown:.0f} MB")
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=20_000, help="cases a reader")
    parser.add_argument("--only", help="one reader")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        for what, target in targets(Path(name)).items():
            if options.only not in (None, what):
                continue
            begun, outcomes = time.perf_counter(), Counter[str]()
            for at in range(0, options.number, 100):
                faulthandler.dump_traceback_later(MOST_SECONDS * 5, exit=True)  # 100 cases
                outcomes += fuzz(target, min(100, options.number - at), f"{what} {at}")
            faulthandler.cancel_dump_traceback_later()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{what:16} {options.number:6} {dict(outcomes)} {time.perf_counter() - begun:.0f} s, {peak:.0f} MB")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
