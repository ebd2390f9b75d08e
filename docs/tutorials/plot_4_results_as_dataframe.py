"""
Results as a DataFrame
======================

``load_results`` returns ``results.csv`` as a ``pandas.DataFrame`` with one row per cell, so that a question that the
report leaves open takes a few lines of pandas.
"""

# %%
# A small experiment to have results: two networks, two methods, three keep ratios.

import shlex
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt

from experiment import evaluate, load_network, load_results

work = Path(tempfile.mkdtemp())
file = work / "digits.yaml"
file.write_text("""
network: {name: lenet300_100, dataset: Digits, outputSize: 10}
training:
  batchSize: 32
  numEpochs: 4
  optimizer: SGD
  optimizerKwargs: {lr: 0.02, momentum: 0.9}
  transformsFinal: [{type: ToTensor}, {type: Normalize, kwargs: {mean: [0.3], std: [0.3]}}]
retraining: {startEpoch: 2}
experiments:
  methods: [WT, ALDS]
  mode: retrain
  numNets: 2
  spacing: [{type: manual, values: [0.4, 0.2, 0.1]}]
""")
command = shlex.split(f"-m experiment.main {file} --results {work / 'results'} -q -j 1")
print(subprocess.run([sys.executable, *command], cwd=work, stdout=subprocess.PIPE, text=True, check=True).stdout)

# %%
# The columns
# -----------
#
# ``label``, ``net``, ``repetition`` and ``keep_target`` say which cell a row is. Sizes are the achieved ones.
# Accuracies are fractions. A cell that failed has the status ``failed`` and its reason in ``error``.

frame = load_results(file, work / "results")
print(textwrap.fill(", ".join(frame.columns), 100))

# %%
# Mean accuracy of each method at each size
# -----------------------------------------

done = frame[(frame["status"] == "done") & (frame["label"] != "Reference")]
table = done.pivot_table(index="keep_target", columns="label", values="top1").sort_index(ascending=False)
(100 * table).round(1)

# %%
# How much does retraining gain?
# ------------------------------

gain = 100 * (done["top1"] - done["top1_before_retraining"])
gain.groupby([done["label"], done["keep_target"]]).mean().unstack("label").round(1)

# %%
# The smallest network within two points of its reference
# -------------------------------------------------------
#
# Compare each compressed network with the reference network that it was made from: the one with the same ``net``.

reference = frame[frame["label"] == "Reference"].set_index("net")["top1"]
good = done[done["top1"] >= done["net"].map(reference) - 0.02]
good.groupby(["label", "net"])[["keep_parameters", "keep_flops"]].min().round(3)

# %%
# A plot of your own
# ------------------

for label, rows in done.groupby("label"):
    spread = rows.groupby("keep_target")["top1"].agg(["min", "mean", "max"]) * 100
    plt.plot(100 * spread.index, spread["mean"], "o-", label=label)
    plt.fill_between(100 * spread.index, spread["min"], spread["max"], alpha=0.2)
plt.axhline(100 * reference.mean(), color="gray", linestyle=":", label="uncompressed")
plt.xscale("log")
plt.xticks([10, 20, 40], [10, 20, 40])
plt.minorticks_off()
plt.xlabel("parameters kept (%)")
plt.ylabel("accuracy (%)")
plt.legend()
plt.tight_layout()

# %%
# The networks
# ------------
#
# Every row has its network. ``load_network`` returns it in eval mode; ``evaluate`` measures it again.

net = load_network(file, method="ALDS", keep=0.2, net=1, results=work / "results")
row = done[(done["label"] == "ALDS") & (done["net"] == 1) & (done["keep_target"].round(2) == 0.2)].iloc[0]
print(f"results.csv: {row['top1']:.4f}, evaluated again: {evaluate(file, net)['top1']:.4f}")
