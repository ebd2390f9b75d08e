"""Experts of mixtures as linear layers: the same outputs and gradients, for tokens that reach some of them or all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiment import compress, load_network, save_network
from experiment.layers.prepare_network import prepared
from experiment.layers.unfused.experts import UnfusedExperts
from experiment.layers.unfused.replace import join_state
from experiment.random_streams import generator, seeded

TOKENS = {"input_ids": torch.arange(3, 21).reshape(2, 9)}


class Experts(nn.Module):
    """In the layout of transformers, of which the test pretends that it is a part; the sum expert by expert."""

    def __init__(self, number: int, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(number, 2 * hidden, width))
        self.down_proj = nn.Parameter(torch.randn(number, width, hidden))
        self.num_experts, self.act_fn = number, nn.SiLU()
        self.has_gate, self.is_concatenated, self.is_transposed, self.has_bias = True, True, False, False
        self.has_post_expert_norm, self._is_expert_parallel = False, False

    def _apply_gate(self, both: Tensor) -> Tensor:
        gate, up = both.clamp(-2, 2).chunk(2, -1)
        gated: Tensor = self.act_fn(gate) * up
        return gated

    def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        rows = []
        for token, experts, shares in zip(x, index, weights, strict=True):
            made = [self._apply_gate(self.gate_up_proj[e] @ token) for e in experts]
            rows.append(sum(s * (self.down_proj[e] @ m) for e, m, s in zip(experts, made, shares, strict=True)))
        return torch.stack(rows)


class Mixture(nn.Module):
    """A linear layer, two of five experts for each token, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router, self.experts, self.head = (
            nn.Linear(6, 8),
            nn.Linear(8, 5),
            Experts(5, 8, 12),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        shares, index = functional.softmax(self.router(x), -1).topk(2, -1)
        logits: Tensor = self.head(x + self.experts(x, index, shares))
        return logits


@pytest.fixture
def mixture(monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Tensor]:
    monkeypatch.setattr(Experts, "__module__", "transformers.models.test")
    with seeded("test_experts"):
        return Mixture().double().eval(), torch.randn(16, 6, dtype=torch.float64, generator=generator("test_experts"))


def passed(network: nn.Module, inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    network.train().zero_grad()
    output = network(**inputs).logits if isinstance(inputs, dict) else network(inputs)
    (output * torch.linspace(-1, 1, output.numel()).view(output.shape).to(output)).sum().backward()
    return output, {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def assert_equal(network: nn.Module, inputs: Any, close: float) -> None:
    plain = prepared(network)
    assert "experts" in plain.unfused.values()
    (expected, gradients), (found, others) = passed(network, inputs), passed(plain.network, inputs)
    plain.network.eval()
    with torch.no_grad():
        again = plain.network(**inputs).logits if isinstance(inputs, dict) else plain.network(inputs)
    torch.testing.assert_close(again, found)  # in eval mode idle experts compute nothing
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    others, largest = join_state(others, plain.unfused), max(float(g.abs().max()) for g in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=close, atol=close * largest, msg=name)


@pytest.mark.parametrize("number", [1, 16])
def test_tokens_reach_some_experts_or_all(number: int, mixture: tuple[nn.Module, Tensor]) -> None:
    assert_equal(mixture[0], mixture[1][:number], 1e-9)


def test_states_there_and_back(mixture: tuple[nn.Module, Tensor], assert_states_convert: Any) -> None:
    plain = prepared(mixture[0])
    assert isinstance(plain.network.get_submodule("experts"), UnfusedExperts)
    assert_states_convert(mixture[0], plain)


@pytest.mark.parametrize("method", ["SVD", "FT", "WT", "KLDS"])
def test_methods_reach_them(method: str, mixture: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    network, x = mixture
    result = compress(network, method, keep=0.5, example=x, data=x)
    assert result.parameters <= 0.5 * result.parameters_before
    rows = result.layers.set_index("layer")
    inside = rows[rows.index.str.startswith("experts.")]
    assert len(inside) == 15
    assert set(inside["kind"]) == {"linear"}
    assert (inside["parameters"] < inside["parameters_before"]).any()
    save_network(result, tmp_path / "n.pt")
    torch.testing.assert_close(load_network(tmp_path / "n.pt", network=network)(x), result.network(x))


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe", "DeepseekV3"])
def test_networks_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    sizes = {
        "vocab_size": 30, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 20, "moe_intermediate_size": 20, "num_experts_per_tok": 2, "first_k_dense_replace": 0,
        "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    }  # fmt: skip
    with seeded("test_experts"):
        network = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**sizes)).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(10 if parameter.dim() > 1 else 1)
    assert_equal(network, TOKENS, 1e-4)
    layers = compress(network, "SVD", keep=0.6, example=TOKENS).layers
    assert not layers.loc[layers["kind"] == "unreachable", "layer"].str.contains("experts").any()
