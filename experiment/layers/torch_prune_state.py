"""Converts state_dicts of torch.nn.utils.prune, with `weight_orig` and `weight_mask`, to masks and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.masks import add_masks, bake_masks, named_masks

ORIGINAL, MASK = "_orig", "_mask"  # what torch adds to a pruned parameter's name


def load_pruned_state(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load the weights and masks of a network pruned with torch.nn.utils.prune into a copy of `network`.

        network = load_pruned_state(Net(), torch.load("pruned.pt"))

    Masked elements of `weight_orig` are discarded.

    Args:
        network: a network with the same layers, not pruned; not modified.
        state: the state_dict of the pruned network.
    Returns: the copy, with masks that keep pruned weights at zero.
    Raises: CompressionError: names or shapes do not match, or a mask contains values other than 0 and 1.
    """
    owners = [name.removesuffix(ORIGINAL) for name in state if name.endswith(ORIGINAL)]
    masks = {owner: state[owner + MASK] for owner in owners if owner + MASK in state}
    plain = {}
    for name, tensor in state.items():
        owner = name.removesuffix(ORIGINAL)
        if name.endswith(ORIGINAL) and owner in masks:
            if masks[owner].shape != tensor.shape or not ((masks[owner] == 0) | (masks[owner] == 1)).all():
                raise CompressionError(
                    f"{owner}{MASK}: a mask must have the shape of its weight and contain only zeros and ones."
                )
            plain[owner] = tensor.masked_fill(masks[owner] == 0, 0)
        elif not (name.endswith(MASK) and name.removesuffix(MASK) in masks):
            plain[name] = tensor
    loaded = copy.deepcopy(network)
    try:
        loaded.load_state_dict(plain)
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

        torch.save(pruned_state(result.network), "pruned.pt")

    A network whose same parameters are pruned, for instance by `prune.custom_from_mask`, can load it.
    """
    masks, state = named_masks(network), dict[str, Tensor]()
    for name, tensor in bake_masks(network).state_dict().items():
        if name in masks:
            state |= {name + ORIGINAL: tensor, name + MASK: masks[name].to(tensor)}
        else:
            state[name] = tensor
    return state
