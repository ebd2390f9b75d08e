"""torchvision's shifted window attention (Swin, Swin V2, video Swin) with its projections called as layers.

Shape suffixes: B = batch, W = windows, N = tokens of a window, C = channels, H = heads, D = channels of a head.

Source: Liu et al. 2021, Swin Transformer, https://arxiv.org/abs/2103.14030; Liu et al. 2021, Swin Transformer V2,
https://arxiv.org/abs/2111.09883; Liu et al. 2021, Video Swin Transformer, https://arxiv.org/abs/2106.13230
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize, pad

from experiment.layers.unfused.family import Family, Tensors, class_in, computes_as

_OTHER_WINDOW = -100.0  # added to the scores of tokens that are neighbours only because the image was rolled
_LARGEST_SCALE = math.log(100.0)
_MODULES = {"": "swin_transformer", "V2": "swin_transformer", "3d": "video.swin_transformer"}


class UnfusedWindowAttention(nn.Module):
    """Attention within shifted windows of an image or a video, with the attributes of torchvision's module.

    `num_heads`, `head_dim` and `scale` are as in `UnfusedAttention`. In Swin V2, `qkv` has no bias: `qkv_bias` is added
    to its output, without the part for the keys.
    """

    qkv: nn.Module
    proj: nn.Module
    qkv_bias: nn.Parameter | None
    relative_position_bias_table: nn.Parameter  # Swin and video Swin only
    window_size: list[int]
    shift_size: list[int]
    num_heads: int
    head_dim: int
    scale: float
    attention_dropout: float
    dropout: float

    def forward(self, x: Tensor) -> Tensor:
        """From (B, *sizes, C) to the same shape, for two sizes (image) or three (video)."""
        sizes, window = x.shape[1:-1], list(self.window_size)
        if len(sizes) == 3:  # images are padded to a whole window, windows of videos shrink
            window = [min(w, n) for w, n in zip(window, sizes, strict=True)]
        padded = [-(-n // w) * w for n, w in zip(sizes, window, strict=True)]
        shift = [0 if w >= n else s for s, w, n in zip(self.shift_size, window, padded, strict=True)]
        axes = list(range(1, len(sizes) + 1))
        ends = [end for n, m in zip(reversed(sizes), reversed(padded), strict=True) for end in (0, m - n)]
        x = torch.roll(pad(x, [0, 0, *ends]), [-s for s in shift], axes)
        x = self._attend(_to_windows(x, window), self._bias(window, shift, padded, x))
        x = dropout(self.proj(x), self.dropout, self.training)
        x = torch.roll(_from_windows(x, window, padded), shift, axes)
        return x[(slice(None), *(slice(n) for n in sizes))].contiguous()

    def _attend(self, x_BWNC: Tensor, bias_WHNN: Tensor) -> Tensor:
        B, W, N, _ = x_BWNC.shape
        qkv = self.qkv(x_BWNC)
        if self.qkv_bias is not None:
            q_bias, k_bias, v_bias = self.qkv_bias.chunk(3)
            qkv = qkv + torch.cat([q_bias, torch.zeros_like(k_bias), v_bias])
        q, k, v = qkv.view(B, W, N, 3, self.num_heads, self.head_dim).permute(3, 0, 1, 4, 2, 5).unbind(0)
        logit_scale: Tensor | None = getattr(self, "logit_scale", None)  # a property where a mask computes it
        if logit_scale is not None:
            scale = logit_scale.clamp(max=_LARGEST_SCALE).exp()
            scores = normalize(q, dim=-1) @ normalize(k, dim=-1).transpose(-2, -1) * scale
        else:
            scores = (q * self.scale) @ k.transpose(-2, -1)
        weights = dropout((scores + bias_WHNN).softmax(-1), self.attention_dropout, self.training)
        y: Tensor = weights @ v
        return y.transpose(2, 3).flatten(3)

    def _bias(self, window: Sequence[int], shift: Sequence[int], padded: Sequence[int], x: Tensor) -> Tensor:
        """What is added to the scores, by relative position and for tokens of other windows: (1 or W, H, N, N)."""
        N, most = math.prod(window), math.prod(self.window_size)
        index = self.get_buffer("relative_position_index").view(most, most)[:N, :N]
        if "cpb_mlp" in self._modules:
            table: Tensor = self.get_submodule("cpb_mlp")(self.get_buffer("relative_coords_table"))
            bias = 16 * table.view(-1, self.num_heads)[index].sigmoid()
        else:
            bias = self.relative_position_bias_table[index]
        bias = bias.permute(2, 0, 1).unsqueeze(0)
        if not any(shift):
            return bias
        regions = torch.zeros((), dtype=torch.int64, device=x.device)
        for n, w, s in zip(padded, window, shift, strict=True):  # the last window of an axis holds both of its ends
            place = torch.arange(n, device=x.device)
            regions = regions.unsqueeze(-1) * 3 + (place >= n - w).long() + (place >= n - s).long()
        regions_WN = _to_windows(regions[None, ..., None], window)[0, ..., 0]
        apart = regions_WN.unsqueeze(1) != regions_WN.unsqueeze(2)
        return bias + apart.unsqueeze(1).to(x.dtype) * _OTHER_WINDOW


def _to_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """(B, *sizes, C) -> (B, W, N, C)."""
    parts, d = [size for n, w in zip(x.shape[1:-1], window, strict=True) for size in (n // w, w)], len(window)
    order = (*range(1, 2 * d, 2), *range(2, 2 * d + 1, 2))  # numbers of windows, then places in them
    x = x.reshape(x.shape[0], *parts, x.shape[-1]).permute(0, *order, 2 * d + 1)
    return x.reshape(x.shape[0], math.prod(parts[::2]), math.prod(window), x.shape[-1])


def _from_windows(x: Tensor, window: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """The inverse of `_to_windows`."""
    d = len(window)
    x = x.reshape(x.shape[0], *(n // w for n, w in zip(sizes, window, strict=True)), *window, x.shape[-1])
    order = [axis for a in range(1, d + 1) for axis in (a, d + a)]
    return x.permute(0, *order, 2 * d + 1).reshape(x.shape[0], *sizes, x.shape[-1])


def _unfuse(module: nn.Module) -> None:
    module.register_parameter("qkv_bias", None)
    qkv = module.get_submodule("qkv")
    if "logit_scale" in module._parameters and isinstance(qkv.bias, nn.Parameter):
        module.register_parameter("qkv_bias", qkv.bias)
        qkv.register_parameter("bias", None)
    module.__class__ = UnfusedWindowAttention
    assert isinstance(module, UnfusedWindowAttention)
    module.head_dim = qkv.get_parameter("weight").shape[0] // 3 // module.num_heads
    module.scale = module.head_dim**-0.5


def _split(fused: Tensors) -> dict[str, Tensor]:
    return {"qkv_bias" if name == "qkv.bias" and "logit_scale" in fused else name: t for name, t in fused.items()}


def _join(unfused: Tensors) -> dict[str, Tensor]:
    return {"qkv.bias" if name == "qkv_bias" else name: tensor for name, tensor in unfused.items()}


FAMILY = Family(
    is_fused=lambda module: any(
        computes_as(module, class_in(f"torchvision.models.{place}", f"ShiftedWindowAttention{kind}"))
        for kind, place in _MODULES.items()
    ),
    is_unfused=lambda module: isinstance(module, UnfusedWindowAttention),
    unfuse=_unfuse,
    split=_split,
    join=_join,
)
