"""Tests and figures of this project on a machine with a GPU: one command, no downloads, at most eight minutes.

    python tests/gpu/run.py                                 # or: make gpu
    python tests/gpu/run.py --device cpu --quick            # the same code in small, where there is no GPU

It needs a Python with torch and torchvision. Of the other packages, those that this Python lacks are taken from wheels
in tests/gpu/wheels (`--download-wheels` on a machine with network), and are installed into tests/gpu/packages.

Every step runs in a process of its own with a time limit. Results go to a JSON file after every row: a step is `done`,
`failed`, `stopped` at its limit, or `left out`, with the reason. The exit status is 0 if everything that was asked for
ran and passed or was left out for lack of time, 1 if a step or a test failed or was stopped, and 2 if nothing ran
because an option is wrong or something is missing.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WHEELS, PACKAGES = HERE / "wheels", HERE / "packages"
BUDGET = 470.0  # seconds for all steps together
LEAST, LEAST_BUDGET = 20.0, 60.0  # seconds with which a step is started, and for all steps
STEPS = {"environment": 60, "tests": 200, "throughput": 120, "compression": 90, "sweep": 45, "latency": 40}
"""Name -> the most seconds with this budget, in order of importance."""

HOW_TO_GET_THEM = f"""torch and torchvision must be installed. For the others, run this on a machine with network and
the same version of Python, and copy the folder {WHEELS.relative_to(ROOT)} here:
    python {Path(__file__).resolve().relative_to(ROOT)} --download-wheels"""

Row = dict[str, Any]


def main() -> int:
    arguments = parse()
    if arguments.step:
        return run_step(arguments)
    if arguments.download_wheels:
        return download_wheels()
    if trouble := what_hinders(arguments.device, arguments.out):
        print(trouble, file=sys.stderr)
        return 2
    report = Report(arguments.out, {"device": arguments.device, "quick": arguments.quick})
    ends = time.monotonic() + arguments.budget
    for name, limit in STEPS.items():
        if arguments.only and name not in arguments.only:
            report.add(name)["reason"] = "not asked for"
            continue
        left = ends - time.monotonic()
        if left < LEAST:
            report.add(name)["reason"] = f"{max(left, 0):.0f} seconds are left, and a step is given {LEAST:.0f} or more"
            continue
        limit = max(LEAST, limit * arguments.budget / BUDGET)
        in_own_process(report.add(name), report, min(limit, left), arguments)
    report.content["finished"] = True
    report.write()
    print(f"\n{table(report.content)}\n\n{arguments.out}")
    return 1 if troubles(report.content) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="small networks and few batches, to try this program")
    out = "JSON file to write, with the figures of all steps; its folder must exist; default: %(default)s"
    parser.add_argument("--out", type=Path, metavar="FILE", default=Path("gpu.json"), help=out)
    only = f"some of the steps: {', '.join(STEPS)}"
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help=only)
    budget = f"for all steps, at least {LEAST_BUDGET:.0f}; the limits of the steps follow; default: {BUDGET:.0f}"
    parser.add_argument("--budget", type=seconds, metavar="SECONDS", default=BUDGET, help=budget)
    parser.add_argument("--download-wheels", action="store_true", help=f"fill {WHEELS.relative_to(ROOT)}, and exit")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    return parser.parse_args()


def seconds(text: str) -> float:
    value = float(text)
    if not LEAST_BUDGET <= value <= 86400:
        raise argparse.ArgumentTypeError(f"must be {LEAST_BUDGET:.0f} to 86400 seconds. Got {text}.")
    return value


def what_hinders(device: str, out: Path) -> str:
    """Why nothing can run, or an empty text."""
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        return f"--out: must be a file in an existing folder that can be written. Got {out}."
    if missing := provide_packages():
        return f"{sys.executable} lacks {', '.join(missing)}.\n{HOW_TO_GET_THEM}"
    found, least = metadata.version("torch"), oldest_torch()
    if version(found) < version(least):
        return f"{sys.executable} has torch {found}. This project needs {least} or later."
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return f"--device cuda: torch {found} finds no GPU here. --device cpu --quick runs the same code on a CPU."
    return ""


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


class Report:
    """The JSON file: written after every change, whole or not at all."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        command = " ".join(sys.argv)
        self.content: dict[str, Any] = {"format": 1, "finished": False, "command": command, **about, "steps": []}

    def add(self, name: str) -> Row:
        """A step, which is left out until it runs."""
        step: Row = {"name": name, "status": "left out", "rows": []}
        self.content["steps"].append(step)
        self.write()
        return step

    def write(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(part, self.path)


def in_own_process(step: Row, report: Report, limit: float, arguments: argparse.Namespace) -> None:
    """Run a step; it prints rows as lines of JSON, and `{"running": what}` before what may take long."""
    print(f"{step['name']} (at most {limit:.0f} s)", flush=True)
    command = [sys.executable, __file__, "--step", step["name"], "--device", arguments.device]
    command += ["--quick"] if arguments.quick else []
    started = time.monotonic()
    step |= {"status": "running", "limit_s": round(limit)}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment(),
                                   start_new_session=True)  # fmt: skip
        alarm = threading.Timer(limit, end, [process, step])
        alarm.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                row = json.loads(line)
                step["seconds"] = round(time.monotonic() - started, 1)
                if "running" in row:
                    step["running"] = row["running"]
                else:
                    step["rows"].append(row)
                    print("  " + short(row), flush=True)
                report.write()
            status = process.wait()
        finally:
            alarm.cancel()
            end(process)
            process.stdout.close()
        errors.seek(0)
        text = errors.read()
    step["seconds"] = round(time.monotonic() - started, 1)
    if step["status"] == "running":
        step["status"] = "done" if status == 0 else "failed"
    running = step.pop("running", "its start")
    if step["status"] == "stopped":
        step["reason"] = f"it reached its limit of {limit:.0f} s in {running} (rows done: {len(step['rows'])})"
    elif step["status"] == "failed":
        error = "\n".join(text.strip().splitlines()[-15:]) or f"exit status {status}"
        step["reason"] = f"in {running}:\n{error}"
    report.write()


def end(process: "subprocess.Popen[str]", step: Row | None = None) -> None:
    """Kill a step with all processes that it started; `step` was over its limit."""
    if process.poll() is None:
        if step is not None:
            step["status"] = "stopped"
        os.killpg(process.pid, 9)
        process.wait()


def environment() -> dict[str, str]:
    paths = [str(ROOT), *([str(PACKAGES)] if PACKAGES.is_dir() else [])]
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run_step(arguments: argparse.Namespace) -> int:
    """In the process of a step: standard output is for rows only, also of what the step starts."""
    rows = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.insert(0, str(HERE))
    import steps

    def emit(row: Row) -> None:
        print(json.dumps(row, default=str), file=rows, flush=True)

    steps.STEPS[arguments.step](arguments.device, arguments.quick, emit)
    return 0


def oldest_torch() -> str:
    """The first version that pyproject.toml allows."""
    found = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    return found[1] if found else "0"


def needed() -> list[str]:
    """The names of the packages in pyproject.toml, and pytest."""
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    return [*re.findall(r'^\s*"([\w-]+)', listed[1] if listed else "", re.MULTILINE), "pytest"]


def provide_packages() -> list[str]:
    """Install what this Python lacks from the folder of wheels; gives what is still missing."""
    if PACKAGES.is_dir():
        sys.path.append(str(PACKAGES))
    wheels = {wheel.name.partition("-")[0].replace("_", "-") for wheel in WHEELS.glob("*.whl")}
    if absent(needed()) and (new := absent(sorted(wheels))):
        print(f"installing {', '.join(new)} into {PACKAGES}", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(PACKAGES)]
        subprocess.run([*pip, "--find-links", str(WHEELS), *new], check=False)
        sys.path.append(str(PACKAGES))
    return absent(needed())


def absent(names: list[str]) -> list[str]:
    def found(name: str) -> bool:
        try:
            return bool(metadata.version(name))
        except metadata.PackageNotFoundError:
            return False

    return [name for name in names if not found(name)]


def download_wheels() -> int:
    """For this machine's kind of Python: all packages but those that come with torch."""
    names = [name for name in needed() if name not in ("torch", "torchvision")]
    return subprocess.call([sys.executable, "-m", "pip", "download", "--only-binary", ":all:", "--dest", str(WHEELS),
                            *names])  # fmt: skip


def troubles(content: Mapping[str, Any]) -> list[str]:
    """The steps and rows that failed."""
    found = [step["name"] for step in content["steps"] if step["status"] in ("failed", "stopped")]
    return found + [short(row) for step in content["steps"] for row in step["rows"] if bad(row)]


def bad(row: Row) -> bool:
    return "error" in row or row.get("outcome") == "failed"


def short(row: Row) -> str:
    text = ", ".join(f"{key} {value}" for key, value in row.items())
    return text if len(text) < 160 else f"{text[:157]}..."


def table(content: Mapping[str, Any]) -> str:
    """All figures as text; of the tests, those that did not pass."""
    lines: list[str] = []
    for step in content["steps"]:
        took = f" in {step['seconds']:.0f} s" if "seconds" in step else ""
        reason = f": {step['reason'].splitlines()[-1]}" if "reason" in step else ""
        lines += ["", f"{step['name']}: {step['status']}{took}{reason}"]
        rows = step["rows"]
        if step["name"] == "tests" and rows:
            counts = {what: sum(row["outcome"] == what for row in rows) for what in ("passed", "skipped", "failed")}
            lines.append("  " + ", ".join(f"{count} {what}" for what, count in counts.items()))
            rows = [row for row in rows if row["outcome"] == "failed"]
        lines += [f"  {line}" for line in columns(rows)]
    return "\n".join(lines[1:])


def columns(rows: list[Row]) -> Iterator[str]:
    """Rows under a header; a new one where the names change."""
    names: list[str] = []
    for i, row in enumerate(rows):
        if list(row) != names:
            names = list(row)
            alike = [r for r in rows[i:] if list(r) == names]
            widths = [min(60, max(len(n), *(len(str(r[n])) for r in alike))) for n in names]
            yield "  ".join(f"{n:>{w}}" for n, w in zip(names, widths, strict=True))
        yield "  ".join(f"{str(v)[:60]:>{w}}" for v, w in zip(row.values(), widths, strict=True))


if __name__ == "__main__":
    sys.exit(main())
