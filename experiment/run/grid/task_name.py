"""Which task an experiment has, without torch: the dataset's, unless the parameter file names another one."""

import contextlib
from collections.abc import Mapping
from typing import Any

from experiment.config import Parameters
from experiment.datasets import find_dataset
from experiment.errors import ConfigError
from experiment.registry import is_import_path
from experiment.tasks import TASKS, find_task
from experiment.user_code import source_hash

DEFAULT = "classification"


def task_name(p: Parameters) -> str:
    """The name of the task, or its import path."""
    dataset = find_dataset(p.network.dataset.name)
    return p.network.task or (dataset.task if dataset is not None else DEFAULT)


def task_key(p: Parameters) -> Mapping[str, Any]:
    """The part of a key for the task; empty for the first version of the dataset's own task."""
    name = task_name(p)
    if is_import_path(name):
        return {"task": {"name": name, "source": source_hash(name.partition(":")[0])}}
    version = TASKS[name].version if name in TASKS else 1
    dataset = find_dataset(p.network.dataset.name)
    expected = dataset.task if dataset is not None else DEFAULT
    return {} if name == expected and version == 1 else {"task": {"name": name, "version": version}}


def metric_facts(p: Parameters) -> dict[str, Any]:
    """The names of the metrics of the task, and how its primary one is compared.

    Those of classification need no torch, and stand for those of a task that cannot be made.
    """
    found = {"metrics": ["top1", "top5"], "better": "higher", "unit": "fraction"}
    with contextlib.suppress(ConfigError):
        if task_name(p) != DEFAULT:
            metrics = find_task(task_name(p)).metrics
            found = {"metrics": [m.name for m in metrics], "better": metrics[0].better, "unit": metrics[0].unit}
    return found


def default_loss(p: Parameters) -> str | None:
    """The loss that a file need not name; None for the user's own task."""
    entry = TASKS.get(task_name(p))
    return None if entry is None else entry.loss
