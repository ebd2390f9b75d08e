"""Download a dataset with torchvision if it is missing, or say what to do."""

import contextlib
import os
import socket
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock

from experiment.errors import DataError

TIMEOUT_SECONDS = 10.0


def ensure(
    dataset: str, data_dir: Path, missing: Callable[[], Sequence[Path]], fetch: Callable[[], object], place: str
) -> None:
    """Download a dataset unless its files exist. Only one process at a time does so.

    Args:
        missing: returns the files that do not exist.
        fetch: downloads and unpacks them.
        place: a sentence for the error: which files to put where by hand.

    Raises: DataError: the files are missing and cannot be downloaded.
    """
    if not missing():
        return
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / f".{dataset}.lock"):
            if not missing():
                return
            with _impatient(), _quiet():
                fetch()
    except (OSError, RuntimeError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(_text(dataset, missing(), f"Downloading it failed: {reason.rstrip('.')}.", place)) from None
    if absent := missing():
        raise DataError(_text(dataset, absent, "The download did not contain it.", place))


def _text(dataset: str, missing: Sequence[Path], reason: str, place: str) -> str:
    files = ", ".join(p.name for p in missing)
    where = f"{missing[0].parent}{os.sep}" if missing else "its folder"
    return (
        f"dataset {dataset} is missing: {where} has no {files}. {reason} With a network, the same command downloads "
        f"it. Without one, {place} Or set --data to the folder of your datasets."
    )


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Set a timeout for sockets: torchvision sets none, and a dead network would block the run."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bar if stderr is not a terminal."""
    with contextlib.ExitStack() as stack:
        if not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        yield
