"""Penalties on the weights of layers: l1 ||W||_1 + l2 / 2 ||W||^2, added to the loss.

They apply to the weights of convolutions and linear layers, not to biases and BatchNorm. A penalty is part of the
gradient (W.grad += l1 sign(W), W.grad += l2 W), or is applied at the optimizer step, of learning rate r: decoupled
decay subtracts r l2 W, with W as before the step; the proximal operator is the soft threshold after the step,
W <- sign(W) max(|W| - r l1, 0), which gives exact zeros.

Sources: Loshchilov & Hutter 2019 (decoupled decay), https://arxiv.org/abs/1711.05101; Parikh & Boyd 2014, Proximal
Algorithms, section 6.5.2 (soft threshold).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from experiment.layers.factored_layers import FactoredLayer
from experiment.layers.grouped_linear import GroupedLinear
from experiment.training.settings import PenaltySpec

MAX_NAMES = 40  # in an error


@dataclass(frozen=True)
class Term:
    """A weight, of any shape, and its penalty."""

    weight: nn.Parameter
    spec: PenaltySpec


@dataclass(frozen=True)
class Penalties:
    """All penalties of a training; those of a weight add up.

    A weight without gradient is not changed, as by the optimizer.
    """

    terms: tuple[Term, ...] = ()

    @property
    def act_at_step(self) -> bool:
        """Whether a penalty is not part of the gradient."""
        return any((t.spec.l1 and t.spec.proximal) or (t.spec.l2 and t.spec.decoupled) for t in self.terms)

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add to the gradients, between the backward pass and the optimizer step."""
        for term in self.terms:
            weight, gradient, spec = term.weight, term.weight.grad, term.spec
            if gradient is None:
                continue
            if spec.l2 and not spec.decoupled:
                gradient.add_(weight, alpha=spec.l2)
            if spec.l1 and not spec.proximal:
                gradient.add_(weight.sign(), alpha=spec.l1)

    @torch.no_grad()
    def decay(self, rate: float) -> list[tuple[nn.Parameter, Tensor]]:
        """What decoupled decay subtracts from each weight; call before the step."""
        return [
            (term.weight, term.weight * (rate * term.spec.l2))
            for term in self.terms
            if term.spec.l2 and term.spec.decoupled and term.weight.grad is not None
        ]

    @torch.no_grad()
    def shrink(self, rate: float, decay: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        """Subtract the decay from the weights, then apply the soft thresholds; call after the step."""
        for weight, lost in decay:
            weight.sub_(lost)
        for term in self.terms:
            if term.spec.l1 and term.spec.proximal and term.weight.grad is not None:
                term.weight.copy_(soft_threshold(term.weight, rate * term.spec.l1))


def soft_threshold(values: Tensor, threshold: float) -> Tensor:
    """sign(v) max(|v| - threshold, 0): the proximal operator of threshold ||v||_1."""
    return values.sign() * (values.abs() - threshold).clamp_(min=0)


def make_penalties(network: nn.Module, specs: Sequence[PenaltySpec]) -> Penalties:
    """The penalties on the layers of a network; patterns without a layer, which compression may remove, are ignored."""
    weights = _weights(network)
    return Penalties(tuple(Term(w, spec) for spec in specs for w in _matching(weights, spec.layers)))


def unmatched(network: nn.Module, specs: Sequence[PenaltySpec]) -> list[tuple[int, str]]:
    """Index and error of each entry with a pattern that no layer of the network matches."""
    weights = _weights(network)
    names = [called[0] for called, _ in weights]
    some = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
    return [
        (i, f"no convolution or linear layer is named '{pattern}'. There are {some or 'none in this network'}.")
        for i, spec in enumerate(specs)
        for pattern in spec.layers
        if not _matching(weights, (pattern,))
    ]


def _matching(weights: Sequence[tuple[Sequence[str], nn.Parameter]], patterns: Sequence[str]) -> list[nn.Parameter]:
    """The weights of the layers that match a pattern; a shared weight once."""
    found = {
        id(weight): weight
        for names, weight in weights
        if any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
    }
    return list(found.values())


def _weights(network: nn.Module) -> list[tuple[Sequence[str], nn.Parameter]]:
    """The trained weights of convolutions and linear layers, each with the names of its layer.

    The factors of a decomposed layer have their own names and that of the layer.
    """
    modules = dict(network.named_modules())
    found: list[tuple[Sequence[str], nn.Parameter]] = []
    for name, module in modules.items():
        weight = _trained(module)
        if weight is not None:
            names = [name]
            while isinstance(modules[parent := names[-1].rpartition(".")[0]], FactoredLayer):
                names.append(parent)
            found.append((names, weight))
    return found


def _trained(module: nn.Module) -> nn.Parameter | None:
    """The parameter to optimize: the weight, or the tensor from which a parametrization computes it."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | GroupedLinear):
        return None
    parameters = dict(module.named_parameters())
    name = "parametrizations.weight.original" if parametrize.is_parametrized(module, "weight") else "weight"
    weight = parameters.get(name)
    return weight if weight is not None and weight.requires_grad else None
