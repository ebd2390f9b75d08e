"""Write a network in a format: whole or not at all, and with one kind of error."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiment.deploy.formats import UNFINISHED, Format
from experiment.deploy.program import Deployed
from experiment.errors import CompressionError, ExperimentError, shortened
from experiment.files import make_folder, writing_to
from experiment.registry import resolve


def write_exported(network: Deployed, format_: Format, path: Path) -> list[Path]:
    """Write a file, with others beside it if the format consists of several; returns all of them, this one first.

    Raises: CompressionError: a package is missing, calibration inputs are, or the exporter refuses the network.
    """
    if format_.missing:
        raise CompressionError(format_.advice)
    if format_.int8 and network.calibration is None:
        raise CompressionError(f"{format_.name}: needs calibration inputs, by which the scales of int8 are chosen.")
    write: Any = resolve(format_.write)
    make_folder(path.parent)
    with writing_to(path), TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as folder:
        try:
            with _quiet():
                write(network, Path(folder) / path.name)
        except ExperimentError:
            raise
        except Exception as error:  # exporters document no complete list
            why = shortened(" ".join(str(error).split()), 300)
            raise CompressionError(f"{format_.name}: the exporter fails: {type(error).__name__}: {why}") from error
        written = sorted(Path(folder).iterdir(), key=lambda file: (file.name != path.name, file.name))
        for file in written:
            os.replace(file, path.parent / file.name)
    return [path.parent / file.name for file in written]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and notes of exporters about their own code."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
