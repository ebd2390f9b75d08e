"""Converts state_dicts of torch.nn.utils.prune (`weight_orig`, `weight_mask`) to and from masked networks."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.copied_network import copied
from experiment.layers.masks import add_masks, bake_masks, named_masks
from experiment.tensor_file import load_tensors

ORIGINAL, MASK = "_orig", "_mask"  # what torch adds to a pruned parameter's name


def load_pruned_state(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network with the weights and masks of a network pruned with torch.nn.utils.prune.

    Values at masked places of `weight_orig` are dropped. Parameters that are not pruned have their plain names.

    Args:
        network: plain layers of the same names and shapes; not modified.
        state: the state_dict of a network that was pruned with torch.nn.utils.prune.
    Raises: CompressionError: names or shapes are not this network's, or a mask has values other than zero and one.
    """
    owners = [name.removesuffix(ORIGINAL) for name in state if name.endswith(ORIGINAL)]
    masks = {owner: state[owner + MASK] for owner in owners if owner + MASK in state}
    plain = {}
    for name, tensor in state.items():
        owner = name.removesuffix(ORIGINAL)
        if name.endswith(ORIGINAL) and owner in masks:
            if masks[owner].shape != tensor.shape or not ((masks[owner] == 0) | (masks[owner] == 1)).all():
                raise CompressionError(f"{owner}{MASK}: expected a mask of the weight's shape with zeros and ones.")
            plain[owner] = tensor.masked_fill(masks[owner] == 0, 0)
        elif not (name.endswith(MASK) and name.removesuffix(MASK) in masks):
            plain[name] = tensor
    loaded = copied(network)
    try:
        load_tensors(loaded, plain)
    except RuntimeError as error:
        raise CompressionError(f"the state_dict does not fit this network: {error}") from error
    parameters = dict(loaded.named_parameters(remove_duplicate=False))
    strange = [name for name in masks if name not in parameters]
    if strange:
        raise CompressionError(f"{', '.join(strange)}: only parameters can be masked. These are buffers.")
    add_masks(loaded, {name: mask.to(torch.bool) for name, mask in masks.items()})
    return loaded


def pruned_state(network: nn.Module) -> dict[str, Tensor]:
    """The state_dict that torch.nn.utils.prune would give: `weight_orig` and `weight_mask` for masked parameters.

    A network that is pruned in the same places (with `prune.custom_from_mask`, for example) can load it.
    """
    masks, state = named_masks(network), dict[str, Tensor]()
    for name, tensor in bake_masks(network).state_dict().items():
        if name in masks:
            state |= {name + ORIGINAL: tensor, name + MASK: masks[name].to(tensor)}
        else:
            state[name] = tensor
    return state
