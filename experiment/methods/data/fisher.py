"""The Kronecker-factored Fisher matrix: the effect of each layer's weight on the network's output, to second order.

For a small change E of a layer's weight, the divergence KL(p || q) of the outputs is about 1/2 tr(G E C E^T), with C
the mean of x x^T over the layer's inputs and G the sum over positions of g g^T, g the gradient of log p(y) at the
layer's output for a label y drawn from the network's own prediction p.

Source: Martens and Grosse 2015, https://arxiv.org/abs/1503.05671
In a grouped layer E has no elements between groups, and gradients of two groups are taken as uncorrelated: G is one
matrix for each of its groups, here called blocks.
Suffixes: O = blocks, F = filters (output features), H = F / O, G = slices, I = channels of a slice, K = kernel elements
of the encoder, D = of the decoder, N = I * K, R = H * D, P = places, S = the smaller one of R and N.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import one_hot

from experiment.errors import CompressionError
from experiment.inputs import Inputs, attended, batch_size, call_network, first, scored, split
from experiment.layers.compressible import features_of, filters_of, groups_of, kernel_of
from experiment.layers.factored_layers import Slicing, fold, make_layer
from experiment.layers.forward_pass import Call, evaluating, observing
from experiment.layers.plan import Factors
from experiment.layers.sampled_patches import all_outputs, counted_places, draw_places, input_patches, num_positions
from experiment.methods.data.responses import precise, span_of
from experiment.progress import progress

SAMPLES = 16  # in one pass, at most
ACTIVATIONS = 2**28  # bytes that are kept for the gradients in one pass, at least
PLACES = 4096  # of each layer, from which C is estimated
DAMPING = 0.5  # of G's mean eigenvalue; with less, projections are oblique and factors too large to train


@dataclass
class LayerMoments:
    """Second moments of one layer, accumulated over batches.

    Attributes:
        gradient: G (O, H, H), the sum over samples and positions.
        grams: slicing -> (G, S, S), sums over places: of the slices' responses if R <= N, else of their inputs.
        places: slicing -> the number of places.
        axes: of a layer with many more features than inputs, an orthonormal basis (F, N) of its responses. Then G and
            the grams are those of the coordinates, and N is in the place of F.
    """

    gradient: Tensor
    grams: dict[Slicing, Tensor] = field(default_factory=dict)
    places: dict[Slicing, int] = field(default_factory=dict)
    axes: Tensor | None = None


def gather(
    network: nn.Module, layers: Mapping[str, Sequence[Slicing]], inputs: Tensor, generator: torch.Generator
) -> dict[str, LayerMoments]:
    """The moments of the layers' inputs and of the gradients at their outputs, from one pass in eval mode.

    Args:
        network: not modified.
        layers: layer name -> the slicings to compute moments for.
        inputs: (B, ...), on the network's device; they are passed through the network in parts.
        generator: draws labels and places.
    Raises: CompressionError: the network's outputs are not a tensor of class scores, or outputs, inputs of a layer or
        gradients are not finite, or a layer gets no inputs.
    """
    moments = {name: _empty(network.get_submodule(name)) for name in layers}
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def record(call: Call) -> Tensor:
        y: Tensor = call.output
        if torch.is_grad_enabled() and not y.requires_grad:  # the parameters are frozen
            y = y.detach().requires_grad_()
        calls.append((call.name, call.module, call.input.detach(), y))
        return y.clone()  # later operations may work in place; the gradient is that of the original output

    modules = {name: network.get_submodule(name) for name in layers}
    with observing(modules, after=record), evaluating(network), torch.enable_grad():
        at_once = samples_at_once(partial(call_network, network), network.parameters(), inputs)
        for batch in progress(list(split(inputs, at_once)), "second moments, by batch"):
            calls.clear()
            mask = attended(batch)
            surprise = _surprise(call_network(network, batch), mask, generator)
            most, seen = math.ceil(PLACES * batch_size(batch) / batch_size(inputs)), list(calls)
            for (name, module, x, y), g in zip(seen, _gradients(surprise, [y for *_, y in seen]), strict=True):
                _add(moments[name], _Seen(module, x, y.detach(), g, mask), layers[name], most, generator)
    for name, own in moments.items():
        _check(name, own, layers[name])
    return moments


@dataclass(frozen=True)
class _Seen:
    """A call of a layer, the gradient at its output, and which tokens of the batch are no padding."""

    layer: nn.Module
    x: Tensor
    y: Tensor
    gradient: Tensor | None
    mask: Tensor | None


def samples_at_once(call: Callable[[Inputs], object], weights: Iterable[Tensor], inputs: Inputs) -> int:
    """How many samples fit in one pass with gradients: 16, or as many as keep less memory than half of the network.

    Args:
        call: the network's forward pass, which runs on the first sample.
        weights: what it reads besides the sample.
    """
    own = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in weights}
    held = dict[int, int]()

    def hold(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(hold, lambda tensor: tensor):
        kept_alive = call(first(inputs))
    each = sum(size for place, size in held.items() if place not in own)
    del kept_alive
    return max(1, min(SAMPLES, max(ACTIVATIONS, sum(own.values()) // 2) // max(1, each)))


def log_probabilities(outputs: object, mask: Tensor | None = None) -> Tensor:
    """The network's outputs as log-probabilities of classes, one row per prediction.

    Args:
        mask: (B, N), False for padding: of predictions for every token (B, N, classes) the others are left out.
    Raises: CompressionError: they have no tensor, or there is only one class.
    """
    outputs = scored(outputs)
    dim = 1 if outputs.dim() in (2, 4) else -1
    if outputs.dim() < 2 or outputs.shape[dim] < 2:
        raise CompressionError(
            f"the network's outputs must be scores of at least two classes. Got shape {tuple(outputs.shape)}: choose a "
            f"method that does not compare outputs, such as ALDS."
        )
    scores = outputs.movedim(dim, -1)
    scores = scores[mask] if mask is not None and scores.shape[:-1] == mask.shape else scores.flatten(0, -2)
    return scores.float().log_softmax(1)


def _empty(layer: nn.Module) -> LayerMoments:
    weight, blocks = layer.get_parameter("weight").detach(), groups_of(layer)
    whole = math.prod(kernel_of(layer)) > 1  # foldings rearrange its rows
    axes_FN = None if whole else span_of(filters_of(layer, weight), blocks)
    side = features_of(layer)[0] // blocks if axes_FN is None else axes_FN.shape[1]
    zeros = weight.new_zeros(blocks, side, side, dtype=torch.promote_types(weight.dtype, torch.float32))
    return LayerMoments(zeros, axes=axes_FN)


def _gradients(surprise: Tensor, answers: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients at the layers' outputs; None for outputs that the network's output does not depend on."""
    wanted = [y for y in answers if y.requires_grad]
    if not (wanted and surprise.requires_grad):
        return [None] * len(answers)
    found = iter(torch.autograd.grad(surprise, wanted, allow_unused=True))
    return [next(found) if y.requires_grad else None for y in answers]


def _check(name: str, moments: LayerMoments, slicings: Sequence[Slicing]) -> None:
    if slicings and not sum(moments.places.values()):
        raise CompressionError(f"layer '{name}': the calibration data never reach it. Expected at least one input.")
    if not all(torch.isfinite(matrix).all() for matrix in (moments.gradient, *moments.grams.values())):
        raise CompressionError(
            f"layer '{name}': its inputs, responses or gradients on the calibration data are NaN or infinite. Are the "
            f"data finite, and transformed like the training data?"
        )


def _surprise(outputs: object, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """-log p(y), summed, for labels drawn from the network's own predictions."""
    logarithms = log_probabilities(outputs, mask)
    if not torch.isfinite(logarithms).all():
        raise CompressionError(
            "the network's outputs on the calibration data are NaN or infinite. Are the data finite, and transformed "
            "like the training data?"
        )
    labels = torch.multinomial(logarithms.detach().exp().cpu(), 1, generator=generator)
    return -logarithms.gather(1, labels.to(logarithms.device)).sum()


def _add(
    moments: LayerMoments, seen: _Seen, slicings: Sequence[Slicing], most: int, generator: torch.Generator
) -> None:
    layer, blocks = seen.layer, groups_of(seen.layer)
    if seen.gradient is not None:
        g_FP = in_axes(all_outputs(seen.gradient, layer).to(moments.gradient), moments.axes)
        if seen.mask is not None:
            g_FP = g_FP[:, counted_places(torch.arange(g_FP.shape[1]), seen.y, layer, seen.mask).to(g_FP.device)]
        moments.gradient += torch.stack([g_HP @ g_HP.T for g_HP in torch.tensor_split(g_FP, blocks)])
    filters = in_axes(filters_of(layer, layer.get_parameter("weight").detach().to(moments.gradient)), moments.axes)
    patches: dict[int, Tensor] = {}
    for groups, folding in slicings:
        A_GRN = fold(filters, groups, folding, blocks)
        if folding not in patches:
            patches[folding] = _encoder_inputs(seen, folding, most, generator)
        inputs = patches[folding]
        wide = A_GRN.shape[1] <= A_GRN.shape[2]
        if isinstance(layer, nn.Embedding):  # tokens
            inputs_GNP = A_GRN[:, :, inputs] if wide else one_hot(inputs, A_GRN.shape[2]).T[None].to(A_GRN)
            gram = _gram(inputs_GNP)
        else:
            inputs_GNP = _sliced(inputs.to(A_GRN), len(A_GRN), folding)
            gram = _gram(A_GRN @ inputs_GNP if wide else inputs_GNP)
        gram = precise(gram)
        moments.grams[groups, folding] = moments.grams.get((groups, folding), torch.zeros_like(gram)) + gram
        moments.places[groups, folding] = moments.places.get((groups, folding), 0) + inputs_GNP.shape[2]


def in_axes(A: Tensor, axes_FN: Tensor | None) -> Tensor:
    """The coordinates of responses, or filters, (F, ...) in a basis; the same ones without."""
    return A if axes_FN is None else torch.tensordot(axes_FN.T.to(A), A, 1)


def _gram(A_GRP: Tensor) -> Tensor:
    return A_GRP @ A_GRP.mT


def _encoder_inputs(seen: _Seen, folding: int, most: int, generator: torch.Generator) -> Tensor:
    """The inputs of an encoder of this folding, at places of its own grid: (C, K, P); tokens (P,) of an embedding."""
    layer, x, y = seen.layer, seen.x, seen.y
    if folding:
        layer = make_layer(layer, Factors(1, 1, folding)).get_submodule("encoder")
        y = layer.to("meta", x.dtype)(x.to("meta"))
    places = draw_places(num_positions(y, layer), most, generator)
    places = counted_places(places, y, layer, seen.mask)
    return x.flatten()[places] if isinstance(layer, nn.Embedding) else input_patches(x, layer, y.shape, places)


def _sliced(patches_CKP: Tensor, slices: int, folding: int) -> Tensor:
    """Rows in the order of the columns of `fold`: (G, N, P)."""
    X_GIKP = patches_CKP.reshape(slices, -1, *patches_CKP.shape[1:])
    return (X_GIKP if folding == 0 else X_GIKP.transpose(1, 2)).flatten(1, 2)
