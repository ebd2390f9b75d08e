"""Load a compressed network and its reference network, and test both.

    python script/load_networks.py                                  # the newest experiment under data/results
    python script/load_networks.py param/cifar/prune/resnet20.yaml --method ALDS --keep 0.1

The default is the smallest compressed network that loses at most one point of accuracy. Runs from any folder, as a
program or as a notebook (jupytext --to notebook script/load_networks.py).
"""

# %% Options
from __future__ import annotations

import argparse
import math
from pathlib import Path

from experiment import evaluate, load_network, load_results
from experiment.errors import ExperimentError
from experiment.report import default_results, find_experiments, smallest_within
from experiment.report.notebook import in_notebook, stop
from experiment.report.primary_metric import ReportedMetric, metric_named

parser = argparse.ArgumentParser(description="Load a compressed network and its reference network, and test both.")
parser.add_argument(
    "experiment", nargs="?", metavar="PARAM", help="parameter file or folder (default: the newest experiment)"
)
parser.add_argument("--results", type=Path, metavar="DIR", help="folder of all results (default: data/results)")
parser.add_argument("--data", type=Path, metavar="DIR", help="folder of all datasets (default: data/datasets)")
parser.add_argument("--method", metavar="LABEL", help="label of a method, such as ALDS")
parser.add_argument("--keep", type=float, metavar="RATIO", help="keep ratio; the nearest one in the results is used")
parser.add_argument("--net", type=int, metavar="N", help="index of the network")
parser.add_argument("--variant", help="variant, such as retraining.startEpoch=91")
parser.add_argument("--delta", type=float, default=1.0, metavar="POINTS", help="allowed loss of accuracy (default: 1)")
arguments = parser.parse_args([] if in_notebook() else None)  # in a notebook, edit the list

# %% Select a cell
try:
    folders = find_experiments([arguments.experiment] if arguments.experiment else [], arguments.results)
    if not folders:
        stop("No results yet. Run an experiment first: python -m experiment.main param/digits/prune/lenet5.yaml")
    folder = max(folders, key=lambda place: (place / "results.csv").stat().st_mtime)
    results = load_results(folder)
except ExperimentError as error:
    stop(str(error))
for column, wanted in (("label", arguments.method), ("net", arguments.net), ("variant", arguments.variant)):
    known = ", ".join(map(str, results[column].unique()))
    results = results if wanted is None else results[(results[column] == wanted) & (results["status"] == "done")]
    if results.empty:
        stop(f"{folder}: no finished cell with {column} {wanted}. Available: {known or 'nothing yet'}.")
if arguments.keep is not None:
    distance = (results["keep_target"] - arguments.keep).abs().where(results["status"] == "done")
    results = results[distance == distance.min()]
row = smallest_within(results, arguments.delta / 100)
if row is None:
    stop(f"{folder}: no compressed network of that kind is finished yet.")

# %% Load and test both networks
data = arguments.data or default_results().parent / "datasets"
which = {"net": int(row["net"]), "variant": row["variant"]}
keep = None if math.isnan(row["keep_target"]) else row["keep_target"]
try:
    network = load_network(folder, label=row["label"], keep=keep, repetition=int(row["repetition"]), **which)
    reference = load_network(folder, method="Reference", **which)
    tested = {
        "Reference": evaluate(folder, reference, data),
        row["label"]: evaluate(folder, network, data),
    }
except ExperimentError as error:
    stop(str(error))

# %% Print the comparison
print(f"{folder}: network {row['net']:g} {row['variant']}".rstrip())
print(f"{row['label']} at {'its own size' if keep is None else f'keep ratio {keep:.4g}'}:", end=" ")
print(f"{100 * row['keep_parameters']:.2f} % of the parameters, {100 * row['keep_flops']:.2f} % of the FLOPs\n")
primary = ReportedMetric(row["primary"], row["better"], row["unit"])
shown = [metric_named(name, primary) for name in tested["Reference"] if name != "loss"]
titles = [f"{metric.name} (%)" if metric.unit == "fraction" else metric.name for metric in shown]
print(f"{'':20} {'parameters':>12} {'loss':>8}", *(f"{title:>9}" for title in titles))
sizes = {"Reference": row["parameters_reference"], row["label"]: row["parameters"]}
for name, metrics in tested.items():
    figures = [metric.scale * metrics[metric.name] for metric in shown]
    digits = [2 if metric.unit == "fraction" else 4 for metric in shown]
    cells = [f"{figure:{max(9, len(title))}.{d}f}" for figure, title, d in zip(figures, titles, digits, strict=True)]
    print(f"{name:20} {sizes[name]:12,.0f} {metrics['loss']:8.4f}", *cells)
