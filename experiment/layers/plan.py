"""What a method decided, as plain data: enough to rebuild the compressed structure from the original network.

A plan is always relative to the *original* architecture, also in a cascade, and carries no code: it goes into
`network.pt` as JSON-like values and back, and `experiment.layers.build` makes the structure from it without knowing the
method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError, shortened
from experiment.layers.plan_format import PlanData

Detail = str | int | float | bool | None


@dataclass(frozen=True)
class Factors:
    """One layer as encoder V (`groups` blocks, `groups * rank` outputs) and decoder U: y = U(Vx) + b.

    `folding` is 0 to 3, see `experiment.layers.factored_layers.fold`; `bias` says whether the decoder has one, even if
    the layer had none.
    """

    rank: int
    groups: int = 1
    folding: int = 0
    bias: bool = False


@dataclass(frozen=True)
class Kept:
    """The indices of a module's output and input channels that stay, in order; None where that side is whole."""

    out: tuple[int, ...] | None = None
    inputs: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Plan:
    """Which weights, channels and ranks stay.

    Attributes:
        factors: layer name -> its decomposition.
        masks: parameter name -> bool tensor of its shape, True where the weight stays. The parameter is one of the
            original network's, or one of a layer's factors (`conv1.encoder.weight`).
        kept: module name -> the channels that stay.
        parameters: elements of the whole compressed network, as the method counted them when it planned.
        details: layer name -> what the method wants to tell about it (rank, relative_error, ...).
        biases: layers without factors that have a bias which the original network does not have.
        scales: parameter name -> tensor of its shape in the original network: by what its weights are multiplied when
            they are written. Part of the weights, not of the structure: neither stored nor, for other weights than the
            analysed ones, used.
        stages: where several methods were applied one after the other, the plan of each. Like `scales` part of how
            weights are written, and not stored.
        skipped: modules that pass their input on, so that nothing of them is left.
        quantized: layer name -> float16, bfloat16 or int8, what its weights are rounded to; those of its factors where
            it became factors.
    """

    factors: Mapping[str, Factors] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)
    parameters: int | None = None
    details: Mapping[str, Mapping[str, Detail]] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    stages: tuple[Plan, ...] = ()
    skipped: tuple[str, ...] = ()
    quantized: Mapping[str, str] = field(default_factory=dict)

    def to_data(self) -> dict[str, object]:
        """Plain values for `network.pt`; masks have no bits here, which are buffers of the state_dict."""
        of_factors = {name for name in self.masks if self.masks_factor(name)}
        return {
            "factors": {n: [f.rank, f.groups, f.folding, f.bias] for n, f in self.factors.items()},
            "masks": sorted(self.masks.keys() - of_factors),
            "factor_masks": {name: list(self.masks[name].shape) for name in sorted(of_factors)},
            "kept": {
                n: [None if side is None else list(side) for side in (k.out, k.inputs)] for n, k in self.kept.items()
            },
            "biases": list(self.biases),
            "skipped": list(self.skipped),
            "quantized": dict(self.quantized),
        }

    @staticmethod
    def from_data(data: Mapping[str, object] | PlanData, original: nn.Module) -> Plan:
        """The plan that `to_data` wrote, with all-True masks of the right shapes until a state_dict fills them.

        The masks take no memory: every element is the same one.
        Raises: ValueError: the values are not those of a plan. CompressionError: they are those of another network's.
        """
        data = PlanData.model_validate(data)
        parameters = dict(original.named_parameters(remove_duplicate=False))
        unknown = [name for name in data.masks if name not in parameters]
        if unknown:
            raise CompressionError(f"the plan belongs to another network: this one has no '{shortened(unknown[0])}'.")
        true = torch.ones((), dtype=torch.bool)
        return Plan(
            factors={name: Factors(*values) for name, values in data.factors.items()},
            masks={name: true.to(parameters[name].device).expand(parameters[name].shape) for name in data.masks}
            | {name: true.expand(shape) for name, shape in data.factor_masks.items()},
            kept={
                name: Kept(*(None if side is None else tuple(side) for side in sides))
                for name, sides in data.kept.items()
            },
            biases=tuple(data.biases),
            skipped=tuple(data.skipped),
            quantized=dict(data.quantized),
        )

    def masks_factor(self, name: str) -> bool:
        """Whether a parameter, by its name, is one of a layer's factors rather than of the original network."""
        module = name.rpartition(".")[0]
        layer, _, factor = module.rpartition(".")
        return factor in ("encoder", "decoder") and layer in self.factors

    def keeping_biases(self, state: State) -> Plan:
        """The plan for this state, with the biases that its layers gained named where they stay without factors."""
        blocks = tuple(f"{name}." for name in self.skipped)
        biases = tuple(n for n in state.biases if n not in self.factors and not f"{n}.".startswith(blocks))
        return self if biases == self.biases else replace(self, biases=biases)


@dataclass(frozen=True)
class State:
    """Dense weights on the original architecture, with the support that is left.

    Attributes:
        network: the original architecture holding these weights, in eval mode; never to be modified.
        example: a batch of one input, on the network's device: what graphs and counts are traced with.
        masks: parameter name -> bool tensor, True where a weight may still be non-zero; a parameter left out is whole.
        kept: module name -> channels still alive; a module left out is whole.
        biases: layers of `network` that have a bias which those of the original network do not have.
        skipped: modules that pass their input on; their parameters are zero.
        samples: more inputs, if there are any: some may take other paths through the network than `example`.
    """

    network: nn.Module
    example: Tensor
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    samples: Tensor | None = None
