"""Experiments' folders with plausible numbers, made in a moment: what the tests of reports read."""

import csv
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from experiment.config import load
from experiment.run.disk.parameters_file import write_parameters

KEEPS = tuple(round(0.8 * (0.02 / 0.8) ** (i / 8), 6) for i in range(9))
METHODS = ("WT", "FT", "SVD", "SVD-Energy", "SVD-Error", "ALDS")
MANY = (*METHODS, "PCA", "PFP", "L-Rank", "SNIP", "SiPP", "ThiNet", "Messi3", "ALDS+")
PARAMETERS, FLOPS = 272_474, 40_813_184
KNEES = {"WT": 0.03, "ALDS": 0.05, "SVD-Energy": 0.12, "SVD-Error": 0.16, "SVD": 0.25, "FT": 0.4}
LAYERS = ("conv", *(f"layer{i}.{j}.conv{k}" for i in (1, 2, 3) for j in (0, 1, 2) for k in (1, 2)), "fc")

Row = dict[str, Any]


def key(*parts: object) -> str:
    """A cell's key: like the runner's, a hash without dashes."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def reference_row(net: int, variant: str = "", top1: float | None = None) -> Row:
    """The row of a reference network, about 91 % accurate."""
    top1 = round(0.914 + 0.002 * math.sin(net + 1), 4) if top1 is None else top1
    return {
        "dataset": "CIFAR10", "dataset_test": "CIFAR10", "network": "resnet20", "variant": variant,
        "method": "Reference", "label": "Reference", "net": net, "repetition": 0, "keep_target": 1.0,
        "parameters": PARAMETERS, "flops": FLOPS, "flops_unmasked": FLOPS, "keep_parameters": 1.0, "keep_flops": 1.0,
        "bytes_dense": 4 * PARAMETERS, "bytes_values": 4 * PARAMETERS, "bytes_sparse": 4 * PARAMETERS,
        "bytes_file": 4 * PARAMETERS + 20_000, "loss": 0.31, "top1": top1, "top5": 0.997,
        "top1_before_retraining": top1, "top1_reference": top1, "parameters_reference": PARAMETERS,
        "flops_reference": FLOPS, "epochs": 0, "seconds_compress": "", "seconds_retrain": "", "status": "done",
        "error": "", "cell": key("Reference", net, variant), "hardware": "AVX2",
    }  # fmt: skip


def cell_row(label: str, net: int, keep: float, epochs: int = 0, repetition: int = 0, variant: str = "") -> Row:
    """The row of a compressed network whose accuracy collapses below the method's knee."""
    reference = reference_row(net, variant)
    noise = np.random.default_rng([len(label), ord(label[0]), net, repetition, int(1e6 * keep)]).normal(0, 1, 3)
    knee = KNEES.get(label, 0.08 + 0.03 * (sum(map(ord, label)) % 7)) / (1 + 0.25 * epochs)
    drop = 0.8 / (1 + (keep / knee) ** 3) + 0.002 * noise[0]
    before = 0.8 / (1 + (keep / (knee * (1 + 0.25 * epochs))) ** 3)
    achieved = keep * (1 - 0.01 * abs(noise[1]))
    masked = label in ("WT", "SNIP", "SiPP")
    kept = round(achieved * PARAMETERS)
    flops = FLOPS if masked else round(FLOPS * min(1.0, achieved**0.8))
    return reference | {
        "method": label, "label": label, "repetition": repetition, "keep_target": keep, "parameters": kept,
        "flops": flops, "flops_unmasked": round(FLOPS * achieved) if masked else flops,
        "keep_parameters": kept / PARAMETERS, "keep_flops": flops / FLOPS,
        "bytes_dense": 4 * (PARAMETERS if masked else kept), "bytes_values": 4 * kept,
        "bytes_sparse": 4 * kept + PARAMETERS // 8, "bytes_file": 4 * kept + 30_000,
        "loss": 0.3 + 3 * max(0.0, drop) + 0.01 * abs(noise[2]),
        "top1": float(np.clip(reference["top1"] - drop, 0.1, 1)),
        "top5": float(np.clip(0.997 - 0.5 * max(0, drop), 0.5, 1)),
        "top1_before_retraining": float(np.clip(reference["top1"] - before, 0.1, 1)), "epochs": epochs,
        "seconds_compress": 0.8, "seconds_retrain": 10.0 * epochs,
        "cell": key(label, net, repetition, keep, variant),
    }  # fmt: skip


def broken_row(label: str, net: int, keep: float, status: str, error: str, variant: str = "") -> Row:
    """The row of a cell that failed or whose budget was infeasible."""
    kept = ("dataset", "dataset_test", "network", "top1_reference", "parameters_reference", "flops_reference")
    reference = reference_row(net, variant)
    row = dict.fromkeys(reference, "") | {name: reference[name] for name in kept}
    return row | {
        "variant": variant, "method": label, "label": label, "net": net, "repetition": 0, "keep_target": keep,
        "epochs": 0, "status": status, "error": error, "cell": key(label, net, 0, keep, variant),
    }  # fmt: skip


def grid(
    methods: Sequence[str] = METHODS, nets: int = 3, keeps: Sequence[float] = KEEPS, epochs: int = 0, variant: str = ""
) -> list[Row]:
    """Reference networks and every cell of the grid."""
    rows = [reference_row(net, variant) for net in range(nets)]
    return rows + [cell_row(m, n, k, epochs, 0, variant) for n in range(nets) for m in methods for k in keeps]


def sweep(methods: Sequence[str] = METHODS, nets: int = 3, setting: str = "retraining.startEpoch") -> list[Row]:
    """A sweep over the amount of retraining of a training of 182 epochs."""
    return [
        row
        for start in (0, 91, 137, 164, 178, 182)
        for row in grid(methods, nets, KEEPS, 182 - start, f"{setting}={start}")
    ]


def curve(
    points: Sequence[tuple[float, float]], label: str = "ALDS", net: int = 0, reference: float = 0.9, **more: Any
) -> list[Row]:
    """Cells at hand-written (keep, top1), the FLOPs kept half as many as the parameters."""
    return [
        cell_row(label, net, keep) | {
            "keep_parameters": keep, "keep_flops": keep / 2, "top1": top1, "top1_reference": reference, **more,
        }
        for keep, top1 in points
    ]  # fmt: skip


def write_experiment(
    folder: Path,
    rows: Sequence[Row],
    *,
    parameters: Row | None = None,
    cells: bool = False,
    change: Callable[[Row], Row] | None = None,
) -> Path:
    """Write an experiment's folder: table, parameters, environment and, with `cells`, layers and histories.

    Args:
        parameters: blocks of the parameter file that replace those of `parameters_of`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    header = list(reference_row(0)) if not rows else list(rows[0])
    with (folder / "results.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, header)
        writer.writeheader()
        writer.writerows(change(row) if change else row for row in rows)
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump(parameters_of() | (parameters or {})))
    (folder / "parameters.yaml").unlink(missing_ok=True)
    write_parameters(folder, load(file), folder / "lock")
    file.unlink()
    environment = {
        "format": 1,
        "python": "3.12.1",
        "packages": {"torch": "2.14.1"},
        "device": "cpu",
        "git_commit": "abc",
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    for row in rows if cells else ():
        if row["status"] == "done":
            _write_cell(folder / "cells" / f"{row['label'].replace('/', '_')}-n{row['net']}-{row['cell']}", row)
    return folder


def parameters_of() -> Row:
    """A parameter file, as an experiment's author writes it."""
    return {
        "network": {"name": "resnet20", "dataset": "CIFAR10", "outputSize": 10},
        "training": {"numEpochs": 182, "batchSize": 128, "optimizer": "SGD",
                     "optimizerKwargs": {"lr": 0.1, "momentum": 0.9}},
        "retraining": {"startEpoch": 182},
        "experiments": {"methods": list(METHODS), "mode": "retrain", "numNets": 3,
                        "spacing": [{"type": "manual", "values": [0.5]}]},
    }  # fmt: skip


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as `load_results` gives them."""
    return pd.DataFrame(rows)


def _write_cell(place: Path, row: Row) -> None:
    place.mkdir(parents=True)
    random = np.random.default_rng(int(row["cell"], 16))
    layers = [
        {"layer": name, "kind": "conv", "parameters_before": 100 * (i + 1), "flops_before": 1000,
         "parameters": round(100 * (i + 1) * min(1.0, row["keep_parameters"] * random.uniform(0.5, 1.5))), "flops": 500}
        for i, name in enumerate(LAYERS)
    ]  # fmt: skip
    pd.DataFrame(layers).to_csv(place / "layers.csv", index=False)
    epochs = 20 if row["method"] == "Reference" else min(int(row["epochs"]), 6)
    history = [
        {"epoch": e, "learning_rate": 0.1, "loss": 2.3 * 0.85**e + 0.05, "top1": 0.95 - 0.8 * 0.8**e,
         "valid_loss": 2.3 * 0.87**e + 0.2, "valid_top1": 0.91 - 0.8 * 0.8**e + 0.01 * random.normal(),
         "valid_top5": 0.99, "images": 45000, "seconds": 3.0}
        for e in range(epochs)
    ]  # fmt: skip
    columns = ["epoch", "learning_rate", "loss", "top1", "valid_loss", "valid_top1", "valid_top5", "images", "seconds"]
    pd.DataFrame(history, columns=columns).to_csv(place / "history.csv", index=False)
