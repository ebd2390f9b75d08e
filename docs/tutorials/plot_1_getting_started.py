"""
Your first experiment
=====================

A parameter file names a network, a dataset, compression methods and a retraining budget. One command trains the
network, compresses it with every method at every keep ratio, retrains and tests each result, and writes a report.
"""

# %%
# The parameter file
# ------------------
#
# ``param/digits/prune/lenet5.yaml`` comes with the package. It trains LeNet-5 on handwritten digits and compares five
# methods. To finish in seconds, this page trains fewer epochs and looks at fewer methods. ``--set KEY=VALUE`` overrides
# a key of the file for one run.

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from experiment import load_results

results = Path(tempfile.mkdtemp())
command = f"""
    -m experiment.main param/digits/prune/lenet5.yaml --results {results} -j 1
    --set training.numEpochs=3 --set retraining.startEpoch=1 --set experiments.numNets=1
    --set "experiments.methods=[WT, FT, ALDS]" --set "experiments.spacing=[{{type: manual, values: [0.4, 0.1, 0.03]}}]"
"""

# %%
# What would run
# --------------
#
# With ``--plan`` the command only lists the cells: one reference network, and one cell for each method and keep ratio.


def experiment(*options):
    """Run the command as a terminal would: python -m experiment.main ..."""
    arguments = [*shlex.split(command), *options]
    print(
        subprocess.run([sys.executable, *arguments], cwd=results, stdout=subprocess.PIPE, text=True, check=True).stdout
    )


experiment("--plan")

# %%
# Run it
# ------
#
# The same command without ``--plan`` runs the cells that are not done yet. You can stop it: the next call continues.

experiment()

# %%
# What comes out
# --------------
#
# Everything is in one folder, named after the parameter file. Because of the overrides, a hash is appended to the name.

folder = next(results.glob("digits/prune/lenet5*"))
for path in sorted(folder.iterdir()):
    print(path.name)

# %%
# ``results.csv`` has one row per cell. ``keep_parameters`` is the share of the parameters that is left, ``top1`` the
# test accuracy after retraining, ``top1_before_retraining`` the accuracy right after compression.

frame = load_results(folder)
frame[["label", "keep_target", "keep_parameters", "keep_flops", "top1_before_retraining", "top1", "status"]]

# %%
# The report draws the trade-off: accuracy against the share of parameters that is kept.

plt.figure(figsize=(8, 6))
plt.imshow(plt.imread(folder / "plots" / "tradeoff-top1-parameters.png"))
plt.axis("off")
plt.tight_layout()

# %%
# Open ``report.html`` in the same folder for all plots, the prune potential of each method and the environment. It is a
# single file that you can send to someone else. Its points name their cells, and its legends hide labels.
