"""What a worker tells while it computes; how it is shown is the business of whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from experiment.training.loop import EpochRecord


@dataclass(frozen=True)
class Started:
    """A reference network or a cell (`key`) has begun; `name` is for people, `units` its share of the work."""

    name: str
    units: float
    key: str = ""


@dataclass(frozen=True)
class Advanced:
    """So many units of the work under way are done (an epoch is one, compressing and testing a cell another)."""

    units: float


@dataclass(frozen=True)
class Busy:
    """What a long analysis of `name` is at, in words."""

    name: str
    text: str


@dataclass(frozen=True)
class EpochDone:
    """An epoch of `name` has ended."""

    name: str
    epoch: int
    num_epochs: int
    loss: float
    valid_top1: float | None


@dataclass(frozen=True)
class CellDone:
    """A cell has its result, which is stored."""

    key: str
    name: str
    status: str
    top1: float | None
    keep_parameters: float | None
    error: str | None


@dataclass(frozen=True)
class Note:
    """Something that the user should read."""

    text: str


Event = Started | Advanced | Busy | EpochDone | CellDone | Note
Report = Callable[[Event], None]

SECONDS_BETWEEN = 0.1  # messages cross a process boundary: a few a second are enough for a bar


def epoch_callbacks(
    name: str, num_epochs: int, images_an_epoch: int, report: Report
) -> tuple[Callable[[int], None], Callable[[EpochRecord], None]]:
    """The callbacks by which a training tells how far it is: one for batches (images just used), one for epochs."""
    pending, told = 0.0, time.monotonic()

    def on_batch(images: int) -> None:
        nonlocal pending, told
        pending += images / images_an_epoch
        if time.monotonic() - told > SECONDS_BETWEEN:
            report(Advanced(pending))
            pending, told = 0.0, time.monotonic()

    def on_epoch(record: EpochRecord) -> None:
        nonlocal pending
        report(Advanced(pending))
        pending = 0.0
        report(EpochDone(name, record.epoch, num_epochs, record.loss, record.valid_top1))

    return on_batch, on_epoch
