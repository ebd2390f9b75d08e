"""Transformers compressed by several methods: perplexity or top-1 error against the share of parameters kept.

    python tests/benchmark/transformer_curves.py gpt --folder data/transformers
    python tests/benchmark/transformer_curves.py vit --folder data/transformers

Each trains its network (`small_transformers`), compresses it by every method to every keep ratio, tests it, retrains it
for a short while, tests it again, and writes FOLDER/gpt.csv and a plot. All that is finished is skipped the next time.
Calibration data are the first samples of the validation part. Networks are retrained by AdamW with the same steps,
batches and learning rates, whatever the method.
"""

import argparse
import csv
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rows import Row
from small_transformers import Task, gpt_task, python_topics, train, vit_task
from torch import Tensor, nn
from torch.nn import functional

from experiment import compress_many
from experiment.errors import InfeasibleBudget
from experiment.report.label_styles import LabelStyles
from experiment.report.plots.curves import REFERENCE_NAME, draw_curve, draw_reference, log_ticks
from experiment.report.plots.figure import new_figure, place_legend, save_figure, set_title

METHODS = ("KLDS", "ALDS", "SVD", "PCA", "WT", "FT", "Random")
KEEPS = (0.9, 0.7, 0.5, 0.35, 0.2)
CALIBRATION = {"gpt": 64, "vit": 256}  # samples
RETRAINING = {"gpt": 45, "vit": 60}  # steps
SETTINGS: dict[tuple[str, str], Row] = {("gpt", "KLDS"): {"images": 16}}  # texts, of 128 predictions each
RATE = 1e-3
TITLES = {
    "gpt": "GPT, 1 M parameters, on Python's help topics",
    "vit": "Vision transformer, 1.2 M parameters, on CIFAR-10",
}


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    task = gpt_task() if arguments.network == "gpt" else vit_task(arguments.data, arguments.folder / "images")
    folder = arguments.folder / arguments.network
    folder.mkdir(parents=True, exist_ok=True)
    network = task.make()
    train(task, network, folder)
    table = arguments.folder / f"{arguments.network}.csv"
    if not finished(table):
        save(table, {"method": "Reference", "keep": 1.0, "retrained": 0, "settings": "{}"} | tested(network, task))
    if arguments.network == "gpt":
        print("perplexity of character frequencies, and of pairs: {:.2f}, {:.2f}".format(*baselines()))
    for method in arguments.methods:
        for row in points(method, network, task, arguments):
            save(table, row)
    show(table, arguments.network)
    draw(table, arguments.network)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=("gpt", "vit"))
    parser.add_argument("--folder", type=Path, required=True, help="for checkpoints, tables and plots")
    parser.add_argument("--data", type=Path, default=Path("data/datasets"), help="where CIFAR10-jpeg lies")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--keeps", nargs="+", type=float, default=KEEPS)
    parser.add_argument("--settings", type=json.loads, default={}, help="of the methods, as JSON")
    parser.add_argument("--retraining", type=int, help="steps; 0 for none")
    parser.add_argument("--label", help="name of the curve; by default the method's")
    return parser.parse_args()


def points(method: str, network: nn.Module, task: Task, arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for every point that is not in the table yet."""
    steps = RETRAINING[arguments.network] if arguments.retraining is None else arguments.retraining
    done = finished(arguments.folder / f"{arguments.network}.csv")
    name = arguments.label or method
    keeps = [k for k in arguments.keeps if not {(name, k, 0), (name, k, steps)} <= done]
    if not keeps:
        return
    calibration = [tuple(part[: CALIBRATION[arguments.network]] for part in task.valid)]
    started = time.perf_counter()
    settings = SETTINGS.get((arguments.network, method), {}) | arguments.settings
    results = compress_many(
        network, method, keeps=keeps, example=task.valid[0][:1], data=calibration, settings=settings
    )
    for keep in keeps:
        try:
            result = next(results)
        except InfeasibleBudget as error:
            print(f"{name}: {error}", flush=True)
            return
        row: Row = {"method": name, "keep": keep, "retrained": 0, "settings": json.dumps(settings)}
        size: Row = {"parameters": result.parameters, "keep_parameters": round(result.keep_parameters, 4)}
        spent = {"seconds": round(time.perf_counter() - started, 1)}
        if (name, keep, 0) not in done:
            yield row | tested(result.network, task) | size | spent
        if steps and (name, keep, steps) not in done:
            retrain(result.network, task, steps)
            yield row | {"retrained": steps} | tested(result.network, task) | size | spent
        started = time.perf_counter()


def retrain(network: nn.Module, task: Task, steps: int) -> None:
    """Train on the first batches of the training."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
    network.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min((step + 1) / max(1, steps // 10), 1 - step / steps)
        optimizer.zero_grad()
        task.loss(network, step).backward()
        optimizer.step()
    network.eval()


def tested(network: nn.Module, task: Task) -> Row:
    """Loss and error on the test part; its exponential is the perplexity."""
    inputs, targets = task.test
    loss = wrong = 0.0
    network.eval()
    with torch.no_grad():
        for x, y in zip(inputs.split(250), targets.split(250), strict=True):
            scores = network(x).flatten(0, -2)
            loss += float(functional.cross_entropy(scores, y.flatten(), reduction="sum"))
            wrong += int((scores.argmax(1) != y.flatten()).sum())
    loss /= targets.numel()
    parameters = sum(p.numel() for p in network.parameters())
    return {
        "parameters": parameters, "keep_parameters": 1.0, "loss": round(loss, 4),
        "perplexity": round(math.exp(min(loss, 50.0)), 3), "error": round(wrong / targets.numel(), 4), "seconds": 0.0,
    }  # fmt: skip


def baselines() -> tuple[float, float]:
    """The test perplexity of character frequencies, and of frequencies after each character smoothed by those."""
    characters, parts = python_topics()
    trained, test = parts["train"], parts["test"]
    single = torch.bincount(trained, minlength=len(characters)).double() + 1
    single /= single.sum()
    pairs = torch.zeros(len(characters), len(characters), dtype=torch.float64)
    pairs.index_put_((trained[:-1], trained[1:]), torch.ones((), dtype=torch.float64), accumulate=True)
    pairs = pairs + 5 * single
    pairs /= pairs.sum(1, keepdim=True)
    return perplexity(single[test]), perplexity(pairs[test[:-1], test[1:]])


def perplexity(probabilities: Tensor) -> float:
    return math.exp(-float(probabilities.log().mean()))


def finished(table: Path) -> set[tuple[str, float, int]]:
    return {(row["method"], float(row["keep"]), int(row["retrained"])) for row in read(table)}


def read(table: Path) -> list[dict[str, str]]:
    if not table.exists():
        return []
    with table.open(newline="") as stream:
        return list(csv.DictReader(stream))


def save(table: Path, row: Row) -> None:
    """Append a row."""
    first = not table.exists()
    with table.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, list(row))
        if first:
            writer.writeheader()
        writer.writerow(row)
    print(" ".join(str(value) for value in row.values()), flush=True)


def value_of(row: dict[str, str], network: str) -> float:
    return float(row["perplexity"]) if network == "gpt" else 100 * float(row["error"])


def show(table: Path, network: str) -> None:
    """Print a Markdown table without, and one with retraining: a row a method, a column a keep ratio."""
    rows = read(table)
    reference = next(value_of(row, network) for row in rows if row["method"] == "Reference")
    for steps in sorted({int(row["retrained"]) for row in rows}):
        chosen = [row for row in rows if int(row["retrained"]) == steps and row["method"] != "Reference"]
        keeps = sorted({float(row["keep"]) for row in chosen}, reverse=True)
        print(f"\nretrained for {steps} steps; uncompressed: {reference:.3g}\n")
        print("| parameters kept | " + " | ".join(f"{100 * keep:.0f} %" for keep in keeps) + " |")
        print("|---" * (len(keeps) + 1) + "|")
        for method in dict.fromkeys(row["method"] for row in chosen):
            values = {float(row["keep"]): value_of(row, network) for row in chosen if row["method"] == method}
            cells = (f"{values[keep]:.3g}" if keep in values else "" for keep in keeps)
            print(f"| `{method}` | " + " | ".join(cells) + " |")


def draw(table: Path, network: str) -> None:
    """One curve a method, in a panel for each number of retraining steps."""
    rows = read(table)
    methods = [method for method in dict.fromkeys(row["method"] for row in rows) if method != "Reference"]
    looks, entries = LabelStyles().looks(methods), {}
    all_steps = sorted({int(row["retrained"]) for row in rows})
    figure, panels = new_figure(len(all_steps))
    for axes, steps in zip(panels, all_steps, strict=True):
        for method in methods:
            curve = [row for row in rows if row["method"] == method and int(row["retrained"]) == steps]
            if not curve:
                continue
            curve.sort(key=lambda row: -float(row["keep_parameters"]))
            x = [100 * float(row["keep_parameters"]) for row in curve]
            entries[method] = draw_curve(axes, x, [value_of(row, network) for row in curve], looks[method])
        reference = next(value_of(row, network) for row in rows if row["method"] == "Reference")
        entries[REFERENCE_NAME] = draw_reference(axes, reference)
        axes.set_xlim(100, 15)
        axes.set_xlabel("Parameters kept (%)")
        axes.set_title(f"retrained for {steps} steps" if steps else "without retraining", fontsize=9)
        if network == "gpt":
            axes.set_yscale("log")
            log_ticks(axes.yaxis)
    panels[0].set_ylabel("Perplexity of a character" if network == "gpt" else "Top-1 error (%)")
    set_title(figure, TITLES[network])
    place_legend(figure, [(line, name) for name, line in entries.items()])
    for file in save_figure(figure, table.with_suffix("")):
        print(file)


if __name__ == "__main__":
    main()
