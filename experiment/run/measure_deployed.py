"""Latency, memory, bytes, response to noise, sensitivity and exported files of finished networks, where requested.

Networks are measured one at a time after all training, because other work on the machine would distort latencies.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiment.config import Parameters
from experiment.errors import DataError, StoreError, plural
from experiment.escaping import json_text
from experiment.files import write_whole
from experiment.registry import InputForm, InputShape
from experiment.run.cell.events import cell_name
from experiment.run.disk.measurements import BYTES, LATENCY, MEMORY, NOISE, SENSITIVITY, read_measurement
from experiment.run.disk.results_table import requested
from experiment.run.disk.sensitivity_table import TABLE, write_sensitivity_table
from experiment.run.disk.store import Store
from experiment.run.export_deployed import Exporter, wanted_exports
from experiment.run.grid.keys import FORMAT_VERSION
from experiment.run.grid.methods import REFERENCE
from experiment.run.grid.plan import ExperimentPlan
from experiment.run.machine import device_in_words

Say = Callable[[str], None]
MEASUREMENTS = ("latency", "memory", "bytes", "noise", "sensitivity")  # after all training


def measure_deployed(
    plan: ExperimentPlan, store: Store, results: Mapping[str, Mapping[str, Any]], datasets: Path, say: Say,
    *, retry_failed: bool = False,
) -> bool:  # fmt: skip
    """Write what finished cells lack: latency.json, memory.json, bytes.json, noise.json, sensitivity.json, export.json.

    Torch is imported only if something is to be measured. A network whose file is damaged is reported and skipped.

    Args:
        datasets: their folder, read for noise, exports, and inputs that consist of several tensors.
        retry_failed: whether to export again what an exporter or a runtime refused.
    Returns: whether anything was measured.
    """
    exporting = any(variant.parameters.experiments.export for variant in plan.file.variants)
    if not exporting and not any(requested(plan, what) for what in MEASUREMENTS):
        (store.folder / TABLE).unlink(missing_ok=True)
        return False
    with store.lock("measure", "measures finished networks"):
        folders = store.cell_folders()
        finished = {key: folders[key] for key, r in results.items() if r["status"] == "done" and key in folders}
        measured = _measure_latency(plan, finished, datasets, say)
        measured = _measure_memory(plan, finished, datasets, say) or measured
        measured = _measure_noise(plan, finished, datasets, say) or measured
        measured = _measure_bytes(plan, finished, say) or measured
        _measure_sensitivity(plan, finished, store, datasets, say)
        return _export(plan, finished, datasets, say, retry=retry_failed) or measured


def _wanted(plan: ExperimentPlan, finished: Mapping[str, Path], what: str) -> dict[str, tuple[Parameters, set[int]]]:
    """Key -> parameters and batch sizes: several variants may share a network and request different batches."""
    settings, found = requested(plan, what), dict[str, tuple[Parameters, set[int]]]()
    variants = {variant.name: variant.parameters for variant in plan.file.variants}
    for cell in plan.cells:
        if cell.key in finished and cell.variant in settings:
            _, batches = found.setdefault(cell.key, (variants[cell.variant], set()))
            batches.update(settings[cell.variant].latency_batches)
    return found


def _measure_latency(plan: ExperimentPlan, finished: Mapping[str, Path], datasets: Path, say: Say) -> bool:
    """Make the missing measurements, and repeat latencies of other machines, which are not comparable."""
    here, wanted, devices = device_in_words(plan.machine), _wanted(plan, finished, "latency"), dict[str, str]()
    for key, (p, batches) in wanted.items():
        found = read_measurement(finished[key] / LATENCY)
        if found and found["threads"] == p.threads and {row["batch"] for row in found["batches"]} >= batches:
            devices[key] = found["device"]
    if len(devices) == len(wanted) and len(set(devices.values())) <= 1:
        return False
    missing = [key for key in wanted if devices.get(key) != here]
    say(f"measuring the latency of {plural(len(missing), 'network')}, one at a time, on {here}")

    def latency_of(key: str) -> dict[str, Any]:
        from experiment.measure import measure_latency

        p, batches = wanted[key]
        network, inputs = _deployed(finished[key], p, plan, datasets)
        rows = [asdict(measure_latency(network, inputs, batch, p.threads)) for batch in sorted(batches)]
        return {"device": here, "threads": p.threads, "batches": rows}

    for key in missing:
        _measure(finished[key] / LATENCY, lambda key=key: latency_of(key), say)  # type: ignore[misc]
    return bool(missing)


def _deployed(folder: Path, p: Parameters, plan: ExperimentPlan, datasets: Path) -> tuple[Any, Any]:
    """The network of a cell with masks baked in, on the device, and the form of its inputs, or inputs."""
    from experiment.layers.masks import bake_masks
    from experiment.run.cell.data import Data

    network, shape = _load(folder, plan)
    several = not isinstance(shape, InputShape)
    inputs = Data(datasets, "cpu", readers=0).splits(p, p.training).example if several else shape
    return bake_masks(network).to(plan.machine.device).eval(), inputs


def _measure_memory(plan: ExperimentPlan, finished: Mapping[str, Path], datasets: Path, say: Say) -> bool:
    missing = {}
    for key, (p, batches) in _wanted(plan, finished, "memory").items():
        found = read_measurement(finished[key] / MEMORY)
        if found is None or not {row["batch"] for row in found["batches"]} >= batches:
            missing[finished[key]] = (p, batches)

    def memory_of(folder: Path) -> dict[str, Any]:
        from experiment.measure import measure_memory

        p, batches = missing[folder]
        network, inputs = _deployed(folder, p, plan, datasets)
        found = [measure_memory(network, inputs, batch) for batch in sorted(batches)]
        return {"weights": found[0].weights, "batches": [{"batch": m.batch, "peak": m.peak} for m in found]}

    for folder in missing:
        _measure(folder / MEMORY, lambda folder=folder: memory_of(folder), say)  # type: ignore[misc]
    return bool(missing)


def _export(plan: ExperimentPlan, finished: Mapping[str, Path], datasets: Path, say: Say, *, retry: bool) -> bool:
    missing = wanted_exports(plan, finished, retry=retry)
    if not missing:
        return False
    formats = ", ".join(dict.fromkeys(name for wanted in missing for name in wanted.formats))
    say(f"exporting {plural(len(missing), 'network')} to {formats}, and testing the files one at a time")
    with Exporter(datasets, [variant.parameters.network.name for variant in plan.file.variants]) as exporter:
        told: set[tuple[str, str]] = set()
        for wanted in missing:
            try:
                for problem in exporter.export(wanted):
                    if problem not in told:
                        say(f"  {wanted.folder.name}: {': '.join(problem)}")
                        told.add(problem)
            except (StoreError, DataError) as error:
                say(f"  not exported: {error}")
    return True


def _measure_noise(plan: ExperimentPlan, finished: Mapping[str, Path], datasets: Path, say: Say) -> bool:
    """Compare networks with their reference network on noisy inputs of the first test set."""
    settings = requested(plan, "noise")
    references = {(task.variant.name, task.cell.net): task.cell.key for task in plan.references}
    variants = {variant.name: variant.parameters for variant in plan.file.variants}
    missing = {}
    for cell in plan.cells:
        reference = references[cell.variant, cell.net]
        if cell.key in finished and reference in finished and cell.variant in settings:
            found, levels = read_measurement(finished[cell.key] / NOISE), settings[cell.variant].noise_levels
            if found is None or [row["eps"] for row in found["levels"]] != levels:
                missing[cell.key] = (finished[reference], variants[cell.variant])
    if not missing:
        return False
    say(f"measuring the response of {plural(len(missing), 'network')} to noise")
    from experiment.run.cell.data import Data
    from experiment.run.cell.outcome import task_of
    from experiment.training.noise_response import noise_response

    data, device = Data(datasets, plan.machine.device, readers=0), plan.machine.device

    def response(key: str) -> dict[str, Any]:
        folder, p = missing[key]
        network, reference = (_load(place, plan)[0].to(device) for place in (finished[key], folder))
        levels = p.experiments.noise_levels
        return {"levels": noise_response(network, reference, data.test(p), task_of(p), levels, p.seed)}

    for key in missing:
        _measure(finished[key] / NOISE, lambda key=key: response(key), say)  # type: ignore[misc]
    return True


def _measure_sensitivity(
    plan: ExperimentPlan, finished: Mapping[str, Path], store: Store, datasets: Path, say: Say
) -> None:
    """Compress every layer of the reference networks alone, and write sensitivity.csv."""
    tasks = [task for task in plan.references if task.variant.name in requested(plan, "sensitivity")]
    refused = dict[str, str]()
    if tasks:  # what follows imports torch
        from experiment.methods.one_layer import why_not
        from experiment.run.cell.data import Data
        from experiment.run.measure_sensitivity import is_measured, measure_sensitivity

        compared = [spec for spec in plan.methods if spec is not None and spec.entry.label != REFERENCE]
        refused = {spec.label: why for spec in compared if (why := why_not(spec)) is not None}
        specs = [spec for spec in compared if spec.label not in refused]
        data = Data(datasets, plan.machine.device, readers=0)
        for task in tasks:
            path, p = finished.get(task.cell.key, Path()) / SENSITIVITY, task.variant.parameters
            if task.cell.key not in finished or all(is_measured(path, spec, p) for spec in specs):
                continue
            say(f"measuring how much {cell_name(task.cell)} depends on each layer, with {plural(len(specs), 'method')}")
            for label, why in refused.items():
                say(f"  not with {label}: {why}")
            try:
                measure_sensitivity(path, _load(path.parent, plan)[0], specs, p, data, task.cell.net)
            except (StoreError, DataError) as error:
                say(f"  not measured: {error}")
    write_sensitivity_table(store, plan, refused)


def _measure_bytes(plan: ExperimentPlan, finished: Mapping[str, Path], say: Say) -> bool:
    folders = [finished[key] for key in _wanted(plan, finished, "bytes")]
    missing = [folder for folder in folders if read_measurement(folder / BYTES) is None]
    for folder in missing:
        _measure(folder / BYTES, lambda folder=folder: _sparse_bytes(folder, plan), say)  # type: ignore[misc]
    return bool(missing)


def _sparse_bytes(folder: Path, plan: ExperimentPlan) -> dict[str, Any]:
    from experiment.measure import count_sparse_bytes

    sizes = count_sparse_bytes(_load(folder, plan)[0])
    return {"bytes_bitmask": sizes.bitmask, "bytes_csr": sizes.csr, "sparse_format": sizes.smallest}


def _measure(path: Path, measurement: Callable[[], Mapping[str, Any]], say: Say) -> None:
    """Write a measurement to a file, unless the network beside it is damaged."""
    if path.is_file() and read_measurement(path) is None:
        say(f"{path} is damaged or of another version and is measured again.")
    try:
        content = {"format": FORMAT_VERSION, **measurement()}
    except (StoreError, DataError) as error:
        say(f"  not measured: {error}")
        return
    write_whole(path, json_text(content, indent=1) + "\n")


def _load(folder: Path, plan: ExperimentPlan) -> tuple[Any, InputForm]:
    """The network of a cell, and the form of one input."""
    from experiment.run.disk.network_file import original_of, read_weights, rebuild

    path = folder / "network.pt"
    specification, packed = read_weights(path)
    names = [variant.parameters.network.name for variant in plan.file.variants]
    original, shape = original_of(specification, path, lambda: names)
    return rebuild(original, specification, packed, path), shape
