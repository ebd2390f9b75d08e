"""The `slurm` block of a parameter file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from experiment.config.schema.training import Block, Name, Number, Whole, refuse

TAKEN = (  # options of sbatch that follow from other settings, or that the command needs
    "account", "array", "cpus-per-task", "error", "gpus-per-node", "mem", "ntasks-per-node", "open-mode", "output",
    "partition", "signal", "time",
)  # fmt: skip


class Slurm(Block):
    """What `--executor slurm` requests for each job. It does not affect results."""

    partition: Name | None = None
    """Partition. Default: the cluster's."""
    account: Name | None = None
    """Account that pays. Default: the cluster's."""
    time: Annotated[Whole, Field(ge=5)] = 240
    """Minutes that a job may run. It then saves the last finished epoch and queues again."""
    memory: Annotated[Number, Field(gt=0)] | None = None
    """GiB of memory. Default: the cluster's."""
    setup: list[Name] = []
    """Shell commands before the job, such as `module load cuda`."""
    options: dict[str, Any] = {}
    """Other options of sbatch by their long names, such as `{qos: high, exclude: node7, exclusive: true}`."""

    @field_validator("options")
    @classmethod
    def _free(cls, options: dict[str, Any]) -> dict[str, Any]:
        taken = [key for key in options if key.replace("_", "-") in TAKEN]
        text = "follows from -j, --device, `resources`, other keys of `slurm`, or the command. Remove it."
        refuse(options, [((key,), text) for key in taken])
        return options
