"""
Lottery tickets
===============

The lottery ticket hypothesis (`Frankle and Carbin 2019 <https://arxiv.org/abs/1803.03635>`_): a dense network contains
sparse networks that reach its accuracy when they are trained from their original initial weights. With fresh random
weights the same structures do worse. This page finds such tickets in a small network.
"""

# %%
# The experiment
# --------------
#
# ``mode: cascade-rewind`` prunes in rounds. Each round removes the smallest half of the remaining weights and trains
# the others again, from their values at the start of epoch ``retraining.startEpoch`` (0: their initial values).
# ``customizations`` repeats the experiment with another value of a key: here the same structures with random weights.

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from experiment import load_results

work = Path(tempfile.mkdtemp())
file = work / "lottery.yaml"
file.write_text("""
network: {name: lenet300_100, dataset: Digits, outputSize: 10}
training:
  batchSize: 32
  numEpochs: 3
  optimizer: SGD
  optimizerKwargs: {lr: 0.02, momentum: 0.9}
  transformsFinal: [{type: ToTensor}, {type: Normalize, kwargs: {mean: [0.3], std: [0.3]}}]
retraining: {startEpoch: 0}
experiments:
  methods: [WT]
  mode: cascade-rewind
  spacing: [{type: geometric, numIntervals: 6, maxVal: 0.5, minVal: 0.015625}]
customizations:
  - {key: [experiments, rewind], value: weights}
  - {key: [experiments, rewind], value: random}
""")
command = ["-m", "experiment.main", str(file), "--results", str(work / "results"), "-q", "-j", "1"]
print(subprocess.run([sys.executable, *command], cwd=work, stdout=subprocess.PIPE, text=True, check=True).stdout)

# %%
# Tickets against random weights
# ------------------------------
#
# The column ``variant`` says which value a row was computed with.

frame = load_results(file, work / "results")
pruned = frame[frame["label"] != "Reference"]
for variant, rows in pruned.groupby("variant"):
    mean = rows.groupby("keep_target")[["keep_parameters", "top1"]].mean()
    plt.plot(100 * mean["keep_parameters"], 100 * mean["top1"], "o-", label=variant)
plt.axhline(100 * frame[frame["label"] == "Reference"]["top1"].mean(), color="gray", linestyle=":", label="dense")
ticks = [50, 25, 12.5, 6.25, 3.12, 1.56]
plt.xscale("log")
plt.xticks(ticks, ticks)
plt.minorticks_off()
plt.xlabel("parameters kept (%)")
plt.ylabel("accuracy (%)")
plt.legend()
plt.tight_layout()

# %%
# ``python -m experiment.main param/mnist/lottery/lenet300_100.yaml`` is the full experiment: MNIST, ten rounds and
# three networks, about 20 minutes on two CPU cores. To rewind to the weights after the first epoch instead, set
# ``retraining.startEpoch=1``.
