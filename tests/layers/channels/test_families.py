"""Networks of many families: which channels are found, sliced = masked, and sizes as counted."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

import experiment
from experiment.inputs import Inputs, call_network
from experiment.layers.build import build, expand
from experiment.layers.channels.check_slicing import randomised, results
from experiment.layers.channels.find_groups import channel_groups
from experiment.layers.channels.group_data import ChannelGroup, kept_of, sizes_of
from experiment.layers.channels.slicing import mask_channels, slice_channels
from experiment.layers.plan import Plan
from experiment.layers.prepare_network import prepared
from experiment.measure import count
from experiment.random_streams import generator, seeded

TOKENS = torch.arange(12).reshape(2, 6)
IMAGES = torch.randn(2, 3, 16, 16, generator=generator("test_families"))


class Attention(nn.Module):
    """Self-attention with one layer for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, eager: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.embed_dim, self.eager = heads, width // heads, width, eager
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.eager:
            y = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1) @ v
        else:
            y = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(*x.shape[:2], -1))
        return out


class Block(nn.Module):
    """A transformer block; the norms come first or last."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.attn, self.first = Attention(12, 3, eager=not first), first
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        if not self.first:
            x = self.norm1(x + self.attn(x))
            last: Tensor = self.norm2(x + self.mlp(x))
            return last
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """A vision transformer with a class token and learned positions."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 12))
        self.positions = nn.Parameter(torch.zeros(1, 5, 12))
        self.blocks = nn.Sequential(Block(first=first), Block(first=first))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.positions
        out: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return out


class RMSNorm(nn.Module):
    """A norm of one's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Decoder(nn.Module):
    """A language model: grouped queries with norms, rotary positions, a gated feed-forward, and tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lm_head = nn.Embedding(17, 12), nn.Linear(12, 17, bias=False)
        self.lm_head.weight = self.embed.weight
        self.q, self.k, self.v, self.o = (nn.Linear(*s, bias=False) for s in ((12, 16), (12, 8), (12, 8), (16, 12)))
        self.gate, self.up, self.down = (nn.Linear(*s, bias=False) for s in ((12, 20), (12, 20), (20, 12)))
        self.norm1, self.norm2, self.q_norm = RMSNorm(12), RMSNorm(12), RMSNorm(4)
        self.register_buffer("angles", torch.arange(32)[:, None] * torch.tensor([0.5, 0.1, 0.5, 0.1]))

    def heads(self, x: Tensor, norm: nn.Module) -> Tensor:
        x = norm(x.unflatten(-1, (-1, 4))).transpose(1, 2)
        turned = torch.cat([-x[..., 2:], x[..., :2]], -1)
        angles = self.get_buffer("angles")[: x.shape[-2]]
        return x * angles.cos() + turned * angles.sin()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        h = self.norm1(x)
        q, k = self.heads(self.q(h), self.q_norm), self.heads(self.k(h), nn.Identity())
        v = self.v(h).unflatten(-1, (-1, 4)).transpose(1, 2)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        out: Tensor = self.lm_head(x + self.down(functional.silu(self.gate(h)) * self.up(h)))
        return out


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """A depthwise block with a scale for every channel, between LayerNorm2d, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.depthwise = nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.wide, self.narrow = nn.Linear(8, 20), nn.Linear(20, 8)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.up, self.last = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        h = self.narrow(functional.gelu(self.wide(self.depthwise(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        out: Tensor = self.last(functional.relu(self.up(x + self.scale * h)))
        return out


def sounds() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (3, 1)), nn.Conv3d(3, 6, (1, 3, 3)), nn.ReLU(), nn.Flatten(3), nn.Flatten(2),
        nn.GroupNorm(3, 6), nn.Conv1d(6, 8, 3), nn.PReLU(8), nn.ConvTranspose1d(8, 5, 3), nn.ReLU(), nn.Conv1d(5, 4, 1),
    )  # fmt: skip


class Scale(nn.Module):
    """A buffer that multiplies every channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.linspace(0.5, 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("weight")[:, None, None]


class Frozen(nn.Module):
    """A residual block whose norms have buffers instead of parameters, as in detectors with a trained backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.conv = nn.Conv2d(3, 8, 3), FrozenBatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1)
        self.scale, self.back = Scale(6), nn.Conv2d(6, 8, 1, bias=False)
        self.again, self.last = FrozenBatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        h = self.again(self.back(functional.relu(self.scale(self.conv(x)))))
        out: Tensor = self.last(functional.relu(x + h))
        return out


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, tuple[int, bool]]]] = {
    "pre-norm": (
        lambda: Encoder(first=True),
        IMAGES,
        {"patches": (12, False)}
        | {f"blocks.{i}.{n}": v for i in (0, 1) for n, v in (("attn.qkv", (3, True)), ("mlp.0", (20, False)))},
    ),
    "post-norm, eager": (
        lambda: Encoder(first=False),
        IMAGES,
        {"patches": (12, False)}
        | {f"blocks.{i}.{n}": v for i in (0, 1) for n, v in (("attn.qkv", (3, True)), ("mlp.0", (20, False)))},
    ),
    "grouped queries": (Decoder, TOKENS, {"embed": (12, False), "q": (2, True), "gate": (20, False)}),
    "LayerNorm2d": (ConvNeXt, IMAGES, {"stem": (8, False), "wide": (20, False), "up": (6, False)}),
    "vectors in buffers": (Frozen, IMAGES, {"stem": (8, False), "conv": (6, False)}),
    "other convolutions": (sounds, IMAGES, {"1": (3, True), "6": (8, False), "8": (5, False)}),
}


def network_of(name: str) -> nn.Module:
    with seeded("test_families", name):
        return randomised(prepared(FAMILIES[name][0]()).network).eval()


def assert_sliced_is_masked(network: nn.Module, x: Inputs, share: float) -> tuple[list[ChannelGroup], nn.Module]:
    """Remove random channels of every group at once; counted and computed must be what was planned and masked."""
    groups, random = channel_groups(network, x), generator("test_families")
    counts = [group.size if group.exempt else max(1, round(share * group.size)) for group in groups]
    chosen = [torch.randperm(g.size, generator=random)[:n].tolist() for g, n in zip(groups, counts, strict=True)]
    kept = kept_of(groups, chosen)
    masked, sliced = copy.deepcopy(network), copy.deepcopy(network)
    mask_channels(masked, kept)
    slice_channels(sliced, kept)
    with torch.no_grad():
        for found, expected in zip(results(call_network(sliced, x)), results(call_network(masked, x)), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
            assert expected.std() > 0
    planned = sizes_of(network, x, groups, count(network, x).flops)
    assert planned.parameters_of(counts) == count(sliced, x).parameters
    return groups, sliced


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_are_found_and_removing_them_is_masking_them(name: str) -> None:
    network, x = network_of(name), FAMILIES[name][1]
    groups, _ = assert_sliced_is_masked(network, x, 0.7)
    assert_sliced_is_masked(network, x, 0.4)

    assert {g.name: (g.size, g.has_heads) for g in groups if g.exempt is None} == FAMILIES[name][2]


@pytest.mark.parametrize("name", FAMILIES)
def test_compressed_networks_count_as_planned_train_and_come_back(name: str) -> None:
    """From the plan as plain data, and, in a cascade, as dense weights with the same outputs."""
    network, x = network_of(name), FAMILIES[name][1]
    for keep, quantity in ((0.7, "parameters"), (0.4, "flops")):
        result = experiment.compress(network, "FT", keep=keep, budget=quantity, example=x)
        plan = Plan.from_data(result.plan.to_data(), network)
        again = build(network, plan)
        again.load_state_dict(result.network.state_dict())
        dense = expand(result.network, network, plan, x)
        with torch.no_grad():
            outputs = [call_network(n, x) for n in (result.network, again, dense.network)]
        torch.testing.assert_close(outputs[1], outputs[0])
        torch.testing.assert_close(outputs[2], outputs[0], rtol=1e-4, atol=1e-4)
    shapes = {n: p.shape for n, p in again.named_parameters()}
    optimizer = torch.optim.SGD(again.train().parameters(), 0.1)
    call_network(again, x).square().mean().backward()
    optimizer.step()
    assert shapes == {n: p.shape for n, p in again.named_parameters()}
    assert count(again, x).flops == result.flops <= 0.4 * result.flops_before


def test_numbers_of_modules_follow() -> None:
    _, sliced = assert_sliced_is_masked(network_of("pre-norm"), IMAGES, 0.34)
    attention: Any = sliced.get_submodule("blocks.0.attn")
    assert (attention.num_heads, attention.head_dim, attention.qkv.out_features) == (1, 4, 12)
    assert attention.embed_dim == 4  # the width that is left


def test_tied_embeddings_stay_tied() -> None:
    _, sliced = assert_sliced_is_masked(network_of("grouped queries"), TOKENS, 0.5)
    assert sliced.get_submodule("embed").weight is sliced.get_submodule("lm_head").weight


def test_attention_and_feed_forward_go_apart() -> None:
    network = network_of("pre-norm")
    with torch.no_grad():
        for parameter in network.get_submodule("blocks.1.attn").parameters():
            parameter.mul_(0.01)
    result = experiment.compress(network, "Blocks", keep=0.9, example=IMAGES)
    assert result.plan.branches == {"blocks.1.attn": 0, "blocks.1.norm1": 0}
    assert result.plan.skipped == ("blocks.1.attn", "blocks.1.norm1")

    with torch.no_grad():
        for parameter in network.get_submodule("blocks.1.attn").parameters():
            parameter.zero_()
        torch.testing.assert_close(result.network(IMAGES), network(IMAGES))
    assert experiment.compress(network, "Blocks", keep=0.6, example=IMAGES).keep_parameters <= 0.6


# --- Hugging Face and timm

CAUSAL = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 32,
}  # fmt: skip
TEXT = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
HUGGING_FACE: dict[str, tuple[str, dict[str, Any]]] = {
    "BertForMaskedLM": ("BertConfig", TEXT),
    "DistilBertForSequenceClassification": (
        "DistilBertConfig",
        {"vocab_size": 90, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    ),
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}),
    "LlamaForCausalLM": ("LlamaConfig", CAUSAL),
    "Qwen2ForCausalLM": ("Qwen2Config", CAUSAL | {"tie_word_embeddings": True}),
    "Qwen3ForCausalLM": ("Qwen3Config", CAUSAL | {"head_dim": 8}),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 90, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
         "decoder_start_token_id": 0},
    ),
    "ViTForImageClassification": (
        "ViTConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16,
             "patch_size": 4},
    ),
}  # fmt: skip


def hugging_face(name: str) -> tuple[Any, dict[str, Tensor]]:
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    config, settings = HUGGING_FACE[name]
    with seeded("test_families", name):
        settings = dict(settings, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        network = getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()
    if "pixel" in network.main_input_name:
        return network, {"pixel_values": IMAGES}
    more = {"decoder_input_ids": TOKENS[:, :4]} if "T5" in name else {}
    return network, {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), **more}


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face_networks_lose_heads_neurons_and_width(name: str) -> None:
    network, x = hugging_face(name)
    config = network.config.to_dict()
    plain = randomised(prepared(network).network)
    groups, sliced = assert_sliced_is_masked(plain, x, 0.5)

    free = [group for group in groups if group.exempt is None]
    heads = config.get("num_key_value_heads", network.config.num_attention_heads)
    assert {group.size for group in free if group.has_heads} == {heads}
    assert any(group.size == 32 for group in free)
    assert network.config.to_dict() == config
    assert sliced.config.hidden_size == 16
    if "CausalLM" in name or "LMHead" in name:
        made = sliced.generate(TOKENS, max_new_tokens=3, do_sample=False)
        assert torch.equal(made, sliced.generate(TOKENS, max_new_tokens=3, do_sample=False, use_cache=False))


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
def test_saved_networks_load_where_their_config_can_say_what_is_left(name: str, tmp_path: Any) -> None:
    network, x = hugging_face(name)
    result = experiment.compress(network, "FT", keep=0.5, example=x, round_to=8)
    result.network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**x).logits, result.network(**x).logits)


TIMM = {
    "vit_tiny_patch16_224": {
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "init_values": 0.1,
    },
    "swin_tiny_patch4_window7_224": {
        "img_size": 16,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 16,
        "depths": (1, 1),
        "num_heads": (2, 4),
    },
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_networks_lose_heads_neurons_and_width(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is no dependency")
    with seeded("test_families", name):
        network = timm.create_model(name, num_classes=4, **TIMM[name])
    groups, _ = assert_sliced_is_masked(randomised(prepared(network).network), IMAGES, 0.5)
    assert all(group.exempt is None for group in groups[:-1])
    assert any(group.has_heads for group in groups)
