"""From a plan to the structure that it describes, and from a compressed network back to dense weights.

The parts of a plan are applied in one order: unfused modules, biases, channels, factors, masks, quantization.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.inputs import Inputs
from experiment.layers.channels.channel_axes import parameter_dim
from experiment.layers.channels.slicing import slice_channels, unslice
from experiment.layers.channels.streams import CONSTANTS, move_streams
from experiment.layers.compressible import CONVOLUTIONS, features_of, holders, leaders, weight_of
from experiment.layers.factored_layers import MOST_OF_NESTED, FactoredEmbedding, FactoredLayer, make_layer, product
from experiment.layers.masks import add_masks, bake_masks, stored, write_parameter
from experiment.layers.plan import Factors, Kept, Plan, State
from experiment.layers.quantized_weights import add_quantized
from experiment.layers.residual_blocks import inside, silence
from experiment.layers.skipped_blocks import Skipped, ZeroBranch
from experiment.layers.unfused.replace import unfused


def build(network: nn.Module, plan: Plan) -> nn.Module:
    """The compressed structure, on the network's device (`meta` included); layers left whole keep their weights.

    Args:
        network: the original network, or the same with the plan's modules unfused; not modified.

    Raises: CompressionError: the plan contradicts itself or does not belong to this network.
    """
    network = unfused(network, plan.unfused)
    _check(network, plan)
    # deepcopy takes replacements from its memo: factors appear wherever the layer does, without a copy of its weight
    memo = _replacements(network, {n: factors for n, factors in plan.decomposed.items() if n not in plan.kept})
    for name in plan.skipped:
        block = network.get_submodule(name)
        memo[id(block)] = ZeroBranch(block, plan.branches[name]) if name in plan.branches else Skipped(block)
    built = copy.deepcopy(network, memo)
    _add_biases(built, plan.biases)
    slice_channels(built, plan.kept)
    sliced = {name: factors for name, factors in plan.decomposed.items() if name in plan.kept}
    if sliced:  # one copy replaces all of them
        built = copy.deepcopy(built, _replacements(built, sliced))
    _factor_encoders(built, plan.nested)
    add_masks(built, {name: slice_mask(mask, plan.kept, name) for name, mask in plan.masks.items()}, unfilled=True)
    add_quantized(built, plan.quantized)
    _keep_channels_last(built, network)
    return built


def write_whole(built: nn.Module, network: nn.Module, plan: Plan) -> None:
    """Write all weights and buffers of `network` into `built`, in place, except those of decomposed layers.

    Sliced and masked layers take the part that is left, times the plan's scales. A decomposed layer takes its bias, or
    zeros where `network` has none.
    """
    targets = dict(built.named_modules())
    with torch.no_grad():
        for name, module in sliced_copy(network, plan.kept).named_modules():
            if inside(name, plan.skipped):
                continue
            if name in plan.factors:
                _write_bias(targets[name].get_submodule("decoder"), module)
                _write_constants(targets[name], module)
            else:
                _write(targets[name], _scaled(_tensors(module), name, plan))


def expand(compressed: nn.Module, original: nn.Module, plan: Plan, example: Inputs) -> State:
    """The inverse of `build`: a compressed network's weights on the original architecture, unfused, with equal outputs.

    Rounded weights stay rounded, factors become their product, removed channels and skipped blocks become zeros. Masks,
    channels and blocks become part of the state. A layer gains a bias if it has one only in the compressed network.

    Args:
        compressed: a network made by `build(original, plan)`, trained or not; not modified.
        original: the original architecture; not modified.
        plan: the plan of the compressed network.
        example: a batch of one input.
    """
    plain = bake_masks(compressed) if plan.masks or plan.quantized else compressed
    sources = dict(plain.named_modules())
    network = copy.deepcopy(unfused(original, plan.unfused))
    biases = _gained_biases(network, sources, plan)
    _add_biases(network, biases)
    dense = sliced_copy(network, plan.kept)
    with torch.no_grad():
        for name, module in dense.named_modules():
            if inside(name, plan.skipped):
                continue
            if name in plan.factors:
                _write_product(module, sources[name])
                _write_constants(module, sources[name])
            else:
                _write(module, _tensors(sources[name]))
        if plan.kept:
            unslice(dense, network, plan.kept)
        for name in plan.skipped:
            silence(network.get_submodule(name))
    masks = {name: mask for name, mask in plan.masks.items() if not plan.masks_factor(name)}
    return State(
        network.eval(), example, masks, dict(plan.kept), biases, plan.skipped, plan.branches, unfused=plan.unfused
    )


def sliced_copy(network: nn.Module, kept: Mapping[str, Kept]) -> nn.Module:
    """A copy without the removed channels; the network itself if there are none."""
    if not kept:
        return network
    sliced = copy.deepcopy(network)
    slice_channels(sliced, kept)
    return sliced


def slice_mask(mask: Tensor, kept: Mapping[str, Kept], name: str) -> Tensor:
    """The part of a parameter's mask that is left when its module is sliced; `name` is the parameter's."""
    for dim, indices in _cuts(kept, name, mask.shape):
        mask = mask.index_select(dim, torch.tensor(indices, device=mask.device))
    return mask


def unslice_mask(mask: Tensor, shape: torch.Size, kept: Mapping[str, Kept], name: str) -> Tensor:
    """The inverse of `slice_mask`: a mask, or scales, of the original shape, False or zero for removed channels."""
    for dim, indices in _cuts(kept, name, shape):
        size = [*mask.shape[:dim], shape[dim], *mask.shape[dim + 1 :]]
        gone = torch.zeros(size, dtype=mask.dtype, device=mask.device)
        mask = gone.index_copy(dim, torch.tensor(indices, device=mask.device), mask)
    return mask


def _cuts(kept: Mapping[str, Kept], name: str, shape: torch.Size) -> list[tuple[int, tuple[int, ...]]]:
    """The dimensions that lose indices; a grouped layer's columns are those of one group and stay with it."""
    if name in kept:  # a bare parameter
        pairs: Sequence[tuple[int | None, tuple[int, ...] | None]] = ((parameter_dim(shape), kept[name].out),)
    else:
        sides = kept.get(name.rpartition(".")[0], Kept())
        swapped = sides.swapped and len(shape) > 1
        pairs = ((1, sides.out), (0, sides.inputs)) if swapped else ((0, sides.out), (1, sides.inputs))
    return [
        (dim, i) for dim, i in pairs if dim is not None and i is not None and dim < len(shape) and i[-1] < shape[dim]
    ]


def _check(network: nn.Module, plan: Plan) -> None:
    modules = dict(network.named_modules())
    parameters = dict(network.named_parameters(remove_duplicate=False))
    masked = [name.rpartition(".")[0] for name in plan.masks if not plan.masks_factor(name)]
    channels = [name for name in plan.kept if name not in parameters]
    rounded = [name for name in plan.quantized if name not in parameters]
    named = (*plan.decomposed, *channels, *plan.biases, *rounded, *masked)
    unknown = [name for name in (*named, *plan.skipped) if name not in modules]
    if unknown:
        raise CompressionError(f"the plan belongs to another network: this one has no {', '.join(map(repr, unknown))}.")
    both = [name for name in plan.masks if name.rpartition(".")[0] in plan.factors]
    gone = [name for name in named if inside(name, plan.skipped)]
    twice = [name for name in plan.biases if name in plan.factors]
    nested = plan.nested
    deep = [name for name in nested if name.rpartition(".")[0] in nested]
    biased = [name for name, factors in nested.items() if factors.bias]
    for names, text in (
        (both, "a layer cannot be both masked and decomposed. Mask its factors instead."),
        (gone, "the plan skips the block that contains this layer."),
        (twice, "the bias of a decomposed layer is part of its factors."),
        (deep, "the encoder of a layer may have factors, but not that of an encoder."),
        (biased, "the encoder of a decomposed layer has no bias."),
    ):
        if names:
            raise CompressionError(f"{', '.join(names)}: {text}")


def _replacements(network: nn.Module, factors: Mapping[str, Factors]) -> dict[int, object]:
    """The factors of layers by the layers' identity; also biases, which modules without factors may share."""
    first, made, memo = leaders(network, factors), dict[str, FactoredLayer](), dict[int, object]()
    for name, own in factors.items():
        module = network.get_submodule(name)
        layer = made[name] = make_layer(module, own, made.get(first[name]))
        move_streams(module, layer)
        memo[id(module)] = layer
        if layer.bias is not None and (bias := getattr(module, "bias", None)) is not None:
            memo[id(bias)] = layer.bias
    return memo


def _keep_channels_last(built: nn.Module, network: nn.Module) -> None:
    """Lay out in channels-last, in place, what was made of layers in this layout."""
    made = dict(built.named_modules())
    for name, module in network.named_modules():
        weight = _tensors(module).get("weight")
        if weight is None or weight.dim() != 4 or weight.is_contiguous() or name not in made:
            continue
        if weight.is_contiguous(memory_format=torch.channels_last):
            made[name].to(memory_format=torch.channels_last)


def _factor_encoders(network: nn.Module, nested: Mapping[str, Factors]) -> None:
    """Replace encoders of decomposed layers by factors of their own, in place."""
    held = holders(network) if nested else {}
    for name, factors in nested.items():
        layer = network.get_submodule(name.rpartition(".")[0])
        encoder = layer.get_submodule("encoder")
        if any(len(held[parameter]) > 1 for parameter in encoder.parameters()):
            raise CompressionError(f"{name}: the encoder of layers that share a weight has no factors of its own.")
        layer.encoder = make_layer(encoder, factors, most=MOST_OF_NESTED)


def _add_biases(network: nn.Module, layers: Sequence[str]) -> None:
    """Give these layers a bias of zeros if they have none, in place."""
    for name in layers:
        layer = network.get_submodule(name)
        if not isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
            raise CompressionError(f"{name}: a {type(layer).__name__} cannot be given a bias.")
        if layer.bias is None:
            zeros = layer.weight.detach().new_zeros(features_of(layer)[0])
            layer.bias = nn.Parameter(zeros, requires_grad=layer.weight.requires_grad)


def _gained_biases(original: nn.Module, sources: Mapping[str, nn.Module], plan: Plan) -> tuple[str, ...]:
    """The layers that have a bias only in the compressed network, possibly at their decoder."""
    gained = []
    for name, module in original.named_modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)) and module.bias is None and not inside(name, plan.skipped):
            source = sources[name].get_submodule("decoder") if name in plan.factors else sources[name]
            if "bias" in _tensors(source):
                gained.append(name)
    return tuple(gained)


def _scaled(tensors: dict[str, Tensor], module: str, plan: Plan) -> dict[str, Tensor]:
    """A sliced module's tensors, multiplied by the plan's scales."""
    prefix = f"{module}." if module else ""
    return {
        key: tensor * slice_mask(plan.scales[prefix + key], plan.kept, prefix + key).to(tensor.device)
        if prefix + key in plan.scales
        else tensor
        for key, tensor in tensors.items()
    }


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def _write_product(module: nn.Module, source: nn.Module) -> None:
    """Write the weight and bias that factors represent; an embedding takes the bias into its rows."""
    weight = weight_of(module, product(source))
    if isinstance(source, FactoredEmbedding) and source.bias is not None:
        weight = weight + source.bias
    write_parameter(module, "weight", weight)
    if not isinstance(module, nn.Embedding):
        _write_bias(module, source.get_submodule("decoder"))


def _write_bias(module: nn.Module, source: nn.Module) -> None:
    bias = dict(source.named_parameters(recurse=False)).get("bias")
    if module.bias is not None:
        write_parameter(module, "bias", torch.zeros_like(stored(module, "bias")) if bias is None else bias)


def _write_constants(module: nn.Module, source: nn.Module) -> None:
    """Write the constants of a layer in a stream, if it has some."""
    own = _tensors(module)
    _write(module, {name: tensor for name, tensor in _tensors(source).items() if name == CONSTANTS and name in own})


def _write(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = _tensors(module)
    for name, tensor in tensors.items():
        if name in own:
            own[name].copy_(tensor)
        else:
            write_parameter(module, name, tensor)
