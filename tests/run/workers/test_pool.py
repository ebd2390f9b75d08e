"""The loop that feeds a pool of workers, with a pool that is written out."""

from collections.abc import Sequence
from typing import Any

import pytest

from experiment.run.cell.events import CellDone, Event, Note
from experiment.run.workers.pool import WorkerLost, run_in_pool
from experiment.run.workers.queue import Queue, Work

WORK = Work(0, "0-a", None, None, 1.0, ())  # type: ignore[arg-type]


class Interrupted:
    """A pool that is interrupted at once; its worker sends the rest of its messages while it is asked to stop."""

    size, working, idle = 1, False, True

    def __init__(self, rest: list[Any]) -> None:
        self.rest, self.asked, self.stopped = rest, False, False

    def start(self, work: Work) -> None:
        self.working, self.idle = True, False

    def receive(self, timeout: float) -> Sequence[tuple[Work, Any]]:
        if not self.asked:
            raise KeyboardInterrupt
        message = self.rest.pop(0)
        self.working = not isinstance(message, bool | WorkerLost)
        return [(WORK, message)]

    def let_save(self) -> None:
        self.asked = True

    def stop(self) -> None:
        self.stopped = True


@pytest.mark.parametrize("end", [True, False, WorkerLost("terminated")])
def test_cells_that_end_while_workers_stop_are_told(end: bool | WorkerLost) -> None:
    done, told = CellDone("key", "WT keep 0.5 net 0", "done", "top-1 90%", 0.5, None), list[Event]()
    pool = Interrupted([Note("saving"), done, end])
    with pytest.raises(KeyboardInterrupt):
        run_in_pool(pool, Queue([WORK]), [], lambda work, event: told.append(event))
    assert told == [Note("saving"), done]
    assert pool.stopped
