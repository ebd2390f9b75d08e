"""`nn.MultiheadAttention` with its four projections as linear layers.

Source: Vaswani et al. 2017, Attention Is All You Need, https://arxiv.org/abs/1706.03762
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, pad, scaled_dot_product_attention

from experiment.layers.unfused.family import Family, Tensors, computes_as, make_linear, split_parameters

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class UnfusedAttention(nn.Module):
    """Multi-head attention, called as `nn.MultiheadAttention` is, whose attributes and hooks it keeps.

    It computes from `num_heads`, `head_dim` and `scale`, the factor of the products of queries and keys, so that heads
    can be removed together with their rows and columns. Nested tensors are not supported.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module
    num_heads: int
    head_dim: int
    scale: float
    dropout: float
    batch_first: bool
    add_zero_attn: bool
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    in_proj_weight = property(lambda self: self._joined("weight"))  # for modules that read it without a call
    in_proj_bias = property(lambda self: self._joined("bias"))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Raises: ValueError: `is_causal` without the mask that it describes."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True says that attn_mask is causal. Expected attn_mask, too. Got None.")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._heads(self.q_proj(query)), *self._keys_and_values(key, value)
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = self._mask(None if causal else attn_mask, key_padding_mask, q.dtype, k.shape[2] - key.shape[1])
        p, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = dropout((scores if mask is None else scores + mask).softmax(-1), p)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = scaled_dot_product_attention(q, k, v, mask, p, causal, scale=self.scale)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return y if self.batch_first else y.transpose(0, 1), weights

    def _joined(self, name: str) -> Tensor | None:
        parts = [getattr(layer, name) for layer in (self.q_proj, self.k_proj, self.v_proj)]
        same = all(part is not None and part.shape[1:] == parts[0].shape[1:] for part in parts)
        return torch.cat(parts) if same else None

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, tokens, heads * head_dim) -> (batch, heads, tokens, head_dim)."""
        return x.view(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def _keys_and_values(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.k_proj(key), self.v_proj(value)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], 1)
        if self.add_zero_attn:
            k, v = pad(k, (0, 0, 0, 1)), pad(v, (0, 0, 0, 1))
        return self._heads(k), self._heads(v)

    def _mask(self, attn: Tensor | None, padding: Tensor | None, dtype: torch.dtype, num_added: int) -> Tensor | None:
        """Both masks as one to add to the scores, which broadcasts to (batch, heads, queries, keys)."""
        if attn is not None and attn.dim() == 3:
            attn = attn.view(-1, self.num_heads, *attn.shape[1:])
        masks = [mask for mask in (attn, None if padding is None else padding[:, None, None]) if mask is not None]
        if not masks:
            return None
        masks = [
            torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask
            for mask in masks
        ]
        return pad(sum(masks[1:], masks[0]), (0, num_added))


def _unfuse(module: nn.Module) -> None:
    parts = split_parameters(module, FAMILY)
    for name in ("in_proj_weight", "in_proj_bias", *(f"{name}_weight" for name in _PROJECTIONS)):
        module._parameters.pop(name, None)
    del module._modules["out_proj"]
    for name in (*_PROJECTIONS, "out_proj"):
        module.add_module(name, make_linear(parts[f"{name}.weight"], parts.get(f"{name}.bias"), module.training))
    module.__class__ = UnfusedAttention
    assert isinstance(module, UnfusedAttention)
    module.scale = module.head_dim**-0.5


def _split(fused: Tensors) -> dict[str, Tensor]:
    found = dict(fused)
    for kind in ("weight", "bias"):
        whole = found.get(f"in_proj_{kind}")
        if whole is not None and whole.dim() and whole.shape[0] % 3 == 0:
            parts = found.pop(f"in_proj_{kind}").chunk(3)
            found |= {f"{name}.{kind}": part for name, part in zip(_PROJECTIONS, parts, strict=True)}
    for name in _PROJECTIONS:
        if f"{name}_weight" in found:
            found[f"{name}.weight"] = found.pop(f"{name}_weight")
    return found


def _join(unfused: Tensors) -> dict[str, Tensor]:
    found = dict(unfused)
    for kind in ("weight", "bias"):
        parts = [found.pop(f"{name}.{kind}") for name in _PROJECTIONS if f"{name}.{kind}" in found]
        if len({part.shape[1:] for part in parts}) > 1:  # kdim or vdim
            found |= {f"{name}_{kind}": part for name, part in zip(_PROJECTIONS, parts, strict=True)}
        elif parts:
            found[f"in_proj_{kind}"] = torch.cat(parts)
    return found


FAMILY = Family(
    is_fused=lambda module: computes_as(module, nn.MultiheadAttention),
    is_unfused=lambda module: isinstance(module, UnfusedAttention),
    unfuse=_unfuse,
    split=_split,
    join=_join,
    reshapes=True,
)
