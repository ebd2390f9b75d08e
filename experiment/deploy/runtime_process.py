"""A process in which exported files run, and a network whose forward pass it computes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from experiment.deploy import runtimes
from experiment.deploy.formats import Format
from experiment.errors import RuntimeFailed, shortened
from experiment.escaping import json_text
from experiment.inputs import Inputs, tensors

SECONDS = 300.0  # for an answer; a runtime that needs longer has hung
COMMAND = (sys.executable, "-m", runtimes.__name__)


class RuntimeProcess:
    """Runs exported files of one format, one after the other, each until the next is opened.

        with RuntimeProcess(FORMATS["onnx"], threads=1) as process:
            process.open(Path("network.onnx"))
            process.run([x.numpy()])

    Every call raises RuntimeFailed if the runtime refuses, crashes or does not answer in time.

    Args:
        threads: CPU threads.
        own_names: the networks of the user's own code that may be imported.
        seconds: time limit of every call.
    """

    def __init__(
        self, format_: Format, threads: int, own_names: Sequence[str] = (), seconds: float | None = None
    ) -> None:
        self._format, self._threads, self._own_names = format_, threads, list(own_names)
        self._seconds = SECONDS if seconds is None else seconds
        self._folder = TemporaryDirectory(prefix="experiment-runtime-")
        self._errors = (Path(self._folder.name) / "stderr").open("w+b")
        threads_of_libraries = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        self._process = subprocess.Popen(
            [*COMMAND, self._folder.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            env={**os.environ, **threads_of_libraries, "PYTHONPATH": os.pathsep.join(sys.path)}, text=True,
        )  # fmt: skip

    def __enter__(self) -> RuntimeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and remove its files."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()
        self._folder.cleanup()

    def open(self, path: Path) -> None:
        """Load a file."""
        request = {"run": self._format.run, "file": str(path.resolve()), "threads": self._threads}
        self._ask({**request, "own_names": self._own_names})

    def run(self, inputs: Inputs) -> list[Tensor]:
        """The outputs for a batch of inputs, in the order of the graph."""
        answer = self._ask({"inputs": self._write(inputs)})
        files = (Path(self._folder.name) / f"out-{i}.npy" for i in range(answer["outputs"]))
        return [torch.from_numpy(np.load(file, allow_pickle=False)) for file in files]

    def time(self, inputs: Inputs, seconds: float = 0.5) -> dict[str, float]:
        """Time forward passes for `seconds`: `median_ms` and `iqr_ms`."""
        return self._ask({"inputs": self._write(inputs), "seconds": seconds})

    def _write(self, inputs: Inputs) -> int:
        parts = tensors(inputs)
        for i, tensor in enumerate(parts):
            array = tensor.detach().cpu().contiguous().numpy()
            np.save(Path(self._folder.name) / f"in-{i}.npy", array, allow_pickle=False)
        return len(parts)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        started = time.monotonic()
        timer = Timer(self._seconds, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json_text(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if not answer:
            late = time.monotonic() - started >= self._seconds
            raise RuntimeFailed(f"no answer within {self._seconds:g} s" if late else self._crash())
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            raise RuntimeFailed(shortened(" ".join(found["error"].split()), 300))
        return found

    def _crash(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        names = {s.value: s.name for s in signal.Signals}
        how = names.get(-status, f"signal {-status}") if status < 0 else f"exit status {status}"
        return f"the runtime crashed ({how})" + (f": {shortened(lines[-1], 200)}" if lines else "")


class InRuntime(nn.Module):
    """A network that a runtime computes.

    Args:
        process: has opened the file.
        like: what the network returns, in plain containers; outputs have this form.
    """

    def __init__(self, process: RuntimeProcess, like: Any) -> None:
        super().__init__()
        self.process = process
        leaves, self._form = tree_flatten(like)
        self._expected = len(leaves)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        found = self.process.run(named or inputs)
        if len(found) != self._expected:
            raise RuntimeFailed(f"expected {self._expected} outputs, as in torch. Got {len(found)}.")
        return tree_unflatten(found, self._form)
