"""The uncompressed network of an experiment: found trained, or trained now, once for all who share it."""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from torch import nn

from experiment.config import Parameters, Penalty, Retraining, Training
from experiment.errors import OtherVersion, StoreError
from experiment.files import is_whole_archive, make_folder, make_lock_file, remove_all, set_aside, writing_to
from experiment.layers.plan import Plan, State
from experiment.measure import Count, count, example_input
from experiment.networks.make_network import make_network
from experiment.random_streams import seeded
from experiment.registry import InputShape
from experiment.run.cell.data import Data
from experiment.run.cell.events import Note, Report, epoch_callbacks
from experiment.run.cell.outcome import write_history
from experiment.run.cell.rank_history import rank_log
from experiment.run.cell.torchrun_group import Crew, Job, together
from experiment.run.disk.load_weights import load_given
from experiment.run.disk.manifest import MANIFEST, damaged_file, read_manifest, write_manifest
from experiment.run.disk.network_file import load_packed, read_weights, save_weights
from experiment.run.disk.store import Directories, Store, log, reference_folder, sync_folder
from experiment.run.grid.plan import Machine, ReferenceSpec
from experiment.run.grid.resolved import resolved_channels_last, resolved_precision
from experiment.run.grid.weights_file import GivenWeights
from experiment.training.loop import SchedulerSpec, TrainSettings, train
from experiment.training.settings import DistillationSpec, PenaltySpec

HISTORY = "history.csv"


@dataclass(frozen=True)
class Context:
    """What all work of one process on one experiment shares."""

    store: Store
    directories: Directories
    machine: Machine
    data: Data
    retry_failed: bool = False
    crew: Crew | None = None  # who takes part in every training, if this process does not train alone


@dataclass(frozen=True)
class Reference:
    """A trained, uncompressed network with its size, ready to be compressed."""

    state: State
    count: Count
    folder: Path

    @property
    def network(self) -> nn.Module:
        return self.state.network


def new_network(p: Parameters, net: int, input_shape: InputShape, given: GivenWeights | None = None) -> nn.Module:
    """The network number `net` before training: its weights are the given ones, else of the seed and the number alone.

    Raises: StoreError: the given ones do not fit.
    """
    with seeded("initialisation", p.seed, net):
        network = make_network(p.network.name, p.network.settings, input_shape, p.network.output_size)
    if given is not None:
        load_given(network, given)
    return network


def architecture_of(p: Parameters, input_shape: InputShape) -> dict[str, object]:
    """What a file of weights says about the original network, so that it can be made again."""
    return {
        "name": p.network.name,
        "settings": dict(p.network.settings),
        "output_size": p.network.output_size,
        "input_shape": list(input_shape),
        **({"tokens": True} if input_shape.tokens else {}),
    }


def train_settings(training: Training, machine: Machine) -> TrainSettings:
    """A training block as the plain values that the loop takes."""
    taught = training.distillation if isinstance(training, Retraining) else None
    return TrainSettings(
        num_epochs=training.num_epochs,
        start_epoch=training.start_epoch,
        batch_size=training.batch_size,
        optimizer=training.optimizer,
        optimizer_kwargs=dict(training.optimizer_kwargs),
        schedulers=tuple(SchedulerSpec(s.type, dict(s.kwargs), dict(s.step_kwargs)) for s in training.lr_schedulers),
        loss=training.loss,
        loss_kwargs=dict(training.loss_kwargs),
        precision=resolved_precision(training, machine.auto),
        early_stop_epoch=training.early_stop_epoch,
        channels_last=resolved_channels_last(training, machine.kind, machine.auto),
        compiled=training.compiled,
        penalties=tuple(penalty_spec(block) for block in training.penalties),
        distillation=None if taught is None else DistillationSpec(taught.temperature, taught.alpha),
    )


def penalty_spec(block: Penalty) -> PenaltySpec:
    """One entry of a block's penalties as the plain values that the loop takes."""
    how = block.how or ()
    return PenaltySpec(tuple(block.layers), block.l1 or 0.0, block.l2 or 0.0, "proximal" in how, "decoupled" in how)


def obtain_reference(spec: ReferenceSpec, p: Parameters, context: Context, report: Report) -> Reference:
    """Load the trained network, training it first if nobody has.

    One process trains, others that need the same network wait, and take over if it dies.
    Raises: TrainingDiverged, DataError, and whatever the network or its data raise.
    """
    folder = reference_folder(context.directories, spec)
    input_shape = context.data.splits(p, p.training).input_shape
    lock = FileLock(make_lock_file(context.directories.trained_networks / ".locks" / f"{spec.folder}.lock"))
    held = _acquired(lock, spec, report)
    with held:
        _set_aside_damaged(folder)
        network = _loaded(folder, p, spec, input_shape)
        if network is None:
            network = new_network(p, spec.net, input_shape, spec.weights)
            _train(spec, p, context, network, folder, report)
        if spec.rewind_epoch is not None and not is_whole_archive(rewind_file(folder, spec.rewind_epoch)):
            _train_to_rewind_epoch(spec, p, context, folder, report)
    example = example_input(input_shape)
    device = torch.device(context.machine.device)
    network = network.to(device).eval()
    return Reference(State(network, example.to(device)), count(network, example.to(device)), folder)


def rewind_file(folder: Path, epoch: int) -> Path:
    """Where a reference's folder keeps its weights as they were at the start of an epoch."""
    return folder / f"rewind-{epoch}.pt"


def _acquired(lock: FileLock, spec: ReferenceSpec, report: Report) -> AcquireReturnProxy[FileLock]:
    try:
        return lock.acquire(timeout=0.2)
    except Timeout:
        report(Note(f"waiting for another process that trains {spec.folder}"))
        return lock.acquire()


def _loaded(folder: Path, p: Parameters, spec: ReferenceSpec, input_shape: InputShape) -> nn.Module | None:
    """The trained network, or None where there is none or only a damaged one, which is set aside."""
    if not folder.is_dir():
        return None
    network = new_network(p, spec.net, input_shape)
    try:
        _, packed = read_weights(folder / "network.pt")
        load_packed(network, packed, folder / "network.pt")
    except OtherVersion:
        raise
    except StoreError as error:
        log.warning("%s Set aside as %s; the network will be trained again.", error, set_aside(folder).name)
        return None
    return network


def copy_history(trained: Path, folder: Path) -> None:
    """Copy the history of a reference's training into a folder; an empty one where it was damaged."""
    if (trained / HISTORY).is_file():
        shutil.copy2(trained / HISTORY, folder / HISTORY)
    else:
        write_history(folder / HISTORY, [])


def _set_aside_damaged(folder: Path) -> None:
    """Set aside what is damaged beside a trained network; its own file says by itself whether it is whole."""
    files = {n: record for n, record in read_manifest(folder / MANIFEST).items() if record.crc32 is not None}
    while (path := damaged_file(folder, files)) is not None:
        log.warning("%s is damaged: set aside as %s. The network beside it is kept.", path, set_aside(path).name)


def _train(
    spec: ReferenceSpec, p: Parameters, context: Context, network: nn.Module, folder: Path, report: Report
) -> None:
    """Train into a folder beside the final one, which the checkpoint shares, and give it its name at the end."""
    splits = context.data.splits(p, p.training)
    settings = train_settings(p.training, context.machine)
    partial = folder.with_name(f".partial-{spec.folder}")
    writing = folder.with_name(f".writing-{spec.folder}-{uuid.uuid4().hex[:8]}")
    remove_all(folder.parent.glob(f".writing-{spec.folder}-*"))  # of processes that were killed: this one has the lock
    make_folder(writing)
    make_folder(partial)
    rewind = None if spec.rewind_epoch is None else (spec.rewind_epoch, rewind_file(partial, spec.rewind_epoch))
    on_batch, on_epoch = epoch_callbacks(f"Reference net {spec.net}", settings.num_epochs, len(splits.train), report)
    ranks = rank_log(p, partial)
    try:
        if ranks is not None:
            ranks.note(0, network)
        job = _job(spec, p, context)
        with together(context.crew, job) as team:
            records = train(
                network, splits.train, settings,
                valid=splits.valid, stream=job.stream, device=torch.device(context.machine.device),
                checkpoint=partial / "checkpoint.pt", rewind_to=rewind, on_batch=on_batch, on_epoch=on_epoch,
                measure=None if ranks is None else lambda epochs: ranks.note(epochs, network), team=team,
            )  # fmt: skip
        save_weights(writing / "network.pt", network, Plan(), architecture_of(p, splits.input_shape), net=spec.net)
        write_history(writing / HISTORY, records)
        if ranks is not None:
            ranks.write(writing)
        with writing_to(folder):
            if rewind is not None:
                shutil.copy2(rewind[1], writing)
            write_manifest(writing)
            sync_folder(writing)
            os.replace(writing, folder)
        shutil.rmtree(partial, ignore_errors=True)
    finally:
        remove_all((writing,))


def _train_to_rewind_epoch(spec: ReferenceSpec, p: Parameters, context: Context, folder: Path, report: Report) -> None:
    """Train once more from the start up to an epoch that nobody kept; the finished network stays as it is."""
    assert spec.rewind_epoch is not None
    report(Note(f"{spec.folder}: training up to epoch {spec.rewind_epoch} again, for the weights to rewind to"))
    splits = context.data.splits(p, p.training)
    network = new_network(p, spec.net, splits.input_shape, spec.weights)
    job = _job(spec, p, context, until=spec.rewind_epoch)
    with together(context.crew, job) as team:
        train(
            network, splits.train, train_settings(p.training, context.machine),
            valid=splits.valid, stream=job.stream, device=torch.device(context.machine.device),
            rewind_to=(spec.rewind_epoch, rewind_file(folder, spec.rewind_epoch)), until=job.until, team=team,
        )  # fmt: skip


def _job(spec: ReferenceSpec, p: Parameters, context: Context, until: int | None = None) -> Job:
    return Job(p, p.training, Plan().to_data(), ("train", p.seed, spec.net), context.directories.datasets, until)
