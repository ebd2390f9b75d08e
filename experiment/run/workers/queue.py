"""The open work of a session: reference networks and chains of cells, in the order in which they can be computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from experiment.run.grid.cells import Cell, Chain, ReferenceTask, chain_key
from experiment.run.grid.plan import ExperimentPlan

PARTS = 2


@dataclass(frozen=True)
class Work:
    """A reference network or (part of) a chain of cells.

    Attributes:
        experiment: index of its experiment.
        needs: name of the work that must be finished first, if any.
        units: the remaining work, in epochs plus one per cell.
        cells: those that are still open.
    """

    experiment: int
    name: str
    task: ReferenceTask | Chain
    needs: str | None
    units: float
    cells: tuple[Cell, ...]

    @property
    def lock(self) -> str | None:
        """The lock of the whole work. None: each cell has a lock of its own, so processes can share a chain."""
        whole = isinstance(self.task, ReferenceTask) or self.task.in_order
        return self.name.partition("-")[2] if whole else None

    @property
    def pieces(self) -> int:
        """The number of parts into which it can be divided."""
        return len(self.cells) if self.lock is None else 1

    def divided(self, units: float) -> tuple[Work, Work | None]:
        """The first cells, of at least `units`, and the others, if they can be computed separately."""
        if self.lock is not None:
            return self, None
        done = accumulate(_units([cell]) for cell in self.cells)
        first = next((i for i, sofar in enumerate(done, 1) if sofar >= units), len(self.cells))
        if first == len(self.cells):
            return self, None
        return self.of(self.cells[:first]), self.of(self.cells[first:])

    def of(self, cells: tuple[Cell, ...]) -> Work:
        """A part of a chain as separate work."""
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
    """The open work of one experiment: reference networks first, then the chains that need them.

    Args:
        results: of all cells, or of those of the share.
        share: (K, N) for every N-th chain from the K-th on, and the reference networks that those need.
    """

    def is_open(key: str) -> bool:
        result = results.get(key)
        return result is None or (retry_failed and result["status"] == "failed")

    tasks, chains = _of_share(plan, share)
    work: dict[str, Work] = {}  # by name: variants may share references, and labels may share chains
    for task in tasks:
        name = f"{index}-{task.cell.key}"
        if is_open(task.cell.key):
            work.setdefault(name, Work(index, name, task, None, task.cell.epochs_train + 1, (task.cell,)))
    for chain in _with_tickets(chains, is_open):
        cells = tuple(cell for cell in chain.cells if is_open(cell.key))
        if not cells:
            continue
        needs = f"{index}-{chain.reference_cell.key}"
        if chain.tickets is not None and _chain_name(index, chain.tickets) in work:
            needs = _chain_name(index, chain.tickets)
        name = _chain_name(index, chain)
        work.setdefault(name, Work(index, name, chain, needs if needs in work else None, _units(cells), cells))
    return list(work.values())


def cells_of(plan: ExperimentPlan, share: tuple[int, int] | None) -> list[Cell]:
    """The cells on whose results the open work of a share depends: not all, for a share that starts among many."""
    tasks, chains = _of_share(plan, share)
    tickets = [cell for chain in chains if chain.tickets is not None for cell in chain.tickets.cells]
    return [*(task.cell for task in tasks), *tickets, *(cell for chain in chains for cell in chain.cells)]


def _of_share(plan: ExperimentPlan, share: tuple[int, int] | None) -> tuple[Sequence[ReferenceTask], Sequence[Chain]]:
    """The reference networks and the chains of a share; all without one."""
    if share is None:
        return plan.references, plan.chains
    if not plan.chains:
        return plan.references[share[0] :: share[1]], ()
    chains = plan.chains[share[0] :: share[1]]
    needed = {chain.reference_cell.key for chain in chains}
    return [task for task in plan.references if task.cell.key in needed], chains


def _with_tickets(chains: Sequence[Chain], is_open: Callable[[str], bool]) -> Iterator[Chain]:
    """The chains; before each open one, the chain of tickets whose structures it uses."""
    for chain in chains:
        if chain.tickets is not None and any(is_open(cell.key) for cell in chain.cells):
            yield chain.tickets
        yield chain


def _units(cells: Sequence[Cell]) -> float:
    return sum(cell.epochs_retrain + 1 for cell in cells)


def _chain_name(experiment: int, chain: Chain) -> str:
    return f"{experiment}-{chain_key(chain)}"


class Queue:
    """Hands out the open work in order, as soon as it can be computed.

    Several workers get chains in parts that become smaller towards the end, so that all finish at about the same time
    (Polychronopoulos & Kuck 1987, Guided self-scheduling): a part is at most the remaining work divided by `PARTS`
    times the number of workers. Every part repeats the analysis of its chain.
    """

    def __init__(self, work: Sequence[Work]) -> None:
        self.waiting = list(work)
        self._units = sum(w.units for w in work)  # of those that wait
        self.unfinished = {w.name for w in work}

    def take(self, busy: frozenset[str] = frozenset(), workers: int = 1) -> Work | None:
        """The next work that needs nothing unfinished and is not in `busy`, or None."""
        for i, work in enumerate(self.waiting):
            if work.needs not in self.unfinished and work.name not in busy:
                return self._hand_out(i, workers)
        return None

    def _hand_out(self, i: int, workers: int) -> Work:
        whole = self.waiting.pop(i)
        part, rest = whole.divided(self._units / (PARTS * workers)) if workers > 1 else (whole, None)
        self._units -= part.units
        if rest is not None:
            self.waiting.insert(i, rest)
            self.unfinished -= {whole.name}  # no other work needs it: only cascades and references are needed
            self.unfinished |= {part.name, rest.name}
        return part

    def put_back(self, work: Work) -> None:
        """Return work that another process holds."""
        self.waiting.append(work)
        self._units += work.units

    def finished(self, work: Work) -> None:
        """Release the work that needs this."""
        self.unfinished.discard(work.name)

    def __bool__(self) -> bool:
        return bool(self.waiting)
