"""Unfused modules compute what the originals do, forward and backward, from the same weights."""

import copy
import json
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformerBlockV2,
)
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

from experiment import LC, compress, load_network, save_network
from experiment.errors import CompressionError, StoreError
from experiment.layers.build import build, expand
from experiment.layers.plan import Factors, Plan
from experiment.layers.prepare_network import prepared
from experiment.layers.unfused.linear import CONV1D
from experiment.layers.unfused.multihead_attention import UnfusedAttention
from experiment.layers.unfused.replace import join_state
from experiment.measure import count
from experiment.networks.low_rank_from_scratch import Factoring, factor

pytestmark = pytest.mark.slow

E, H, B, L, S = 8, 2, 3, 5, 6
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 4e-2}
CAUSAL = torch.ones(L, S).triu(1).bool()
PADDING = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0, 1, 0, 0, 0, 1]]).bool()
LAYER: dict[str, Any] = {"dim_feedforward": 32, "dropout": 0.0, "batch_first": True}


def drawn(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network with random values in all parameters, biases and tables included, except those of keys in Swin V2."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(std=0.1 if "logit_scale" in name else 0.5)
    return network.to(dtype)


def passed(network: nn.Module, inputs: list[Tensor], options: dict[str, Any]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and gradients of inputs and parameters, of one seeded pass."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    network.zero_grad()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about masks of different dtypes
        output = network(*inputs, **options)
    outputs = [y for y in (output if isinstance(output, tuple) else (output,)) if y is not None]
    sum((y * torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)).sum() for y in outputs).backward()
    gradients = {str(i): x.grad for i, x in enumerate(inputs) if x.grad is not None}
    return outputs, gradients | {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def assert_equal(network: nn.Module, inputs: list[Tensor], options: dict[str, Any], close: float = 1e-5) -> None:
    plain = prepared(network)
    assert plain.network is not network
    for training in (True, False):
        outputs, gradients = passed(network.train(training), inputs, options)
        others, found = passed(plain.network.train(training), inputs, options)
        for output, other in zip(outputs, others, strict=True):
            torch.testing.assert_close(other, output, rtol=close, atol=close)
        found = join_state(found, plain.unfused)
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=close, atol=close * largest, msg=name)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "settings",
    [{}, {"bias": False}, {"kdim": 4, "vdim": 6}, {"add_bias_kv": True, "add_zero_attn": True}, {"dropout": 0.3}],
    ids=str,
)
def test_attention(settings: dict[str, Any], batch_first: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    attention = drawn(nn.MultiheadAttention(E, H, batch_first=batch_first, **settings), dtype)
    sizes = ((L, E), (S, settings.get("kdim", E)), (S, settings.get("vdim", E)))
    single = [torch.randn(n, d, dtype=dtype) for n, d in sizes]
    batch = [torch.randn((B, n, d) if batch_first else (n, B, d), dtype=dtype) for n, d in sizes]
    additive = torch.randn(B * H, L, S, dtype=dtype)
    several = torch.rand(B * H, L, S) < 0.3
    several[..., 0] = False
    close = TOLERANCE[dtype]
    for options in (
        {},
        {"attn_mask": CAUSAL, "average_attn_weights": False},
        {
            "attn_mask": several,
            "key_padding_mask": PADDING & ~several.view(B, H, L, S).any((1, 2)),
            "need_weights": False,
        },
        {"attn_mask": additive, "key_padding_mask": PADDING, "average_attn_weights": False},
        {"key_padding_mask": PADDING.to(dtype) * -3, "need_weights": False},
        {"attn_mask": CAUSAL, "key_padding_mask": PADDING, "is_causal": True, "need_weights": False},
    ):
        assert_equal(attention, batch, options, close)
    if "add_bias_kv" not in settings:  # torch lets no query but the last ones see the added keys then
        assert_equal(attention, batch, {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False}, close)
    assert_equal(attention, single, {"attn_mask": several[:H], "key_padding_mask": PADDING[0]}, close)
    assert_equal(attention, single, {"need_weights": False}, close)


@pytest.mark.parametrize("shift", [(0, 0, 0), (2, 2, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("size", [(8, 8, 8), (2, 7, 9), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2, ShiftedWindowAttention3d])
def test_window_attention(kind: Any, size: tuple[int, ...], shift: tuple[int, ...]) -> None:
    """Sizes that are whole windows, have to be padded, or are smaller than a window."""
    torch.manual_seed(0)
    d = 3 if kind is ShiftedWindowAttention3d else 2
    for bias in (True, False):
        attention = kind(12, [4] * d, list(shift[-d:]), 3, qkv_bias=bias, proj_bias=bias, attention_dropout=0.2)
        assert_equal(drawn(attention), [torch.randn(2, *size[-d:], 12)], {}, 1e-4)


def vit() -> nn.Module:
    return drawn(VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5)).eval()


def swin(version: int = 1) -> nn.Module:
    more: dict[str, Any] = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2} if version == 2 else {}
    network = SwinTransformer([4, 4], 8, [2, 2], [2, 4], [2, 2], stochastic_depth_prob=0.0, num_classes=5, **more)
    return drawn(network).eval()


def encoder(layers: int = 2) -> nn.Module:
    return drawn(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, **LAYER), layers)).eval()


def images() -> Tensor:
    return torch.randn(4, 3, 16, 16)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_networks() -> None:
    torch.manual_seed(0)
    tokens, few = torch.randn(3, 6, 16), torch.randn(3, 5, 16)
    assert_equal(vit(), [images()], {}, 1e-4)
    assert_equal(swin(1), [images()], {}, 1e-4)
    assert_equal(swin(2), [images()], {}, 1e-4)
    assert_equal(encoder(), [tokens], {"src_key_padding_mask": PADDING}, 1e-4)
    transformer = drawn(nn.Transformer(16, 4, 1, 1, **LAYER))
    masks = {"tgt_mask": CAUSAL[:, :5], "tgt_is_causal": True, "memory_key_padding_mask": PADDING}
    assert_equal(transformer, [tokens, few], masks, 1e-4)
    last_first = drawn(nn.Transformer(16, 4, 1, 1, **LAYER | {"batch_first": False}))
    assert_equal(last_first, [tokens.transpose(0, 1), few.transpose(0, 1)], {"src_key_padding_mask": PADDING}, 1e-4)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_fast_path_is_left_with_the_same_outputs_at_tokens() -> None:
    """In eval mode without gradients the original passes its weights to a fused kernel, which factors do not have."""
    torch.manual_seed(0)
    network, x = encoder(), torch.randn(3, 6, 16)
    padding = PADDING.sort(-1).values
    plan = Plan(factors={"layers.0.linear1": Factors(16)}, unfused=prepared(network).unfused)
    built = build(network, plan).eval()
    with torch.no_grad():
        layer = prepared(network).network.get_submodule("layers.0.linear1")
        built.get_submodule("layers.0.linear1.encoder").weight.copy_(torch.eye(16))  # type: ignore[operator, union-attr]
        built.get_submodule("layers.0.linear1.decoder").weight.copy_(layer.weight)  # type: ignore[operator, union-attr]
        built.get_submodule("layers.0.linear1.decoder").register_parameter("bias", layer.bias)  # type: ignore[arg-type]
        fused = network(x, src_key_padding_mask=padding)
        assert bool((fused[padding] == 0).all())  # the fast path was taken
        found = built(x, src_key_padding_mask=padding)
        torch.testing.assert_close(found[~padding], fused[~padding], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(built(x), network(x), rtol=1e-4, atol=1e-4)


class Conv1D(nn.Module):
    """As in transformers: y = xW + b."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


@pytest.fixture
def conv1d(monkeypatch: pytest.MonkeyPatch) -> type[Conv1D]:
    module = types.ModuleType("transformers.pytorch_utils")
    module.Conv1D = Conv1D  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers.pytorch_utils", module)
    return Conv1D


def test_conv1d(conv1d: type[Conv1D]) -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(conv1d(7, 4), nn.ReLU(), conv1d(3, 7)), torch.randn(2, 5, 4)
    assert_equal(network, [x], {})
    layer = prepared(network).network[0]  # type: ignore[index]
    assert type(layer) is nn.Linear
    assert (layer.in_features, layer.out_features) == (4, 7)
    assert CONV1D.is_unfused(layer)
    result = compress(network.eval(), "SVD", keep=0.9, example=x)
    assert set(result.layers["kind"]) == {"linear"}


@pytest.mark.parametrize(
    ("name", "settings", "layer"),
    [
        ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 1}, "blocks.0.attn.qkv"),
        ("beit_base_patch16_224", {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2}, "blocks.0.attn.qkv"),
        ("mobilenetv3_small_050", {"drop_rate": 0.0}, "classifier"),
    ],
)
def test_timm(name: str, settings: dict[str, Any], layer: str) -> None:
    timm = pytest.importorskip("timm", reason="needs timm")
    torch.manual_seed(0)
    network = drawn(timm.create_model(name, num_classes=5, **settings))
    x = torch.randn(2, 3, settings.get("img_size", 32), settings.get("img_size", 32))
    assert_equal(network, [x], {}, 1e-3)
    layers = compress(network.eval(), "SVD", keep=0.9, example=x).layers
    assert layer in set(layers.loc[layers["kind"] == "linear", "layer"])


def test_gpt2() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    sizes = {"vocab_size": 30, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    network = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    tokens = torch.arange(6).view(2, 3)
    plain = prepared(network)
    torch.testing.assert_close(plain.network(tokens).logits, network(tokens).logits)
    assert set(plain.unfused.values()) == {"conv1d"}
    result = compress(network, "SVD", keep=0.8, example={"input_ids": tokens})
    assert result.network.generate(tokens, max_new_tokens=2, do_sample=False).shape == (2, 5)  # type: ignore[operator]


@pytest.mark.parametrize("make", [vit, lambda: swin(1), lambda: swin(2), encoder])
def test_states_there_and_back(make: Any, assert_states_convert: Any) -> None:
    network = make()
    frozen = next(
        parameter for name, parameter in network.named_parameters() if "weight" in name and "attn" in name + "attn"
    )
    frozen.requires_grad_(False)
    plain = prepared(network)
    assert_states_convert(network, plain)
    assert count(plain.network, example_of(make)).parameters == sum(p.numel() for p in network.parameters())


def example_of(make: Any) -> Tensor:
    return torch.randn(1, 6, 16) if make is encoder else images()[:1]


def test_frozen_weights_and_hooks_stay() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    attention.in_proj_weight.requires_grad_(False)
    seen: list[str] = []
    attention.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    plain = prepared(attention).network
    x = torch.randn(1, 3, 8)
    plain(x, x, x)
    attention(x, x, x)
    assert seen == ["UnfusedAttention", "MultiheadAttention"]
    frozen = {name for name, parameter in plain.named_parameters() if not parameter.requires_grad}
    assert frozen == {"q_proj.weight", "k_proj.weight", "v_proj.weight"}


def test_what_is_left_alone() -> None:
    """Networks without fused modules are not copied; subclasses with code of their own and shared weights stay."""

    class Own(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, x, x)[0]

    class Narrow(nn.MultiheadAttention):
        def __init__(self) -> None:
            super().__init__(8, 2)

    convolution = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    assert prepared(convolution).network is convolution
    tied = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2), "b": nn.MultiheadAttention(8, 2)})
    tied["b"].in_proj_weight = tied["a"].in_proj_weight
    network = nn.ModuleDict({"own": Own(8, 2), "narrow": Narrow(), "tied": tied})
    plain = prepared(network)
    assert plain.unfused == {"narrow": "multihead_attention"}
    assert type(plain.network.get_submodule("own")) is Own
    assert type(network["narrow"]) is Narrow  # the original is unchanged
    twice = nn.ModuleList([shared := nn.MultiheadAttention(8, 2), shared])
    again = prepared(twice).network
    assert again[0] is again[1]  # type: ignore[index]
    assert isinstance(again[0], UnfusedAttention)  # type: ignore[index]


def test_weights_that_are_read_without_a_call() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2), nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(nn.functional.linear(x, self.attention.in_proj_weight, self.attention.in_proj_bias))
            return y

    network, x = Reader().eval(), torch.randn(2, 8)
    result = compress(network, "WT", keep=0.9, example=x)
    assert set(result.layers.loc[result.layers["kind"] == "linear", "layer"]) == {"head"}
    torch.testing.assert_close(prepared(network).network(x), network(x))


def test_masks_of_a_fused_weight_become_masks_of_its_parts() -> None:
    network = vit()
    attention = network.encoder.layers[0].self_attention  # type: ignore[union-attr, index]
    prune.random_unstructured(attention, "in_proj_weight", 0.5)
    mask = attention.in_proj_weight_mask.bool()
    plain = prepared(network)
    name = "encoder.layers.encoder_layer_0.self_attention.{}_proj.weight"
    found = [plain.masks[name.format(part)] for part in "qkv"]
    assert torch.equal(torch.cat(found), mask)
    result = compress(network, "WT", keep=1.0, example=images()[:1])
    assert result.parameters == sum(p.numel() for p in network.parameters()) - int((~mask).sum())


def test_plans() -> None:
    """A plan knows what it unfuses, as plain data; `build` and `expand` take the original and the unfused network."""
    network, x = vit(), images()
    plain = prepared(network)
    name = "encoder.layers.encoder_layer_0.self_attention.q_proj"
    masks = {f"{name}.weight": torch.arange(256).view(16, 16) % 3 > 0}
    plan = Plan(masks=masks, factors={name.replace("q_", "k_"): Factors(4, bias=True)}, unfused=plain.unfused)
    read = Plan.from_data(json.loads(json.dumps(plan.to_data())), network)
    assert (read.unfused, read.factors, read.masks.keys()) == (plan.unfused, plan.factors, plan.masks.keys())
    one, other = drawn(build(network, plan)).eval(), build(plain.network, plan)
    assert one.state_dict().keys() == other.state_dict().keys()
    state = expand(one, network, plan, x)
    assert state.unfused == plain.unfused
    assert build(copy.deepcopy(network).to("meta"), plan).state_dict().keys() == one.state_dict().keys()
    torch.testing.assert_close(state.network(x), one(x), rtol=1e-4, atol=1e-4)
    assert "unfused" not in Plan().to_data()
    for unfused, text in (
        ({"encoder": "multihead_attention"}, "a Encoder as 'encoder', expected 'multihead_attention'"),
        ({"nowhere": "multihead_attention"}, "belongs to another network: this one has no 'nowhere'"),
        (
            {"encoder": "Attention"},
            "'encoder': unknown family 'Attention'. Expected one of switch, multihead_attention",
        ),
    ):
        with pytest.raises(CompressionError, match=text):
            build(network, Plan(unfused=unfused))


LOAD = """
import sys, torch
from experiment import load_network
sys.path.insert(0, {tests!r})
from test_unfused import encoder, swin, vit
for method in ("SVD", "WT", "Quantize"):
    for name, make in (("vit", vit), ("swin", swin), ("encoder", encoder)):
        network = load_network(f"{{method}}-{{name}}.pt", network=make())
        saved = torch.load(f"{{method}}-{{name}}-outputs.pt")
        with torch.no_grad():
            torch.testing.assert_close(network(saved["x"]), saved["y"])
"""


def test_saved_networks_load_in_another_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for method, keep in (("SVD", {"keep": 0.6}), ("WT", {"keep": 0.6}), ("Quantize", {})):
        for name, network, x in (
            ("vit", vit(), images()),
            ("swin", swin(), images()),
            ("encoder", encoder(), torch.randn(3, 6, 16)),
        ):
            result = compress(network, method, example=x, **keep)
            assert result.keep_parameters <= keep.get("keep", 1)
            save_network(result, tmp_path / f"{method}-{name}.pt")
            with torch.no_grad():
                torch.save({"x": x, "y": result.network(x)}, tmp_path / f"{method}-{name}-outputs.pt")
    code = LOAD.format(tests=str(Path(__file__).parent))
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True)
    with pytest.raises(StoreError, match="does not fit this network"):
        load_network(tmp_path / "SVD-vit.pt", network=nn.Sequential(nn.Linear(3, 3)))


def test_a_compressed_network_is_exported_and_compressed_again() -> None:
    torch.manual_seed(0)
    x = images()
    first = compress(vit(), "PCA", keep=0.7, example=x, data=x).network
    exported = torch.export.export(first, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    torch.testing.assert_close(exported.module()(x[:3]), first(x[:3]))
    again = compress(first, "WT", keep=0.5, example=x)
    assert again.plan.unfused == {}
    assert again.keep_parameters <= 0.5


def test_attention_is_trained_as_factors_from_scratch() -> None:
    network, x = encoder(), torch.randn(2, 6, 16)
    factored = factor(network, x, Factoring(rank=3)).eval()
    with torch.no_grad():
        assert factored(x).shape == x.shape
    assert isinstance(factored.get_submodule("layers.1.self_attn.v_proj"), nn.Sequential)


def test_lc(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, data = vit(), (torch.randn(32, 3, 16, 16), torch.arange(32) % 5)
    lc = LC(network, "SVD", keep=0.6, train=data, valid=data, steps=1, iterations=2, batch_size=8, progress=False)
    small = lc.run()
    save_network(lc.result, tmp_path / "small.pt")
    with torch.no_grad():
        x = images()
        torch.testing.assert_close(load_network(tmp_path / "small.pt", network=network)(x), small(x))


def test_every_projection_counts_as_a_layer() -> None:
    network, x = vit(), images()[:1]
    plain = prepared(network).network
    fused, unfused = count(network, x), count(plain, x)
    assert unfused.flops == fused.flops
    tokens = 5  # 4 patches and the class token
    projections = 2 * 4 * tokens * 16 * 16
    assert fused.other_flops - unfused.other_flops == projections
