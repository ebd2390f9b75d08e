"""The training of a network in a worker: on its data, in all processes under torchrun, with its progress reported."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from experiment.datasets.image_data import Batch, Images, Share, Stream, count_batches
from experiment.run.cell.context import Context
from experiment.run.cell.events import Advanced, EpochStarted, ReportEvent
from experiment.run.cell.torchrun_group import Job, together
from experiment.run.cell.training_settings import train_settings
from experiment.training.loop import EpochRecord, TrainingLoop

SECONDS_BETWEEN_REPORTS = 0.1  # reports cross a process boundary


@contextmanager
def training_loop(
    network: nn.Module,
    job: Job,
    context: Context,
    report: ReportEvent,
    *,
    checkpoint: Path | None = None,
    teacher: nn.Module | None = None,
    earlier: Sequence[EpochRecord] = (),
) -> Iterator[TrainingLoop]:
    """The training that `job` describes; the other processes under torchrun take part in it."""
    splits = context.data.splits(job.parameters, job.training)
    with (
        together(context.crew, job) as team,
        TrainingLoop(
            network, ReportedImages(splits.train, report),
            train_settings(job.parameters, job.training, context.machine), valid=splits.valid, stream=job.stream,
            device=context.machine.device, checkpoint=checkpoint, team=team, teacher=teacher,
            earlier=earlier, begins=lambda epoch: report(EpochStarted(epoch, job.training.num_epochs)),
        ) as loop,
    ):  # fmt: skip
        yield loop


class ReportedImages:
    """Training images that report which share of an epoch has been used, a few times per second."""

    def __init__(self, images: Images, report: ReportEvent) -> None:
        self._images, self._report = images, report

    def __len__(self) -> int:
        return len(self._images)

    def batches(
        self, batch_size: int, *, stream: Stream, channels_last: bool = False, share: Share | None = None
    ) -> Iterator[Batch]:
        """See `Images.batches`."""
        total, used = count_batches(len(self), batch_size, training=True), 0
        reported_at = time.monotonic()
        for batch in self._images.batches(batch_size, stream=stream, channels_last=channels_last, share=share):
            yield batch
            used += 1
            if time.monotonic() - reported_at > SECONDS_BETWEEN_REPORTS:
                self._report(Advanced(used / total))
                used, reported_at = 0, time.monotonic()
        self._report(Advanced(used / total))
