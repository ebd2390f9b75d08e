"""Branches found in sums, and networks that compute without them as with zero parameters in them."""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import experiment
from experiment.inputs import Inputs, call_network
from experiment.layers.build import build, expand, write_whole
from experiment.layers.plan import Plan
from experiment.layers.prepare_network import prepared
from experiment.layers.residual_blocks import silence
from experiment.layers.residual_branches import residual_branches
from experiment.random_streams import generator, seeded

X = torch.randn(2, 5, 6, generator=generator("test_branches"))
TOKENS = {"input_ids": torch.arange(3, 21).reshape(2, 9)}


class Net(nn.Module):
    """Layers a to e, all from 6 to 6, put together by a function."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        for name in "abcde":
            self.add_module(name, nn.Linear(6, 6))
        self.norm, self.computed = nn.LayerNorm(6), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.computed(self, x)


@pytest.mark.parametrize(
    ("forward", "branches"),
    [
        (lambda n, x: n.norm(x + n.b(torch.tanh(n.a(x)))), {"a": ("a", "b")}),
        (lambda n, x: x + n.a(n.norm(x)) + n.b(n.norm(x)), {"a": ("a",), "b": ("b",)}),  # in parallel, one norm for two
        (lambda n, x: x + n.a(n.norm(x)), {"a": ("a", "norm")}),
        (lambda n, x: torch.relu(n.c(x) + n.b(n.a(x))), {}),  # weights on the shortcut
        (lambda n, x: 0.5 * x + n.a(x), {}),  # no shortcut
        (lambda n, x: (y := n.a(x)) * y.sigmoid() + x, {}),  # a product follows
        (lambda n, x: (y := n.a(x)) + x + y.tanh(), {}),  # its output is used twice
        (lambda n, x: n.a(n.a(x)) + x, {}),  # a layer that is called twice
        (lambda n, x: (z := n.a(x)) + n.e((y := n.b(z)) + n.d(n.c(y))), {"c": ("c", "d")}),  # the inner one of two
        (lambda n, x: x + n.a(x).detach(), {}),
    ],
)
def test_branches_are_terms_of_a_sum(forward: Callable[[Any, Tensor], Tensor], branches: dict[str, object]) -> None:
    with seeded("test_branches"):
        network = Net(forward)
    found = residual_branches(network, X)
    assert {name: tuple(sorted(branch)) for name, branch in found.items()} == branches


def post_norm() -> tuple[nn.Module, Inputs]:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 10, batch_first=True), 2), X


def pre_norm() -> tuple[nn.Module, Inputs]:
    layer = nn.TransformerEncoderLayer(6, 2, 10, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), X


def of_transformers(name: str, **settings: object) -> tuple[nn.Module, Inputs]:
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    config = getattr(transformers, name.partition("For")[0].removesuffix("Model") + "Config")
    return getattr(transformers, name)(config(vocab_size=30, **settings)), TOKENS


SIZES = {
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20,
    "max_position_embeddings": 24,
}  # fmt: skip
BERT = ("attention.self", "attention.output.dense"), ("intermediate", "output.dense")
NETWORKS: dict[str, tuple[Callable[[], tuple[nn.Module, Inputs]], str, Sequence[Sequence[str]]]] = {
    "post-norm": (post_norm, "layers.", [("self_attn",), ("linear1", "linear2")]),
    "pre-norm": (pre_norm, "layers.", [("self_attn", "norm1"), ("linear1", "linear2", "norm2")]),
    "BERT": (lambda: of_transformers("BertModel", **SIZES), "encoder.layer.", BERT),
    "DistilBERT": (
        lambda: of_transformers("DistilBertModel", dim=12, n_layers=2, n_heads=2, hidden_dim=20),
        "transformer.layer.",
        [("attention",), ("ffn",)],
    ),
}  # fmt: skip


def without(network: nn.Module, plan: Plan) -> tuple[nn.Module, nn.Module]:
    """The network of a plan, and the whole one with zero parameters in what the plan skips."""
    built, silent = build(network, plan).eval(), copy.deepcopy(network)
    write_whole(built, network, plan)
    for name in plan.skipped:
        silence(silent.get_submodule(name))
    return built, silent


@pytest.mark.parametrize("name", NETWORKS)
def test_attention_and_feed_forward_go_apart_before_and_behind_norms(name: str) -> None:
    make, prefix, inner = NETWORKS[name]
    with seeded("test_branches"):
        network, x = make()
        network = prepared(network.eval()).network
    branches = residual_branches(network, x)
    expected = [{f"{prefix}{i}.{part}" for part in parts} for i in range(2) for parts in inner]
    assert [set(branch) for branch in branches.values()] == expected

    sizes = {
        sum(p.numel() for part in branch for p in network.get_submodule(part).parameters()): branch
        for branch in branches.values()
    }
    total = sum(p.numel() for p in network.parameters())
    result = experiment.compress(network, "Blocks", keep=1 - min(sizes) / total, example=x)
    assert result.parameters in {total - size for size in sizes}
    assert dict(result.plan.branches) in branches.values()
    shares = [experiment.compress(network, "Blocks", keep=keep, example=x).plan for keep in (0.9, 0.8)]
    with torch.no_grad():
        for plan in (result.plan, *shares):
            built, silent = without(network, plan)
            torch.testing.assert_close(*(first(call_network(n, x)) for n in (built, silent)))
            state = expand(built, network, plan, x)
            torch.testing.assert_close(first(call_network(state.network, x)), first(call_network(silent, x)))
    assert set(shares[0].skipped) < set(shares[1].skipped) or shares[0] == shares[1]
    first(call_network(result.network.train(), x)).square().sum().backward()  # type: ignore[no-untyped-call]


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "BartForConditionalGeneration"])
def test_networks_generate_without_some_of_their_attention(name: str) -> None:
    """Caches count tokens where attention is gone, which positions and masks need; padding shows it."""
    bart = {
        "d_model": 12, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 24,
    }  # fmt: skip
    with seeded("test_branches"):
        made, x = of_transformers(name, **(bart if name.startswith("Bart") else SIZES))
        network = prepared(made.eval()).network
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(20)
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, :4] = 0
    parts = [branch for name, branch in residual_branches(network, x).items() if "attn" in name]
    assert len(parts) == (5 if name.startswith("Bart") else 2)
    for gone in itertools.chain(([part] for part in parts), [parts]):
        forms = {name: form for part in gone for name, form in part.items()}
        networks = without(network, Plan(skipped=tuple(forms), branches=forms))
        settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
        tokens = [net.generate(**TOKENS, attention_mask=mask, **settings) for net in networks]  # type: ignore[operator]
        assert torch.equal(*tokens), list(forms)
