"""All other blocks of a parameter file, the file as a whole, and its JSON schema for editors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from experiment.config.keep_ratios import Spacing, ratio_conflicts
from experiment.config.schema.budget import Budget
from experiment.config.schema.slurm import Slurm
from experiment.config.schema.training import Block, Conflict, Name, Number, Retraining, Training, Whole, refuse

FIRST_STEP = 5  # the first L-step is this many times as long as the others, unless iterationsFirst is set
DECAY, MILESTONE_DECAY = 0.98, 0.1


class NamedSettings(Block):
    """A registered name, or `package.module:factory`, with its settings. The name alone is the short form."""

    name: Name
    """A registered name, or `package.module:factory` for your own."""
    settings: dict[str, Any] = {}
    """Keyword arguments of the factory."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class DatasetRef(NamedSettings):
    """A dataset, whose images may be corrupted before any transform. The name alone is the short form."""

    corruption: Name | None = None
    """Corruption of Hendrycks and Dietterich (gaussian_noise, fog, ...) of every image. Default: none."""
    severity: Annotated[Whole, Field(ge=1, le=5)] | None = None
    """Severity of the corruption, 1 to 5. Default: all five, one after the other."""

    max_samples: Annotated[Whole, Field(ge=4)] | None = None
    """Largest number of samples of each part, drawn at random, for trial runs. Default: all."""
    label: Name | None = None
    """Its name in results, plots and tables. Default: the name, with corruption and severity."""

    @field_validator("severity")
    @classmethod
    def _with_corruption(cls, severity: int | None, info: ValidationInfo) -> int | None:
        if severity is not None and info.data.get("corruption") is None:
            refuse(severity, [((), "has no effect without corruption. Remove it, or name a corruption.")])
        return severity

    @property
    def shown(self) -> str:
        """Its name in results: the label, else `Digits`, `Digits+fog-3`, or `Digits+fog` for all severities."""
        severity = "" if self.severity is None else f"-{self.severity}"
        return self.label or (self.name if self.corruption is None else f"{self.name}+{self.corruption}{severity}")

    @property
    def copies(self) -> int:
        """How often every image occurs: once, or once per severity."""
        return 5 if self.corruption is not None and self.severity is None else 1


class MethodRef(NamedSettings):
    """A compression method: its label, torchprune's class name, or `package.module:entry`. The name alone is enough."""

    label: Name | None = None
    """Name of the method in plots, tables and results. Default: the method's own label."""
    recalibrate: bool = False
    """Re-estimate BatchNorm statistics on the calibration images after every compression."""


class HookRef(NamedSettings):
    """Code that is called when a run, a cell or an epoch starts and ends. The name alone is the short form."""


class Network(Block):
    """The network and its dataset."""

    name: Name
    """A registered network, or `package.module:factory` for your own."""
    dataset: DatasetRef
    """A registered dataset, or `package.module:factory`. With settings: {name: ImageFolder, settings: {root: ...}};
    corrupted: {name: Digits, corruption: fog, severity: 3}."""
    output_size: Annotated[Whole, Field(ge=1)]
    """Number of outputs (classes)."""
    task: Name | None = None
    """What outputs and targets mean: a registered task, or `package.module:TASK` for your own. Default: that of the
    dataset; classification for your own dataset."""
    settings: dict[str, Any] = {}
    """Keyword arguments of the network's factory."""
    weights: Name | None = None
    """File with trained weights (a state_dict) to start from, or the folder or index of their safetensors shards. With
    training.numEpochs: 0 they are used unchanged."""


Mode = Literal["train", "retrain", "retrain-rewind", "cascade", "cascade-rewind", "gradual", "lc"]
Rewind = Literal["weights", "random", "none"]
NO_REWINDING: tuple[Mode, ...] = ("train", "gradual", "lc")  # modes that train the weights as they are
ExportFormat = Literal["onnx", "onnx_int8", "pt2", "torchao_int8", "openvino", "executorch", "safetensors"]


class Search(Block):
    """Search the smallest network of every method within a loss of the validation metric, instead of `spacing`."""

    accuracy_loss: Annotated[Number, Field(ge=0, lt=1)] = 0.005
    """Largest loss of the primary metric against the reference network on the validation part: of fractions such as
    top-1 accuracy in points (0.005 = 0.5 points), of values such as perplexity as a share of the reference's."""
    samples: Annotated[Whole, Field(ge=1)] = 10
    """Maximum number of networks tried per search. Each is compressed and retrained in full."""
    smallest: Annotated[Number, Field(gt=0, lt=1)] = 1e-3
    """Smallest keep ratio, which is tried first."""


class Plotting(Block):
    """Range of the x axis in plots."""

    min_val: Annotated[Number, Field(ge=0, le=1)]
    """Smallest keep ratio shown."""
    max_val: Annotated[Number, Field(ge=0, le=1)]
    """Largest keep ratio shown."""


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [] if value is None else [value]


class Experiments(Block):
    """What is compared, and at which keep ratios."""

    methods: list[MethodRef] = []
    """Compression methods. The uncompressed reference network is always included."""
    mode: Mode
    """train: train the reference networks only. retrain: compress each keep ratio from the reference network, then
    retrain. cascade: compress from the network of the previous keep ratio. -rewind: reset weights to an earlier epoch
    before retraining. gradual: compress in steps while retraining, see the block gradual. lc: alternate learning and
    compression, see the block lc."""
    rewind: Rewind | None = None
    """Weights before retraining: the reference's weights at epoch startEpoch, random weights, or those left by the
    compression (none). Default: weights in modes with -rewind, else none."""
    budget: Budget = Budget(parameters=1.0)
    """Quantities that the keep ratio refers to: parameters, flops, bytes, latency, memory, one or several, with
    shares or amounts of their own."""
    num_nets: Annotated[Whole, Field(ge=1)] = 1
    """Number of independently trained reference networks."""
    num_repetitions: Annotated[Whole, Field(ge=1)] = 1
    """Repetitions per reference network."""
    spacing: list[Spacing] = []
    """Blocks of keep ratios, used one after the other."""
    search: Search | None = None
    """Search the smallest network of every method within a loss of validation accuracy, instead of using `spacing`."""
    retrain_iterations: Annotated[Whole, Field(ge=-1)] = -1
    """Number of keep ratios that are retrained and tested; the others are only compressed on the way. Below 1: all."""
    dataset_test: Annotated[list[DatasetRef], BeforeValidator(_as_list)] = []
    """Datasets to test on, one or several: results have one row per network and test set. Default: the test part of
    network.dataset."""
    plotting: Plotting | None = None
    """Range of the x axis in plots. Default: all results."""
    measure: list[Literal["rank", "latency", "memory", "bytes", "noise", "sensitivity"]] = []
    """Additional measurements: effective ranks after every epoch; at the end of the run latency, peak memory, bytes of
    sparse formats, agreement with the reference network under noise, and the sensitivity of every layer alone."""
    export: list[ExportFormat] = []
    """Files of the finished networks for other runtimes: onnx, onnx_int8, pt2, torchao_int8, openvino, executorch,
    safetensors. Each is run on the test set in its runtime at the end of the run."""
    latency_batches: Annotated[list[Annotated[Whole, Field(ge=1)]], Field(min_length=1)] = [1, 64]
    """Batch sizes (images) at which latency and memory are measured."""
    noise_levels: Annotated[list[Annotated[Number, Field(gt=0)]], Field(min_length=1)] = [0.1, 0.2, 0.3, 0.5, 0.7]
    """Largest values of the uniform noise that `noise` adds to inputs after the transforms."""

    sensitivity_keeps: Annotated[list[Annotated[Number, Field(gt=0, lt=1)]], Field(min_length=1)] = [0.8, 0.5, 0.3, 0.1]
    """Keep ratios of a single layer at which `sensitivity` measures the validation metric."""
    hooks: list[HookRef] = []
    """What is called when the run, a cell or an epoch starts and ends: `mlflow`, or `package.module:factory` for your
    own. No part of any result."""

    @field_validator("dataset_test")
    @classmethod
    def _distinct_names(cls, tests: list[DatasetRef]) -> list[DatasetRef]:
        names = [test.shown for test in tests]
        twice = [i for i, name in enumerate(names) if name in names[:i]]
        refuse(tests, (((i,), f"is the second test set called {names[i]}. Remove it or set its label.") for i in twice))
        return tests

    @field_validator("rewind")
    @classmethod
    def _compresses(cls, rewind: str | None, info: ValidationInfo) -> str | None:
        mode = info.data.get("mode")
        if rewind in ("weights", "random") and mode in NO_REWINDING:
            why = "which compresses nothing" if mode == "train" else "which continues from the reference's weights"
            refuse(rewind, [((), f"has no effect in mode {mode}, {why}. Remove it.")])
        return rewind

    @field_validator("spacing")
    @classmethod
    def _distinct_ratios(cls, blocks: list[Spacing], info: ValidationInfo) -> list[Spacing]:
        mode = info.data.get("mode") or ""
        if mode != "train":
            refuse(blocks, ratio_conflicts(blocks, falling=mode.startswith("cascade")))
        return blocks

    @field_validator("search")
    @classmethod
    def _searchable(cls, search: Search | None, info: ValidationInfo) -> Search | None:
        mode = info.data.get("mode") or ""
        found: list[Conflict] = []
        if mode == "train":
            found.append(((), "has no effect in mode train, which compresses nothing. Remove it."))
        elif mode.startswith("cascade"):
            what = "needs mode retrain, retrain-rewind, gradual or lc, where networks start from the reference network"
            found.append(((), f"{what}. Got {mode}."))
        if info.data.get("spacing"):
            found.append(((), "cannot be combined with spacing: keep ratios are searched. Remove one of them."))
        refuse(search, found if search is not None else ())
        return search

    @field_validator("retrain_iterations")
    @classmethod
    def _retrainable(cls, number: int, info: ValidationInfo) -> int:
        mode, blocks = info.data.get("mode"), info.data.get("spacing")
        if number < 1:
            return number
        found = []
        if mode in ("gradual", "lc"):
            what = f"has no effect in mode {mode}, where every keep ratio starts from the reference network. Remove it."
            found.append(((), what))
        elif info.data.get("search") is not None:
            found.append(((), "has no effect with search, which retrains every network that it tries. Remove it."))
        if blocks and mode != "train" and number > (most := sum(len(block.ratios()) for block in blocks)):
            found.append(((), f"must be at most the number of keep ratios ({most}), or -1 for all. Got {number}."))
        refuse(number, found)
        return number


class Gradual(Block):
    """Mode gradual: the keep ratio falls while the network is retrained, fast at first."""

    end_epoch: Annotated[Whole, Field(ge=1)] | None = None
    """Epoch at whose start the requested keep ratio is reached. Default: halfway from startEpoch to numEpochs."""
    every: Annotated[Whole, Field(ge=1)] = 1
    """Epochs between two compressions."""


class LearnCompress(Block):
    """Mode lc: the alternation of learning (L-steps) and compression (C-steps)."""

    steps: Annotated[Whole, Field(ge=1)] = 30
    """Number of compression steps. The first compresses the trained network directly."""
    iterations: Annotated[Whole, Field(ge=1)] | None = None
    """Minibatches per L-step. Default: one epoch."""
    iterations_first: Annotated[Whole, Field(ge=1)] | None = None
    """Minibatches in the first L-step. Default: five times `iterations`."""
    mu_init: Annotated[Number, Field(gt=0)] = 1e-3
    """Initial penalty mu on the distance between weights and compressed weights."""
    mu_multiplier: Annotated[Number, Field(ge=1)] = 1.1
    """Factor by which mu grows per step."""
    mu_cap: Annotated[Number, Field(gt=0)] = 1e4
    """Upper limit of mu."""
    lr_end: Annotated[Number, Field(gt=0)] | None = None
    """Final learning rate of each L-step (exponential decay; every step restarts at the initial rate)."""
    lr_decay: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Factor on the learning rate after each L-step. Default: 0.98, or 0.1 with lrMilestones."""
    lr_milestones: list[Annotated[Whole, Field(ge=1)]] = []
    """Steps at which the learning rate is multiplied by lrDecay. Default: every step."""

    @field_validator("lr_decay", "lr_milestones")
    @classmethod
    def _without_lr_end(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("lr_end") is not None:
            refuse(value, [((), "has no effect with lrEnd, which sets the rate of every L-step. Remove one of them.")])
        return value

    @field_validator("lr_milestones")
    @classmethod
    def _below_steps(cls, milestones: list[int], info: ValidationInfo) -> list[int]:
        steps = info.data.get("steps")
        late = [step for step in milestones if steps is not None and step >= steps]
        if late:
            refuse(milestones, [((), f"must be below steps ({steps}). Got {late[0]}.")])
        return milestones

    @model_validator(mode="after")
    def _ordered_mu(self) -> LearnCompress:
        if self.mu_cap < self.mu_init:
            refuse(self, [(("muCap",), f"must be at least muInit ({self.mu_init:g}). Got {self.mu_cap:g}.")])
        return self

    @property
    def decay(self) -> float:
        """Factor on the learning rate, per step or at the milestones."""
        if self.lr_end is not None:
            return 1.0
        return self.lr_decay if self.lr_decay is not None else MILESTONE_DECAY if self.lr_milestones else DECAY

    def counts(self, per_epoch: int) -> tuple[int, int]:
        """Minibatches of the first L-step, and of each of the others.

        Args:
            per_epoch: minibatches per epoch.
        """
        iterations = self.iterations if self.iterations is not None else per_epoch
        return self.iterations_first if self.iterations_first is not None else FIRST_STEP * iterations, iterations

    def total(self, per_epoch: int) -> int:
        """Minibatches of all L-steps."""
        first, others = self.counts(per_epoch)
        return 0 if self.steps == 1 else first + (self.steps - 2) * others


class Customization(Block):
    """One variant of the experiment, which changes a single value."""

    key: Annotated[list[Name], Field(min_length=1)]
    """Path of the value, for instance [retraining, startEpoch]."""
    value: Any
    """The value of this variant."""


class Coresets(Block):
    """Size of the calibration set, for methods that look at data."""

    delta_s: Annotated[Number, Field(gt=0)] = 1e-16
    """Failure probability that determines the number of calibration images."""


class Directories(Block):
    """Folders, relative to the working directory. --results and --data take precedence."""

    model_config = ConfigDict(alias_generator=None)

    results: Name | None = None
    """Results. Default: data/results."""
    trained_networks: Name | None = None
    """Trained reference networks. Default: data/trained_networks."""
    training_data: Name | None = None
    """Datasets. Default: data/datasets."""


class CellResources(Block):
    """Share of a machine that a cell occupies. It sets how many cells run at once and does not affect results."""

    cpus: Annotated[Whole, Field(ge=1)] | None = None
    """CPU cores per cell. Default: `threads`."""
    gpus: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Share of a GPU per cell, when cells run on GPUs: with 0.25, four cells share one. Default: 1."""


class Parameters(Block):
    """A whole parameter file, includes resolved."""

    network: Network
    """The network and its dataset."""
    training: Training
    """How the reference networks are trained."""
    retraining: Retraining
    """How compressed networks are retrained: the training block, overridden by the keys given here."""
    experiments: Experiments
    """What is compared, and at which keep ratios."""
    gradual: Gradual = Field(default_factory=Gradual)
    """Mode gradual: compression in steps while retraining."""
    lc: LearnCompress = Field(default_factory=LearnCompress)
    """Mode lc: the alternation of learning and compression."""
    customizations: list[Customization] = []
    """Variants: each changes one value, and all experiments are run for each."""
    seed: Annotated[Whole, Field(ge=0)] = 0
    """Seed of all random numbers."""
    threads: Annotated[Whole, Field(ge=1)] = 1
    """CPU threads per cell."""
    resources: CellResources = Field(default_factory=CellResources)
    """Share of a machine that a cell occupies."""
    slurm: Slurm = Field(default_factory=Slurm)
    """What --executor slurm requests for each job."""
    coresets: Coresets = Field(default_factory=Coresets)
    """Size of the calibration set."""
    directories: Directories = Field(default_factory=Directories)
    """Folders. --results and --data take precedence."""
    network_names: dict[str, str] = Field(default={}, alias="network_names")
    """Names in plots: a method's label or torchprune class name -> text."""
    network_colors: dict[str, str] = Field(default={}, alias="network_colors")
    """Colors in plots: a method's label or torchprune class name -> matplotlib color."""
    description: str = ""
    """What this experiment is for."""

    @property
    def test_sets(self) -> list[DatasetRef]:
        """The datasets to test on, in order."""
        return self.experiments.dataset_test or [self.network.dataset]


_INCLUDE = {"type": "string", "description": "YAML file to include; the keys given here override those in it."}
_INCLUDABLE = ("Network", "Training", "Retraining", "Experiments", "Coresets", "Directories")
_SHORT = ("DatasetRef", "MethodRef", "HookRef")
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def json_schema() -> dict[str, Any]:
    """The JSON schema of a file as written: includes are allowed, and no key is required, as it may be included."""
    schema = Parameters.model_json_schema(by_alias=True)
    schema["title"] = "experiment parameter file"
    definitions = schema["$defs"]
    for block in (schema, *(definitions[name] for name in _INCLUDABLE)):
        block.pop("required", None)
        block["properties"]["file"] = _INCLUDE
    tests = definitions["Experiments"]["properties"]["datasetTest"]
    tests |= {"anyOf": [tests.pop("items"), {"type": tests.pop("type"), "items": {"$ref": "#/$defs/DatasetRef"}}]}
    for name in _SHORT:
        full = definitions[name]
        definitions[name] = {"description": full["description"], "anyOf": [{"type": "string", "minLength": 1}, full]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_with_bounds(schema)}


def _with_bounds(schema: Any) -> Any:
    """A schema with JSON schema's words for the bounds of numbers, which pydantic knows behind no validator."""
    if isinstance(schema, list):
        return [_with_bounds(element) for element in schema]
    if not isinstance(schema, dict):
        return schema
    number = schema.get("type") in ("integer", "number")
    return {_BOUNDS.get(key, key) if number else key: _with_bounds(value) for key, value in schema.items()}
