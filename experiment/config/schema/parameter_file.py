"""What may stand in a parameter file: the blocks, their keys, types, ranges and defaults.

YAML keys are camelCase, attributes snake_case. The text under a field is its description in
errors and in the JSON schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from experiment.config import spacing
from experiment.config.schema.block import Block, Keep, Name, Number, Whole
from experiment.config.schema.lc import LearnCompress
from experiment.config.schema.search import Search
from experiment.config.schema.training import Retraining, Training


class NamedSettings(Block):
    """A registered name, or `package.module:factory`, with its settings; the bare name is the short form."""

    name: Name
    """A registered name, or `package.module:factory` for one of your own."""
    settings: dict[str, Any] = {}
    """What is handed to it by name."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class MethodRef(NamedSettings):
    """A compression method: its label, torchprune's class name or `package.module:entry`; or only that name."""

    label: Name | None = None
    """Its name on plots, in tables and in results; default: the method's own label."""
    recalibrate: bool = False
    """Whether BatchNorm statistics are re-estimated on the calibration images after every compression."""


class Network(Block):
    """The network and the data that it learns."""

    name: Name
    """A registered network, or `package.module:factory` for one of your own."""
    dataset: NamedSettings
    """A registered dataset, or `package.module:factory`; with settings: {name: ImageFolder, settings: {root: ...}}."""
    output_size: Annotated[Whole, Field(ge=1)]
    """Number of outputs (classes)."""
    settings: dict[str, Any] = {}
    """What is handed to the network's factory by name."""
    weights: Name | None = None
    """A file of trained weights (a state_dict) that the network starts from; with numEpochs: 0 it is used as it is."""


class Interval(Block):
    """Keep ratios from maxVal down to minVal."""

    type: Literal["geometric", "linear", "cubic", "harmonic2"]
    """How they are spaced."""
    num_intervals: Annotated[Whole, Field(ge=1, le=spacing.MAX_RATIOS)]
    """How many keep ratios; 1 means maxVal alone."""
    max_val: Keep
    """The largest keep ratio."""
    min_val: Keep
    """The smallest keep ratio."""

    def ratios(self) -> list[float]:
        """The keep ratios, descending."""
        return spacing.interval(self.type, self.num_intervals, self.max_val, self.min_val)


class Harmonic(Block):
    """Keep ratios that fall like a power of 1/i."""

    type: Literal["harmonic"]
    """How they are spaced."""
    num_intervals: Annotated[Number, Field(gt=0)]
    """How many steps until the keep ratio is 0.5."""
    min_val: Keep
    """About the smallest keep ratio: the last one may lie just below."""
    max_val: Keep | None = None
    """Accepted and not used: the largest keep ratio follows from numIntervals."""

    def log10_ratios(self) -> float:
        """The decimal logarithm of how many keep ratios these are, about."""
        return spacing.harmonic_log10_count(self.num_intervals, self.min_val)

    def ratios(self) -> list[float]:
        """The keep ratios, descending."""
        return spacing.harmonic(self.num_intervals, self.min_val)


class Manual(Block):
    """Keep ratios one by one."""

    type: Literal["manual"]
    """How they are spaced."""
    values: Annotated[list[Keep], Field(min_length=1, max_length=spacing.MAX_RATIOS)]
    """The keep ratios."""

    def ratios(self) -> list[float]:
        """The keep ratios, as given."""
        return list(self.values)


Spacing = Annotated[Interval | Harmonic | Manual, Field(discriminator="type")]
SPACINGS = ("geometric", "linear", "cubic", "harmonic2", "harmonic", "manual")
Mode = Literal["train", "retrain", "retrain-rewind", "cascade", "cascade-rewind", "lc"]
Rewind = Literal["weights", "random", "none"]


class Plotting(Block):
    """The part of the x axis that plots show."""

    min_val: Annotated[Number, Field(ge=0, le=1)]
    """The smallest keep ratio shown."""
    max_val: Annotated[Number, Field(ge=0, le=1)]
    """The largest keep ratio shown."""


class Experiments(Block):
    """What is compared, and at which keep ratios."""

    methods: list[MethodRef] = []
    """Compression methods; the uncompressed reference network is always there."""
    mode: Mode
    """train: only references; retrain: one-shot; cascade: from the ratio before; with -rewind: weights rewound;
    lc: learning and compressing in turn, as the block lc says."""
    rewind: Rewind | None = None
    """Retrain the reference's weights of epoch startEpoch, fresh random ones, or none of these; default: see mode."""
    budget: Literal["parameters", "flops"] = "parameters"
    """What the keep ratio counts."""
    num_nets: Annotated[Whole, Field(ge=1)] = 1
    """Networks trained independently."""
    num_repetitions: Annotated[Whole, Field(ge=1)] = 1
    """Repetitions on the same trained network."""
    spacing: list[Spacing] = []
    """Blocks of keep ratios, taken one after the other."""
    search: Search | None = None
    """In the place of spacing: the smallest network of every method within a loss of validation accuracy."""
    retrain_iterations: Annotated[Whole, Field(ge=-1)] = -1
    """How many of the keep ratios are retrained and tested, the others only compressed on the way; below 1: all."""
    dataset_test: NamedSettings | None = None
    """A dataset to test on instead of the network's own."""
    plotting: Plotting | None = None
    """The part of the x axis that plots show."""
    measure: list[Literal["rank", "latency", "bytes"]] = []
    """What is measured too: effective ranks after every epoch, latency when all is done, bytes of sparse formats."""
    latency_batches: Annotated[list[Annotated[Whole, Field(ge=1)]], Field(min_length=1)] = [1, 64]
    """Images a forward pass when latency is measured, once each."""
    datasets_to_evaluate: Any = Field(default=None, exclude=True)
    """Accepted from torchprune's files, without effect."""


class Customization(Block):
    """One variant of the experiment: a single value set."""

    key: Annotated[list[Name], Field(min_length=1)]
    """The keys down to the value, for instance [retraining, startEpoch]."""
    value: Any
    """What is set there."""


class Coresets(Block):
    """How many images methods that look at data are given."""

    delta_s: Annotated[Number, Field(gt=0)] = 1e-16
    """Failure probability behind the size of the calibration set."""
    delta_best: Any = Field(default=None, exclude=True)
    """Accepted from torchprune's files, without effect."""
    size_of_t: Any = Field(default=None, exclude=True)
    """Accepted from torchprune's files, without effect."""


class Directories(Block):
    """Where things lie, relative to the working directory; the command line goes first."""

    model_config = ConfigDict(alias_generator=None)

    results: Name | None = None
    """Results."""
    trained_networks: Name | None = None
    """Trained reference networks."""
    training_data: Name | None = None
    """Datasets."""
    local_data: Name | None = None
    """Accepted from torchprune's files, without effect."""


class Resources(Block):
    """What a cell takes up of a machine: how many are computed at once; part of no key."""

    cpus: Annotated[Whole, Field(ge=1)] | None = None
    """CPU cores; default: threads."""
    gpus: Annotated[Number, Field(gt=0, le=1)] | None = None
    """A GPU or a share of one, where cells compute on GPUs: 0.25 lets four share it; default: 1."""


class Parameters(Block):
    """A whole parameter file, includes resolved."""

    network: Network
    """The network and the data that it learns."""
    training: Training
    """How the reference networks are trained."""
    retraining: Retraining
    """How compressed networks are retrained: the training block with what stands here on top."""
    experiments: Experiments
    """What is compared, and at which keep ratios."""
    lc: LearnCompress = Field(default_factory=LearnCompress)
    """Mode lc: how learning and compressing take turns."""
    customizations: list[Customization] = []
    """Variants: each sets one value, and all experiments are run for each."""
    seed: Annotated[Whole, Field(ge=0)] = 0
    """Where every random stream starts."""
    threads: Annotated[Whole, Field(ge=1)] = 1
    """CPU threads a cell computes with."""
    resources: Resources = Field(default_factory=Resources)
    """What a cell takes up of a machine: how many are computed at once."""
    coresets: Coresets = Field(default_factory=Coresets)
    """How many images methods that look at data are given."""
    directories: Directories = Field(default_factory=Directories)
    """Where things lie; the command line goes first."""
    network_names: dict[str, str] = Field(default={}, alias="network_names")
    """Names on plots: a method's label or torchprune class name -> text."""
    network_colors: dict[str, str] = Field(default={}, alias="network_colors")
    """Colours on plots: a method's label or torchprune class name -> matplotlib colour."""
    description: str = ""
    """What this experiment is for."""
    blacklist: Any = Field(default=None, exclude=True)
    """Accepted from torchprune's files, without effect."""
    generated: Any = Field(default=None, exclude=True)
    """Accepted from torchprune's files, without effect."""
