"""Exported files of finished networks: written into the cell, run on the test sets in their runtimes, and measured.

What a file gave, or why there is none, is in `export.json` beside `export/`: no part of any key, so that formats can be
requested later. Networks are exported one at a time after all training.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from experiment.config import Parameters
from experiment.deploy.formats import FORMATS, UNFINISHED, Format
from experiment.errors import CannotWrite, ExperimentError, RuntimeFailed, first_line
from experiment.escaping import json_text
from experiment.files import write_whole
from experiment.run.disk.damaged_files import FileRecord, damaged_file, manifest_of
from experiment.run.disk.measurements import EXPORT, read_measurement
from experiment.run.grid.hardware import Machine
from experiment.run.grid.keys import FORMAT_VERSION
from experiment.run.grid.plan import ExperimentPlan
from experiment.run.machine import device_in_words
from experiment.run.signals import raise_if_stopped

if TYPE_CHECKING:  # imports torch
    from torch import Tensor

    from experiment.deploy.program import Deployed
    from experiment.deploy.runtime_process import RuntimeProcess
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
    devices = {(w.folder, name): _device(w, name, retry) for w in every.values() for name in w.formats}
    good = {""} if None in devices.values() else {"", *map(str, devices.values())}
    if None in devices.values() or len(good) > 2:  # a latency is missing, or they are of several machines
        good = {"", _here()}
    found = []
    for w in every.values():
        missing = tuple(name for name in w.formats if devices[w.folder, name] not in good)
        found += [Wanted(w.folder, w.parameters, missing, w.batches)] if missing else []
    return found


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

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.close()

    def export(self, wanted: Wanted) -> Iterator[tuple[str, str]]:
        """Export a network and write what it gave into `export.json`; yields formats and errors.

        Raises: StoreError, DataError: its file is damaged, or the data are missing.
        """
        for left in (wanted.folder / FOLDER).glob(f"{UNFINISHED}*"):  # of a run that was killed
            shutil.rmtree(left)
        form = self._deployed(wanted)
        found = read_measurement(wanted.folder / EXPORT) or {"formats": {}}
        with TemporaryDirectory() as folder:
            outputs = self._outputs(form, wanted.parameters, Path(folder))
            for name in wanted.formats:
                raise_if_stopped()
                record: dict[str, Any] = {"error": "", "missing": FORMATS[name].missing}
                try:
                    record |= self._exported(form, FORMATS[name], wanted, outputs)
                except CannotWrite:
                    raise
                except Exception as error:  # whatever a runtime returns, the cell and the others are done
                    known = isinstance(error, ExperimentError)
                    record["error"] = str(error) if known else f"{type(error).__name__}: {first_line(error)}"
                    yield name, record["error"]
                found["formats"][name] = record
        write_whole(wanted.folder / EXPORT, json_text({**found, "format": FORMAT_VERSION}, indent=1) + "\n")

    def _deployed(self, wanted: Wanted) -> Deployed:
        from experiment.datasets.calibration import calibration
        from experiment.deploy.program import deployed
        from experiment.run.disk.network_file import original_of, read_weights, rebuild

        p, path = wanted.parameters, wanted.folder / "network.pt"
        specification, packed = read_weights(path)
        network = rebuild(original_of(specification, path, lambda: self._own_names)[0], specification, packed, path)
        valid, few = self._data.splits(p, p.training).valid, None
        if any(FORMATS[name].int8 for name in wanted.formats):
            few = calibration(valid, min(CALIBRATION, len(valid)), ("calibration_inputs", p.seed))[0]
        about = {"format": FORMAT_VERSION, **specification.model_dump(mode="json", exclude_none=True)}
        return deployed(network, valid.first(2)[0], calibration=few, specification=about)

    def _outputs(self, form: Deployed, p: Parameters, folder: Path) -> list[OutputsOf]:
        """The outputs of torch on every test set."""
        from experiment.run.cell.outcome import evaluate_with, task_of
        from experiment.run.cell.reference_outputs import reference_outputs

        def outputs(i: int, images: Any) -> OutputsOf:
            def evaluate(observer: Any) -> object:
                return evaluate_with(form.network, images, p, self._data, observer)

            return reference_outputs(form.network, task_of(p), len(images), evaluate, folder / f"{i}.npy")

        return [outputs(i, images) for i, images in enumerate(self._data.tests(p))]

    def _exported(
        self, form: Deployed, format_: Format, wanted: Wanted, outputs: Sequence[OutputsOf]
    ) -> dict[str, Any]:
        from experiment.deploy.export import write_exported
        from experiment.deploy.runtime_process import InRuntime, RuntimeProcess
        from experiment.inputs import take
        from experiment.run.cell.outcome import evaluate_with, require_finite

        p, place = wanted.parameters, wanted.folder / FOLDER
        files, key = write_exported(form, format_, place / format_.file), (format_.name, p.threads)
        if key not in self._processes:
            self._processes[key] = RuntimeProcess(format_, p.threads, self._own_names)
        process, differences = self._processes[key], [_Difference(each) for each in outputs]
        try:
            process.open(files[0])
            network, pairs = InRuntime(process, form.output), zip(self._data.tests(p), differences, strict=True)
            tests = [evaluate_with(network, images, p, self._data, each).columns for images, each in pairs]
            latency = [{"batch": b, **process.time(take(form.example, [0] * b))} for b in wanted.batches]
        except RuntimeFailed:
            self._processes.pop(key).close()
            raise
        require_finite(tests)
        module = format_.needs[-1] if format_.needs else "torch"
        manifest = {name: about for name, about in manifest_of(place).items() if place / name in files}
        return {
            "files": manifest, "bytes": sum(about["bytes"] for about in manifest.values()), "tests": tests,
            "difference": max(each.largest for each in differences), "latency": latency, "threads": p.threads,
            "device": _here(), "runtime": f"{module} {metadata.version(module)}",
        }  # fmt: skip


class _Difference:
    """The largest absolute difference of outputs from torch's (an `Observer`)."""

    def __init__(self, outputs: OutputsOf) -> None:
        self._outputs, self.largest = outputs, 0.0

    def restart(self) -> None:
        self.largest = 0.0

    def observe(self, start: int, x: Any, outputs: Tensor, y: Tensor, criterion: Loss) -> None:
        self.largest = max(self.largest, float((outputs - self._outputs(start, x)).abs().max()))
