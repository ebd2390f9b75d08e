"""The processes of torchrun other than the first: they join each training that it announces."""

import signal
import sys
from pathlib import Path

from torch import nn

from experiment.config import Retraining
from experiment.datasets.image_data import Splits
from experiment.escaping import say
from experiment.layers.build import build
from experiment.layers.plan import Plan
from experiment.run.cell.data import Data
from experiment.run.cell.torchrun_group import FAILED, Crew, CrewLost, Job, Stop
from experiment.run.cell.training_settings import train_settings
from experiment.run.disk.network_file import untrained_network
from experiment.run.grid.hardware import Machine
from experiment.training.loop import TrainingLoop
from experiment.training.processor import use_threads


def serve(machine: Machine) -> int:
    """Join trainings until the first process sends a stop message; returns the exit status.

    Nothing is written here, so Ctrl-C may end the process at once.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    crew = Crew(machine)
    data: dict[Path, Data] = {}
    try:
        while not isinstance(message := crew.receive(), Stop):
            folder = message.datasets
            _take_part(message, crew, machine, data.setdefault(folder, Data(folder, machine.device)))
        crew.leave()
    except CrewLost as lost:
        say(f"process {crew.team.rank} of {crew.team.size} ends: {lost}", sys.stderr)
        return FAILED
    return 0


def _take_part(job: Job, crew: Crew, machine: Machine, data: Data) -> None:
    use_threads(job.parameters.threads)
    try:
        splits, network, teacher = _prepared(job, data)
    except Exception as error:  # the first process has succeeded in this
        crew.give_up(f"process {crew.team.rank} cannot join: {type(error).__name__}: {error}")
    try:
        TrainingLoop(
            network, splits.train, train_settings(job.parameters, job.training, machine), valid=splits.valid,
            stream=job.stream, device=crew.device, team=crew.team, teacher=teacher,
        ).run(job.until)  # fmt: skip
    except Exception as error:
        crew.agree_on_failure(error)


def _prepared(job: Job, data: Data) -> tuple[Splits, nn.Module, nn.Module | None]:
    """The data, a network of the right structure, and its teacher, if any. The first process sends the weights."""
    p = job.parameters
    splits = data.splits(p, job.training)
    original = untrained_network(
        p.network.name, p.network.settings, splits.input_shape, p.network.output_size, splits.example
    )
    distils = isinstance(job.training, Retraining) and job.training.distillation is not None
    return splits, build(original, Plan.from_data(job.plan, original)), original if distils else None
