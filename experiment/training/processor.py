"""What a process sets up before it computes on a CPU."""

import ctypes
import sys

import torch

KEPT_BYTES = 2**30  # of freed memory stay with the process
LARGE_BYTES = 2**27  # a freed block of this size is given back at once

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def use_threads(threads: int) -> None:
    """Compute with so many threads, and keep freed memory for the next step of a training.

    To give memory back to the system and get it again, page by page, takes about a tenth of the time of training a
    small network. Only glibc can be told so; elsewhere it stays as it is.
    """
    torch.set_num_threads(threads)
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
