"""Write one page of all experiments: what each found, and comparisons of those that may be compared.

    python script/catalogue.py                                      # data/results/catalogue.html
    python script/catalogue.py --results /shared/results

Experiments are compared where network, data, metric and reference networks agree; otherwise the page says why not. Runs
from any folder, as a program or as a notebook (jupytext --to notebook script/catalogue.py).
"""

# %% Options
from __future__ import annotations

import argparse
from pathlib import Path

from experiment.errors import ExperimentError
from experiment.report import default_results, write_catalogue
from experiment.report.notebook import in_notebook, stop

parser = argparse.ArgumentParser(description="Write one page of all experiments.")
parser.add_argument("--results", type=Path, metavar="DIR", help="folder of all results (default: data/results)")
arguments = parser.parse_args([] if in_notebook() else None)

# %% Write the page
try:
    for path in write_catalogue(arguments.results or default_results()):
        print(path)
except ExperimentError as error:
    stop(str(error))
