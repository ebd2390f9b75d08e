"""Where work runs with Ray: on all nodes of a cluster, as many pieces at a time as their cores and GPUs bear."""

from __future__ import annotations

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

from experiment.errors import ConfigError, ExperimentError
from experiment.run.disk.store import Directories
from experiment.run.grid.resources import Resources
from experiment.run.workers.deaths import Lost
from experiment.run.workers.pool import Listener, run_in_pool
from experiment.run.workers.queue import Queue, Work
from experiment.run.workers.ray_worker import Home, Mailbox, do_work
from experiment.run.workers.setup import Setup, Site

SECONDS_TO_ANSWER = 10.0  # for the cluster that RAY_ADDRESS names
SECONDS_TO_END = 5.0  # for tasks that are cancelled


def run_on_ray(
    queue: Queue, setup: Setup, listen: Listener, say: Callable[[str], None], *, most: int | None = None
) -> None:
    """Do all work as tasks of Ray, on the cluster that RAY_ADDRESS names or that runs here, else on one of its own.

    Args:
        most: pieces of work at a time; None for as many as the nodes bear.
    Raises: ConfigError: no cluster answers, or none of its nodes is large enough for a cell.
    """
    with _connected():
        pool = _Tasks(setup, {setup.sites[work.experiment].resources for work in queue.waiting}, most)
        nodes = len(_nodes())
        say(f"Ray: {nodes} {'node' if nodes == 1 else 'nodes'}, {pool.size} at a time")
        run_in_pool(pool, queue, setup, listen)


@contextmanager
def _connected() -> Iterator[None]:
    if ray.is_initialized():  # by the program that called: it is not ours to end
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        _knock(address)
        ray.init(logging_level=logging.ERROR, include_dashboard=False)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"RAY_ADDRESS={address}" if address else "the cluster on this machine, or a new one"
        raise ConfigError(
            f"--executor ray: cannot connect to {where}: {_first_line(error)}. Set RAY_ADDRESS to the address of a "
            "cluster that runs, or to 'local' for one of its own."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises: OSError: nobody listens at host:port, where Ray would try for many minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()


class _Tasks:
    """The tasks under way; Ray finds a node for each, we say how many there are."""

    def __init__(self, setup: Setup, sizes: set[Resources], most: int | None) -> None:
        self.setup, self.sizes, self.most = _with_absolute_paths(setup), sizes, most
        self._refuse_what_fits_nowhere()
        self.size = self.room()
        path = tuple(str(Path(folder).absolute()) for folder in sys.path)
        self.home = Home(str(Path.cwd()), path, setup.most_threads)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.mailbox: Any = (
            ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Mailbox)
            .options(scheduling_strategy=here)  # where the command runs: it outlives any other node
            .remote()
        )
        self.functions = {each: as_task(do_work, each) for each in self.sizes}
        self.tasks: dict[Any, Work] = {}
        self.started: dict[str, Work] = {}

    @property
    def working(self) -> bool:
        return bool(self.tasks)

    @property
    def idle(self) -> bool:
        return len(self.tasks) < self.size

    def room(self) -> int:
        """How many pieces of work to hand to Ray at a time: nodes come and go, and where none is left, one waits."""
        if self.most is not None:
            return self.most
        return max(1, sum(max(each.fit(*node) for each in self.sizes) for node in _nodes()))

    def start(self, work: Work) -> None:
        task = self.functions[self.setup.sites[work.experiment].resources]
        self.started[work.name] = work
        self.tasks[task.remote(pickle.dumps(work), pickle.dumps(self.setup), self.home, self.mailbox)] = work

    def receive(self, timeout: float) -> Sequence[tuple[Work, Any]]:
        if not self.tasks:
            time.sleep(timeout)
        ready = ray.wait(list(self.tasks), timeout=timeout)[0] if self.tasks else []
        letters = map(pickle.loads, ray.get(self.mailbox.empty.remote()))
        told: list[tuple[Work, Any]] = [(self.started[name], event) for name, event in letters]
        told += [(self.tasks.pop(task), _outcome(task)) for task in ready]
        self.size = self.room()
        return told

    def let_save(self) -> None:
        """Nothing: Ray has no way to ask a task to end that is sure to reach it. Checkpoints stay as they are."""

    def stop(self) -> None:
        for task in self.tasks:
            ray.cancel(task, force=True)  # everything that counts is on the disk, whole
        if self.tasks:
            ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=SECONDS_TO_END)
        ray.kill(self.mailbox)
        # No reference may outlive the connection: the frames of an interrupt would hold them until the process ends.
        self.tasks.clear()
        self.mailbox = None

    def _refuse_what_fits_nowhere(self) -> None:
        nodes = _nodes()
        for each in self.sizes if self.most is None else ():
            if not any(each.fit(*node) for node in nodes):
                there = "; ".join(f"{cpus:g} CPUs and {gpus:g} GPUs" for cpus, gpus in nodes)
                raise ConfigError(
                    f"--executor ray: a cell takes {each.cpus} CPUs and {each.gpus:g} GPUs, and no node has as much "
                    f"(there: {there}). Set resources in the parameter file, start a larger node, or, where the "
                    "cluster grows by itself, say with -j how many cells to ask it for."
                )


def as_task(function: Callable[..., Any], each: Resources) -> Any:
    """A function as Ray is to run it; deaths are counted and retried by us, as everywhere."""
    # CUDA keeps to the GPU that a process was first given, and what it has allocated: such a process is not used again.
    options = {"num_cpus": each.cpus, "num_gpus": each.gpus, "max_retries": 0, "max_calls": 1 if each.gpus else 0}
    return ray.remote(**options)(function)


def _nodes() -> list[tuple[float, float]]:
    """The cores and GPUs of every node that is alive."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]


def _with_absolute_paths(setup: Setup) -> Setup:
    def absolute(site: Site) -> Site:
        given = site.directories
        folders = (given.results, given.trained_networks, given.datasets)
        return replace(site, folder=site.folder.absolute(), directories=Directories(*(f.absolute() for f in folders)))

    return replace(setup, sites=tuple(absolute(site) for site in setup.sites))


def _outcome(task: Any) -> bool | Lost:
    """True (done), False (held by others), or why it was not done."""
    try:
        return bool(ray.get(task))
    except RayTaskError as error:
        if isinstance(error.cause, ExperimentError):
            return Lost(str(error.cause), fatal=True)
        return Lost(f"{type(error.cause).__name__}: {error.cause}")
    except WorkerCrashedError:
        return Lost("its worker process died (killed, or out of memory)")
    except RayError as error:  # out of memory, the node is gone, ...
        return Lost(f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
