"""The way through a chain: compress, retrain or learn in turn, test and store its cells, from where each starts."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from experiment.config import Parameters, retraining, rewinding
from experiment.datasets.calibration import calibration, calibration_size
from experiment.errors import InfeasibleBudget, Inherited, StoreError
from experiment.files import make_folder
from experiment.layers.build import expand
from experiment.layers.compressible import trace_layers
from experiment.layers.masks import same_support
from experiment.layers.plan import Plan, State
from experiment.methods.base import Calibration, Compressed, Compressor, make_method, shortfall
from experiment.methods.table import layer_rows
from experiment.progress import Spoken, showing
from experiment.random_streams import generator
from experiment.registry import InputShape
from experiment.run.cell.events import Advanced, Busy, Note, Report, epoch_callbacks
from experiment.run.cell.learn_compress import learn_compress
from experiment.run.cell.outcome import (
    CellNetwork,
    costs_of,
    measure_network,
    read_history,
    require_finite,
    valid_top1,
    write_history,
    write_result,
    write_rows,
)
from experiment.run.cell.rank_history import RankLog, rank_log
from experiment.run.cell.reference import (
    Context,
    Reference,
    architecture_of,
    train_settings,
)
from experiment.run.cell.search import TABLE, Found, search
from experiment.run.cell.start_state import network_of, random_state, rewound_state
from experiment.run.cell.torchrun_group import Job, together
from experiment.run.disk.network_file import load_packed, read_weights, save_weights
from experiment.run.grid.plan import Cell, Chain
from experiment.run.machine import instructions
from experiment.training.loop import EpochRecord, train

log = logging.getLogger("experiment")

NOTHING_REMOVED = "removes nothing that its starting point still has: it is tested as it is, not retrained"


def cell_name(cell: Cell) -> str:
    """A cell in a few words, for people."""
    words = [cell.variant, cell.label, cell.size if cell.method != "Reference" else "", f"net {cell.net}"]
    return " ".join(word for word in words if word) + (f" rep {cell.repetition}" if cell.repetition else "")


class Walk:
    """A chain under way: the reference network, where the next cell starts, and the analysis that cells share."""

    def __init__(self, chain: Chain, reference: Reference, context: Context) -> None:
        self.chain, self.reference, self.context = chain, reference, context
        self.p = chain.variant.parameters
        self.cascade = chain.in_order
        self.rewinding = rewinding(self.p.experiments)
        self.before = reference.network
        self.method = make_method(chain.method.entry, chain.method.settings)
        self.last_done: Cell | None = None
        self.broken: Inherited | None = None
        self._compressor: Compressor | None = None

    def compute(self, cell: Cell, report: Report) -> dict[str, Any]:
        """Compress, retrain, test both states, and store."""
        if self.cascade and self.broken:
            raise self.broken
        try:
            return self._search(cell, report) if cell.samples else self._finish(cell, self._make(cell, report))
        except InfeasibleBudget as error:
            return self._store_infeasible(cell, {"error": str(error), "smallest": error.smallest})

    def _make(self, cell: Cell, report: Report) -> CellNetwork:
        """The network of a cell, compressed and retrained, or learnt; raises InfeasibleBudget."""
        return self._learn_compress(cell, report) if self.p.experiments.mode == "lc" else self._retrained(cell, report)

    def _retrained(self, cell: Cell, report: Report) -> CellNetwork:
        started = time.perf_counter()
        spoken = partial(Spoken, lambda text: report(Busy(cell_name(cell), text)))
        with showing(spoken):
            compressor, compressed = self._compress(cell)
        network, about = compressed.network, {}
        if not cell.fixed_size and (text := _shortfall(compressed, cell, compressor, self.p)):
            report(Note(f"{cell_name(cell)}: {text}"))
        epochs = cell.epochs_retrain
        if epochs and self._removes_nothing(network):
            epochs, about = 0, {"notice": NOTHING_REMOVED}
            report(Note(f"{cell_name(cell)}: {NOTHING_REMOVED}"))
            report(Advanced(cell.epochs_retrain))
        if epochs and self.rewinding != "none":  # "before retraining" is what compression left, not other weights
            network, before = compressor.instantiate(compressed.plan, self._other_weights(cell)), network
        else:
            before = copy.deepcopy(network) if epochs else network
        seconds_compress = time.perf_counter() - started
        started = time.perf_counter()
        ranks = rank_log(self.p, self.context.store.partial(cell.key))
        if ranks is not None:
            ranks.note(0, network)
        earlier = self._trained_before(cell, network, report) if epochs and ranks is None else None
        if earlier is not None:
            network, records = earlier
        else:
            records = self._retrain(cell, network, compressed.plan, ranks, report) if epochs else []
        return CellNetwork(
            Compressed(network, compressed.plan, compressed.count), before, records, ranks,
            about | {
                "epochs": epochs, "seconds_compress": round(seconds_compress, 3),
                "seconds_retrain": round(time.perf_counter() - started, 3),
            },
        )  # fmt: skip

    def _learn_compress(self, cell: Cell, report: Report) -> CellNetwork:
        """Learn and compress in turn."""
        learnt = learn_compress(
            cell, self.chain.method, self.method, self._calibration(), self.reference, self.p, self.context, report,
            cell_name(cell),
        )  # fmt: skip
        about = {} if learnt.records else {"notice": NOTHING_REMOVED}
        direct = learnt.direct if learnt.records else learnt.best.network
        return CellNetwork(
            learnt.best, direct, learnt.records, None,
            about | {
                "epochs": learnt.epochs, "seconds_compress": round(learnt.seconds_compress, 3),
                "seconds_retrain": round(learnt.seconds_learn, 3),
            },
        )  # fmt: skip

    def _search(self, cell: Cell, report: Report) -> dict[str, Any]:
        """Make networks of several sizes, and test and store the smallest that will do."""
        block = self.p.experiments.search
        assert block is not None

        def top1(network: nn.Module) -> float:
            return valid_top1(network, self.p, self.context.data)

        found = search(cell, block, self._make, top1, self.reference.network, self.context.store, report)
        if found.best is None:
            return self._store_infeasible(cell, found.facts | {"error": found.reason}, found)
        made = self._make(found.best, lambda event: None)  # from its checkpoint, and all of it was told
        return self._finish(cell, replace(made, facts=made.facts | found.facts), found)

    def _removes_nothing(self, network: nn.Module) -> bool:
        """Whether retraining would repeat what was done; a control that keeps everything, or learns anew, is meant."""
        if self.chain.method.entry.kind == "none" or self.rewinding == "random":
            return False
        return same_support(network, self.before)

    def _other_weights(self, cell: Cell) -> State:
        """The weights that are retrained in the place of those that compression left."""
        if self.rewinding == "random":
            return random_state(self.reference, self.p, cell.net, cell.repetition)
        return rewound_state(self.reference, self.chain.reference)

    def passed(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Take note of how a cell ended: the next one of a cascade starts from it."""
        if result["status"] == "done":
            self.last_done, self.broken = cell, None
        elif result["status"] == "failed":
            why = f"the cell before it in the cascade failed ({result.get('error')}), and it starts from there."
            self.broken = Inherited(why, cell.key)
        if self.cascade:
            self._compressor = None

    def _compress(self, cell: Cell) -> tuple[Compressor, Compressed]:
        if self._compressor is None or cell.between:
            self._compressor = self._analysed(self._start())
        for keep in cell.between:
            step = self._compressor.compress(keep, self.p.experiments.budget)
            self._compressor = self._analysed(self._expanded(step.network, step.plan))
        compressor = self._compressor
        if cell.between:
            self._compressor = None  # the next cell does not start from here
        return compressor, compressor.compress(cell.keep, self.p.experiments.budget)

    def _start(self) -> State:
        if not self.cascade or self.last_done is None:
            return self.reference.state
        self.before, state = network_of(self.last_done, self.context.store, self.reference)
        return state

    def _expanded(self, network: nn.Module, plan: Plan) -> State:
        return expand(network, self.reference.network, plan, self.reference.state.example)

    def _analysed(self, state: State) -> Compressor:
        stream = generator("method", self.p.seed, self.chain.reference.net, self.chain.repetition)
        compressor = Compressor(
            self.method, state, self.reference.count, self._calibration(), stream,
            recalibrated=self.chain.method.recalibrate,
        )  # fmt: skip
        if state is self.reference.state and self.chain.reference.net == self.chain.repetition == 0:
            self._warn_of_rest(compressor)  # once a variant and method
        return compressor

    def _warn_of_rest(self, compressor: Compressor) -> None:
        told = compressor.out_of_reach.told(self.chain.method.entry.kind)
        if told:
            log.warning("%s: %s", f"{self.chain.variant.name} {self.chain.method.label}".strip(), told)

    def _calibration(self) -> Calibration:
        splits = self.context.data.splits(self.p, self.p.training)
        layers = trace_layers(self.reference.network, self.reference.state.example).values()
        outputs = [layer.out_features * layer.positions for layer in layers if layer.groups == 1]
        size = calibration_size(outputs, len(splits.valid), self.p.coresets.delta_s)
        inputs, targets = calibration(splits.valid, size, ("calibration", self.p.seed, self.p.network.dataset.name))
        return Calibration(inputs, targets)

    def _retrain(
        self, cell: Cell, network: nn.Module, plan: Plan, ranks: RankLog | None, report: Report
    ) -> list[EpochRecord]:
        block = retraining(self.p)
        splits = self.context.data.splits(self.p, block)
        settings = train_settings(block, self.context.machine)
        on_batch, on_epoch = epoch_callbacks(cell_name(cell), settings.num_epochs, len(splits.train), report)
        partial = self.context.store.partial(cell.key)
        make_folder(partial)
        stream = ("retrain", self.p.seed, cell.net, cell.repetition)
        job = Job(self.p, block, plan.to_data(), stream, self.context.directories.datasets)
        with together(self.context.crew, job) as team:
            records = train(
                network, splits.train, settings, valid=splits.valid, stream=stream,
                device=torch.device(self.context.machine.device), checkpoint=partial / "checkpoint.pt",
                on_batch=on_batch, on_epoch=on_epoch,
                measure=None if ranks is None else lambda epochs: ranks.note(epochs, network), team=team,
                teacher=None if block.distillation is None else self.reference.network,
            )  # fmt: skip
        network.eval()
        return records

    def _trained_before(
        self, cell: Cell, network: nn.Module, report: Report
    ) -> tuple[nn.Module, list[EpochRecord]] | None:
        """The network retrained, with its epochs, from a cell that was tested on other data; None without one."""
        folder = self.context.store.tested_otherwise(cell) if self.p.experiments.search is None else None
        if folder is None:
            return None
        trained = copy.deepcopy(network)
        try:
            load_packed(trained, read_weights(folder / "network.pt")[1], folder / "network.pt")
            records = read_history(folder / "history.csv")
        except StoreError:  # damaged: it is trained again
            return None
        report(Note(f"{cell_name(cell)}: its network is the one in {folder.name}, which is tested on other data now"))
        report(Advanced(cell.epochs_retrain))
        return trained.eval(), records

    def _finish(self, cell: Cell, made: CellNetwork, found: Found | None = None) -> dict[str, Any]:
        """Test what has come of a cell and what had learnt nothing, and store it."""
        network = made.compressed.network
        measured = measure_network(network, self.p, self.context.data)
        require_finite(measured)
        same = made.direct is network
        first = measured if same else measure_network(made.direct, self.p, self.context.data)
        with self.context.store.writing(cell) as folder:
            size = save_weights(
                folder / "network.pt", network, made.compressed.plan, architecture(self.p, self.reference),
                method=cell.method, label=cell.label, keep=made.facts.get("keep_found", cell.keep),
            )  # fmt: skip
            write_rows(folder / "layers.csv", layer_rows(self.reference.count, made.compressed))
            write_history(folder / "history.csv", made.records)
            if made.ranks is not None:
                made.ranks.write(folder)
            if found is not None:
                write_rows(folder / TABLE, found.table())
            result = costs_of(made.compressed, size) | measured | made.facts
            result |= {"top1_before_retraining": first["top1"], "status": "done"}
            result["hardware"] = instructions(self.context.machine.device)
            write_result(folder, result)
        return result

    def _store_infeasible(self, cell: Cell, why: Mapping[str, Any], found: Found | None = None) -> dict[str, Any]:
        result = {"status": "infeasible", "epochs": 0, **why}
        with self.context.store.writing(cell) as folder:
            if found is not None:
                write_rows(folder / TABLE, found.table())
            write_result(folder, result)
        return result


def _shortfall(compressed: Compressed, cell: Cell, compressor: Compressor, p: Parameters) -> str | None:
    quantity = p.experiments.budget
    reached = getattr(compressed.count, quantity) / getattr(compressor.original, quantity)
    return shortfall(cell.keep, reached, quantity)


def architecture(p: Parameters, reference: Reference) -> dict[str, object]:
    example = reference.state.example
    return architecture_of(p, InputShape(example.shape[1:], tokens=not example.is_floating_point()))
