"""What a job of Slurm runs: one share of a command, as a process of its own. Without torch.

submitit calls `checkpoint` shortly before the time limit and when the job is preempted, and then queues the job again.
Slurm sends its signals to all processes of a job. The share must not end by SIGUSR2, which is submitit's: SIGTERM
saves the last finished epoch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiment.errors import StoreError
from experiment.files import read_json

LOGS, ARRAY = "slurm", "array.json"  # in a results folder
SECONDS_BETWEEN_LOOKS = 0.2


class Share:
    """Computes share K of `number` of the command with `arguments`; submitit stores it in a file."""

    def __init__(self, arguments: tuple[str, ...], number: int) -> None:
        self.arguments, self.number = arguments, number
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, k: int) -> None:
        """Run the share. The job ends with its exit status."""
        command = [sys.executable, "-m", "experiment.main", *self.arguments, "-j", str(self.number), "-i", str(k)]
        self.process = subprocess.Popen(command, preexec_fn=_ignore_signals_of_submitit)
        while (status := self.process.poll()) is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if status:
            sys.exit(status)

    def checkpoint(self, k: int) -> Any:
        """Save the last finished epoch; returns the submission that continues from it."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            with suppress(ProcessLookupError, ChildProcessError):  # it has ended
                os.kill(self.process.pid, signal.SIGTERM)
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # `Popen` may hold its lock in `poll`
        return DelayedSubmission(Share(self.arguments, self.number), k)


def _ignore_signals_of_submitit() -> None:
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def last_array(folder: Path) -> str | None:
    """The id of the array of jobs that was submitted last for a results folder; None if there is none."""
    try:
        array = read_json(folder / LOGS / ARRAY)["array"]
    except (FileNotFoundError, StoreError, KeyError, TypeError):
        return None
    return array if isinstance(array, str) and array.isdigit() else None
