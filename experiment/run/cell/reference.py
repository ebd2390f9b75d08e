"""The reference network: the trained, uncompressed network, which experiments with the same training share."""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from torch import nn

from experiment.config import Parameters
from experiment.datasets.image_data import Splits
from experiment.errors import OtherVersion, StoreError, log
from experiment.files import (
    is_whole_archive,
    make_folder,
    make_lock_file,
    remove_all,
    see_changes,
    set_aside,
    writing_to,
)
from experiment.inputs import moved
from experiment.layers.plan import Plan, State
from experiment.layers.prepare_network import prepared
from experiment.measure import Count, count
from experiment.networks.make_network import make_network
from experiment.random_streams import seeded
from experiment.registry import InputForm
from experiment.run.cell.context import Context
from experiment.run.cell.data import traced_input
from experiment.run.cell.events import Note, ReportEvent
from experiment.run.cell.outcome import epoch_done, task_of, write_history
from experiment.run.cell.rank_history import rank_log
from experiment.run.cell.torchrun_group import Job
from experiment.run.cell.train_network import training_loop
from experiment.run.disk.damaged_files import MANIFEST, damaged_file, read_manifest, write_manifest
from experiment.run.disk.load_weights import load_given
from experiment.run.disk.network_file import load_packed, read_weights, save_weights
from experiment.run.disk.specification import form_data
from experiment.run.disk.store import sync_folder
from experiment.run.grid.cells import ReferenceSpec, rewind_file
from experiment.run.grid.weights_file import GivenWeights
from experiment.tasks.task import Task
from experiment.training.checkpoint import save_tensors
from experiment.training.loop import TrainingLoop

HISTORY = "history.csv"


@dataclass(frozen=True)
class Reference:
    """A trained, uncompressed network that compression starts from.

    Attributes:
        folder: where it is stored among the trained networks.
        architecture: what a weights file says about it, so that it can be made again.
        original: the network whose modules the state's network has unfused; it shares its weights.
    """

    state: State
    count: Count
    folder: Path
    architecture: dict[str, object]
    original: nn.Module

    @property
    def network(self) -> nn.Module:
        return self.state.network


def new_network(p: Parameters, net: int, splits: Splits, given: GivenWeights | None = None) -> nn.Module:
    """Network number `net` before training: with the given weights, else random ones of the seed and the number.

    Raises: StoreError: the given weights do not fit.
    """
    with seeded("initialisation", p.seed, net):
        network = make_network(
            p.network.name, p.network.settings, splits.input_shape, p.network.output_size, example=splits.example,
            outputs=task_of(p).outputs,
        )  # fmt: skip
    if given is not None:
        load_given(network, given)
    return network


def obtain_reference(spec: ReferenceSpec, p: Parameters, context: Context, report: ReportEvent) -> Reference:
    """Load the trained network; train it first if it does not exist.

    One process trains; others that need the same network wait, and take over if it dies.

    Raises: TrainingDiverged, DataError, and any error of the network or its data.
    """
    folder = context.directories.trained_networks / spec.folder
    splits = context.data.splits(p, p.training)
    lock = FileLock(make_lock_file(context.directories.trained_networks / ".locks" / f"{spec.folder}.lock"))
    held = _acquired(lock, spec, report)
    with held:
        see_changes(folder.parent)
        _set_aside_damaged(folder)
        network = _loaded(folder, p, spec, splits)
        if network is None:
            network = new_network(p, spec.net, splits, spec.weights)
            _train(spec, p, context, network, folder, report)
        if spec.rewind_epoch is not None and not is_whole_archive(rewind_file(folder, spec.rewind_epoch)):
            _train_to_rewind_epoch(spec, p, context, folder, report)
    device = torch.device(context.machine.device)
    network = network.to(device).eval()
    plain = prepared(network)
    state = State(plain.network, moved(traced_input(splits), device), unfused=plain.unfused)
    return Reference(state, count(plain.network, state.example), folder, _architecture(p, splits.input_shape), network)


def _architecture(p: Parameters, input_shape: InputForm) -> dict[str, object]:
    return {
        "name": p.network.name,
        "settings": dict(p.network.settings),
        "output_size": p.network.output_size,
        **form_data(input_shape),
    }


def _acquired(lock: FileLock, spec: ReferenceSpec, report: ReportEvent) -> AcquireReturnProxy[FileLock]:
    try:
        return lock.acquire(timeout=0.2)
    except Timeout:
        report(Note(f"waiting for another process that trains {spec.folder}"))
        return lock.acquire()


def _loaded(folder: Path, p: Parameters, spec: ReferenceSpec, splits: Splits) -> nn.Module | None:
    """The trained network; None if there is none, or it is damaged, and then it is renamed."""
    if not folder.is_dir():
        return None
    network = new_network(p, spec.net, splits)
    try:
        _, packed = read_weights(folder / "network.pt")
        load_packed(network, packed, folder / "network.pt")
    except OtherVersion:
        raise
    except StoreError as error:
        log.warning("%s Set aside as %s; the network will be trained again.", error, set_aside(folder).name)
        return None
    return network


def copy_history(trained: Path, folder: Path, task: Task) -> None:
    """Copy the history of a reference network into a folder; an empty one if it was damaged."""
    if (trained / HISTORY).is_file():
        shutil.copy2(trained / HISTORY, folder / HISTORY)
    else:
        write_history(folder / HISTORY, [], task)


def _set_aside_damaged(folder: Path) -> None:
    """Set aside damaged files next to a trained network, whose own file has checksums."""
    files = {n: record for n, record in read_manifest(folder / MANIFEST).items() if record.crc32 is not None}
    while (path := damaged_file(folder, files)) is not None:
        log.warning("%s is damaged: set aside as %s. The network beside it is kept.", path, set_aside(path).name)


def _train(
    spec: ReferenceSpec, p: Parameters, context: Context, network: nn.Module, folder: Path, report: ReportEvent
) -> None:
    """Train into a folder beside the final one, which holds the checkpoint, and rename it at the end."""
    partial = folder.with_name(f".partial-{spec.folder}")
    writing = folder.with_name(f".writing-{spec.folder}-{uuid.uuid4().hex[:8]}")
    remove_all(folder.parent.glob(f".writing-{spec.folder}-*"))  # of killed processes: this one holds the lock
    make_folder(writing)
    make_folder(partial)
    ranks = rank_log(p, partial)
    try:
        if ranks is not None:
            ranks.note(0, network)
        with training_loop(
            network, _job(spec, p, context), context, report, checkpoint=partial / "checkpoint.pt"
        ) as loop:
            _save_rewind_weights(loop, network, spec, partial)
            for record in loop.epochs():
                _save_rewind_weights(loop, network, spec, partial)
                if ranks is not None:
                    ranks.note(len(loop.records), network)
                loop.save_checkpoint()
                report(epoch_done(f"Reference net {spec.net}", record.epoch, p.training.num_epochs, record, p))
        input_shape = context.data.splits(p, p.training).input_shape
        save_weights(writing / "network.pt", network, Plan(), _architecture(p, input_shape), net=spec.net)
        write_history(writing / HISTORY, loop.records, task_of(p))
        if ranks is not None:
            ranks.write(writing)
        with writing_to(folder):
            if spec.rewind_epoch is not None and rewind_file(partial, spec.rewind_epoch).exists():
                shutil.copy2(rewind_file(partial, spec.rewind_epoch), writing)
            write_manifest(writing)
            sync_folder(writing)
            os.replace(writing, folder)
        shutil.rmtree(partial, ignore_errors=True)
    finally:
        remove_all((writing,))


def _save_rewind_weights(loop: TrainingLoop, network: nn.Module, spec: ReferenceSpec, folder: Path) -> None:
    if loop.next_epoch == spec.rewind_epoch:
        save_tensors(rewind_file(folder, loop.next_epoch), network.state_dict())


def _train_to_rewind_epoch(
    spec: ReferenceSpec, p: Parameters, context: Context, folder: Path, report: ReportEvent
) -> None:
    """Train again from the start to the rewind epoch, whose weights are missing; the trained network is kept."""
    assert spec.rewind_epoch is not None
    report(Note(f"{spec.folder}: training up to epoch {spec.rewind_epoch} again, for the weights to rewind to"))
    network = new_network(p, spec.net, context.data.splits(p, p.training), spec.weights)
    job = _job(spec, p, context, until=spec.rewind_epoch)
    with training_loop(network, job, context, lambda event: None) as loop:
        for _ in loop.epochs(until=spec.rewind_epoch):
            pass
        save_tensors(rewind_file(folder, spec.rewind_epoch), network.state_dict())


def _job(spec: ReferenceSpec, p: Parameters, context: Context, until: int | None = None) -> Job:
    return Job(p, p.training, Plan().to_data(), ("train", p.seed, spec.net), context.directories.datasets, until)
