"""The exceptions that this package raises on purpose, and nothing else.

ExperimentError
|-- ConfigError         the parameter file or the call is wrong: every problem found, each with its place
|-- DataError           a dataset is missing, damaged, or not what the file says
|-- CompressionError    a method cannot do what it was asked to do on this network
|   `-- InfeasibleBudget    the budget lies below the smallest network that the method can make
|-- TrainingDiverged    the loss became NaN or infinite
|-- StoreError          a file of results or of weights is damaged, foreign or of another version
|   |-- Damaged             its content is not what was written: it may be set aside and made again
|   `-- OtherVersion        it is whole, but of a version that this program does not read
|-- Inherited           what failed is another cell, on which this one builds
`-- CannotWrite         the disk is full, or a folder for results is read-only or not to be made
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence

MOST_CHARACTERS = 1900  # of a whole message
MOST_OF_A_LINE = 900  # of each, where a message has several
MOST_OF_A_VALUE = 200


class ExperimentError(Exception):
    """What every deliberate error of this package derives from; its text is meant for the user, and never long."""

    def __init__(self, text: object = "") -> None:
        super().__init__(short_message(str(text)))


class ConfigError(ExperimentError):
    """Everything that is wrong with a parameter file or a call, found in one pass.

    Args:
        problems: one line each: `file:line: dotted.key: what was expected. What came. What to do.`
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(ExperimentError):
    """A dataset is missing, damaged, or contradicts the parameter file."""


class CompressionError(ExperimentError):
    """A method cannot compress this network as asked."""


class InfeasibleBudget(CompressionError):
    """The budget lies below the smallest network that the method can make.

    Args:
        limit: what was allowed, in `quantity`.
        smallest: the least that the method reaches, in `quantity`.
        original: the uncompressed network's count, in `quantity`.
        quantity: `parameters` or `flops`.
        reason: a sentence that says why, if that is known, before the numbers.
    """

    def __init__(self, *, limit: int, smallest: int, original: int, quantity: str, reason: str = "") -> None:
        self.limit, self.smallest, self.original, self.quantity = limit, smallest, original, quantity
        self.reason = reason
        why = f"{reason[0].upper()}{reason[1:]} A " if reason else ""
        told = f"{why}budget of {limit:,} {quantity} cannot be met:"
        keep = -(-smallest * 10_000 // original) / 10_000  # rounded up: the ratio that is named can be met
        if smallest >= original:
            masked = " Masked weights count as removed only as long as they are masked." if smallest > original else ""
            super().__init__(f"{told} this method cannot make the network smaller than it is ({original:,}).{masked}")
            return
        super().__init__(
            f"{told} the smallest network of this method has {smallest:,} "
            f"(keep ratio {keep:.4f}). Ask for a keep ratio of at least that."
        )

    def because(self, reason: str) -> InfeasibleBudget:
        """The same error with its reason."""
        return _infeasible(self.limit, self.smallest, self.original, self.quantity, reason)

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments survive the way back from a worker process
        return _infeasible, (self.limit, self.smallest, self.original, self.quantity, self.reason)


def _infeasible(limit: int, smallest: int, original: int, quantity: str, reason: str) -> InfeasibleBudget:
    return InfeasibleBudget(limit=limit, smallest=smallest, original=original, quantity=quantity, reason=reason)


class TrainingDiverged(ExperimentError):
    """The training loss became NaN or infinite."""


class StoreError(ExperimentError):
    """A stored file is damaged, foreign, or of another format version."""


class Damaged(StoreError):
    """The content of a stored file is not what was written: it may be set aside and made again."""


class OtherVersion(StoreError):
    """A stored file is of another format version: nothing that may be set aside and made again."""


class Inherited(ExperimentError):
    """A cell cannot be computed because of another one: that has failed, or cannot be used now.

    Args:
        cause: the key of the other cell. As soon as that has not failed (any more), this one is to be computed.
    """

    def __init__(self, text: str, cause: str) -> None:
        super().__init__(text)
        self.cause = cause

    def __reduce__(self) -> tuple[object, ...]:  # the cause survives the way back from a worker process
        return Inherited, (str(self), self.cause)


class CannotWrite(ExperimentError):
    """Results cannot be written, which is no fault of the cell whose results they are: the run ends."""


def short_message(text: str) -> str:
    """A message that fits on a screen: the middle of long lines, and the last of many lines, are left out."""
    if len(text) <= MOST_CHARACTERS:
        return text
    lines = text.splitlines()
    if len(lines) == 1:
        return shortened(text, MOST_CHARACTERS)
    kept: list[str] = []
    room = MOST_CHARACTERS - len("... and 1,000,000,000 more lines")
    for line in (shortened(line, MOST_OF_A_LINE) for line in lines):
        room -= len(line) + 1
        if room < 0:
            break
        kept.append(line)
    left = len(lines) - len(kept)
    return "\n".join([*kept, *([f"... and {left:,} more line{'s' if left > 1 else ''}"] if left else [])])


def shortened(text: str, most: int = MOST_OF_A_VALUE) -> str:
    """The text, without its middle where it is long; what stands at the end of a message says what to do."""
    if len(text) <= most:
        return text
    room = most - len(f" [{len(text):,} characters] ")
    tail = room // 3
    return f"{text[: room - tail]} [{len(text):,} characters] {text[len(text) - tail :]}"


def described(value: object) -> str:
    """A value in an error: short numbers and texts as they are, anything else by its type, never by its own repr."""
    if value is None or type(value) in (bool, float) or (type(value) is int and value.bit_length() <= 128):
        return str(value)
    if type(value) is str:
        return repr(shortened(value))
    return "a very large number" if type(value) is int else f"a value of type {shortened(type(value).__name__)}"


def first_line(error: Exception) -> str:
    """What an error of other code says, without the signatures that torch lists below it."""
    return str(error).partition("\n")[0]


def raised_at(error: BaseException) -> str:
    """` (file:line)` of the innermost code that is neither ours nor an installed package's; empty if there is none."""
    ours = os.path.dirname(__file__)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and not frame.filename.startswith(ours)]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
