"""The experts of transformers' mixtures (Mixtral, Qwen, DeepSeek and others) with a linear layer for each matrix.

They are held as `gate_up_proj` (E, 2F, H) and `down_proj` (E, H, F), in one layout for all these families.

Shape suffixes: E = experts, T = tokens, K = experts of a token, S = T * K, H = hidden width, F = intermediate width.

Source: Jiang et al. 2024, Mixtral of Experts, https://arxiv.org/abs/2401.04088
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from experiment.layers.unfused.family import Family, Tensors, make_linear, split_parameters

_LAYOUT = {
    "has_gate": True, "is_concatenated": True, "is_transposed": False, "has_bias": False,
    "has_post_expert_norm": False, "_is_expert_parallel": False,
}  # fmt: skip
_PARTS = ("gate_proj", "up_proj", "down_proj")


class UnfusedExperts(nn.Module):
    """Experts as children `0`, `1`, ..., each with the layers `gate_proj`, `up_proj` and `down_proj`.

    In training, and where hooks watch their layers, experts without tokens compute the first token to no effect: every
    layer is seen whatever the input, and gets a gradient.
    """

    num_experts: int
    apply_gate: Callable[[nn.Module, Tensor], Tensor]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """From tokens (T, H), and the numbers and weights of their experts (T, K), to (T, H)."""
        chosen_S, num_choices = top_k_index.flatten(), top_k_index.shape[-1]
        made_SH = hidden_states.new_zeros(len(chosen_S), hidden_states.shape[-1])
        for e in range(self.num_experts):
            expert = self.get_submodule(str(e))
            places = torch.where(chosen_S == e)[0]
            if not len(places) and not self.training and not _is_watched(expert):
                continue
            gate, up, down = (expert.get_submodule(name) for name in _PARTS)
            x = hidden_states[places // num_choices] if len(places) else hidden_states[:1]
            y = down(self.apply_gate(self, torch.cat([gate(x), up(x)], -1)))[: len(places)]
            made_SH.index_copy_(0, places, y.to(made_SH.dtype))
        made_TKH = made_SH.view(-1, num_choices, made_SH.shape[-1]) * top_k_weights.unsqueeze(-1)
        return made_TKH.sum(1).to(hidden_states.dtype)


def _is_watched(expert: nn.Module) -> bool:
    return any(layer._forward_hooks or layer._forward_pre_hooks for layer in expert.modules())


def _is_fused(module: nn.Module) -> bool:
    own: dict[str, Any] = vars(module)
    ours = {name for name, _ in module.named_parameters()} == {"gate_up_proj", "down_proj"} and "forward" not in own
    home = type(module).__module__.startswith("transformers.models.")
    return ours and home and all(own.get(key) is value for key, value in _LAYOUT.items())


def _unfuse(module: nn.Module) -> None:
    parts = split_parameters(module, FAMILY)
    del module.gate_up_proj, module.down_proj
    gate = vars(type(module))["_apply_gate"]  # transformers gives every such class its own
    module.__class__ = UnfusedExperts
    assert isinstance(module, UnfusedExperts)
    module.apply_gate = gate
    for e in range(module.num_experts):
        layers = {name: make_linear(parts[f"{e}.{name}.weight"], None, module.training) for name in _PARTS}
        module.add_module(str(e), nn.ModuleDict(layers))


def _split(fused: Tensors) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in fused.items():
        if name == "gate_up_proj" and tensor.dim() == 3:
            for e, both in enumerate(tensor.unbind()):
                found[f"{e}.gate_proj.weight"], found[f"{e}.up_proj.weight"] = both.chunk(2)
        elif name == "down_proj" and tensor.dim() == 3:
            found |= {f"{e}.down_proj.weight": weight for e, weight in enumerate(tensor.unbind())}
        else:
            found[name] = tensor
    return found


def _join(unfused: Tensors) -> dict[str, Tensor]:
    found = dict(unfused)

    def taken(name: str) -> list[Tensor]:
        numbers = sorted(int(n.partition(".")[0]) for n in unfused if n.endswith(f".{name}.weight"))
        return [found.pop(f"{e}.{name}.weight") for e in numbers]

    gates, ups, downs = (taken(name) for name in _PARTS)
    if gates and ups:
        found["gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(gates, ups, strict=True)])
    return found | ({"down_proj": torch.stack(downs)} if downs else {})


FAMILY = Family(
    is_fused=_is_fused,
    is_unfused=lambda module: isinstance(module, UnfusedExperts),
    unfuse=_unfuse,
    split=_split,
    join=_join,
    reshapes=True,
)
