"""The decisions of a method, as plain data from which the compressed structure can be rebuilt.

A plan always refers to the *original* architecture, also in a cascade. It contains no code: `network.pt` stores it as
plain values, and `experiment.layers.build` makes the structure from it without knowing the method.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError
from torch import Tensor, nn

from experiment.errors import CompressionError, shortened
from experiment.inputs import Inputs
from experiment.layers.quantized_weights import PATTERN
from experiment.layers.unfused.replace import unfused

Detail = str | int | float | bool | None
MOST_LETTERS = 1000  # of a layer's name
MOST_DIMS = 8

Size = Annotated[StrictInt, Field(ge=1, lt=2**40)]
Index = Annotated[StrictInt, Field(ge=0, lt=2**40)]
Name = Annotated[StrictStr, Field(max_length=MOST_LETTERS)]


def _in_order(indices: tuple[int, ...]) -> tuple[int, ...]:
    if any(after <= before for before, after in itertools.pairwise(indices)):
        raise ValueError("channels must be in order, each once")
    return indices


Side = Annotated[tuple[Index, ...], AfterValidator(_in_order)] | None


@dataclass(frozen=True)
class Factors:
    """One layer as encoder V (`groups` blocks, `groups * rank` outputs) and decoder U: y = U(Vx) + b.

    The encoder may have factors of its own, under its name in the same plan: `conv1.encoder` beside `conv1`.

    Attributes:
        folding: the kernel axes of the decoder as bits, see `experiment.layers.factored_layers`.
        bias: whether the decoder has one, even if the layer had none.
    """

    rank: Size
    groups: Size = 1
    folding: Annotated[StrictInt, Field(ge=0, le=7)] = 0
    bias: StrictBool = False


@dataclass(frozen=True)
class Kept:
    """The output and input channels of a module to keep, in order; None for all.

    Under the name of a bare parameter, `out` are the indices of its channel dimension.

    Attributes:
        swapped: whether the weight holds output channels along dimension 1: embeddings, transposed convolutions.
        numbers: the module's own numbers that change, such as `num_heads`.
        made: the channels of the tensor that the module gives, if these are more than `out`, which are put in their
            places; what is added to it has the others.
        taken: the channels of the tensor that the module takes, if it reads only some of them.
        constants: whether the other channels of `made` are a learned constant each, instead of zero.
    """

    out: Side = None
    inputs: Side = None
    swapped: StrictBool = False
    numbers: Mapping[Name, Size] = field(default_factory=dict)
    made: Side = None
    taken: Side = None
    constants: StrictBool = False

    @property
    def num_constants(self) -> int:
        """How many channels of the module's output are a learned constant."""
        return len(self.made) - len(self.out) if self.constants and self.made and self.out else 0

    def to_data(self) -> dict[str, object]:
        """Plain values, without what is default."""
        values = {name: getattr(self, name) for name in ("swapped", "made", "taken", "constants")}
        more = {"numbers": dict(self.numbers)} if self.numbers else {}
        return {"out": self.out, "inputs": self.inputs, **{n: v for n, v in values.items() if v}, **more}


@dataclass(frozen=True)
class Plan:
    """The weights, channels and ranks to keep.

    Attributes:
        factors: name of a layer, or of the encoder of one -> its decomposition.
        masks: parameter name -> bool tensor of its shape, True for weights to keep. The parameter is one of the
            original network or of a layer's factors (`conv1.encoder.weight`).
        kept: module name -> the channels to keep.
        parameters: number of elements of the whole compressed network, as planned.
        details: layer name -> values to report (rank, relative_error, ...); not stored.
        loss: what the method minimises, for plans of one method on one state to be compared; not stored.
        biases: undecomposed layers that gain a bias.
        scales: parameter name -> factors for its weights when they are written, in the original network's shape; not
            stored, and applied only to the analysed weights.
        stages: the plans of several methods applied in sequence; needed to write weights, not stored.
        skipped: modules that are replaced by the identity, or by zeros if they are branches.
        branches: those of them that end in a sum, or that only such ones read -> 0 for a tensor, or a tuple's length.
        quantized: layer name -> dtype to which its weights, or those of its factors, are rounded: float16, bfloat16,
            int8 or int4; with a scale for every 32 inputs, int8/32 or int4/32; codebook2, 4, 16 or 256.
        unfused: module name -> family in `experiment.layers.unfused`, for modules of the original network that plain
            layers replace first. All other names are those of the unfused network.
    """

    factors: Mapping[str, Factors] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)
    parameters: int | None = None
    details: Mapping[str, Mapping[str, Detail]] = field(default_factory=dict)
    loss: float = 0.0
    biases: tuple[str, ...] = ()
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    stages: tuple[Plan, ...] = ()
    skipped: tuple[str, ...] = ()
    branches: Mapping[str, int] = field(default_factory=dict)
    quantized: Mapping[str, str] = field(default_factory=dict)
    unfused: Mapping[str, str] = field(default_factory=dict)

    def to_data(self) -> dict[str, object]:
        """Plain values for `network.pt`, without the bits of masks, which are buffers of the state_dict."""
        of_factors = {name for name in self.masks if self.masks_factor(name)}
        return {
            "factors": {name: asdict(factors) for name, factors in self.factors.items()},
            "masks": sorted(self.masks.keys() - of_factors),
            "factor_masks": {name: list(self.masks[name].shape) for name in sorted(of_factors)},
            "kept": {name: sides.to_data() for name, sides in self.kept.items()},
            "biases": list(self.biases),
            "skipped": list(self.skipped),
            **({"branches": dict(self.branches)} if self.branches else {}),
            "quantized": dict(self.quantized),
            **({"unfused": dict(self.unfused)} if self.unfused else {}),
        }

    @staticmethod
    def from_data(data: Mapping[str, object] | PlanData, original: nn.Module) -> Plan:
        """Read a stored plan. Its masks are all True, and take no memory, until a state_dict fills them.

        Raises: ValueError: the values are not those of a plan. CompressionError: they belong to another network's plan.
        """
        data = PlanData.model_validate(data)
        parameters = dict(unfused(original, data.unfused).named_parameters(remove_duplicate=False))
        unknown = [name for name in data.masks if name not in parameters]
        if unknown:
            raise CompressionError(f"the plan belongs to another network: this one has no '{shortened(unknown[0])}'.")
        true = torch.ones((), dtype=torch.bool)
        return Plan(
            factors=data.factors,
            masks={name: true.to(parameters[name].device).expand(parameters[name].shape) for name in data.masks}
            | {name: true.expand(shape) for name, shape in data.factor_masks.items()},
            kept=data.kept,
            biases=data.biases,
            skipped=data.skipped,
            branches=data.branches,
            quantized=data.quantized,
            unfused=data.unfused,
        )

    def masks_factor(self, name: str) -> bool:
        """Whether the name of a parameter is that of a layer's factor."""
        module = name.rpartition(".")[0]
        layer, _, factor = module.rpartition(".")
        return factor in ("encoder", "decoder") and layer in self.factors

    @property
    def nested(self) -> dict[str, Factors]:
        """The factors of encoders, which are no layers of the original network."""
        return {name: own for name, own in self.factors.items() if self._encodes(name)}

    @property
    def decomposed(self) -> dict[str, Factors]:
        """The factors of layers of the original network."""
        return {name: own for name, own in self.factors.items() if not self._encodes(name)}

    def _encodes(self, module: str) -> bool:
        layer, _, factor = module.rpartition(".")
        return factor == "encoder" and layer in self.factors

    def starting_from(self, state: State) -> Plan:
        """The plan, with the state's unfused modules, and biases that it gained and the plan does not decompose."""
        blocks = tuple(f"{name}." for name in self.skipped)
        biases = tuple(n for n in state.biases if n not in self.factors and not f"{n}.".startswith(blocks))
        if (biases, state.unfused) == (self.biases, self.unfused):
            return self
        return replace(self, biases=biases, unfused=state.unfused)


@dataclass(frozen=True)
class State:
    """Dense weights on the original architecture, with the support that is left.

    Attributes:
        network: the original architecture, unfused, with these weights, in eval mode; never to be modified.
        example: a batch of one input, on the network's device, for tracing and counting.
        masks: parameter name -> bool tensor, True where a weight is live; parameters without a mask are whole.
        kept: module name -> channels that are left; modules that are not named are whole.
        biases: layers that have a bias in `network` and none in the original network.
        skipped: modules that are replaced by the identity, or by zeros if they are `branches`, as in a plan; their
            parameters are zero.
        samples: further inputs, which may take other paths through the network than `example`.
        unfused: the modules of the original network that plain layers replace, as in a plan.
    """

    network: nn.Module
    example: Inputs
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    branches: Mapping[str, int] = field(default_factory=dict)
    samples: Inputs | None = None
    unfused: Mapping[str, str] = field(default_factory=dict)


class PlanData(BaseModel):
    """What `Plan.to_data` writes."""

    model_config = ConfigDict(extra="forbid")

    factors: dict[Name, Factors]
    masks: list[Name]
    factor_masks: dict[Name, Annotated[list[Size], Field(max_length=MOST_DIMS)]]
    kept: dict[Name, Kept]
    biases: tuple[Name, ...]
    skipped: tuple[Name, ...]
    branches: dict[Name, Annotated[StrictInt, Field(ge=0, le=MOST_DIMS)]] = Field(default_factory=dict)
    quantized: dict[Name, Annotated[StrictStr, Field(pattern=PATTERN)]]
    unfused: dict[Name, Name] = {}


def first_fault(error: ValidationError) -> str:
    """The location of the first error in plain values and what was expected there, without the value."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(shortened(str(part), 60) for part in fault["loc"] if part != "[key]")
    return f"{place}: {fault['msg']}" if place else fault["msg"]
