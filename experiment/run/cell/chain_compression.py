"""The compression of the cells of a chain: the network that each starts from, and the analysis that they share."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from experiment.config import Parameters
from experiment.config.schema.budget import Budget
from experiment.datasets.calibration import calibration, calibration_size
from experiment.errors import Inherited, log
from experiment.layers.build import expand
from experiment.layers.compressible import trace_layers
from experiment.layers.copied_network import copied
from experiment.layers.plan import State
from experiment.measure.latency_model import LatencyTable
from experiment.methods.base import Calibration, Compressed, Compressor, make_method
from experiment.methods.meter import Meter
from experiment.methods.real_budgets import compress_within, shortfall
from experiment.progress import ProgressText, showing
from experiment.random_streams import generator
from experiment.run.cell.context import Context
from experiment.run.cell.data import Data
from experiment.run.cell.events import Busy, Note, ReportEvent, cell_name
from experiment.run.cell.outcome import evaluate_with, task_of
from experiment.run.cell.reference import Reference
from experiment.run.cell.reference_outputs import FOLDER, reference_outputs
from experiment.run.cell.start_state import network_of
from experiment.run.grid.cells import Cell, Chain
from experiment.run.machine import instructions
from experiment.training.agreement import Agreement

LATENCIES = ".latencies"  # the folder of what layers take on a device
IGNORED = -100  # a target that methods leave out; torch's default


def calibration_of(state: State, p: Parameters, data: Data) -> Calibration:
    """Images of the validation part for methods that compress a state."""
    valid = data.splits(p, p.training).valid
    layers = trace_layers(state.network, state.example).values()
    outputs = [layer.out_features * layer.positions for layer in layers if layer.groups == 1]
    size = calibration_size(outputs, len(valid), p.coresets.delta_s)
    x, y = calibration(valid, size, ("calibration", p.seed, p.network.dataset.name))
    ignored = task_of(p).loss_kwargs.get("ignore_index")
    return Calibration(x, y.masked_fill(y == ignored, IGNORED) if isinstance(ignored, int) else y)


class ChainCompression:
    """Compresses the cells of a chain in order: in a cascade each starts from the one before.

    Attributes:
        start: the network that the last compressed cell started from.
        previous_failure: why the next cell of a cascade cannot be computed.
    """

    def __init__(self, chain: Chain, reference: Reference, context: Context) -> None:
        self.chain, self.reference, self.context = chain, reference, context
        self.method = make_method(chain.method.entry, chain.method.settings)
        self.start = reference.network
        self.previous_failure: Inherited | None = None
        self._previous: Cell | None = None
        self._compressor: Compressor | None = None
        self._tuned: tuple[object, Compressor, Compressed] | None = None  # what all trials of a cell start from

    @property
    def parameters(self) -> Parameters:
        return self.chain.variant.parameters

    @property
    def _budget(self) -> Budget:
        return self.parameters.experiments.budget

    @cached_property
    def meter(self) -> Meter | None:
        """What measures the limited quantities; None where these are counted from plans."""
        if self._budget.counted is not None:
            return None
        context, state = self.context, self.reference.state
        path = context.store.folder / LATENCIES / f"{instructions(context.machine.device)}-{context.threads}.json"
        return Meter(state.network, state.example, self._budget, LatencyTable(path, context.threads))

    def compress(self, cell: Cell, report: ReportEvent) -> tuple[Compressor, Compressed]:
        """Compress the network that a cell starts from to the size of the cell.

        Raises: InfeasibleBudget: no network is that small.
        """
        if self._tuned is not None and self._tuned[0] == (cell.key, cell.keep):
            _, compressor, compressed = self._tuned
            return compressor, replace(compressed, network=copied(compressed.network))
        with showing(partial(ProgressText, lambda text: report(Busy(cell_name(cell), text)))):
            compressor, compressed = self._compress(cell)
        if self.parameters.retraining.tune is not None:
            untrained = replace(compressed, network=copied(compressed.network))
            self._tuned = (cell.key, cell.keep), compressor, untrained
        free = cell.fixed_size or self.chain.method.has_price
        if not free and (text := shortfall(cell.keep, compressed, compressor.original, self._budget)):
            report(Note(f"{cell_name(cell)}: {text}"))
        return compressor, compressed

    def compress_state(self, state: State, keep: float, cell: Cell, report: ReportEvent) -> Compressed:
        """Compress any state of the network of a cell.

        Raises: InfeasibleBudget: no network is that small.
        """
        with showing(partial(ProgressText, lambda text: report(Busy(cell_name(cell), text)))):
            return compress_within(self._analyse(state), keep, self._budget, self.meter)

    def limits(self, cell: Cell) -> dict[str, Any]:
        """What the budget allows a cell, as results have it; empty where sizes are counted from plans."""
        if self.meter is None:
            return {}
        return {"amounts": {name: {"limit": limit} for name, limit in self.meter.limits(cell.keep).items()}}

    def calibration(self) -> Calibration:
        """Images of the validation part for methods that need data."""
        return calibration_of(self.reference.state, self.parameters, self.context.data)

    def agreements(self) -> list[Agreement]:
        """For every test set, what compares the outputs of compressed networks with those of the reference network."""
        p, data, network, task = self.parameters, self.context.data, self.reference.network, task_of(self.parameters)
        folder, found = self.context.store.folder / FOLDER, []
        for i, images in enumerate(data.tests(p)):
            path = folder / f"{self.chain.reference_cell.key}-{i}.npy"
            test = partial(evaluate_with, network, images, p, data)
            found.append(Agreement(task, reference_outputs(network, task, len(images), test, path)))
        return found

    def cell_ended(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Let the next cell of a cascade start from this one, or fail if this one did."""
        self._tuned = None
        if not self.chain.in_order:
            return
        self._compressor = None
        if result["status"] == "done":
            self._previous, self.previous_failure = cell, None
        elif result["status"] == "failed":
            why = f"the previous cell of the cascade failed ({result.get('error')})."
            self.previous_failure = Inherited(why, cell.key)

    def _compress(self, cell: Cell) -> tuple[Compressor, Compressed]:
        budget, meter = self._budget, self.meter
        compressor = self._compressor
        if compressor is None or cell.between:
            compressor = self._analyse(self._start())
        for keep in cell.between:
            step = compress_within(compressor, keep, budget, meter)
            dense = expand(step.network, self.reference.network, step.plan, self.reference.state.example)
            compressor = self._analyse(dense)
        self._compressor = None if cell.between else compressor  # after intermediate steps, it starts elsewhere
        return compressor, compress_within(compressor, cell.keep, budget, meter)

    def _start(self) -> State:
        if self._previous is None:
            return self.reference.state
        self.start, state = network_of(self._previous, self.context.store, self.reference)
        return state

    def _analyse(self, state: State) -> Compressor:
        chain = self.chain
        stream = generator("method", self.parameters.seed, chain.reference.net, chain.repetition)
        compressor = Compressor(
            self.method, state, self.reference.count, self.calibration(), stream, recalibrated=chain.method.recalibrate
        )
        first = chain.reference.net == chain.repetition == 0  # warn once per variant and method
        if first and state is self.reference.state and (text := compressor.out_of_reach.told(chain.method.entry.kind)):
            log.warning("%s: %s", f"{chain.variant.name} {chain.method.label}".strip(), text)
        return compressor
