"""Plot the prune potential against the amount of retraining, for experiments that sweep over it.

    python script/retrain_sweep.py                                  # every such experiment under data/results
    python script/retrain_sweep.py param/cifar/retrainsweep/resnet20.yaml --quantity flops

Such experiments have `customizations` of retraining.startEpoch or retraining.numEpochs in their parameter files. Runs
from any folder, as a program or as a notebook (jupytext --to notebook script/retrain_sweep.py).
"""

# %% Options
from __future__ import annotations

import argparse
from pathlib import Path

from experiment.errors import ExperimentError
from experiment.report import find_experiments, is_retrain_sweep, plot_retrain_sweep, read_source, retrain_sweep
from experiment.report.notebook import in_notebook, show_pictures, stop

parser = argparse.ArgumentParser(
    description="Plot the prune potential against the amount of retraining.",
    epilog="Without arguments: all such experiments in data/results of the working directory, else of this repository.",
)
parser.add_argument(
    "experiments", nargs="*", metavar="PARAM", help="parameter files, experiments' folders or folders above"
)
parser.add_argument("--results", type=Path, metavar="DIR", help="folder of all results (default: data/results)")
parser.add_argument(
    "--quantity",
    choices=("parameters", "flops"),
    default="parameters",
    help="quantity that is removed (default: parameters)",
)
parser.add_argument(
    "--deltas", type=float, nargs="+", metavar="POINTS", default=[0, 0.5, 1, 2, 3], help="allowed losses"
)
arguments = parser.parse_args([] if in_notebook() else None)  # in a notebook, edit the list

# %% Find the sweeps
try:
    sources = [read_source(folder) for folder in find_experiments(arguments.experiments, arguments.results)]
except ExperimentError as error:
    stop(str(error))
sweeps = [source for source in sources if is_retrain_sweep(source.results)]
if not sweeps:
    stop(
        f"None of the {len(sources)} experiments found sweeps over retraining. Expected results of a parameter file "
        "with at least two customizations of retraining.startEpoch or retraining.numEpochs, such as "
        "param/cifar/retrainsweep/resnet20.yaml."
    )

# %% Plot each sweep and print its table: shares removed in percent, mean over networks
deltas = [points / 100 for points in arguments.deltas]
for source in sweeps:
    epochs = source.parameters.training.num_epochs
    try:
        table = retrain_sweep(source.results, epochs, deltas, arguments.quantity)
        figure = plot_retrain_sweep(source.results, epochs, quantity=arguments.quantity, deltas=deltas)
    except ExperimentError as error:
        stop(f"{source.folder}: {error}")
    path = source.folder / "plots" / f"retrain_sweep-{arguments.quantity}.pdf"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)
    figure.savefig(path.with_suffix(".png"), dpi=200)
    print(
        f"\n{source.folder}\n{arguments.quantity} removed (%), by loss (points) and retraining (% of training epochs)\n"
    )
    table = table.assign(loss=100 * table["delta"], retraining=(100 * table["retraining"]).round(1))
    print((100 * table.pivot(index=["label", "loss"], columns="retraining", values="removed")).round(1).to_string())
    print(f"\n  plot  {path}\n        {path.with_suffix('.png')}")
    show_pictures([path.with_suffix(".png")])
