"""The output of --status: what runs, where and since when, when it may end, and what failed. Without torch.

It reads files only: it repairs, locks and writes nothing, so that it may be asked at any time, also by other machines.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiment.errors import plural
from experiment.run.cell.events import cell_name
from experiment.run.grid.listing import Results, cell_status
from experiment.run.grid.plan import ExperimentPlan
from experiment.run.workers.live_state import MOST_MESSAGES, LiveState, read_live
from experiment.run.workers.queue import open_work
from experiment.run.workers.slurm_share import last_array

MOST_FAILURES = 20  # that are listed
FAR_AWAY = 1e9  # seconds, which no forecast reaches
UNITS = (("day", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def status_text(plan: ExperimentPlan, results: Results, folder: Path) -> Iterator[str]:
    """What runs at present, in a few lines."""
    now, (found, notes) = time.time(), read_live(folder)
    states = list(found.values())
    running = [state for state in states if state.life(now) != "ended"]
    counts = _counted(plan, results, running)
    again = "; the same command continues" if counts.get("open") else ""
    done = f"{counts.pop('done', 0)} of {plural(len(plan.cells), 'cell')} done"
    yield f"{plan.name}: " + ", ".join([done, *(f"{number} {name}" for name, number in counts.items())])
    for state in running:
        yield from _under_way(state, now)
    if not running:
        array = last_array(folder) if counts.get("open") else None
        queued = "" if array is None else f"; `squeue -j {array}` lists jobs that wait"
        yield f"  nothing runs{queued}" if folder.is_dir() else f"  never started: there is no folder {folder}"
    for state in states:
        if state not in running:
            doing = " and ".join(each.name for each in state.under_way.values())
            last = f"last sign of life {_clock(state.heartbeat, now)}{f', in {doing}' if doing else ''}"
            yield f"  killed     {_where(state)}: {last}{again}"
    if running:
        end = _expected_end(plan, results, running, now)
        yield f"  expected   {'not known yet' if end is None else f'end {_clock(end, now)} (in {_span(end - now)})'}"
    said = sorted((message.at, message.text) for state in states for message in state.messages)
    for at, text in said[-MOST_MESSAGES:]:
        yield f"  last       {_clock(at, now)}  {text}"
    yield from _failures(plan, results)
    yield from (f"  {note}" for note in notes)


def _counted(plan: ExperimentPlan, results: Results, running: Sequence[LiveState]) -> dict[str, int]:
    """The number of cells by status; those that are pending or computed again may be under way."""
    busy = {doing.key for state in running for doing in state.under_way.values()}
    count = Counter[str]()
    for cell in plan.cells:
        status = cell_status(plan, cell, results)
        under_way = cell.key in busy and status in ("pending", "failed")
        count["under way" if under_way else "open" if status == "pending" else status] += 1
    order = ("done", "failed", "infeasible", "unavailable", "under way", "open")
    return {name: count[name] for name in order if count[name]}


def _under_way(state: LiveState, now: float) -> Iterator[str]:
    silent = "" if state.life(now) == "runs" else f", no sign of life for {_span(now - state.heartbeat)}"
    for doing in state.under_way.values():
        share = f", {min(doing.done / doing.units, 1):.0%}" if doing.units else ""
        text = f", {doing.text}" if doing.text else ""
        since = f"since {_clock(doing.since, now)} ({_span(now - doing.since)})"
        yield f"  under way  {doing.name}{share}{text}, {since}, {_where(state)}{silent}"
    if not state.under_way:
        what = "waiting  " if state.done else "starting "
        yield f"  {what}  {_where(state)}, since {_clock(state.started, now)}{silent}"


def _expected_end(plan: ExperimentPlan, results: Results, running: Sequence[LiveState], now: float) -> float | None:
    """When the open work of all shares ends at the rate of their processes so far; None if one has done too little."""
    ends = [now]
    for share in {(state.share, state.shares) for state in running}:
        group = [state for state in running if (state.share, state.shares) == share]
        partly = sum(doing.done for state in group for doing in state.under_way.values())
        left = sum(work.units for work in open_work(0, plan, results, share=share)) - partly
        rate = sum(state.done / max(state.heartbeat - state.started, 1.0) for state in group)
        if rate * FAR_AWAY <= left:
            return None
        ends.append(now + max(left, 0.0) / rate)
    return max(ends)


def _failures(plan: ExperimentPlan, results: Results) -> Iterator[str]:
    failed = [cell for cell in plan.cells if results.get(cell.key, {}).get("status") == "failed"]
    for cell in failed[:MOST_FAILURES]:
        yield f"  failed     {cell_name(cell)}: {results[cell.key].get('error')}"
    if len(failed) > MOST_FAILURES:
        yield f"  and {len(failed) - MOST_FAILURES} more failed: --plan lists them"


def _where(state: LiveState) -> str:
    share = "" if state.shares == 1 else f", share {state.share} of {state.shares}"
    return f"host {state.host}, pid {state.pid}, {state.device}{share}"


def _clock(at: float, now: float) -> str:
    """A time of day, with its date unless it is today's."""
    then, today = time.localtime(at), time.localtime(now)
    return time.strftime("%H:%M:%S" if then[:3] == today[:3] else "%Y-%m-%d %H:%M", then)


def _span(seconds: float) -> str:
    """A duration in its largest unit, and the next one if there are few of it: `25 min`, `2 h 5 min`."""
    left, parts = max(0, round(seconds)), list[tuple[int, str]]()
    for name, size in UNITS:
        number, left = divmod(left, size)
        if number or parts or name == "s":
            parts.append((number, f"{plural(number, name) if name == 'day' else f'{number} {name}'}"))
    few = parts[0][0] < 10 and len(parts) > 1 and parts[1][0]
    return f"{parts[0][1]} {parts[1][1]}" if few else parts[0][1]
