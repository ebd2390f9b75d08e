"""Modules that read the weights of their layers, or call them if an attribute says so.

`nn.TransformerEncoder` and its layers have a fast path in eval mode: it passes all weights to a fused kernel and sets
outputs at padded positions to zero. Without it, these have the values that they have in training mode.
timm's attention with biases of its own (EVA, BEiT, Swin V2) can call `qkv` and add the bias afterwards.
"""

from torch import nn

from experiment.layers.unfused.family import Family


def _switch(module: nn.Module) -> tuple[str, object] | None:
    """The attribute and the value at which layers are called; None if the module has no such attribute."""
    if isinstance(module, nn.TransformerEncoderLayer):
        return "activation_relu_or_gelu", 0  # the kernel knows no other activation
    if isinstance(module, nn.TransformerEncoder):
        return "use_nested_tensor", False
    if type(module).__module__.startswith("timm.") and module._parameters.get("q_bias") is not None:
        return "qkv_bias_separate", True
    return None


def _is_fused(module: nn.Module) -> bool:
    switch = _switch(module)
    return switch is not None and vars(module).get(switch[0], switch[1]) != switch[1]


def _unfuse(module: nn.Module) -> None:
    switch = _switch(module)
    assert switch is not None
    setattr(module, *switch)


FAMILY = Family(is_fused=_is_fused, is_unfused=lambda module: _switch(module) is not None, unfuse=_unfuse)
