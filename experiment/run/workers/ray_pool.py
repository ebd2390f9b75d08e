"""A pool of Ray tasks, on all nodes of a cluster."""

import logging
import os
import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from experiment.errors import ConfigError, ExperimentError, plural
from experiment.run.cell.context import Context, max_threads
from experiment.run.disk.store import Directories, Store
from experiment.run.grid.hardware import Resources
from experiment.run.workers.pool import SECONDS_TO_SAVE, Contexts, Listener, WorkerLost, run_in_pool
from experiment.run.workers.processes import DIED
from experiment.run.workers.queue import Queue, Work
from experiment.run.workers.ray_worker import Driver, Mailbox, compute_task

SECONDS_TO_ANSWER = 10.0  # for the cluster at RAY_ADDRESS
SECONDS_TO_END = 5.0  # for cancelled tasks


def run_on_ray(
    queue: Queue, contexts: Contexts, listen: Listener, say: Callable[[str], None], *, most: int | None = None
) -> None:
    """Do all work as Ray tasks, on the cluster at RAY_ADDRESS or on this machine, else on a new local cluster.

    Args:
        most: number of pieces of work at a time; None for as many as the nodes allow.
    Raises: ConfigError: no cluster answers, or none of its nodes is large enough for a cell.
    """
    with _connected():
        pool = RayTasks(contexts, {contexts[work.experiment].resources for work in queue.waiting}, most, say)
        run_in_pool(pool, queue, contexts, listen)


@contextmanager
def _connected() -> Iterator[None]:
    if ray.is_initialized():  # by the calling program, which also ends it
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        _require_listener(address)
        ray.init(logging_level=logging.ERROR, include_dashboard=False)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"RAY_ADDRESS={address}" if address else "the cluster on this machine, or a new one"
        raise ConfigError(
            f"--executor ray: cannot connect to {where}: {_first_line(error)}. Set RAY_ADDRESS to the address of a "
            "running cluster, or to 'local' for a new one."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Raises: OSError: nobody listens at host:port, where Ray would try for many minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()


class RayTasks:
    """The tasks under way. Ray chooses the node of each. Nodes come and go, which is said."""

    def __init__(self, contexts: Contexts, sizes: set[Resources], most: int | None, say: Callable[[str], None]) -> None:
        self.resources = [context.resources for context in contexts]
        self.sizes, self.most, self.say, self.said = sizes, most, say, ""
        self._require_large_nodes()
        self._look_at_nodes()
        self.contexts = pickle.dumps(tuple(_with_absolute_paths(context) for context in contexts))
        path = tuple(str(Path(folder).absolute()) for folder in sys.path)
        self.driver = Driver(str(Path.cwd()), path, max_threads(contexts))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.mailbox: Any = (
            ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Mailbox)
            .options(scheduling_strategy=here)  # the node of the command, which outlives the others
            .remote()
        )
        self.functions = {each: as_task(compute_task, each) for each in sizes}
        self.tasks: dict[Any, Work] = {}
        self.started: dict[str, Work] = {}

    @property
    def working(self) -> bool:
        return bool(self.tasks)

    @property
    def idle(self) -> bool:
        return len(self.tasks) < self.size

    def start(self, work: Work) -> None:
        task = self.functions[self.resources[work.experiment]]
        self.started[work.name] = work
        self.tasks[task.remote(pickle.dumps(work), self.contexts, self.driver, self.mailbox)] = work

    def receive(self, timeout: float) -> Sequence[tuple[Work, Any]]:
        if not self.tasks:
            time.sleep(timeout)
        ready = ray.wait(list(self.tasks), timeout=timeout)[0] if self.tasks else []
        letters = map(pickle.loads, ray.get(self.mailbox.empty.remote()))
        messages: list[tuple[Work, Any]] = [(self.started[name], event) for name, event in letters]
        messages += [(self.tasks.pop(task), _outcome(task)) for task in ready]
        self._look_at_nodes()
        return messages

    def let_save(self) -> None:
        ray.get(self.mailbox.stop.remote())
        if self.tasks:
            ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=SECONDS_TO_SAVE)

    def stop(self) -> None:
        tasks = list(self.tasks)
        running = ray.wait(tasks, num_returns=len(tasks), timeout=0)[1] if tasks else []
        for task in running:
            ray.cancel(task, force=True)  # results are written atomically
        if running:
            ray.wait(running, num_returns=len(running), timeout=SECONDS_TO_END)
        ray.kill(self.mailbox)
        # No reference may outlive the connection, and the traceback of an interrupt keeps this object alive.
        self.tasks.clear()
        self.mailbox = None

    def _look_at_nodes(self) -> None:
        """Decide how many tasks to submit at a time. If no node is large enough, one task waits for a new one."""
        nodes = _nodes()
        possible = sum(max(each.fit(*node) for each in self.sizes) for node in nodes)
        self.size = self.most or max(1, possible)
        needed = " and ".join(f"{each.cpus} CPUs and {each.gpus:g} GPUs" for each in self._too_large(nodes))
        text = f"Ray: {plural(len(nodes), 'node')}, " + (
            f"waiting for one with {needed}" if needed else f"{self.size} at a time"
        )
        if text != self.said:
            self.say(text)
        self.said = text

    def _too_large(self, nodes: Sequence[tuple[float, float]]) -> list[Resources]:
        return [each for each in self.sizes if not any(each.fit(*node) for node in nodes)]

    def _require_large_nodes(self) -> None:
        nodes = _nodes()
        if self.most is None:
            for each in self._too_large(nodes):
                available = "; ".join(f"{cpus:g} CPUs and {gpus:g} GPUs" for cpus, gpus in nodes)
                raise ConfigError(
                    f"--executor ray: a cell needs {each.cpus} CPUs and {each.gpus:g} GPUs, and no node has as many "
                    f"(available: {available}). Set resources in the parameter file, start a larger node, or, if the "
                    "cluster scales automatically, set the number of cells at a time with -j."
                )


def as_task(function: Callable[..., Any], each: Resources) -> Any:
    """A function as a Ray task. Retries are left to `run_in_pool`."""
    # A process keeps its first GPU and its memory on it, so a process that used a GPU is not reused.
    options = {"num_cpus": each.cpus, "num_gpus": each.gpus, "max_retries": 0, "max_calls": 1 if each.gpus else 0}
    return ray.remote(**options)(function)


def _nodes() -> list[tuple[float, float]]:
    """The cores and GPUs of every living node."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(each.get("CPU", 0.0), each.get("GPU", 0.0)) for each in resources]


def _with_absolute_paths(context: Context) -> Context:
    d = context.directories
    folders = (d.results, d.trained_networks, d.datasets)
    directories = Directories(*(folder.absolute() for folder in folders))
    return replace(context, store=Store(context.store.folder.absolute()), directories=directories)


def _outcome(task: Any) -> bool | WorkerLost:
    try:
        return bool(ray.get(task))
    except RayTaskError as error:
        if isinstance(error.cause, ExperimentError):
            return WorkerLost(str(error.cause), fatal=True)
        return WorkerLost(f"{type(error.cause).__name__}: {error.cause}")
    except WorkerCrashedError:
        return WorkerLost(DIED)
    except RayError as error:  # out of memory, a lost node, ...
        return WorkerLost(f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
