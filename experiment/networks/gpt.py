"""A small GPT: a transformer that predicts the next token at every position of a text.

Shape suffixes: N = texts, T = positions, D = width, H = heads, V = tokens of the vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from experiment.errors import ConfigError


class CausalAttention(nn.Module):
    """Multi-head attention to the same and earlier positions, of plain linear layers: (N, T, D) -> (N, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_NTD: Tensor) -> Tensor:
        q, k, v = (layer(x_NTD).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed_NHTD = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed_NHTD.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a feed-forward network, each behind a LayerNorm and added to its input: (N, T, D) -> (N, T, D)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NTD: Tensor) -> Tensor:
        x_NTD = x_NTD + self.dropout(self.attention(self.norm1(x_NTD)))
        return x_NTD + self.dropout(self.mlp(self.norm2(x_NTD)))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """Token ids (N, T) -> scores (N, T, V) of the next token, with learned positions."""

    def __init__(
        self, vocabulary: int, context: int, layers: int, heads: int, width: int, dropout: float, tied: bool
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens_NT: Tensor) -> Tensor:
        places = torch.arange(tokens_NT.shape[1], device=tokens_NT.device)
        x_NTD = self.blocks(self.tokens(tokens_NT) + self.positions(places))
        return self.head(self.norm(x_NTD))  # type: ignore[no-any-return]


def gpt_small(
    input_shape: Sequence[int],
    output_size: int,
    layers: int = 4,
    heads: int = 4,
    width: int = 128,
    context: int | None = None,
    dropout: float = 0.0,
    tied: bool = True,
) -> nn.Module:
    """A GPT with LayerNorm before both parts of a block, and GELU; 826,112 parameters for 128 tokens and positions.

    Args:
        layers: number of blocks.
        heads: heads of attention per block, a divisor of the width.
        width: of the residual stream; feed-forward networks have four times as many neurons.
        context: the most positions of a text. Default: those of the dataset.
        dropout: probability of dropping an output of a part of a block in training.
        tied: whether the output layer has the weights of the embedding.

    Source: Radford et al. 2019, https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
    """
    length = input_shape[0]
    if len(input_shape) != 1 or width % heads or (context or length) < length:
        raise ConfigError(
            f"gpt_small needs inputs (positions,) of token ids, heads that divide the width, and a context of at least "
            f"the positions. Got inputs {tuple(input_shape)}, heads {heads}, width {width}, context {context}."
        )
    return GPT(output_size, context or length, layers, heads, width, dropout, tied)
