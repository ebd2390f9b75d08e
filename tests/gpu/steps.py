"""The steps of run.py, each run in a process of its own.

They emit rows as soon as they have them, and `{"running": what}` when something begins that may take long.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from training_speed import throughput

from experiment import compress, compress_many
from experiment.errors import ExperimentError
from experiment.main import main as run_experiment
from experiment.measure.latency_model import LatencyModel, LatencyTable
from experiment.networks.gpt import GPT
from experiment.networks.make_network import make_network
from experiment.random_streams import seeded

HERE = Path(__file__).resolve().parent
Row = dict[str, Any]
Emit = Callable[[Row], None]
FAMILIES = ("WT", "SVD", "FT", "Quantize", "SNIP", "ALDS", "PFP", "PCA", "Tucker", "LAMP", "ThiNet", "SparseGPT")


def environment(device: str, quick: bool, emit: Emit) -> None:
    """What the figures depend on."""
    from experiment.run.machine import describe_environment, find_machine

    found = describe_environment(find_machine(device), torch.get_num_threads(), None)
    row = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    if torch.device(device).type == "cuda":
        about = torch.cuda.get_device_properties(device)
        row |= {"gpu": about.name, "memory_gib": round(about.total_memory / 2**30, 1)}
        row |= {"capability": f"{about.major}.{about.minor}"}
    emit(row | {key: found[key] for key in ("python", "platform", "processor", "cores", "git_commit")})


def tests(device: str, quick: bool, emit: Emit) -> None:
    """Every test of this folder."""
    os.environ["EXPERIMENT_TEST_DEVICE"] = device
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-W", "default"]  # warnings of other versions: not ours
    files = [str(HERE / f"test_{name}.py") for name in ("training", "methods", "runs")]  # in order of importance
    status = pytest.main([*options, "-c", str(HERE.parents[1] / "pyproject.toml"), *files], plugins=[Outcomes(emit)])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with status {status}.")


class Outcomes:
    """Emits the name of a test when it begins, and a row when it ends."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._emit({"running": within(nodeid)})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            row: Row = {"test": within(report.nodeid), "outcome": report.outcome}
            row["seconds"] = round(report.duration, 2)
            if report.outcome == "skipped":
                row["reason"] = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            elif report.outcome == "failed":
                row["error"] = report.longreprtext[-2000:]
            self._emit(row)


def within(nodeid: str) -> str:
    """The name of a test in this folder."""
    return nodeid.rpartition("tests/gpu/")[2]


def compression(device: str, quick: bool, emit: Emit) -> None:
    """Seconds and peak memory of compressing large networks, with random weights, to half of their parameters."""
    for label in FAMILIES[:4] if quick else FAMILIES:
        for name, make in networks(quick).items():
            emit({"running": f"{label} of {name}"})
            with seeded("network", device=device), torch.device(device):
                network, inputs, targets = make()
            row: Row = {"network": name, "method": label}
            try:
                row |= measured_compression(network.eval(), label, inputs, targets)
            except ExperimentError as error:
                row["refused"] = str(error).partition("\n")[0][:300]
            except Exception as error:  # of one pair: the others go on
                row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
            emit(row)


def networks(quick: bool) -> dict[str, Callable[[], tuple[nn.Module, Tensor, Tensor]]]:
    """Name -> what makes a network, inputs and targets."""
    from torchvision.models import VisionTransformer, resnet18, resnet50

    images = (4, 3, 32, 32) if quick else (16, 3, 224, 224)
    vit = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 64, "mlp_dim": 128}
    vit_b = {"image_size": 224, "patch_size": 16, "num_layers": 12, "num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072}
    sizes = (512, 64, 2, 2, 64) if quick else (50257, 1024, 12, 12, 768)
    tokens = torch.randint(0, sizes[0], (images[0], 33 if quick else 513))

    def classified(network: nn.Module) -> tuple[nn.Module, Tensor, Tensor]:
        for layer in network.modules():
            if isinstance(layer, nn.Linear) and not bool(layer.weight.any()):
                nn.init.normal_(layer.weight, std=0.02)  # the last one of ViT
        return network, torch.randn(images), torch.randint(0, 1000, images[:1])

    return {
        "resnet18" if quick else "resnet50": lambda: classified((resnet18 if quick else resnet50)()),
        "vit_small" if quick else "vit_b_16": lambda: classified(VisionTransformer(**(vit if quick else vit_b))),
        "gpt_small" if quick else "gpt2_size": lambda: (GPT(*sizes, 0.0, True), tokens[:, :-1], tokens[:, 1:]),
    }


def measured_compression(network: nn.Module, label: str, inputs: Tensor, targets: Tensor) -> Row:
    device = next(network.parameters()).device
    inputs, targets = inputs.to(device), targets.to(device)
    wait()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before, started = torch.cuda.memory_allocated() if device.type == "cuda" else 0, time.perf_counter()
    keep = {} if label == "Quantize" else {"keep": 0.5}
    result = compress(network, label, example=inputs[:1], data=(inputs, targets), progress=False, **keep)
    wait()
    row: Row = {"seconds": round(time.perf_counter() - started, 2), "keep": round(result.keep_parameters, 3)}
    peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else None
    return row | {
        "peak_mib": None if peak is None else peak >> 20,
        "output": str(next(result.network.parameters()).device),
    }


def sweep(device: str, quick: bool, emit: Emit) -> None:
    """Seconds per phase of experiments on synthetic images: with and without retraining."""
    import pandas as pd

    keeps = [0.5, 0.2] if quick else [0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05]
    for epochs in (0, 1):
        emit({"running": f"{epochs} epochs of retraining"})
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            Path("own_images.py").write_text(OWN_IMAGES.format(*((256, 128) if quick else (20000, 10000))))
            Path("sweep.yaml").write_text(
                yaml.safe_dump(sweep_file(keeps if epochs == 0 else keeps[:2], epochs, quick))
            )
            started = time.perf_counter()
            status = run_experiment(["sweep.yaml", "-j", "1", "-q", "--device", device, "--results", "results"])
            took = time.perf_counter() - started
            cells = pd.read_csv("results/sweep/results.csv")
            os.chdir(HERE)
        cells = cells[cells["method"] != "Reference"] if "method" in cells else cells
        parts = {part: float(cells[f"seconds_{part}"].sum()) for part in ("compress", "retrain")}
        emit({
            "retrain_epochs": epochs, "cells": len(cells), "exit": status, "seconds": round(took, 1),
            "compress_s": round(parts["compress"], 1), "retrain_s": round(parts["retrain"], 1),
            "train_test_store_s": round(took - sum(parts.values()), 1),
        })  # fmt: skip


OWN_IMAGES = """
import torch
from torch.utils.data import TensorDataset


def load(root, train):
    draws = torch.Generator().manual_seed(int(train))
    labels = torch.randint(0, 10, ({0} if train else {1},), generator=draws)
    noise = torch.randint(0, 100, (len(labels), 3, 32, 32), dtype=torch.uint8, generator=draws)
    return TensorDataset(noise + (15 * labels.to(torch.uint8))[:, None, None, None], labels)
"""


def sweep_file(keeps: list[float], epochs: int, quick: bool) -> Row:
    crop = {"type": "RandomCrop", "kwargs": {"size": 32, "padding": 4}}
    return {
        "network": {"name": "resnet20", "dataset": "own_images:load", "outputSize": 10},
        "training": {
            "batchSize": 64 if quick else 256, "numEpochs": 1, "optimizer": "SGD",
            "optimizerKwargs": {"lr": 0.05, "momentum": 0.9},
            "transformsTrain": [crop, {"type": "RandomHorizontalFlip"}], "transformsFinal": [{"type": "ToTensor"}],
        },
        "retraining": {"numEpochs": epochs},
        "experiments": {
            "methods": ["WT", "SVD"] if quick else ["WT", "FT", "SVD", "ALDS"], "mode": "retrain", "numNets": 1,
            "spacing": [{"type": "manual", "values": keeps}],
        },
        "directories": {"trained_networks": "nets"},
    }  # fmt: skip


def latency(device: str, quick: bool, emit: Emit) -> None:
    """Predicted and measured milliseconds of compressed networks."""
    small = (512, 64, 2, 2, 64) if quick else (50257, 1024, 4, 8, 512)
    with seeded("latency"), torch.device(device):
        made = {"resnet20": (make_network("resnet20", {}, (3, 32, 32), 10).to(device), torch.randn(1, 3, 32, 32)),
                "gpt": (GPT(*small, 0.0, True), torch.randint(0, small[0], (1, 64)))}  # fmt: skip
    for (name, (network, example)), batch in ((item, batch) for batch in (1, 64) for item in made.items()):
        emit({"running": f"{name} in batches of {batch}"})
        model = LatencyModel.of(network.eval(), example, batch, LatencyTable(None, torch.get_num_threads()))
        for method in ("SVD", "FT"):
            emit({"running": f"{method} of {name} in batches of {batch}"})
            for result in compress_many(network, method, keeps=[0.6, 0.3], example=example, progress=False):
                predicted, ms = model.predict(result.network), model.measure(result.network)
                emit({
                    "network": name, "batch": batch, "method": method, "keep": round(result.keep_parameters, 2),
                    "dense_ms": round(model.dense_ms, 3), "predicted_ms": round(predicted, 3),
                    "measured_ms": round(ms, 3), "error_%": round(100 * (predicted / ms - 1), 1),
                })  # fmt: skip
        if quick:
            return


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


STEPS: dict[str, Callable[[str, bool, Emit], None]] = {
    f.__name__: f for f in (environment, tests, throughput, compression, sweep, latency)
}
