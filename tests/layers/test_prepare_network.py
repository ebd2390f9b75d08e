"""Networks that others prepared: each is made plain and computes the same, or is refused with calls that help."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from experiment import compress, load_network, quantize_int8, save_network
from experiment.errors import CompressionError, ConfigError
from experiment.layers.masks import named_masks
from experiment.layers.prepare_network import plain_copy, prepared, unwrapped, without_prefixes
from experiment.measure import count
from experiment.networks.make_network import make_network
from experiment.random_streams import generator

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
METHODS = ("FT", "WT", "SVD")


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(64, 10)).eval()


def batch() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=generator("test", "prepared"))


def part(make: Callable[[nn.Module], nn.Module], index: int = 0) -> nn.Module:
    network = plain()
    network[index] = make(network[index])
    return network


def in_place() -> nn.Module:
    network = plain()
    network.compile(backend="eager")
    return network


def pruned() -> nn.Module:
    network = plain()
    prune.l1_unstructured(network[0], "weight", 0.5)
    prune.random_unstructured(network[0], "weight", 0.5)
    prune.ln_structured(network[2], "weight", 0.25, n=2, dim=0)
    return network


PREPARED: dict[str, Callable[[], nn.Module]] = {
    "compiled": lambda: torch.compile(plain(), backend="eager"),
    "compiled part": lambda: part(lambda m: torch.compile(m, backend="eager")),
    "compiled in place": in_place,
    "DataParallel": lambda: nn.DataParallel(plain()),
    "DataParallel part": lambda: part(nn.DataParallel, 2),
    "compiled DataParallel": lambda: torch.compile(nn.DataParallel(plain()), backend="eager"),
    "prune": pruned,
    "weight_norm": lambda: part(weight_norm),
    "spectral_norm": lambda: part(spectral_norm, 2),
    "parametrized weight_norm": lambda: part(parametrizations.weight_norm),
    "parametrized spectral_norm": lambda: part(parametrizations.spectral_norm, 4),
    "orthogonal": lambda: part(parametrizations.orthogonal, 4),
    "masked": lambda: compress(plain(), "WT", keep=0.5, example=batch()).network,
    "rounded": lambda: compress(plain(), "Quantize", dtype="int8", example=batch()).network,
    "torch.fx": lambda: torch.fx.symbolic_trace(plain()),
}


@pytest.mark.parametrize("kind", PREPARED)
@pytest.mark.parametrize("training", [True, False])
def test_made_plain_it_computes_the_same(kind: str, training: bool) -> None:
    network = PREPARED[kind]().train(training)
    before = copy.deepcopy(network.state_dict())
    made = prepared(network).network
    assert made.training == training
    assert set(made.state_dict()) == set(plain().state_dict())
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    copied = copy.deepcopy(made).eval()
    torch.testing.assert_close(copied(batch()), network.eval()(batch()))


@pytest.mark.parametrize("kind", PREPARED)
def test_it_is_compressed_by_one_method_after_the_other(kind: str) -> None:
    network, x = PREPARED[kind](), batch()
    for method in METHODS:
        result = compress(network, method, keep=0.7, example=x)
        again = compress(plain_copy(network), method, keep=0.7, example=x)
        assert result.network(x).shape == (2, 10)
        if kind not in ("prune", "masked"):
            torch.testing.assert_close(result.network(x), again.network(x), msg=method)
    assert count(unwrapped(network), x).flops == count(network, x).flops == count(plain(), x).flops


@pytest.mark.parametrize("kind", ["prune", "masked"])
@pytest.mark.parametrize("method", METHODS)
def test_masks_stay_and_count_as_gone(kind: str, method: str) -> None:
    network, x = PREPARED[kind](), batch()
    before = prepared(network)
    left = sum(p.numel() for p in before.network.parameters()) - sum(int((~m).sum()) for m in before.masks.values())
    result = compress(network, method, keep=0.8, example=x)
    assert result.parameters <= 0.8 * left
    assert result.keep_parameters == pytest.approx(result.parameters / left)
    if method == "WT":
        masks = named_masks(result.network)
        assert all(not (masks[name] & ~mask).any() for name, mask in before.masks.items())


@pytest.mark.parametrize("kind", ["prune", "weight_norm", "spectral_norm", "parametrized spectral_norm"])
def test_prepared_networks_are_stored_and_loaded(kind: str, tmp_path: object) -> None:
    network, x = PREPARED[kind](), batch()
    for method in METHODS:
        result = compress(network, method, keep=0.6, example=x)
        save_network(result, f"{tmp_path}/n.pt")
        torch.testing.assert_close(load_network(f"{tmp_path}/n.pt", network=network)(x), result.network(x))


@pytest.mark.parametrize("method", ["ALDS", "SVD", "WT", "FT"])
def test_hooks_of_the_network_stay(method: str) -> None:
    """Those of layers that become factors, too: they may be part of what the network computes."""
    torch.manual_seed(0)
    network, x = plain().eval(), batch()
    name, layer = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    without = compress(network, method, keep=0.6, example=x).network(x)
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 1,))
    layer.register_forward_hook(lambda module, args, output: output * 2)
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda module, args, kwargs, output: seen.append(output), with_kwargs=True)
    result = compress(network, method, keep=0.6, example=x)
    seen.clear()
    torch.testing.assert_close(result.network(x), 2 * without)
    assert len(seen) == 1
    assert (name in result.plan.factors) == (method in ("ALDS", "SVD"))


def test_only_masks_that_hold_are_told() -> None:
    """Those of matrices, in recurrent layers too; masks of biases outside layers are baked in."""
    network = nn.LSTM(3, 4)
    prune.l1_unstructured(network, "weight_hh_l0", 0.5)
    prune.l1_unstructured(network, "bias_hh_l0", 0.5)
    made = prepared(network)
    assert {name: int(mask.sum()) for name, mask in made.masks.items()} == {"weight_hh_l0": 32}
    assert int((made.network.weight_hh_l0 == 0).sum()) == 32
    assert int((made.network.bias_hh_l0 == 0).sum()) == 8


def lazy() -> tuple[nn.Module, nn.Module]:
    network = part(lambda m: nn.LazyLinear(10), 4)
    helped = copy.deepcopy(network)
    helped(batch())
    return network, helped


def scripted(make: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, nn.Module]:
    network, helped = make(plain()), plain()
    helped.load_state_dict(network.state_dict())
    return network, helped


def exported() -> tuple[nn.Module, nn.Module]:
    program = torch.export.export(plain(), (batch(),))
    helped = plain()
    helped.load_state_dict(program.state_dict)
    return program.module(), helped


def unflattened() -> tuple[nn.Module, nn.Module]:
    network, helped = torch.export.unflatten(torch.export.export(plain(), (batch(),))), plain()
    helped.load_state_dict(network.state_dict())
    return network, helped


def quantized() -> tuple[nn.Module, nn.Module]:
    return torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear}), plain()


REFUSED: dict[str, tuple[Callable[[], tuple[nn.Module, nn.Module]], str]] = {
    "lazy": (lazy, r"'4' \(LazyLinear\) is lazy .* net\(example\)"),
    "traced": (lambda: scripted(lambda m: torch.jit.trace(m, batch())), "TorchScript.*load_state_dict"),
    "scripted": (lambda: scripted(torch.jit.script), "TorchScript.*load_state_dict"),
    "exported": (exported, r"graph of operators.*load_state_dict"),
    "unflattened": (unflattened, r"graph of operators.*load_state_dict"),
    "quantized": (quantized, r"'4' \(Linear\) is already quantized.*quantize_int8"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_way_out_of_a_refusal_helps(kind: str) -> None:
    make, message = REFUSED[kind]
    network, helped = make()
    for method in ("FT", "WT"):
        with pytest.raises(CompressionError, match=message):
            compress(network, method, keep=0.7, example=batch())
        assert compress(helped, method, keep=0.7, example=batch()).keep_parameters <= 0.7


def test_quantized_networks_of_ours_are_refused() -> None:
    pytest.importorskip("torchao")
    result = compress(plain(), "FT", keep=0.7, example=batch())
    int8 = quantize_int8(result.network)  # as the message says
    with pytest.raises(CompressionError, match="already quantized"):
        compress(int8, "WT", keep=0.7, example=batch())


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed_networks(one_process: None) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    parallel = nn.parallel.DistributedDataParallel(plain())
    assert compress(parallel, "WT", keep=0.7, example=batch()).keep_parameters == pytest.approx(0.7, abs=1e-3)
    mesh = init_device_mesh("cpu", (1,))
    sharded = [fully_shard(plain(), mesh=mesh), FullyShardedDataParallel(plain(), device_id=torch.device("cpu"))]
    for network in sharded:
        with pytest.raises(CompressionError, match="distributed over processes"):
            compress(network, "WT", keep=0.7, example=batch())
        state = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True))
        helped = plain()
        helped.load_state_dict(state)
        torch.testing.assert_close(helped(batch()), plain()(batch()))


def test_prefixes_of_wrappers_are_removed() -> None:
    names = set(plain().state_dict())
    for kind in ("compiled", "DataParallel", "compiled DataParallel"):
        assert set(without_prefixes(PREPARED[kind]().state_dict())) == names, kind
    assert set(without_prefixes(PREPARED["compiled part"]().state_dict())) == names
    mixed = {"module.a": 1, "b": 2}
    assert without_prefixes(mixed) == mixed


def make_weight_normed(input_shape: tuple[int, int, int], output_size: int, helped: bool = False) -> nn.Module:
    network = part(weight_norm)
    return plain_copy(network) if helped else network


def make_compiled(input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    return PREPARED["compiled"]()


def make_traced(input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    return torch.jit.trace(plain(), batch())


def test_factories_of_experiments() -> None:
    name = f"{__name__}:make_weight_normed"
    with pytest.raises(ConfigError, match=r"0.weight are computed .*plain_copy\(network\)"):
        make_network(name, {}, (3, 6, 6), 10)
    assert set(make_network(name, {"helped": True}, (3, 6, 6), 10).state_dict()) == set(plain().state_dict())
    assert isinstance(make_network(f"{__name__}:make_compiled", {}, (3, 6, 6), 10), nn.Sequential)
    with pytest.raises(ConfigError, match="TorchScript"):
        make_network(f"{__name__}:make_traced", {}, (3, 6, 6), 10)
