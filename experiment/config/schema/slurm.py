"""The `slurm` block of a parameter file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from experiment.config.schema.training import Block, Name, Number, Whole, refuse

TAKEN = {  # options of sbatch -> where they come from
    "partition": "slurm.partition", "account": "slurm.account", "time": "slurm.time", "mem": "slurm.memory",
    "cpus-per-task": "resources.cpus", "gpus-per-node": "--device cuda", "array": "-j", "signal": "the command",
    "output": "the command", "error": "the command", "open-mode": "the command", "ntasks-per-node": "the command",
}  # fmt: skip


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
        names = {key: key.replace("_", "-") for key in options}
        taken = [((key,), f"comes from {TAKEN[name]}. Remove it.") for key, name in names.items() if name in TAKEN]
        wrong = [
            ((key,), f"must be text, a whole number or true. Got {value!r}.")
            for key, value in options.items()
            if not (value is True or (isinstance(value, str | int) and value is not False and value != ""))
        ]
        refuse(options, [*taken, *wrong])
        return options
