"""The questions of --new, answered at the terminal or by `--set`."""

import textwrap
from collections.abc import Callable, Collection
from dataclasses import dataclass

from experiment.config.value_tree import KeyPath, Node, dotted, find, plain
from experiment.errors import ConfigError
from experiment.escaping import say


@dataclass(frozen=True)
class Questions:
    """Asks for what `--set` leaves open; `values` is its tree. Questions need a terminal (`interactive`)."""

    values: Node
    interactive: bool

    def given(self, *key: str) -> object:
        """What the command line gives for a key; None if it gives nothing."""
        node = find(self.values, key)
        return None if node is None else plain(node)

    def ask(
        self,
        key: KeyPath,
        question: str,
        default: str | None,
        check: Callable[[str], object],
        *,
        known: Collection[str] = (),
        required: bool = False,
    ) -> str:
        """An answer in words.

        Args:
            default: the answer to an empty line and, unless it is `required`, without a terminal.
            check: raises ConfigError for an answer that is refused.
            known: what may be answered, to be listed.
        Raises: ConfigError: there is no answer, or the command line gives a wrong one.
        """
        given = self.given(*map(str, key))
        if given is None and key[-1] == "name" and isinstance(short := self.given(*map(str, key[:-1])), str):
            given = short
        if isinstance(given, str | int):
            try:
                check(str(given))
            except ConfigError as error:
                raise ConfigError([f"--set {dotted(key)}: {problem}" for problem in error.problems]) from None
            return str(given)
        if given is not None:  # a list of methods, say, which is checked with the whole file
            return default or ""
        if self.interactive:
            return self._ask(key, question, default, check, known)
        if default is None or required:
            listed = f" Known are {', '.join(known)}." if known else ""
            raise ConfigError(f"--new: {question} Answer with --set {dotted(key)}=..., or on a terminal.{listed}")
        return default

    def _ask(
        self, key: KeyPath, question: str, default: str | None, check: Callable[[str], object], known: Collection[str]
    ) -> str:
        say("")
        say(question)
        for line in textwrap.wrap(", ".join(known), 110, break_on_hyphens=False):
            say(f"    {line}")
        while True:
            try:
                found = input(f"  [{default}] " if default else "  > ").strip() or default or ""
                check(found)
            except EOFError:
                raise ConfigError(f"--new: no answer. Use --set {dotted(key)}=...") from None
            except ConfigError as error:
                for problem in error.problems:
                    say(f"  {problem}")
            else:
                return found
