"""Test networks on the data of an experiment, and draw calibration inputs from it."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path

import torch
from torch import nn

from experiment.api.results import variants_of
from experiment.config import Parameters
from experiment.datasets.calibration import calibration
from experiment.datasets.image_data import Images
from experiment.errors import CompressionError, ConfigError
from experiment.inputs import Inputs
from experiment.layers.copied_network import copied
from experiment.layers.forward_pass import forward_of
from experiment.layers.prepare_network import require_module
from experiment.run.cell.data import Data, transforms_of
from experiment.run.cell.outcome import task_of
from experiment.training.evaluation import evaluate as evaluate_network

DATASETS_FOLDER = Path("data/datasets")


def evaluate(
    path_or_param: str | Path,
    network: nn.Module,
    data: str | Path | None = None,
    *,
    variant: str | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """Test a network on the test data of an experiment, the first test set if there are several.

        evaluate("param/digits/prune/lenet5.yaml", small)      # {"loss": 0.11, "top1": 0.97, "top5": 1.0}

    Args:
        path_or_param: a parameter file or an experiment's folder.
        network: the network, which is neither changed nor moved.
        data: the folder of datasets. Default: `directories.training_data` of the file, else data/datasets.
        variant: which element of a sweep, needed if they are tested on different data.
        device: where to compute.
    Returns: `loss` and every metric of the task, such as `top1` and `top5`, accuracies as fractions.
    Raises:
        DataError: the dataset is missing or damaged.
        ConfigError: there is no such variant, or several to choose from.
        CompressionError: `network` is no network, or does not fit the data.
    """
    require_module(network)
    p = _parameters(path_or_param, variant)
    images = Data(Path(data or p.directories.training_data or DATASETS_FOLDER), device).test(p)
    copy = copied(network).to(device)
    _require_fit(copy, images, p)
    metrics = evaluate_network(
        copy, images, task=task_of(p), loss=p.training.loss, loss_kwargs=dict(p.training.loss_kwargs),
        device=torch.device(device), precision="fp32",
    )  # fmt: skip
    return metrics.columns


def _require_fit(network: nn.Module, images: Images, p: Parameters) -> None:
    """Raises: CompressionError: the network fails on a test input, or has fewer outputs than there are classes."""
    dataset, wanted = p.test_sets[0].name, p.network.output_size
    advice = "Pass a network for these inputs."
    output = task_of(p).outputs(forward_of(f"dataset {dataset}", network, images.first(1)[0], advice))
    if output.dim() < 2 or output.shape[1] < wanted:
        raise CompressionError(
            f"dataset {dataset}: expected {wanted} outputs of the network for one input. Got shape "
            f"{tuple(output.shape)}."
        )


def calibration_inputs(
    path_or_param: str | Path, data: str | Path | None = None, *, size: int = 256, variant: str | None = None
) -> Inputs:
    """Inputs from the validation part of an experiment's dataset, never from its test part.

        x = calibration_inputs("param/digits/prune/lenet5.yaml", size=64)
        result = compress(net, "PCA", keep=0.5, example=x, data=x)

    Args:
        path_or_param, data, variant: as for `evaluate`.
        size: number of inputs, at most.
    Returns: a tensor (size, channels, height, width), or several, after the test transforms, on the CPU.
    Raises: ConfigError: `size` is not a whole number above 0.
    """
    if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
        raise ConfigError(f"size must be a whole number of at least 1. Got {size!r}.")
    p = _parameters(path_or_param, variant)
    valid = Data(Path(data or p.directories.training_data or DATASETS_FOLDER), "cpu").splits(p, p.training).valid
    return calibration(valid, min(size, len(valid)), ("calibration_inputs", p.seed))[0]


def _parameters(path_or_param: str | Path, variant: str | None) -> Parameters:
    variants = variants_of(path_or_param)
    chosen = [parameters for name, parameters in variants if variant is None or name == variant]
    tests = {repr((p.network.dataset, p.experiments.dataset_test, transforms_of(p.training))) for p in chosen}
    if len(tests) != 1:
        names = ", ".join(repr(name) for name, _ in variants)
        raise ConfigError(f"{path_or_param}: which variant? Got {variant!r}. Choose one of {names}.")
    return chosen[0]
