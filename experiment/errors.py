"""The exceptions of this package.

ExperimentError
|-- ConfigError         the parameter file or the call is wrong; lists all problems
|-- DataError           a dataset is missing, damaged, or contradicts the parameter file
|-- CompressionError    a method cannot compress this network as requested
|   `-- InfeasibleBudget    the budget is below the smallest network that the method can produce
|-- TrainingDiverged    the loss became NaN or infinite
|-- StoreError          a file of results or weights is damaged, foreign, or of another version
|   |-- Damaged             it may be set aside and computed again
|   `-- OtherVersion        it must be kept: another version of this program can read it
|-- RuntimeFailed       a runtime refuses an exported file, crashes, or does not answer in time
|-- Inherited           another cell failed, on which this one depends
`-- CannotWrite         the disk is full, or a folder is read-only or cannot be created
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Sequence

MOST_CHARACTERS = 1900  # of a whole message
MOST_OF_A_LINE = 900  # of each, where a message has several
MOST_OF_A_VALUE = 200

log = logging.getLogger("experiment")  # for what a user should know although it is no error


class ExperimentError(Exception):
    """Base class of all errors of this package. Messages are written for users and bounded in length."""

    def __init__(self, text: object = "") -> None:
        super().__init__(short_message(str(text)))


class ConfigError(ExperimentError):
    """All problems of a parameter file or a call.

    Args:
        problems: one line each: `file:line: dotted.key: what was expected. What was found. What to do.`
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(ExperimentError):
    """A dataset is missing, damaged, or contradicts the parameter file."""


class CompressionError(ExperimentError):
    """A method cannot compress this network as requested."""


class InfeasibleBudget(CompressionError):
    """The budget is below the smallest network that the method can produce.

    Args:
        limit: the budget, in the unit of `quantity`.
        smallest: the size of the smallest network that the method can produce.
        original: the size of the uncompressed network.
        quantity: `parameters`, `flops`, `bytes`, `latency` in nanoseconds, or `memory` in bytes.
        reason: a sentence that explains why, if known.
    """

    def __init__(self, *, limit: int, smallest: int, original: int, quantity: str, reason: str = "") -> None:
        self.limit, self.smallest, self.original, self.quantity = limit, smallest, original, quantity
        self.reason = reason
        why = f"{reason[0].upper()}{reason[1:]} A " if reason else ""
        message = f"{why}budget of {in_words(limit, quantity)} cannot be met:"
        if quantity == "latency":  # rounded up, too
            step = 10 ** max(0, len(str(smallest)) - 4)
            smallest = -(-smallest // step) * step
        keep = -(-smallest * 10_000 // original) / 10_000  # rounded up, so that it can be met
        if smallest >= original:
            grew = smallest > original and quantity in ("parameters", "flops")
            masked = " Masked weights count as removed only while they are masked." if grew else ""
            super().__init__(
                f"{message} this method cannot make the network {'faster' if quantity == 'latency' else 'smaller'} "
                f"({in_words(original, quantity, short=True)}).{masked}"
            )
            return
        super().__init__(
            f"{message} the smallest network of this method has {in_words(smallest, quantity, short=True)} "
            + (
                f"(keep ratio {keep:.4f}). Use at least this keep ratio."
                if quantity in ("parameters", "flops")
                else f"({keep:.2%} of the uncompressed network's). Allow at least that."
            )
        )

    def because(self, reason: str) -> InfeasibleBudget:
        """The same error with a reason."""
        return _infeasible(self.limit, self.smallest, self.original, self.quantity, reason)

    def __reduce__(self) -> tuple[object, ...]:  # exceptions with keyword-only arguments are not picklable by default
        return _infeasible, (self.limit, self.smallest, self.original, self.quantity, self.reason)


def _infeasible(limit: int, smallest: int, original: int, quantity: str, reason: str) -> InfeasibleBudget:
    return InfeasibleBudget(limit=limit, smallest=smallest, original=original, quantity=quantity, reason=reason)


def in_words(amount: float, quantity: str, *, short: bool = False) -> str:
    """An amount of a quantity: `62,006 parameters`, `400 kB`, `5.432 kB`, `12.3 ms`; bytes exactly."""
    if quantity == "latency":
        return f"{amount / 1e6:.4g} ms"
    if quantity in ("bytes", "memory"):
        size = f"{amount / 1e3:,.3f}".rstrip("0").rstrip(".") + " kB" if amount >= 100 else f"{amount:,.0f} bytes"
        return size + (" of memory" if quantity == "memory" and not short else "")
    return f"{amount:,}" if short else f"{amount:,} {quantity}"


def plural(number: int, word: str) -> str:
    """`1 network`, `2 networks`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


class TrainingDiverged(ExperimentError):
    """The training loss became NaN or infinite."""


class StoreError(ExperimentError):
    """A stored file is damaged, foreign, or of another format version."""


class Damaged(StoreError):
    """The content of a stored file is not what was written. The file may be set aside and computed again."""


class OtherVersion(StoreError):
    """A stored file is of another format version. It is kept, since another version of this program can read it."""


class RuntimeFailed(ExperimentError):
    """A runtime refuses an exported file, crashes, or does not answer in time."""


class Inherited(ExperimentError):
    """A cell cannot be computed because another one failed, or cannot be used.

    Args:
        cause: the key of the other cell. Once it has not failed, this cell is computed again.
    """

    def __init__(self, text: str, cause: str) -> None:
        super().__init__(text)
        self.cause = cause

    def __reduce__(self) -> tuple[object, ...]:  # pickles with the cause
        return Inherited, (str(self), self.cause)


class CannotWrite(ExperimentError):
    """Results cannot be written. The run ends, since this is not the failure of a cell."""


def short_message(text: str) -> str:
    """A message that fits on a screen: without the middle of long lines, and without the last of many lines."""
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
    """A text without its middle if it is long. The end is kept, since the end of a message says what to do."""
    if len(text) <= most:
        return text
    room = most - len(f" [{len(text):,} characters] ")
    tail = room // 3
    return f"{text[: room - tail]} [{len(text):,} characters] {text[len(text) - tail :]}"


def described(value: object) -> str:
    """A value in an error: numbers and shortened texts, and only the type of anything else, whose repr is unbounded."""
    if value is None or type(value) in (bool, float) or (type(value) is int and value.bit_length() <= 128):
        return str(value)
    if type(value) is str:
        return repr(shortened(value))
    return "a very large number" if type(value) is int else f"a value of type {shortened(type(value).__name__)}"


def kind_of(value: object) -> str:
    """The type of a value with its article: `an int`, `the class Linear`."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeiou' else 'a'} {name}"


def first_line(error: Exception) -> str:
    """The first line of an error of other code; torch lists signatures below it."""
    return str(error).partition("\n")[0]


def raised_at(error: BaseException) -> str:
    """` (file:line)` of the innermost user code, in neither this nor an installed package; else empty."""
    ours = os.path.dirname(__file__)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and not frame.filename.startswith(ours)]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
