"""What `save_pretrained` says of compressed networks of transformers, and baking into the original's modules."""

import copy
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiment import bake, compress, load_network, save_network
from experiment.errors import CompressionError
from experiment.layers.pretrained_files import difference_to_config
from experiment.layers.unfused.multihead_attention import UnfusedAttention

TOKENS = torch.arange(4, 20).reshape(2, 8)
SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT2 = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
T5 = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs the extra hf")


def network_of(transformers: Any, kind: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    if kind == "T5":
        config = transformers.T5Config(**T5, decoder_start_token_id=0)
        made: nn.Module = transformers.T5ForConditionalGeneration(config)
        return made.eval(), {"input_ids": TOKENS, "decoder_input_ids": TOKENS}
    if kind == "GPT2":
        made = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    else:
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, intermediate_size=64))
    return made.eval(), {"input_ids": TOKENS}


@pytest.mark.parametrize(
    ("kind", "method", "keep", "difference"),
    [
        ("Llama", "FT", 0.5, None),
        ("T5", "FT", 0.6, r"model_dim: 32 here, \d+ there"),  # its outputs are scaled by the original width
        ("Llama", "SVD", 0.5, r"\.(en|de)coder\.weight: \(.*\) here, none there"),
        ("Llama", "Blocks", 0.9, r": none here, \(.*\) there"),
        ("Llama", "WT", 0.5, r"parametrizations.*: \(.*\) here, none there"),
    ],
)
def test_saving_warns_of_what_would_be_lost(
    transformers: Any, kind: str, method: str, keep: float, difference: str | None,
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    network, x = network_of(transformers, kind)
    result = compress(network, method, keep=keep, example=x, data=x, settings={"round_to": 8} if method == "FT" else {})
    save_network(result, tmp_path / "small.pt")
    for small in (result.network, copy.deepcopy(result.network), load_network(tmp_path / "small.pt", network=network)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "experiment"):
            small.save_pretrained(tmp_path / kind)
        found = difference_to_config(small)
        if difference is None:
            assert (found, caplog.text) == (None, "")
            again = type(network).from_pretrained(tmp_path / kind).eval()  # type: ignore[attr-defined]
            torch.testing.assert_close(again(**x).logits, small(**x).logits)
        else:
            assert found is not None
            assert found in caplog.text
            assert re.search(difference, found)


@pytest.mark.parametrize("method", ["WT", "Quantize"])
def test_masks_of_conv1d_are_baked_into_files_of_transformers(transformers: Any, method: str, tmp_path: Path) -> None:
    network, x = network_of(transformers, "GPT2")
    result = compress(network, method, example=x, **({} if method == "Quantize" else {"keep": 0.5}))
    bake(result, network).save_pretrained(tmp_path)
    again = type(network).from_pretrained(tmp_path).eval()  # type: ignore[attr-defined]
    torch.testing.assert_close(again(**x).logits, result.network(**x).logits)


def test_baked_masks_are_zeros_in_the_modules_of_the_original() -> None:
    torch.manual_seed(0)
    layer = {"dim_feedforward": 16, "batch_first": True}
    network = nn.Sequential(nn.TransformerEncoderLayer(8, 2, **layer), nn.Linear(8, 3)).eval()  # type: ignore[arg-type]
    x = torch.randn(2, 5, 8)
    result = compress(network, "WT", keep=0.5, example=x)
    assert any(isinstance(module, UnfusedAttention) for module in result.network.modules())
    baked = bake(result, network)
    assert [type(module) for module in baked.modules()] == [type(module) for module in network.modules()]
    torch.testing.assert_close(baked(x), result.network(x))
    assert sum(int((p != 0).sum()) for p in baked.parameters()) <= 0.5 * result.parameters_before
    with pytest.raises(CompressionError, match=r"(?s)net is not the network that was compressed: .*size mismatch"):
        bake(result, nn.Sequential(nn.TransformerEncoderLayer(8, 2, **layer), nn.Linear(8, 4)))  # type: ignore[arg-type]
    with pytest.raises(CompressionError, match="SVD: its network has other layers than the original"):
        bake(compress(network, "SVD", keep=0.5, example=x), network)
    with pytest.raises(CompressionError, match="expected what compress returned"):
        bake(result.network, network)  # type: ignore[arg-type]
