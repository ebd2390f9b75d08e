"""The small GPT against torch's own transformer layers, and its size, causality and channels."""

import pytest
import torch
from torch import nn

from experiment import compress
from experiment.errors import ConfigError
from experiment.networks.gpt import GPT
from experiment.networks.make_network import make_network
from experiment.random_streams import generator, seeded
from experiment.registry import InputShape
from experiment.tasks.language_modelling import token_scores

TEXTS = InputShape((9,), tokens=True)
SMALL = {"layers": 2, "heads": 4, "width": 16}


def make(shape: InputShape = TEXTS, outputs: int = 11, **settings: object) -> GPT:
    with seeded("gpt"):
        network = make_network("gpt_small", {**SMALL, **settings}, shape, outputs, outputs=token_scores)
    assert isinstance(network, GPT)
    return network


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_by_hand(tied: bool) -> None:
    """Radford et al. 2019: per block 12 D^2 weights, 9 D biases and two LayerNorms; a final LayerNorm, embeddings."""
    D, V, T, L = 128, 128, 128, 4
    with torch.device("meta"):
        network = make(InputShape((T,), tokens=True), V, layers=L, width=D, tied=tied)
    expected = L * (12 * D * D + 9 * D + 4 * D) + 2 * D + T * D + (1 if tied else 2) * V * D
    assert sum(p.numel() for p in network.parameters()) == expected
    assert not tied or expected == 826_112


def test_blocks_are_torchs() -> None:
    network = make().eval()
    x = torch.randn(3, 9, 16, generator=generator("x"))
    reference = nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    block = network.blocks[0]
    for parameter in block.parameters():
        parameter.detach().normal_(generator=generator("weights", parameter.shape))
    attention = block.attention
    state = {f"{a}.{k}": v for a, b in (("norm1", "norm1"), ("norm2", "norm2"), ("linear1", "mlp.0"),
             ("linear2", "mlp.2"), ("self_attn.out_proj", "attention.out"))
             for k, v in block.get_submodule(b).state_dict().items()}  # fmt: skip
    for kind in ("weight", "bias"):
        parts = [layer.get_parameter(kind) for layer in (attention.q, attention.k, attention.v)]
        state[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
    reference.load_state_dict(state)
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    torch.testing.assert_close(block(x), reference(x, src_mask=mask, is_causal=True))


def test_scores_depend_on_earlier_tokens_only() -> None:
    network = make().eval()
    x = torch.randint(11, (2, 9), generator=generator("x"))
    changed = x.clone()
    changed[:, 5] = (x[:, 5] + 1) % 11
    before, after = network(x), network(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(dim=2).any()
    assert network(x[:, :4]).shape == (2, 4, 11)  # shorter texts


def test_channels_are_heads_neurons_and_the_width() -> None:
    network = make(layers=1).eval()
    x = torch.randint(11, (4, 9), generator=generator("x"))
    result = compress(network, "FT", keep=0.5, example=x)
    layers = result.layers.set_index("layer")
    assert layers.loc["blocks.0.attention.q", "channels"] % 4 == 0  # whole heads of four channels
    assert (layers["parameters"] < layers["parameters_before"]).drop(["head", "(other)"]).all()
    assert result.network(x).shape == (4, 9, 11)


def test_what_does_not_fit_is_refused() -> None:
    for settings in ({"heads": 3}, {"context": 8}):
        with pytest.raises(ConfigError, match=r"gpt_small needs inputs \(positions,\) of token ids, heads that divide"):
            make(**settings)
    with pytest.raises(ConfigError, match="gpt_small needs inputs"):
        make(InputShape((3, 32, 32)))
