"""Modules of other libraries that are linear layers under another class: transformers' `Conv1D`, timm's `Linear`.

`Conv1D`, of GPT and GPT-2, holds its weight as (inputs, outputs).
"""

from torch import Tensor, nn

from experiment.layers.unfused.family import Family, Tensors, class_in, computes_as, split_parameters


def _transposed(tensors: Tensors) -> dict[str, Tensor]:
    return {name: t.t() if name == "weight" and t.dim() == 2 else t for name, t in tensors.items()}


def _from_conv1d(module: nn.Module) -> None:
    weight = split_parameters(module, CONV1D)["weight"]
    del module.nf, module.nx
    module.__class__ = nn.Linear
    assert isinstance(module, nn.Linear)
    module.out_features, module.in_features = weight.shape
    module.weight = weight


CONV1D = Family(
    is_fused=lambda module: computes_as(module, class_in("transformers.pytorch_utils", "Conv1D")),
    is_unfused=lambda module: type(module) is nn.Linear,
    unfuse=_from_conv1d,
    split=_transposed,
    join=_transposed,
    reshapes=True,
)
LINEAR = Family(
    is_fused=lambda module: computes_as(module, class_in("timm.layers.linear", "Linear")),
    is_unfused=lambda module: type(module) is nn.Linear,
    unfuse=lambda module: setattr(module, "__class__", nn.Linear),
)
