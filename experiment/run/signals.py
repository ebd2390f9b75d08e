"""Ctrl-C and SIGTERM: the first signal stops the work and saves checkpoints, a second Ctrl-C ends it at once.

The handlers raise KeyboardInterrupt. Python discards exceptions that are raised in destructors and callbacks of weak
references, and some libraries catch them, so the handlers also set a flag. Code that reports progress calls
`raise_if_stopped`, which raises the exception again. Signals concern the whole process, and so does the flag.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130
STOPPING = "stopping: saving the last finished epoch of every training (Ctrl-C again: stop immediately)"

_stopped = threading.Event()


@contextmanager
def stopping_cleanly(said: str = STOPPING) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM (which batch systems send) raise KeyboardInterrupt once. Ignored signals stay ignored.

    A second SIGINT ends this process and its workers at once. A second SIGTERM is ignored: some programs send it to
    the process and to its group, which must not interrupt the saving.

    Args:
        said: a line that the first signal writes to stderr; empty for none.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread can set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handled = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    stop = _Stop(said)
    for number in handled:
        signal.signal(number, stop)
    hook = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if _stopped.is_set() and lost.exc_type is KeyboardInterrupt else hook(lost)
    try:
        yield
        raise_if_stopped()
    finally:
        sys.unraisablehook = hook
        _stopped.clear()
        for number, handler in handled.items():
            signal.signal(number, handler)


def stop_on_sigterm() -> None:
    """In a worker: SIGTERM raises KeyboardInterrupt once. SIGINT is left to the parent, whose group it reaches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _stopped.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def raise_if_stopped() -> None:
    """Raise KeyboardInterrupt if this process was asked to stop."""
    if _stopped.is_set():
        raise KeyboardInterrupt


class _Stop:
    """The handler of `stopping_cleanly`."""

    def __init__(self, said: str) -> None:
        self.said, self.owner, self.asked = said, os.getpid(), False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self.owner:  # and not a forked process, such as one that reads images
            if self.asked and number == signal.SIGTERM:
                return
            if self.asked:
                for process in multiprocessing.active_children():
                    process.kill()
                os._exit(EXIT_INTERRUPTED)  # files are written atomically
            self.asked = True
            _stopped.set()
            if self.said:
                os.write(2, f"{self.said}\n".encode())  # print is not reentrant
        raise KeyboardInterrupt
