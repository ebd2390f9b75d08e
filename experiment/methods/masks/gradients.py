"""Weights by what their removal changes in the loss, in its gradient, or in the flow through the network."""

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiment.errors import CompressionError
from experiment.inputs import (
    Inputs,
    batch_size,
    call_network,
    device_of,
    mapped,
    moved_like,
    output_tensors,
    split,
)
from experiment.layers.forward_pass import evaluating
from experiment.methods.base import Calibration
from experiment.methods.data.fisher import log_probabilities, samples_at_once
from experiment.methods.masks.settings import WeightSettings
from experiment.methods.masks.weight_ranking import WeightMethod, WeightScores
from experiment.methods.starting_state import Start
from experiment.tasks.language_modelling import IGNORED

TEMPERATURE = 200.0
STEP, LAST = 0.1, 1e-3  # of the weights that are left go in a round; from the last on, all go together
Product = Callable[[Tensor, Tensor], Tensor]  # of a weight and its gradient
GIVE_TARGETS = "Pass them: compress(..., data=(inputs, targets)), or a loader of such pairs."


def snip(settings: WeightSettings) -> WeightMethod:
    """Keeps the weights of largest connection sensitivity |w dL/dw|; L is the mean cross entropy.

    dL/dw is the mean gradient over the calibration data, in eval mode, so that gradients of opposite sign cancel.

    Source: Lee et al. 2019, https://arxiv.org/abs/1810.02340. Differs: BatchNorm uses its running statistics, and the
    scores are those of the given weights, trained or not, where they prune at initialisation.
    """

    def score(start: Start, calibration: Calibration | None, generator: torch.Generator) -> WeightScores:
        return _Gradients(start, calibration, "SNIP").sums(lambda weight, grad: weight * grad, torch.abs)

    return WeightMethod(score, settings)


def taylor(settings: WeightSettings) -> WeightMethod:
    """Keeps the weights of largest mean of (w dL/dw)^2 over samples: gradients of opposite sign do not cancel.

    Source: Molchanov et al. 2019, Importance estimation for neural network pruning, https://arxiv.org/abs/1906.10771
    (first order). Differs: of single weights, where they sum over a filter.
    """

    def score(start: Start, calibration: Calibration | None, generator: torch.Generator) -> WeightScores:
        return _Gradients(start, calibration, "Taylor", at_once=1).sums(lambda weight, grad: (weight * grad).square())

    return WeightMethod(score, settings)


def grasp(settings: WeightSettings) -> WeightMethod:
    """Keeps the weights of largest w (H g), with the gradient g and the Hessian H of the loss.

    To first order, |g|^2 falls by twice that when a weight is removed: those stay that keep the gradient large. Scores
    at a temperature of 200 are the logits divided by it.

    Source: Wang et al. 2020, Picking winning tickets before training, https://arxiv.org/abs/2002.07376
    """

    def score(start: Start, calibration: Calibration | None, generator: torch.Generator) -> WeightScores:
        gradients = _Gradients(start, calibration, "GraSP", temperature=TEMPERATURE)
        whole = gradients.sums(lambda weight, grad: grad)
        return gradients.sums(lambda weight, grad: weight * grad, along=whole)

    return WeightMethod(score, settings)


def synflow(settings: WeightSettings) -> WeightMethod:
    """Keeps the weights with the most flow: w dR/dw, R the sum of outputs for ones, all weights replaced by their size.

    Scores are taken again each time the smallest tenth of what is left has gone; so no layer is lost before others.
    No data are used.

    Source: Tanaka et al. 2020, Pruning neural networks without any data, https://arxiv.org/abs/2006.05467. Differs:
    one sequence of rounds serves all keep ratios, so smaller networks are part of larger ones; theirs takes 100 rounds
    to each.
    """
    return WeightMethod(_flows, settings)


def _flows(start: Start, calibration: Calibration | None, generator: torch.Generator) -> WeightScores:
    """The round in which each weight goes, those of one round by their flow."""
    network = copy.deepcopy(start.network).double().eval()
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data.abs_()
    weights = {name: network.get_parameter(name).requires_grad_() for name in start.weights}  # also frozen ones
    alive = {name: start.alive(name).clone() for name in weights}
    ones = mapped(
        start.state.example, lambda x: torch.ones_like(x, dtype=torch.float64) if x.is_floating_point() else x
    )
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    left = total = sum(int(mask.sum()) for mask in alive.values())
    round_ = 0
    while left:
        for name, weight in weights.items():
            weight.data.mul_(alive[name])
        with evaluating(network), torch.enable_grad():
            output = torch.stack([tensor.sum() for tensor in output_tensors(call_network(network, ones))]).sum()
            grads = torch.autograd.grad(output, list(weights.values()), allow_unused=True)
        flows = [
            w.data * (torch.zeros_like(w) if g is None else g) for w, g in zip(weights.values(), grads, strict=True)
        ]
        flat = torch.cat([flow[alive[name]] for name, flow in zip(weights, flows, strict=True)])
        order = torch.empty_like(flat).scatter_(
            0, flat.argsort(stable=True), torch.arange(left, dtype=flat.dtype, device=flat.device)
        )
        going = max(1, round(STEP * left)) if left > LAST * total else left
        for (name, mask), part in zip(
            alive.items(), torch.split(order, [int(mask.sum()) for mask in alive.values()]), strict=True
        ):
            found[name][mask] = round_ + (part + 1) / (left + 1)
            mask[mask.clone()] = part >= going
        left, round_ = left - going, round_ + 1
    return found


class _Gradients:
    """Products of weights and gradients of the cross entropy, summed over the calibration data.

    Args:
        calibration: targets are class indices, one per sample or one per prediction (position) of the network; those of
            -100 are ignored.
        label: of the method, for messages.
        at_once: samples whose gradients are added before the product; by default as many as fit.
        temperature: by which scores of classes are divided.
    Raises: CompressionError: data or targets are missing or do not match, or the network returns no class scores.
    """

    def __init__(
        self,
        start: Start,
        calibration: Calibration | None,
        label: str,
        at_once: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.start, self.label, self.at_once, self.temperature = start, label, at_once, temperature
        self.inputs, self.targets = _checked(calibration, start, label)
        self.weights = {name: start.live(name).detach().requires_grad_() for name in start.weights}
        network = start.network.named_parameters()
        self.fixed = {name: p.detach() for name, p in network if name not in self.weights}

    def sums(
        self,
        product: Product,
        change: Callable[[Tensor], Tensor] | None = None,
        along: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The mean over predictions (over samples, if these come one by one) of a product of weight and gradient.

        Args:
            change: of the mean.
            along: a direction; the Hessian's product with it is in the place of the gradient.
        """
        sums = {name: torch.zeros_like(weight, dtype=_precise(weight)) for name, weight in self.weights.items()}
        if not self.weights:
            return sums
        number = 0
        # the fast kernels of attention have no second derivative
        kernels = nullcontext() if along is None else sdpa_kernel(SDPBackend.MATH)
        with evaluating(self.start.network), torch.enable_grad(), kernels:
            leaves = [*self.fixed.values(), *self.weights.values()]
            fit = samples_at_once(partial(call_network, self._call), leaves, self.inputs)
            at_once = min(fit, self.at_once or fit)
            for batch, labels in zip(split(self.inputs, at_once), torch.split(self.targets, at_once), strict=True):
                losses = _losses(self._call, batch, labels, self.label, self.temperature)
                number += 1 if self.at_once == 1 else len(losses)
                if not losses.requires_grad:
                    continue
                self._back(losses.mean() if self.at_once == 1 else losses.sum(), product, sums, along)
        for total in sums.values():
            total.div_(max(1, number))
        return sums if change is None else {name: change(total) for name, total in sums.items()}

    def _back(
        self, loss: Tensor, product: Product, sums: Mapping[str, Tensor], along: Mapping[str, Tensor] | None
    ) -> None:
        """Add the products of one loss to sums, one weight after the other: gradients are not held together."""
        pairs = list(self.weights.items())
        if along is not None:
            grads = torch.autograd.grad(loss, list(self.weights.values()), create_graph=True, allow_unused=True)
            loss = torch.stack(
                [(g * along[n]).sum() for (n, _), g in zip(pairs, grads, strict=True) if g is not None]
            ).sum()
        hooks = [w.register_post_accumulate_grad_hook(partial(_add, sums[name], product)) for name, w in pairs]  # type: ignore[no-untyped-call]
        try:
            loss.backward(inputs=list(self.weights.values()))  # type: ignore[no-untyped-call]
        finally:
            for hook in hooks:
                hook.remove()

    def _call(self, *args: Any, **named: Any) -> Any:
        return torch.func.functional_call(self.start.network, {**self.fixed, **self.weights}, args, named)


def _add(total: Tensor, product: Product, weight: Tensor) -> None:
    """Add the product of a weight and its gradient to a sum, and forget the gradient."""
    if weight.grad is not None:
        total += product(weight.detach().to(total), weight.grad.to(total))
        weight.grad = None


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _losses(network: Callable[..., Any], batch: Inputs, labels: Tensor, label: str, temperature: float) -> Tensor:
    """The cross entropy of every prediction."""
    scores = log_probabilities(call_network(network, batch))
    if temperature != 1:
        scores = torch.log_softmax(scores / temperature, 1)
    if labels.dim() == 1:
        labels = labels.repeat_interleave(len(scores) // batch_size(batch))  # one label for all positions of its sample
    labels = labels.flatten()
    if len(labels) != len(scores):
        raise CompressionError(
            f"{label}: targets must be one class index per sample, or one per prediction. Got {len(labels)} targets "
            f"for {len(scores)} predictions of {batch_size(batch)} samples."
        )
    counted = labels != IGNORED
    scores, labels = scores[counted], labels[counted]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]:
        raise CompressionError(
            f"{label}: targets must be class indices from 0 to {scores.shape[1] - 1}, the network's outputs minus one, "
            f"or {IGNORED} to ignore a prediction. Got {int(labels.min())} to {int(labels.max())}."
        )
    return nn.functional.nll_loss(scores, labels, reduction="none")


def _checked(calibration: Calibration | None, start: Start, label: str) -> tuple[Inputs, Tensor]:
    if calibration is None or not batch_size(calibration.inputs):
        raise CompressionError(f"{label} needs calibration data with targets, a few hundred samples. {GIVE_TARGETS}")
    if calibration.targets is None:
        raise CompressionError(f"{label} needs the targets of the calibration data. Got only inputs. {GIVE_TARGETS}")
    inputs, targets = calibration.inputs, calibration.targets
    if batch_size(inputs) != len(targets) or targets.is_floating_point():
        raise CompressionError(
            f"{label}: targets must be one integer class index per sample. Got {batch_size(inputs)} inputs and targets "
            f"of shape {tuple(targets.shape)}, {targets.dtype}. {GIVE_TARGETS}"
        )
    example = start.state.example
    return moved_like(inputs, example), targets.to(device_of(example), torch.int64)
