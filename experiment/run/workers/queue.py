"""Which pieces of work there are, in which order they become ready, and which share of them is this process's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiment.run.grid.plan import Cell, Chain, ExperimentPlan, ReferenceTask, chain_key

PARTS = 2


@dataclass(frozen=True)
class Work:
    """A reference network or a chain of cells of one of the experiments under way.

    Attributes:
        experiment: index of the experiment.
        needs: name of the work that must be finished first, if any.
        units: how much of it is left, in epochs plus one for every cell's compression and test.
        cells: what of it is left.
    """

    experiment: int
    name: str
    task: ReferenceTask | Chain
    needs: str | None
    units: float
    cells: tuple[Cell, ...]

    @property
    def lock(self) -> str | None:
        """The name under which processes that share a results folder agree on who does it; None: cell by cell."""
        whole = isinstance(self.task, ReferenceTask) or self.task.in_order
        return self.name.partition("-")[2] if whole else None

    @property
    def pieces(self) -> int:
        """Into how many parts it may be cut."""
        return len(self.cells) if self.lock is None else 1

    def parted(self, units: float) -> tuple[Work, Work | None]:
        """The first cells, of `units` at least, and the others, where they are to be computed apart."""
        if not isinstance(self.task, Chain) or self.task.in_order:
            return self, None
        first = next((i for i in range(1, len(self.cells)) if _units(self.cells[:i]) >= units), len(self.cells))
        if first == len(self.cells):
            return self, None
        return self.of(self.cells[:first]), self.of(self.cells[first:])

    def of(self, cells: tuple[Cell, ...]) -> Work:
        """That part of a chain, as work of its own."""
        assert isinstance(self.task, Chain)
        task = replace(self.task, cells=cells)
        return replace(self, name=_chain_name(self.experiment, task), task=task, units=_units(cells), cells=cells)


def open_work(
    index: int,
    plan: ExperimentPlan,
    results: Mapping[str, Mapping[str, Any]],
    *,
    retry_failed: bool = False,
    share: tuple[int, int] | None = None,
) -> list[Work]:
    """What is left to do of one experiment: references first, then the chains that need them.

    Args:
        share: (K, N): only every N-th chain from the K-th on, and the references that those need.
    """

    def is_open(key: str) -> bool:
        result = results.get(key)
        return result is None or (retry_failed and result["status"] == "failed")

    chains = [c for i, c in enumerate(plan.chains) if share is None or i % share[1] == share[0]]
    wanted = {c.reference_cell.key for c in chains}
    opened: set[str] = set()
    work: list[Work] = []
    for i, task in enumerate(plan.references):
        key = task.cell.key  # variants that only retrain otherwise share their references
        name = _reference_name(index, key)
        mine = share is None or (i % share[1] == share[0] if not plan.chains else key in wanted)
        if mine and name not in opened and is_open(key):
            opened.add(name)
            work.append(Work(index, name, task, None, task.cell.epochs_train + 1, (task.cell,)))
    for chain in _with_tickets(chains, is_open):
        cells = tuple(cell for cell in chain.cells if is_open(cell.key))
        if cells:
            needs = _reference_name(index, chain.reference_cell.key)
            if chain.tickets is not None and _chain_name(index, chain.tickets) in opened:
                needs = _chain_name(index, chain.tickets)
            name = _chain_name(index, chain)
            if name in opened:  # another label for the same computation: it will find its results there
                continue
            opened.add(name)
            work.append(Work(index, name, chain, needs if needs in opened else None, _units(cells), cells))
    return work


def _with_tickets(chains: Sequence[Chain], is_open: Callable[[str], bool]) -> Iterator[Chain]:
    """The chains, each after the tickets that it takes its structures from where any of its cells is open."""
    for chain in chains:
        if chain.tickets is not None and any(is_open(cell.key) for cell in chain.cells):
            yield chain.tickets
        yield chain


def _units(cells: Sequence[Cell]) -> float:
    return sum(cell.epochs_retrain + 1 for cell in cells)


def _chain_name(experiment: int, chain: Chain) -> str:
    return f"{experiment}-{chain_key(chain)}"


def _reference_name(experiment: int, key: str) -> str:
    return f"{experiment}-{key}"


class Queue:
    """The open work, handed out in order as it becomes ready.

    To several workers chains are handed out in parts that become smaller towards the end, so that all of them end at
    about the same time (Polychronopoulos & Kuck 1987, Guided self-scheduling): a part is no more than what is left
    over `PARTS` times the workers, and every part repeats the analysis of its chain.
    """

    def __init__(self, work: Sequence[Work]) -> None:
        self.waiting = list(work)
        self.unfinished = {w.name for w in work}

    def take(self, busy: frozenset[str] = frozenset(), workers: int = 1) -> Work | None:
        """The next piece whose needs are met and that is not in `busy`, or None."""
        for i, work in enumerate(self.waiting):
            if work.needs not in self.unfinished and work.name not in busy:
                return self._hand_out(i, workers)
        return None

    def _hand_out(self, i: int, workers: int) -> Work:
        whole = self.waiting.pop(i)
        if workers == 1:
            return whole
        units = whole.units + sum(work.units for work in self.waiting)
        part, rest = whole.parted(units / (PARTS * workers))
        if rest is not None:
            self.waiting.insert(i, rest)
            self.unfinished -= {whole.name}  # which nothing else needs: only cascades and references are needed
            self.unfinished |= {part.name, rest.name}
        return part

    def put_back(self, work: Work) -> None:
        """Somebody else is at it: come back to it later."""
        self.waiting.append(work)

    def finished(self, work: Work) -> None:
        """Whatever needed this may start."""
        self.unfinished.discard(work.name)

    def __bool__(self) -> bool:
        return bool(self.waiting)
