"""The network of a cell in mode gradual: compressed in steps, from the reference network on, while it is retrained.

The keep ratio falls by a cubic schedule, fast while much can be removed and slowly at the end. Each step compresses the
network as it is then, so what a step removed stays removed, and the rest is chosen by its present weights.

Source: Zhu and Gupta 2017, https://arxiv.org/abs/1710.01878
Differs: any method, not only masks by magnitude; steps are at the starts of epochs, and the optimizer starts anew after
each, since its parameters may have other shapes.
"""

import dataclasses
import time
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from experiment.config import Retraining
from experiment.config.modes import gradual_steps
from experiment.layers.build import build, expand
from experiment.layers.copied_network import copied
from experiment.layers.masks import named_masks
from experiment.layers.plan import Plan, State
from experiment.run.cell.chain_compression import ChainCompression
from experiment.run.cell.events import ReportEvent
from experiment.run.cell.outcome import CellNetwork
from experiment.run.cell.rank_history import rank_log
from experiment.run.cell.retrain import removes_nothing, retrain
from experiment.run.grid.cells import Cell
from experiment.tensor_file import load_tensors
from experiment.training.checkpoint import Checkpoint
from experiment.training.loop import EpochRecord

STEP = "step.pt"  # the network after the last finished part of the training


@dataclass
class _Progress:
    """The network between two steps: its structure, and the epochs so far."""

    done: int
    network: nn.Module
    plan: Plan
    records: list[EpochRecord]


def compress_gradually(
    compression: ChainCompression, cell: Cell, block: Retraining, folder: Path, report: ReportEvent
) -> CellNetwork:
    """Make the network of a cell; without records if compression removes nothing.

    Raises: InfeasibleBudget, CompressionError, TrainingDiverged.
    """
    p, reference = compression.parameters, compression.reference
    started = time.perf_counter()
    _, compressed = compression.compress(cell, report)
    direct = compressed.network
    if not cell.epochs_retrain or removes_nothing(direct, compression):
        facts = {"epochs": 0, "seconds_compress": round(time.perf_counter() - started, 3), "seconds_retrain": 0.0}
        return CellNetwork(compressed, direct, [], None, facts)
    ranks, steps = rank_log(p, folder), gradual_steps(p, cell.keep)
    compressing = time.perf_counter() - started
    saved = Checkpoint(folder / STEP, ("gradual", cell.key, steps))
    now = _continued(saved, reference.network) or _Progress(0, copied(reference.network), Plan(), [])
    if ranks is not None and not now.records:
        ranks.note(0, now.network)
    for i in range(now.done, len(steps) + 1):
        if i > 0:
            before = time.perf_counter()
            state = reference.state if i == 1 and not now.records else _state_of(now, compression)
            compressed = compression.compress_state(state, steps[i - 1][1], cell, report)
            now.network, now.plan = compressed.network, compressed.plan
            compressing += time.perf_counter() - before
        until = steps[i][0] if i < len(steps) else None
        if until is None or until > block.start_epoch + len(now.records):
            now.records = retrain(
                cell, block, now.network, now.plan, compression, folder, ranks, report,
                checkpoint=f"checkpoint-{i}.pt", earlier=now.records, until=until,
            )  # fmt: skip
        if until is not None:
            now.done = i + 1
            saved.save(_plain(now))
            (folder / f"checkpoint-{i}.pt").unlink(missing_ok=True)
    facts = {
        "epochs": cell.epochs_retrain,
        "seconds_compress": round(compressing, 3),
        "seconds_retrain": round(time.perf_counter() - started - compressing, 3),
    }
    return CellNetwork(replace(compressed, network=now.network), direct, now.records, ranks, facts)


def _state_of(now: _Progress, compression: ChainCompression) -> State:
    reference = compression.reference
    plan = replace(now.plan, masks=named_masks(now.network))
    return expand(now.network, reference.network, plan, reference.state.example)


def _plain(now: _Progress) -> dict[str, object]:
    records = [dataclasses.asdict(record) for record in now.records]
    return {
        "done": now.done, "plan": now.plan.to_data(), "network": now.network.state_dict(), "records": records
    }  # fmt: skip


def _continued(saved: Checkpoint, original: nn.Module) -> _Progress | None:
    content = saved.load()
    if content is None:
        return None
    plan = Plan.from_data(content["plan"], original)
    network = build(original, plan)
    load_tensors(network, content["network"])
    return _Progress(content["done"], network.eval(), plan, [EpochRecord(**r) for r in content["records"]])
