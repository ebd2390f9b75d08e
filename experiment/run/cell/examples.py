"""Predictions for a few test images, if there is one for every pixel: the file from which a report draws them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from experiment.config import Parameters
from experiment.inputs import call_network
from experiment.layers.forward_pass import evaluating
from experiment.run.cell.data import Data
from experiment.run.disk.damaged_files import EXAMPLES
from experiment.run.grid.task_name import task_name
from experiment.tasks import find_task

NUMBER, SIDE = 4, 128  # images, evenly spread over the test set, and pixels, to which larger ones are thinned out


def write_examples(folder: Path, network: nn.Module, p: Parameters, data: Data) -> None:
    """Write images (N, H, W, C), targets and predictions (N, H, W), all uint8, if the network predicts maps."""
    task, images = find_task(task_name(p)), next(iter(data.tests(p)))
    x, y = images.take(torch.linspace(0, len(images) - 1, min(NUMBER, len(images))).round().long())
    predictions = task.distribution.predictions
    if predictions is None or not isinstance(x, Tensor) or x.dim() != 4 or y.shape[1:] != x.shape[2:]:
        return
    with evaluating(network), torch.inference_mode():
        found = predictions(task.outputs(call_network(network, x)))
    low, high = x.amin(), x.amax()
    shown = ((x - low) / (high - low).clamp(min=1e-12) * 255).permute(0, 2, 3, 1)
    step = -(-max(x.shape[2:]) // SIDE)
    arrays = {"images": shown, "targets": y, "predictions": found}
    thin = {name: array[:, ::step, ::step].to("cpu", torch.uint8).numpy() for name, array in arrays.items()}
    np.savez_compressed(folder / EXAMPLES, allow_pickle=False, **thin)
