"""Latency and bytes of finished networks as they are deployed, measured where a parameter file asks for them.

One network at a time and after all training, for other work on the machine would be measured with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiment.errors import StoreError
from experiment.escaping import json_text
from experiment.files import write_whole
from experiment.run.disk.extra_columns import BYTES, LATENCY, asking, done_folders, read_extra
from experiment.run.disk.store import Store
from experiment.run.grid.keys import FORMAT_VERSION
from experiment.run.grid.plan import ExperimentPlan
from experiment.run.machine import device_in_words


def measure_deployed(
    plan: ExperimentPlan, store: Store, results: Mapping[str, Mapping[str, Any]], say: Callable[[str], None]
) -> bool:
    """Write latency.json and bytes.json into the folders of finished cells that lack them.

    The latencies of one experiment are those of one machine: where some are missing, those of others are made again.
    Torch is imported only where something is to be measured.
    Returns: whether anything was. A network whose file is damaged is named and left out.
    """
    wanted = {what for v in plan.file.variants for what in v.parameters.experiments.measure}
    if not wanted & {"latency", "bytes"}:
        return False
    measured = False
    with FileLock(store.lock_file("measure")):
        folders = store.index()
        done = {key for key, result in results.items() if result["status"] == "done"}
        for what, measure in (("latency", _measure_latency), ("bytes", _measure_bytes)):
            asked = done_folders(plan, what, folders, done)
            if asked:
                measured |= measure(plan, {key: folders[key] for key in asked}, say)
    return measured


def _measure_latency(plan: ExperimentPlan, folders: Mapping[str, Path], say: Callable[[str], None]) -> bool:
    here, asked = device_in_words(plan.machine), asking(plan, "latency")
    threads_of = {variant.name: variant.parameters.threads for variant in plan.file.variants}
    wanted: dict[str, set[int]] = {}
    threads: dict[str, int] = {}
    for cell in plan.cells:  # variants may share a network and ask for other batches of it
        if cell.key in folders and cell.variant in asked:
            wanted.setdefault(cell.key, set()).update(asked[cell.variant].latency_batches)
            threads[cell.key] = threads_of[cell.variant]
    devices: dict[str, str] = {}  # on which those were measured that are as they should be
    for key, folder in folders.items():
        found = read_extra(folder / LATENCY)
        if found and found["threads"] == threads[key] and {row["batch"] for row in found["batches"]} >= wanted[key]:
            devices[key] = found["device"]
    if len(devices) == len(folders) and len(set(devices.values())) == 1:
        return False
    missing = [key for key in folders if devices.get(key) != here]
    _tell_damaged([folders[key] / LATENCY for key in missing], say)
    say(f"measuring the latency of {len(missing)} networks, one at a time, on {here}")
    for key in missing:
        try:
            rows = _latencies(folders[key], sorted(wanted[key]), threads[key], plan)
        except StoreError as error:
            say(f"  not measured: {error}")
            continue
        _write(folders[key] / LATENCY, {"device": here, "threads": threads[key], "batches": rows})
    return bool(missing)


def _latencies(folder: Path, batches: Sequence[int], threads: int, plan: ExperimentPlan) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from experiment.layers.masks import bake_masks
    from experiment.measure import measure_latency

    network, input_shape = _load(folder, plan)
    deployed = bake_masks(network).to(plan.machine.device).eval()
    return [asdict(measure_latency(deployed, input_shape, batch, threads)) for batch in batches]


def _measure_bytes(plan: ExperimentPlan, folders: Mapping[str, Path], say: Callable[[str], None]) -> bool:
    missing = [folder for folder in folders.values() if read_extra(folder / BYTES) is None]
    if not missing:
        return False
    _tell_damaged([folder / BYTES for folder in missing], say)
    from experiment.measure import count_sparse_bytes

    for folder in missing:
        try:
            sizes = count_sparse_bytes(_load(folder, plan)[0])
        except StoreError as error:
            say(f"  not measured: {error}")
            continue
        _write(
            folder / BYTES,
            {"bytes_bitmask": sizes.bitmask, "bytes_csr": sizes.csr, "sparse_format": sizes.smallest},
        )
    return True


def _tell_damaged(paths: Sequence[Path], say: Callable[[str], None]) -> None:
    for path in paths:
        if path.is_file() and read_extra(path) is None:
            say(f"{path} is damaged or of another version: it is made again.")


def _load(folder: Path, plan: ExperimentPlan) -> tuple[Any, tuple[int, ...]]:
    """A cell's network, and the shape of one input."""
    from experiment.run.disk.network_file import original_of, read_weights, rebuild

    path = folder / "network.pt"
    specification, packed = read_weights(path)
    names = [variant.parameters.network.name for variant in plan.file.variants]
    original, shape = original_of(specification, path, lambda: names)
    return rebuild(original, specification, packed, path), shape


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json_text({"format": FORMAT_VERSION, **content}, indent=1) + "\n")
