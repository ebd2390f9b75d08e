"""Test images beside their maps of classes and those that networks predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from experiment.report.plots.figure import new_figure, set_panel_title, set_title
from experiment.report.results_folder import read_arrays
from experiment.run.disk.damaged_files import EXAMPLES

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

Arrays: TypeAlias = "dict[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]"

MOST_EXAMPLES = 3  # compressed networks
SIDE = 1.3  # inches of an image
IGNORED = 255
_NAMES = ("images", "targets", "predictions")


def read_examples(folder: Path, cells: Sequence[str]) -> dict[str, Arrays]:
    """The examples of those cells that have some: images (N, H, W, C), targets and predictions (N, H, W)."""
    return {
        cell: arrays
        for cell, arrays in read_arrays(folder, cells, EXAMPLES, _NAMES)
        if arrays["images"].shape[:3] == arrays["targets"].shape == arrays["predictions"].shape
    }


def plot_examples(examples: Mapping[str, Arrays], title: str) -> Figure:
    """A row per image: the image, its classes, and the predictions of every network, by name."""
    import matplotlib
    import numpy as np

    first = next(iter(examples.values()))
    columns = {"image": first["images"], "classes": first["targets"]}
    columns |= {name: arrays["predictions"] for name, arrays in examples.items()}
    rows = len(first["images"])
    figure, panels = new_figure(len(columns), rows, height=SIDE * rows + 0.6, panel_width=SIDE, legend=False)
    most = max(int(maps[maps != IGNORED].max(initial=0)) for name, maps in columns.items() if name != "image")
    palette = matplotlib.colormaps["tab20"].with_extremes(bad="white")
    for i, axes in enumerate(panels):
        (name, arrays), row = list(columns.items())[i % len(columns)], i // len(columns)
        axes.set_axis_off()
        if row == 0:
            set_panel_title(axes, name)
        if name == "image":
            axes.imshow(arrays[row].repeat(3, axis=2) if arrays.shape[3] == 1 else arrays[row])
        else:
            shown = np.ma.masked_equal(arrays[row], IGNORED)
            axes.imshow(shown, cmap=palette, vmin=0, vmax=max(most, 1), interpolation="nearest")
    set_title(figure, title)
    return figure
