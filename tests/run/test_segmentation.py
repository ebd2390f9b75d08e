"""An experiment on a folder of images and masks: figures, agreement and pictures of predictions."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score

from experiment import load_network
from experiment.main import main
from experiment.report import write_report
from experiment.report.plots import gallery
from experiment.run.disk.damaged_files import EXAMPLES


def write_images(root: Path) -> None:
    """Noise with a bright square of class 1 and a dark one of class 2; the rim of the image has no class."""
    random = np.random.default_rng(0)
    for part, number in (("train", 40), ("test", 7)):
        for kind in ("images", "masks"):
            (root / part / kind).mkdir(parents=True)
        for i in range(number):
            pixels, classes = random.integers(80, 170, (16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
            for value, (level, (y, x)) in enumerate(zip((255, 0), random.integers(1, 10, (2, 2)), strict=True), 1):
                pixels[y : y + 5, x : x + 5], classes[y : y + 5, x : x + 5] = level, value
            classes[:, 0] = 255
            Image.fromarray(pixels).save(root / part / "images" / f"{i}.png")
            Image.fromarray(classes).save(root / part / "masks" / f"{i}.png")


@pytest.mark.usefixtures("quick_workers")
def test_a_unet_on_a_folder_of_masks(
    write: Any, small: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiment.report.write_report", partial(write_report, kinds=[gallery.examples]))
    write_images(in_tmp / "mine")
    small["network"] = {
        "name": "unet", "settings": {"width": 4, "depth": 1}, "outputSize": 3,
        "dataset": {"name": "SegmentationFolder", "settings": {"root": "mine"}},
    }  # fmt: skip
    small["training"] |= {
        "batchSize": 4, "optimizer": "Adam", "optimizerKwargs": {"lr": 0.02}, "lrSchedulers": [], "numEpochs": 3,
        "transformsTrain": [{"type": "RandomHorizontalFlip"}], "transformsFinal": [{"type": "SegToTensor"}],
    }  # fmt: skip
    small["experiments"] |= {"methods": ["SVD", "FT"], "spacing": [{"type": "manual", "values": [0.7]}]}
    path = str(write(small))
    frames = []
    for workers in ("1", "2"):
        folder = in_tmp / f"results{workers}"
        assert main([path, "-q", "-j", workers, "--results", str(folder)]) == 0
        frames.append(pd.read_csv(folder / "small/results.csv"))
    columns = ["mean_iou", "pixel_accuracy", "loss", "flips", "kl"]
    pd.testing.assert_frame_equal(*(frame.sort_values("method")[columns].reset_index(drop=True) for frame in frames))
    rows = frames[0].set_index("method")
    assert set(rows["primary"]) == {"mean_iou"}
    assert rows.loc["Reference", "mean_iou"] > 0.5
    assert 0 < rows.loc["SVD", "flips"] < 1
    truth = np.stack([np.array(Image.open(in_tmp / f"mine/test/masks/{i}.png")) for i in range(7)])
    pixels = np.stack([np.array(Image.open(in_tmp / f"mine/test/images/{i}.png")) for i in range(7)])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    for method, keep in (("Reference", None), ("SVD", 0.7), ("FT", 0.7)):
        network = load_network(in_tmp / "results1/small", method=method, keep=keep)
        found = network(x).argmax(dim=1).numpy()
        expected = jaccard_score(truth[truth != 255], found[truth != 255], average="macro")
        assert rows.loc[method, "mean_iou"] == pytest.approx(expected, rel=1e-6)
        (kept,) = (in_tmp / "results1/small/cells").glob(f"*{rows.loc[method, 'cell']}/{EXAMPLES}")
        with np.load(kept, allow_pickle=False) as examples:
            assert (examples["targets"] == truth[[0, 2, 4, 6]]).all()
            assert (examples["predictions"] == found[[0, 2, 4, 6]]).all()
    assert (in_tmp / "results1/small/plots/examples.png").is_file()
