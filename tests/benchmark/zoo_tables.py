"""The zoo's rows as tables: one per network, and a summary of all."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean

from experiment.methods import METHODS

Row = Mapping[str, str]

MOST_LETTERS = 120
GOALS = {"weight": 0.95, "lowrank": 0.95, "filter": 0.80}
CHECKS = ("finite", "counted", "reloaded", "step", "onnx")
SHOWN = ("network", "method", "verdict", "keep", "reach", *CHECKS, "seconds", "peak_mib", "reason")


def of_rows(rows: Sequence[Row], columns: Sequence[str] = SHOWN) -> str:
    """A Markdown table, its columns aligned."""
    filled = [name for name in columns if any(row.get(name) for row in rows)]
    cells = [filled, *([_cell(row.get(name)) for name in filled] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(filled))]
    lines = ["| " + " | ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)) + " |"
             for line in cells]  # fmt: skip
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _cell(value: str | None) -> str:
    return textwrap.shorten((value or "").replace("|", "/"), MOST_LETTERS, placeholder="...")


def summary(rows: Sequence[Row]) -> str:
    """Verdicts and reach by method, and every row that is not in order."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    faults = _joined([row for row in rows if row["verdict"] != "ok"], ("network", "verdict", "reason"))
    short = _joined([row for row in rows if _below_goal(row)], ("network", "reach", "verdict"))
    parts = [
        f"{len({row['network'] for row in rows})} networks, {len(methods)} methods",
        of_rows([_of_method(method, [row for row in rows if row["method"] == method]) for method in methods], _METHOD),
    ]
    if faults:
        parts += ["Refused or wrong", of_rows(faults, ("network", "verdict", "method", "reason"))]
    if short:
        parts += ["Within reach below the goal", of_rows(short, ("network", "method", "reach", "verdict"))]
    return "\n\n".join(parts)


def _joined(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """One row for all methods of which these columns say the same."""
    methods: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        methods.setdefault(tuple(row.get(name, "") for name in columns), []).append(row["method"])
    return [{**dict(zip(columns, key, strict=True)), "method": " ".join(found)} for key, found in methods.items()]


_METHOD = ("method", "ok", "refused", "wrong", "timeout", "crash", "mean reach", "least reach", "goal", "reached by")


def _of_method(method: str, rows: Sequence[Row]) -> Row:
    verdicts = Counter(row["verdict"] for row in rows)
    reach, goal = _reaches(rows), GOALS.get(METHODS[method].kind)
    row = {"method": method, "ok": str(verdicts["ok"])}
    row |= {name: str(verdicts[name]) for name in ("refused", "wrong", "timeout", "crash")}
    if reach:
        row |= {"mean reach": f"{mean(reach):.1%}", "least reach": f"{min(reach):.1%}"}
    if goal:
        met = sum(share >= goal for share in reach)
        row |= {"goal": f"{goal:.0%}", "reached by": f"{met} of {len(rows)}"}
    return row


def _reaches(rows: Iterable[Row]) -> list[float]:
    return [float(row["reach"]) for row in rows if row.get("reach")]


def _below_goal(row: Row) -> bool:
    goal = GOALS.get(METHODS[row["method"]].kind)
    return goal is not None and any(share < goal for share in _reaches([row]))


def verdict(row: Row) -> Row:
    """The row with its verdict: `wrong` where a check fails that the dense network passes; the first is the reason."""
    failed = [name for name in CHECKS if row.get(name) not in (None, "", "yes", "nor dense")]
    if row["verdict"] != "ok" or not failed:
        return row
    return {**row, "verdict": "wrong", "reason": f"{failed[0]}: {row[failed[0]]}"}
