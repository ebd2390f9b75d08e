"""Exported files of finished networks: written into the cell, run on the test sets in their runtimes, and measured.

What a file gave, or why there is none, is in `export.json` beside `export/`: no part of any key, so that formats can be
requested later. Networks are exported one at a time after all training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from experiment.config import Parameters
from experiment.deploy.formats import FORMATS, Format
from experiment.errors import DataError, ExperimentError, RuntimeFailed, StoreError
from experiment.escaping import json_text
from experiment.files import write_whole
from experiment.run.disk.damaged_files import FileRecord, damaged_file, manifest_of
from experiment.run.disk.results_table import EXPORT, read_measurement
from experiment.run.grid.hardware import Machine
from experiment.run.grid.keys import FORMAT_VERSION
from experiment.run.grid.plan import ExperimentPlan
from experiment.run.machine import device_in_words
from experiment.run.signals import raise_if_stopped

if TYPE_CHECKING:  # imports torch
    from torch import Tensor, nn

    from experiment.deploy.program import Deployed
    from experiment.deploy.runtime_process import RuntimeProcess
    from experiment.run.cell.data import Data
    from experiment.run.cell.reference_outputs import OutputsOf
    from experiment.training.factories import Loss

FOLDER = "export"
CALIBRATION = 256  # inputs of the validation part, at most


@dataclass(frozen=True)
class Wanted:
    """What is requested of a network, by all variants that share it."""

    folder: Path
    parameters: Parameters
    formats: tuple[str, ...]
    batches: tuple[int, ...]


def wanted_exports(plan: ExperimentPlan, finished: Mapping[str, Path], *, retry: bool) -> list[Wanted]:
    """The networks with the formats that are still to be exported, or again: on another machine, or after an error.

    Args:
        finished: key -> folder of the finished cells.
        retry: whether to try again what a runtime or an exporter refused.
    """
    variants = {variant.name: variant.parameters for variant in plan.file.variants}
    every: dict[str, Wanted] = {}
    for cell in plan.cells:
        p = variants[cell.variant]
        if cell.key in finished and p.experiments.export:
            earlier = every.get(cell.key, Wanted(finished[cell.key], p, (), ()))
            formats = dict.fromkeys((*earlier.formats, *p.experiments.export))
            batches = dict.fromkeys((*earlier.batches, *p.experiments.latency_batches))
            every[cell.key] = Wanted(earlier.folder, p, tuple(formats), tuple(batches))
    found = [(wanted, name, _device(wanted, name, retry)) for wanted in every.values() for name in wanted.formats]
    devices = {device for *_, device in found if device}
    here = _here() if None in {device for *_, device in found} or len(devices) > 1 else None
    missing: dict[Path, list[str]] = {}
    for wanted, name, device in found:
        if device is None or (here is not None and device not in ("", here)):
            missing.setdefault(wanted.folder, []).append(name)
    return [Wanted(w.folder, w.parameters, tuple(missing[w.folder]), w.batches) for w in every.values()
            if w.folder in missing]  # fmt: skip


def _device(wanted: Wanted, name: str, retry: bool) -> str | None:
    """Where the format was measured completely, empty if it was refused; None if it is to be exported."""
    record = (read_measurement(wanted.folder / EXPORT) or {"formats": {}})["formats"].get(name)
    if record is None:
        return None
    if record["error"]:
        return None if retry or (record["missing"] and not FORMATS[name].missing) else ""
    place, batches = wanted.folder / FOLDER, {row["batch"] for row in record["latency"]}
    files = {file: FileRecord.model_validate(about) for file, about in record["files"].items()}
    there = all((place / file).is_file() for file in files) and damaged_file(place, files) is None
    complete = there and batches >= set(wanted.batches) and record["threads"] == wanted.parameters.threads
    return str(record["device"]) if complete else None


def _here() -> str:
    return device_in_words(Machine("cpu"))


class Exporter:
    """Exports networks one after the other; the process of a runtime serves all of them, until it fails.

    Args:
        datasets: the folder of all datasets.
        own_names: the networks that the parameter file names.
    """

    def __init__(self, datasets: Path, own_names: Sequence[str]) -> None:
        from experiment.run.cell.data import Data

        self._data, self._own_names = Data(datasets, "cpu", readers=0), own_names
        self._processes: dict[tuple[str, int], RuntimeProcess] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def export(self, wanted: Wanted) -> Iterator[tuple[str, str]]:
        """Export a network and write what it gave into `export.json`; yields formats and errors.

        Raises: StoreError, DataError: its file is damaged, or the data are missing.
        """
        p, tests = wanted.parameters, list(self._data.tests(wanted.parameters))
        form = _deployed(wanted, self._data, self._own_names)
        found = read_measurement(wanted.folder / EXPORT) or {"formats": {}}
        with TemporaryDirectory() as folder:
            outputs = [_outputs(form.network, p, self._data, i, Path(folder)) for i in range(len(tests))]
            for name in wanted.formats:
                raise_if_stopped()
                record: dict[str, Any] = {"error": "", "missing": FORMATS[name].missing}
                try:
                    record |= self._exported(form, FORMATS[name], wanted, outputs)
                except ExperimentError as error:
                    record["error"] = str(error)
                    yield name, str(error)
                found["formats"][name] = record
        write_whole(wanted.folder / EXPORT, json_text({**found, "format": FORMAT_VERSION}, indent=1) + "\n")

    def _exported(
        self, form: Deployed, format_: Format, wanted: Wanted, outputs: Sequence[OutputsOf]
    ) -> dict[str, Any]:
        from experiment.deploy.export import write_exported
        from experiment.deploy.runtime_process import InRuntime
        from experiment.inputs import take
        from experiment.run.cell.outcome import evaluate_with, require_finite

        p, place = wanted.parameters, wanted.folder / FOLDER
        files = write_exported(form, format_, place / format_.file)
        try:
            process = self._process(format_, p.threads)
            process.open(files[0])
            network, differences = InRuntime(process, form.output), [_Difference(each) for each in outputs]
            tests = [
                evaluate_with(network, images, p, self._data, difference).columns
                for images, difference in zip(self._data.tests(p), differences, strict=True)
            ]
            latency = [{"batch": b, **process.time(take(form.example, [0] * b))} for b in wanted.batches]
        except RuntimeFailed:
            self._processes.pop((format_.name, p.threads)).close()
            raise
        require_finite(tests)
        module = format_.needs[-1] if format_.needs else "torch"
        manifest = {name: about for name, about in manifest_of(place).items() if place / name in files}
        return {
            "files": manifest, "bytes": sum(about["bytes"] for about in manifest.values()), "tests": tests,
            "difference": max(each.largest for each in differences), "latency": latency, "threads": p.threads,
            "device": _here(), "runtime": f"{module} {metadata.version(module)}",
        }  # fmt: skip

    def _process(self, format_: Format, threads: int) -> RuntimeProcess:
        from experiment.deploy.runtime_process import RuntimeProcess

        key = format_.name, threads
        if key not in self._processes:
            self._processes[key] = RuntimeProcess(format_, threads, self._own_names)
            self._stack.callback(self._processes[key].close)
        return self._processes[key]


def _deployed(wanted: Wanted, data: Data, own_names: Sequence[str]) -> Deployed:
    """The deployed form of a cell's network, with the inputs by which it is exported."""
    from experiment.datasets.calibration import calibration
    from experiment.deploy.program import deployed
    from experiment.run.disk.network_file import original_of, read_weights, rebuild

    p, path = wanted.parameters, wanted.folder / "network.pt"
    specification, packed = read_weights(path)
    original, _ = original_of(specification, path, lambda: own_names)
    network = rebuild(original, specification, packed, path)
    valid = data.splits(p, p.training).valid
    few = None
    if any(FORMATS[name].int8 for name in wanted.formats):
        few = calibration(valid, min(CALIBRATION, len(valid)), ("calibration_inputs", p.seed))[0]
    about = {"format": FORMAT_VERSION, **specification.model_dump(mode="json", exclude_none=True)}
    return deployed(network, valid.first(2)[0], calibration=few, specification=about)


def _outputs(network: nn.Module, p: Parameters, data: Data, test: int, folder: Path) -> OutputsOf:
    """The outputs of torch on a test set."""
    from experiment.run.cell.outcome import evaluate_with, task_of
    from experiment.run.cell.reference_outputs import reference_outputs

    images = list(data.tests(p))[test]
    return reference_outputs(
        network, task_of(p), len(images), lambda observer: evaluate_with(network, images, p, data, observer),
        folder / f"{test}.npy",
    )  # fmt: skip


class _Difference:
    """The largest absolute difference of outputs from torch's (an `Observer`)."""

    def __init__(self, outputs: OutputsOf) -> None:
        self._outputs, self.largest = outputs, 0.0

    def restart(self) -> None:
        self.largest = 0.0

    def observe(self, start: int, x: Any, outputs: Tensor, y: Tensor, criterion: Loss) -> None:
        self.largest = max(self.largest, float((outputs - self._outputs(start, x)).abs().max()))


def export_networks(missing: Sequence[Wanted], exporter: Exporter, say: Any) -> None:
    """Export these networks; a network whose file or data are damaged is reported and skipped."""
    told: set[tuple[str, str]] = set()
    for wanted in missing:
        try:
            for name, error in exporter.export(wanted):
                if (name, error) not in told:
                    say(f"  {wanted.folder.name}: {name}: {error}")
                    told.add((name, error))
        except (StoreError, DataError) as error:
            say(f"  not exported: {error}")
