"""The sensitivity of a reference network: the primary metric when one layer alone is compressed, without retraining.

The figures are those on a fixed sample of the validation part, since they are used to choose which layers to leave
whole. They are stored after every layer, so that an interrupted measurement continues where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiment.config import Parameters
from experiment.datasets.image_data import Batch, Images, Share, Stream
from experiment.errors import ExperimentError
from experiment.escaping import json_text, reason
from experiment.files import write_whole
from experiment.inputs import arranged, batch_size, moved, split, take
from experiment.layers.plan import State
from experiment.layers.prepare_network import prepared
from experiment.measure import count
from experiment.methods.configure import MethodSpec
from experiment.methods.one_layer import OneLayer
from experiment.random_streams import generator
from experiment.registry import InputForm
from experiment.run.cell.chain_compression import calibration_of
from experiment.run.cell.data import Data, traced_input
from experiment.run.cell.outcome import evaluate_with, task_of
from experiment.run.disk.measurements import read_measurement
from experiment.run.disk.sensitivity_table import keep_name, sensitivity_key
from experiment.run.grid.keys import FORMAT_VERSION
from experiment.run.signals import raise_if_stopped

SAMPLES = 1000


def is_measured(path: Path, spec: MethodSpec, p: Parameters) -> bool:
    """Whether a file has the figures of a method at all keep ratios."""
    found = read_measurement(path)
    own = None if found is None else found["methods"].get(sensitivity_key(spec, p))
    return own is not None and not any(_missing(unit, p) for unit in own["units"])


def measure_sensitivity(
    path: Path, network: nn.Module, specs: Sequence[MethodSpec], p: Parameters, data: Data, net: int
) -> None:
    """Measure what a file of a reference network lacks.

    Args:
        path: the file, sensitivity.json.
        specs: the methods.
        net: number of the network.
    """
    splits, device = data.splits(p, p.training), data.device
    sample = _Sample(splits.valid, ("sensitivity", p.seed, p.network.dataset.name))
    plain = prepared(network.to(device).eval())
    state = State(plain.network, moved(traced_input(splits), device), unfused=plain.unfused)
    original, calibration = count(plain.network, state.example), calibration_of(state, p, data)

    def figure(network: nn.Module) -> float:
        return evaluate_with(network, sample, p, data).values[task_of(p).primary.name]

    content = read_measurement(path)
    if content is None:
        content = {"format": FORMAT_VERSION, "samples": len(sample), "figure": figure(network), "methods": {}}
    for spec in (spec for spec in specs if not is_measured(path, spec, p)):
        stream = generator("method", p.seed, net, 0)
        try:
            one = OneLayer(spec, state, original, calibration, stream)
            units = [{"layers": [*unit.layers], "parameters": unit.parameters, "figures": {}} for unit in one.units]
            own = content["methods"].setdefault(sensitivity_key(spec, p), {"error": "", "units": units})
            for unit, row in zip(one.units, own["units"], strict=True):
                keeps = _missing(row, p)
                raise_if_stopped()
                for keep, made in zip(keeps, one.compress(unit, keeps) if keeps else (), strict=True):
                    value = math.nan if made is None else figure(made)
                    row["figures"][keep_name(keep)] = value if math.isfinite(value) else None
                _write(path, content)
        except Exception as error:  # no error of one method may stop the others
            text = str(error) if isinstance(error, ExperimentError) else f"{type(error).__name__}: {error}"
            content["methods"][sensitivity_key(spec, p)] = {"error": reason(text), "units": []}
            _write(path, content)


def _missing(unit: dict[str, Any], p: Parameters) -> list[float]:
    return [keep for keep in p.experiments.sensitivity_keeps if keep_name(keep) not in unit["figures"]]


def _write(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json_text(content, indent=1) + "\n")


class _Sample:
    """A few images of a part, drawn once and kept in memory.

    Args:
        stream: of the draw.
    """

    def __init__(self, images: Images, stream: tuple[str | int, ...]) -> None:
        order = torch.randperm(len(images), generator=generator(*stream))[:SAMPLES]
        self.input_shape: InputForm = images.input_shape
        self._x, self._y = images.take(order.sort().values)

    def __len__(self) -> int:
        return batch_size(self._x)

    def batches(
        self, batch_size: int, *, stream: Stream, channels_last: bool = False, share: Share | None = None
    ) -> Iterator[Batch]:
        """See `Images.batches`."""
        for x, y in zip(split(self._x, batch_size), torch.split(self._y, batch_size), strict=True):
            yield arranged(x, channels_last=channels_last), y

    def take(self, indices: Tensor) -> Batch:
        """See `Images.take`."""
        return take(self._x, indices), self._y[indices]

    def first(self, n: int) -> Batch:
        """See `Images.first`."""
        return self.take(torch.arange(min(n, len(self))))
