"""Update the reports of experiments, print their prune-potential tables and list the files.

    python script/results_viewer.py                                 # every experiment under data/results
    python script/results_viewer.py param/cifar/prune/resnet20.yaml
    python script/results_viewer.py data/results/cifar --tex all.tex
    python script/results_viewer.py --compare data/results/a data/results/b     # methods of several experiments
    python script/results_viewer.py param/cifar/prune/resnet20.yaml --pareto    # the networks that no other one beats
    python script/results_viewer.py param/cifar/prune/resnet20.yaml --interactive    # open report.html

Runs from any folder, as a program or as a notebook (jupytext --to notebook script/results_viewer.py).
"""

# %% Options
from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from experiment.errors import ExperimentError
from experiment.report import (
    LabelStyles,
    compare_experiments,
    find_experiments,
    latex_table,
    markdown_table,
    pareto_table,
    read_source,
    write_report,
)
from experiment.report.notebook import in_notebook, show_pictures, stop

parser = argparse.ArgumentParser(
    description="Update the reports of experiments and print their prune-potential tables.",
    epilog="Without arguments: all experiments in data/results of the working directory, else of this repository.",
)
parser.add_argument(
    "experiments", nargs="*", metavar="PARAM", help="parameter files, experiments' folders or folders above"
)
parser.add_argument("--results", type=Path, metavar="DIR", help="folder of all results (default: data/results)")
parser.add_argument(
    "--quantity",
    choices=("parameters", "flops", "bytes"),
    default="parameters",
    help="quantity that is removed (default: parameters)",
)
parser.add_argument("--tex", type=Path, metavar="FILE", help="also write one LaTeX table of all experiments")
add = parser.add_mutually_exclusive_group().add_argument
add(
    "--compare",
    nargs="+",
    metavar="PARAM",
    help="compare the methods of experiments with the same reference networks; folders name runs with --set",
)
add("--pareto", action="store_true", help="print the networks on the Pareto fronts instead of prune potentials")
parser.add_argument("--interactive", action="store_true", help="open the HTML reports in the web browser")
arguments = parser.parse_args([] if in_notebook() else None)  # in a notebook, edit the list

# %% Compare experiments
if arguments.compare:
    try:
        targets = [*arguments.experiments, *arguments.compare]
        found = find_experiments(targets, arguments.results, overridden=False)
        compared = compare_experiments(found, arguments.results)
    except ExperimentError as error:
        stop(str(error))
    print(compared.text)
    print(f"  plot    {compared.plot}")
    show_pictures([compared.plot])
    raise SystemExit

# %% Find the experiments
try:
    folders = find_experiments(arguments.experiments, arguments.results)
except ExperimentError as error:
    stop(str(error))
if not folders:
    stop("No results yet. Run an experiment first: python -m experiment.main param/digits/prune/lenet5.yaml")

# %% Write the reports and print the tables
frames, problems = [], []
for folder in folders:
    try:
        report = write_report(folder)
        source = read_source(folder)
    except ExperimentError as error:
        problems.append(str(error))
        continue
    frames.append(source.results)
    styles = LabelStyles(source.parameters.network_names)
    if arguments.pareto:
        print(f"\n{folder}\n\n{pareto_table(source, styles)}")
    else:
        print(f"\n{folder}\n\nPrune potential: {arguments.quantity} removed in percent (and how many times smaller)\n")
        print(markdown_table(source.results, arguments.quantity, styles=styles))
    print(f"\n  report  {report.markdown}\n          {report.html}\n  table   {report.table}")
    print(f"  plots   {folder / 'plots'}: {len(report.plots)} files")
    for plot in report.main_plots:
        print(f"          {plot}")
    show_pictures(report.main_plots)
    if arguments.interactive and not webbrowser.open(report.html.resolve().as_uri()):
        problems.append(f"{report.html}: no web browser found. Open the file yourself.")

# %% One LaTeX table of all experiments
if arguments.tex is not None and frames:
    import pandas as pd

    arguments.tex.write_text(latex_table(pd.concat(frames, ignore_index=True)), encoding="utf-8")
    print(f"\n{arguments.tex}")
if problems:
    stop("\n".join(problems))
