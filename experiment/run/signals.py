"""Ctrl-C and SIGTERM: the first one stops the work and saves what was reached, a second Ctrl-C ends it at once.

The signal raises KeyboardInterrupt wherever it is heard, and Python loses what is raised in a destructor or in the
callback of a weak reference, and libraries what they catch and ignore. So the work asks, whenever it tells how far it
is, whether it should have stopped: `raise_if_told`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130
STOPPING = "stopping: saving the last finished epoch of every training under way (Ctrl-C again: stop at once)"

_told = threading.Event()


@contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM (what batch systems send) raise KeyboardInterrupt, once; ignored ones stay ignored.

    A second SIGINT ends this process and its workers without another word. A second SIGTERM is left unheard: some
    programs send it to the process and to its group, which must not cut the saving short.
    """
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    stop = _stopper()
    for number in heard:
        signal.signal(number, stop)
    tell_of = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if _told.is_set() and lost.exc_type is KeyboardInterrupt else tell_of(lost)
    try:
        yield
        raise_if_told()  # where Python or a library threw the interruption away, and nobody has asked since
    finally:
        sys.unraisablehook = tell_of
        _told.clear()
        for number, handler in heard.items():
            signal.signal(number, handler)


def stop_when_told() -> None:
    """In a worker: SIGTERM raises KeyboardInterrupt, once. Ctrl-C, which reaches the whole group, is for the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _told.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def raise_if_told() -> None:
    """Raise the KeyboardInterrupt of a signal that was heard in this process and has not stopped it."""
    if _told.is_set():
        raise KeyboardInterrupt


def _stopper() -> Callable[[int, FrameType | None], None]:
    owner, asked = os.getpid(), False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if os.getpid() == owner:  # and not a process forked from it, such as one that reads images
            if asked and number == signal.SIGTERM:
                return
            if asked:
                for process in multiprocessing.active_children():
                    process.kill()
                os._exit(EXIT_INTERRUPTED)  # files are there whole or not at all, whatever was being done
            asked = True
            _told.set()
            os.write(2, f"{STOPPING}\n".encode())  # print is not safe here: it may be what was interrupted
        raise KeyboardInterrupt

    return stop
