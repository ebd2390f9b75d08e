"""The registry of tasks, torch-free: what the outputs of a network and the targets of a dataset mean.

A task is a `Task` (see `experiment.tasks.task`). The entry of a dataset names its task; `network.task` in a parameter
file names another one, or the user's own as `package.module:TASK`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from experiment.errors import ConfigError, described
from experiment.registry import TaskEntry, is_import_path, resolve, suggestion

if TYPE_CHECKING:
    from experiment.tasks.task import Task

ROOT = "experiment.tasks"

TASKS: dict[str, TaskEntry] = {
    entry.name: entry
    for entry in (
        TaskEntry("classification", f"{ROOT}.classification:TASK", "CrossEntropyLoss"),
        TaskEntry("language_modelling", f"{ROOT}.language_modelling:TASK", "CrossEntropyLoss"),
        TaskEntry("text_classification", f"{ROOT}.text:CLASSIFICATION", "CrossEntropyLoss"),
        TaskEntry("text_classification_mcc", f"{ROOT}.text:BY_MCC", "CrossEntropyLoss"),
        TaskEntry("text_classification_f1", f"{ROOT}.text:BY_F1", "CrossEntropyLoss"),
        TaskEntry("text_regression", f"{ROOT}.text:REGRESSION", "MSELoss"),
        TaskEntry("regression", f"{ROOT}.regression:TASK", "MSELoss"),
        TaskEntry("multilabel", f"{ROOT}.multilabel:TASK", "BCEWithLogitsLoss"),
        TaskEntry("segmentation", f"{ROOT}.segmentation:TASK", "CrossEntropyLossWithAuxiliary"),
    )
}


def find_task(name: str) -> Task:
    """The task of this name, or the user's own.

        find_task("classification").metrics[0].name      # "top1"

    Raises: ConfigError: unknown name, or an import path to something else.
    """
    if not is_import_path(name):
        if name not in TASKS:
            near = suggestion(name, TASKS) or f" Known are {', '.join(TASKS)}, and package.module:TASK."
            raise ConfigError(f"unknown task '{name}'.{near}")
        return cast("Task", resolve(TASKS[name].target))
    from experiment.tasks.task import Task  # imports torch

    own = resolve(name)
    if not isinstance(own, Task):
        raise ConfigError(f"task '{name}': expected a Task, as experiment.Task(...) makes it. Got {described(own)}.")
    return own
