"""What a task and its metrics are made of is checked where they are made."""

import re
from typing import Any

import pytest
import torch

from experiment import Metric, Task
from experiment.errors import ConfigError
from experiment.random_streams import generator
from experiment.tasks import TASKS, find_task


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"better": "higer"}, "metric m: better must be higher or lower. Got 'higer'."),
        ({"unit": "percent"}, "metric m: unit must be fraction or value. Got 'percent'."),
        ({"name": "m,x"}, "metric 'm,x': expected letters, digits and _"),
        ({"losses": "CrossEntropyLoss"}, "task own: losses must be a tuple, (...,). Got the text 'CrossEntropyLoss'."),
        ({"metrics": []}, "task own: metrics must be a tuple, (...,). Got a list of 0."),
        ({"metrics": ()}, "task own: needs at least one metric"),
    ],
)
def test_faults(changes: dict[str, Any], told: str) -> None:
    own = {name: changes.pop(name) for name in ("losses", "metrics") if name in changes}

    def make() -> None:
        metric = Metric(**{"name": "m", "title": "M", "update": torch.add, "compute": float, **changes})
        Task(**{"name": "own", "metrics": (metric,), "losses": ("MSELoss",), "target": torch.as_tensor, **own})

    with pytest.raises(ConfigError, match=f"^{re.escape(told)}"):
        make()


@pytest.mark.parametrize("name", TASKS)
def test_registered_tasks_keep_to_the_contract(name: str) -> None:
    task, made = find_task(name), generator("task", name)
    y = torch.tensor([0, 1, 2])
    if name == "multilabel":
        y = torch.eye(3)
    elif task.losses[0] == "MSELoss":
        y = torch.randn(3, 3, generator=made)
    elif name in ("segmentation", "language_modelling"):
        y = y.expand(3, *([3] * (2 if name == "segmentation" else 1))).clone()
        y[0, 0] = task.loss_kwargs["ignore_index"]
    outputs = torch.randn(3, 3, *y.shape[1:] if y.dtype == torch.int64 else (), generator=made)
    for metric in task.metrics:
        metric.try_out(outputs, y)
    counts = task.occurrences(y, 3)
    if y.dtype == torch.int64:
        assert counts.tolist() == [int((y == k).sum()) for k in range(3)]
    else:
        assert (None if counts is None else counts.tolist()) == ([1, 1, 1] if name == "multilabel" else None)
