"""
Your own images
===============

A folder of images with one subfolder per class is a dataset. The parameter file names the
folder; nothing else is needed.
"""

# %%
# The folder
# ----------
#
# ``ImageFolder`` expects ``train/CLASS/*.png`` and ``test/CLASS/*.png`` (JPEG and other formats work too). This page
# writes scikit-learn's digits into such a folder; use your own images instead.

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from experiment import evaluate, load_network, load_results

work = Path(tempfile.mkdtemp())
digits = load_digits()
for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
    part = "test" if i % 5 == 0 else "train"
    folder = work / "my_images" / part / f"digit{label}"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((16, 16)).save(folder / f"{i:04d}.png")

for folder in sorted((work / "my_images").glob("*/digit[01]")):
    print(folder.relative_to(work), len(list(folder.iterdir())), "images")

# %%
# The parameter file
# ------------------
#
# ``root`` is the folder: an absolute path, or relative to the folder given by ``--data``. ``outputSize`` is the number
# of classes. Images are read as RGB. Transforms have the names and arguments of torchvision; resize or crop images that
# differ in size.

text = """
network:
  name: cnn5
  settings: {width: 8}
  dataset: {name: ImageFolder, settings: {root: my_images}}
  outputSize: 10
training:
  batchSize: 64
  numEpochs: 4
  optimizer: Adam
  optimizerKwargs: {lr: 0.005}
  transformsTrain: [{type: RandomCrop, kwargs: {size: 16, padding: 1}}]
  transformsFinal:
    - {type: ToTensor}
    - {type: Normalize, kwargs: {mean: [0.3, 0.3, 0.3], std: [0.3, 0.3, 0.3]}}
retraining: {startEpoch: 2}
experiments:
  methods: [WT, FT, ALDS]
  mode: retrain
  spacing: [{type: geometric, numIntervals: 3, maxVal: 0.5, minVal: 0.1}]
"""

# %%
# Run it
# ------

file = work / "my_images.yaml"
file.write_text(text)
command = ["-m", "experiment.main", str(file), "--results", str(work / "results"), "--data", str(work), "-j", "1"]
print(subprocess.run([sys.executable, *command], cwd=work, stdout=subprocess.PIPE, text=True, check=True).stdout)

# %%
# The results
# -----------

frame = load_results(file, work / "results")
for label, rows in frame[frame["label"] != "Reference"].groupby("label"):
    plt.plot(100 * rows["keep_parameters"], 100 * rows["top1"], "o-", label=label)
plt.xlabel("parameters kept (%)")
plt.ylabel("accuracy (%)")
plt.legend()
plt.tight_layout()

# %%
# ``load_network`` returns one of the compressed networks, ``evaluate`` tests a network on the test images of the file.

net = load_network(file, method="ALDS", keep=0.5, results=work / "results")
print(evaluate(file, net, data=work))
