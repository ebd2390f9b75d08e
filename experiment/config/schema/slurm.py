"""The `slurm` block of a parameter file."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from experiment.config.schema.training import Block, Name, Number, Whole, refuse
from experiment.errors import described

TAKEN = (  # options of sbatch that follow from other settings, or that the command needs
    "account", "array", "cpus-per-task", "error", "gpus-per-node", "mem", "ntasks-per-node", "open-mode", "output",
    "partition", "signal", "time",
)  # fmt: skip
EXPECTED = {
    "time": "must be a whole number of minutes from 5 to 525,600 (a year), for example 120",
    "memory": "must be a number of GiB from 0.1 to 100,000, for example 32",
}
Word = Annotated[Name, StringConstraints(pattern=r"^\S+$")]
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class Slurm(Block):
    """What `--executor slurm` requests for each job. It does not affect results."""

    partition: Word | None = None
    """Partition. Default: the cluster's."""
    account: Word | None = None
    """Account that pays. Default: the cluster's."""
    time: Annotated[Whole, Field(ge=5, le=525_600)] = 240
    """Minutes that a job may run. It then saves the last finished epoch and queues again."""
    memory: Annotated[Number, Field(ge=0.1, le=100_000)] | None = None
    """GiB of memory. Default: the cluster's."""
    setup: list[Name] = []
    """Shell commands before the job, such as `module load cuda`."""
    options: dict[str, Any] = {}
    """Other options of sbatch by their long names, such as `{qos: high, exclude: node7, exclusive: true}`."""

    @field_validator(*EXPECTED, mode="wrap")
    @classmethod
    def _amount(cls, value: object, check: Callable[[object], object], info: ValidationInfo) -> object:
        try:
            return check(value)
        except ValidationError as error:
            raise PydanticCustomError("amount", "{text}", {"text": EXPECTED[str(info.field_name)]}) from error

    @field_validator("options")
    @classmethod
    def _free(cls, options: dict[str, Any]) -> dict[str, Any]:
        refuse(options, [((key,), text) for key, value in options.items() if (text := _fault(key, value))])
        return options


def _fault(key: str, value: object) -> str:
    """What is wrong with an option of sbatch; empty if nothing is."""
    if not _OPTION.fullmatch(key):
        return "is not the name of an option: letters, digits and hyphens, without leading hyphens, such as exclude."
    if key.replace("_", "-") in TAKEN:
        return "follows from -j, --device, `resources`, other keys of `slurm`, or the command. Remove it."
    fits = isinstance(value, int | float) or (isinstance(value, str) and value.isprintable())
    return "" if fits else f"must be one line of text, a number, true or false. Got {described(value)}."
