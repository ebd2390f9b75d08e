"""The executor ray on a cluster of two nodes on this machine: workers and nodes that die, and a user who stops it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pandas as pd
import pytest
import torch
from filelock import FileLock

from experiment.main import main
from experiment.run.workers.queue import Queue, Work

pytestmark = pytest.mark.slow

pytest.importorskip("ray", reason="Ray is an extra: pip install 'experiment[ray]'")

TIMES = ["seconds_compress", "seconds_retrain", "pareto"]
SECONDS = 300.0  # until a test gives up waiting
MEMORY_MONITOR = "RAY_memory_monitor_refresh_ms"  # milliseconds; 0 for off
OBJECTS = 80_000_000  # bytes: the least that Ray takes; nothing of ours goes there

# A network that leaves a file with the name of the node that trains it, and does what other files tell it.
OWN = """
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from experiment.training import checkpoint

calls = 0


class Obedient(nn.Sequential):
    def forward(self, x):
        if self.training:
            obey()
        return super().forward(x)


def obey():
    global calls
    calls += 1
    node = sys.modules["ray"].get_runtime_context().get_node_id() if "ray" in sys.modules else "none"
    Path(f".{node}").write_text(str(os.getpid()))
    Path(f".{node}").rename(f"trained-on-{node}")
    if calls % 15 == 0 and Path("kill-once").exists():
        Path("kill-once").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if Path("kill-always").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    while Path("wait").exists() or (calls > 10 and Path("wait-after-an-epoch").exists()):
        Path("waits").touch()
        time.sleep(0.05)


def make(input_shape, output_size):
    if Path("wait-after-an-epoch").exists():
        checkpoint.MAX_SHARE = -1.0  # checkpoints are written where a training ends or is told to, at no other time
    return Obedient(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, output_size))


def load(root, train):
    generator = torch.Generator().manual_seed(int(train))
    labels = torch.randint(2, (250,), generator=generator)
    images = torch.randint(100, (250, 1, 8, 8), generator=generator) + 100 * labels[:, None, None, None]
    return TensorDataset(images.to(torch.uint8), labels)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core, one with what Ray takes for a GPU, and a connection: later tests find workers warm."""
    import ray
    from ray.cluster_utils import Cluster

    # Ray kills workers when the memory of the whole machine runs low, whoever uses it
    os.environ[MEMORY_MONITOR] = "0"
    head = {"num_cpus": 1, "object_store_memory": OBJECTS, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=nodes.address, logging_level="ERROR")  # on the node that stays: the other one may be lost
        nodes.add_node(num_cpus=1, num_gpus=1, object_store_memory=OBJECTS)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()
        del os.environ[MEMORY_MONITOR]


@pytest.fixture
def own(small: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The small experiment with the obedient network on two independent networks."""
    (in_tmp / "my_obedient.py").write_text(OWN)
    monkeypatch.syspath_prepend(in_tmp)
    small["network"] = {"name": "my_obedient:make", "dataset": "my_obedient:load", "outputSize": 2}
    small["training"] |= {"transformsTrain": [], "batchSize": 25}
    small["experiments"]["numNets"] = 2
    return small


def until(true: Callable[[], Any]) -> None:
    """Wait for what another process does."""
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def table(folder: str = "data/results") -> pd.DataFrame:
    return pd.read_csv(Path(folder) / "small/results.csv")


def nodes_seen() -> set[str]:
    return {path.name for path in Path.cwd().glob("trained-on-*")}


def test_a_cluster_that_does_not_answer_is_named(
    write: Any, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main([str(write(small)), "--executor", "ray", "-q"]) == 2
    assert "cannot connect to RAY_ADDRESS=127.0.0.1:1: [Errno " in capsys.readouterr().err


@pytest.mark.usefixtures("no_plots", "cluster")
def test_a_killed_worker_costs_nothing_and_both_nodes_compute(write: Any, own: dict[str, Any], in_tmp: Path) -> None:
    path = str(write(own))
    (in_tmp / "kill-once").touch()
    assert main([path, "--executor", "ray", "-q", "--results", "by_ray"]) == 0
    assert not (in_tmp / "kill-once").exists()
    assert len(nodes_seen()) == 2
    os.rename(in_tmp / "data/trained_networks", in_tmp / "aside")
    assert main([path, "-j", "1", "-q", "--results", "alone"]) == 0
    by_ray, alone = table("by_ray"), table("alone")
    assert len(alone) == 10
    assert set(alone["status"]) == {"done"}
    pd.testing.assert_frame_equal(by_ray.drop(columns=TIMES), alone.drop(columns=TIMES), check_exact=True)


@pytest.mark.usefixtures("no_plots", "cluster")
def test_work_that_kills_every_worker_fails_and_says_so(write: Any, own: dict[str, Any], in_tmp: Path) -> None:
    own["experiments"] |= {"numNets": 1, "methods": ["WT"]}
    (in_tmp / "kill-always").touch()
    assert main([str(write(own)), "--executor", "ray", "-q"]) == 1
    errors = table().set_index("method")["error"]
    assert errors["Reference"] == "tried 2 times: its worker process died (killed, or out of memory)"
    assert errors["WT"].str.startswith("the reference network failed").all()


@pytest.mark.usefixtures("no_plots", "cluster")
def test_progress_comes_in_order_and_whole(write: Any, own: dict[str, Any], in_tmp: Path, capsys: Any) -> None:
    assert main([str(write(own)), "--executor", "ray", "-v"]) == 0
    said = capsys.readouterr()
    assert "10 cells to compute on cpu, Ray tasks with 1 thread" in said.err
    assert "Ray: 2 nodes, 2 at a time" in said.err
    finished = [line for line in said.out.splitlines() if "top-1" in line and line.startswith("[")]
    assert [line.partition("]")[0] for line in finished] == [f"[{i}/10" for i in range(1, 11)]
    assert said.err.count("Reference net 1 epoch 2/2: loss") == 1
    for net in (0, 1):
        cells = (said.out.index(f"WT keep {keep} net {net}: top-1") for keep in (0.5, 0.1))  # shared out, in any order
        assert said.out.index(f"Reference net {net}: top-1") < min(cells)


@pytest.mark.usefixtures("no_plots", "cluster")
def test_hooks_are_called_in_the_process_of_the_command(
    write: Any, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)
    own["experiments"] |= {"numNets": 1, "methods": ["WT"], "hooks": ["hooks_of_tests:Recorder"]}
    assert main([str(write(own)), "--executor", "ray", "-q"]) == 0
    calls = Counter(json.loads(line)["method"] for line in Path("notes.jsonl").read_text().splitlines())
    assert {name: calls[name] for name in ("run_start", "cell_start", "cell_end", "run_end")} == {
        "run_start": 1, "cell_start": 3, "cell_end": 3, "run_end": 1,
    }  # fmt: skip


def test_nodes_that_are_too_small_are_waited_for_and_named(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiment.run.cell.context import Context
    from experiment.run.disk.store import Directories, Store
    from experiment.run.grid.hardware import Machine, Resources
    from experiment.run.workers import ray_pool

    here, said = Path.cwd(), list[str]()
    one = Resources(1, 1.0)
    context = Context(Store(here), Directories(here, here, here), Machine("cuda"), 1, one)
    pool = ray_pool.RayTasks([context], {one}, None, said.append)
    monkeypatch.setattr(ray_pool, "_nodes", lambda: [(1.0, 0.0)])  # the node with the GPU is lost
    pool.receive(0.01)
    pool.receive(0.01)
    pool.stop()
    assert said == ["Ray: 2 nodes, 1 at a time", "Ray: 1 node, waiting for one with 1 CPUs and 1 GPUs"]


@pytest.mark.usefixtures("no_plots", "cluster")
def test_work_that_another_process_holds_is_taken_up_again(
    write: Any, own: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own["experiments"] |= {"numNets": 1, "methods": ["WT"]}
    path = str(write(own))
    came_back: list[str] = []
    held: list[FileLock] = []
    take, put_back = Queue.take, Queue.put_back

    def take_and_hold(queue: Queue, *how: Any) -> Work | None:
        work = take(queue, *how)
        if work is not None and work.needs is not None and not held:  # the chain, which needs the reference
            held.append(FileLock(in_tmp / f"data/results/small/.locks/{work.cells[0].key}.lock"))
            held[0].acquire(timeout=0)
        return work

    def release(queue: Queue, work: Work) -> None:
        came_back.append(work.name)
        held[0].release()
        put_back(queue, work)

    monkeypatch.setattr(Queue, "take", take_and_hold)
    monkeypatch.setattr(Queue, "put_back", release)
    assert main([path, "--executor", "ray", "-q"]) == 0
    assert len(came_back) == 1
    assert set(table()["status"]) == {"done"}


@pytest.mark.usefixtures("no_plots", "cluster")
def test_a_cell_that_fits_no_node_is_refused(write: Any, own: dict[str, Any], in_tmp: Path, capsys: Any) -> None:
    own["resources"] = {"cpus": 3}
    assert main([str(write(own)), "--executor", "ray", "-q"]) == 2
    error = capsys.readouterr().err
    assert "a cell needs 3 CPUs and 0 GPUs, and no node has as many (available: 1 CPUs and " in error


def test_shares_of_a_gpu_are_handed_out_and_their_processes_used_once(cluster: Any) -> None:
    import ray

    from experiment.run.grid.hardware import Resources
    from experiment.run.workers.ray_pool import as_task

    def probe() -> tuple[int, str, float]:
        import ray

        given = ray.get_runtime_context().get_assigned_resources()
        return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], given["GPU"]

    quarter = as_task(probe, Resources(1, 0.25))
    first, second = (ray.get(quarter.remote(), timeout=SECONDS) for _ in range(2))
    assert first[1:] == second[1:] == ("0", 0.25)
    assert first[0] != second[0]


@pytest.mark.usefixtures("no_plots")
def test_a_folder_that_a_node_does_not_have_is_named(
    cluster: Any, write: Any, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from experiment.run.workers import ray_pool

    driver = ray_pool.Driver
    monkeypatch.setattr(ray_pool, "Driver", lambda _, path, threads: driver("/nowhere/at/all", path, threads))
    own["experiments"] |= {"numNets": 1, "methods": []}
    assert main([str(write(own)), "--executor", "ray", "-q"]) == 2  # the fault of no cell
    error = capsys.readouterr().err
    assert "cannot enter /nowhere/at/all (No such file or directory)" in error
    assert "must share" in error


def test_an_interrupt_stops_the_workers_which_save_their_last_epoch(
    cluster: Any, write: Any, own: dict[str, Any]
) -> None:
    own["experiments"]["numNets"] = 1
    own["training"]["numEpochs"] = 4
    path = str(write(own))
    Path("wait-after-an-epoch").touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "experiment.main", path, "--executor", "ray"], text=True, start_new_session=True,
        env=os.environ | {"RAY_ADDRESS": cluster.address}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it for background jobs
    )  # fmt: skip
    try:
        until(Path("waits").exists)
        (pid,) = (int(Path(name).read_text()) for name in nodes_seen())
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said = process.communicate(timeout=SECONDS)[1]
        assert "the last finished epoch of every running training are kept; the same command continues" in said
        assert said.count("stopping: ") == 1
        assert process.returncode == 130
        (kept,) = Path.cwd().glob("data/trained_networks/.partial-*/checkpoint.pt")
        assert len(torch.load(kept, weights_only=True)["records"]) >= 1
        until(lambda: not Path(f"/proc/{pid}").exists())
    finally:
        process.kill()  # otherwise it would occupy the cluster of the tests that follow


@pytest.mark.usefixtures("no_plots")
def test_a_lost_node_costs_nothing(cluster: Any, write: Any, own: dict[str, Any], in_tmp: Path) -> None:
    """The last of the tests on this cluster: for a while it does not know that it has lost a node."""
    (in_tmp / "wait").touch()

    def lose() -> None:
        until(lambda: len(nodes_seen()) == 2)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        (in_tmp / "wait").unlink()

    loser = Thread(target=lose)
    loser.start()
    assert main([str(write(own)), "--executor", "ray", "-q"]) == 0
    loser.join()
    assert len(table()) == 10
    assert set(table()["status"]) == {"done"}
