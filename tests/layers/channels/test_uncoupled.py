"""Layers of a sum that lose channels alone: groups worked out by hand, and the smaller network against a masked one."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiment import compress, save_network
from experiment.errors import CompressionError
from experiment.layers.build import build, expand, write_whole
from experiment.layers.channels.find_groups import channel_groups
from experiment.layers.channels.group_data import ChannelGroup, kept_of, sizes_of
from experiment.layers.channels.slicing import mask_channels, slice_channels
from experiment.layers.plan import Kept, Plan, State
from experiment.measure import count, example_input
from experiment.methods import METHODS
from experiment.methods.base import Calibration, Compressed, Compressor, Quantity, make_method
from experiment.methods.configure import configure
from experiment.networks.make_network import make_network
from experiment.random_streams import generator, seeded

pytestmark = pytest.mark.slow

FILTER_METHODS = [
    "FT", "SoftNet", "Uniform Filters", "ThiNet", "PFP", "PFP (rand)", "PFP (partial)", "Global Filters", "Slimming",
    "FilterPrune", "StructurePrune",
]  # fmt: skip
SHAPE = (3, 8, 8)


class Residual(nn.Module):
    """A stem and two blocks: BatchNorm behind each convolution, or before it (`first`), `kernel` wide."""

    def __init__(self, *, first: bool = False, kernel: int = 3) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)

        self.first = first
        self.stem, self.norm = conv(3, 8), nn.BatchNorm2d(8)
        self.a1, self.a2, self.b1, self.b2 = conv(8, 6), conv(6, 8), conv(8, 7), conv(7, 8)
        self.n1, self.n2 = nn.BatchNorm2d(8 if first else 6), nn.BatchNorm2d(6 if first else 8)
        self.m1, self.m2 = nn.BatchNorm2d(8 if first else 7), nn.BatchNorm2d(7 if first else 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            x = self.stem(x)
            x = x + self.a2(self.n2(self.a1(self.n1(x).relu())).relu())
            x = x + self.b2(self.m2(self.b1(self.m1(x).relu())).relu())
            x = self.norm(x).relu()
        else:
            x = self.norm(self.stem(x)).relu()
            x = (x + self.n2(self.a2(self.n1(self.a1(x)).relu()))).relu()
            x = (x + self.m2(self.b2(self.m1(self.b1(x)).relu()))).relu()
        output: Tensor = self.head(x.mean((2, 3)))
        return output


class Variety(nn.Module):
    """What meets sums in other networks: depthwise layers, gates, a bare scale, shortcuts of their own, LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.expand, self.middle = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.project, self.shrink, self.grow = nn.Conv2d(12, 8, 1), nn.Linear(8, 4), nn.Linear(4, 8)
        self.scale, self.wide = nn.Parameter(torch.ones(8, 1, 1)), nn.Conv2d(8, 8, 1)
        self.shortcut, self.other = nn.Conv2d(8, 10, 1, stride=2), nn.Conv2d(8, 10, 3, stride=2, padding=1)
        self.norm, self.up, self.down = nn.LayerNorm(10), nn.Linear(10, 14), nn.Linear(14, 10)
        self.position, self.head = nn.Parameter(torch.ones(1, 16, 10)), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.project(functional.hardtanh(self.middle(functional.hardtanh(self.expand(x), 0, 6)), 0, 6))
        gate = torch.sigmoid(self.grow(self.shrink(y.mean((2, 3))).relu()))
        x = x + y * gate[..., None, None]
        x = x + self.scale * self.wide(self.depthwise(x))
        x = self.shortcut(x) + self.other(x.relu())
        tokens = x.flatten(2).transpose(1, 2) + self.position
        tokens = tokens + self.down(functional.gelu(self.up(self.norm(tokens))))
        output: Tensor = self.head(tokens.mean(1))
        return output


def live(network: nn.Module) -> nn.Module:
    """Parameters and statistics that are not their defaults, so that every error shows."""
    random = generator("test_uncoupled")
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.dim() == 1:
                low = 0.3 if name.endswith(("weight", "running_var")) else -0.4
                tensor.uniform_(low, 1.2, generator=random)
            elif name in ("scale", "position"):
                tensor.uniform_(0.3, 1.2, generator=random)
    return network.eval()


def made(name: str) -> nn.Module:
    networks: dict[str, Callable[[], nn.Module]] = {
        "after": Residual, "before": lambda: Residual(first=True), "variety": Variety,
        "pointwise": lambda: Residual(kernel=1), "resnet20": lambda: make_network("resnet20", {}, SHAPE, 10),
        "resnet18": lambda: make_network("resnet18", {}, SHAPE, 10),
    }  # fmt: skip
    with seeded("test_uncoupled", name):
        return live(networks[name]())


def inputs(batch: int = 4) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=generator("test_uncoupled", "inputs"))


def chosen_of(groups: list[ChannelGroup], share: float = 0.4) -> list[list[int]]:
    random = generator("test_uncoupled", "chosen")
    numbers = [group.size if group.exempt else max(1, int(share * group.size)) for group in groups]
    return [torch.randperm(g.size, generator=random)[:n].tolist() for g, n in zip(groups, numbers, strict=True)]


def compressor(network: nn.Module, label: str, settings: dict[str, object], state: State | None = None) -> Compressor:
    method = make_method(METHODS[label], configure(METHODS[label], settings).settings)
    state = state or State(network, example_input(SHAPE))
    return Compressor(method, state, count(network, state.example), Calibration(inputs(16)), generator("uncoupled"))


def outputs(network: nn.Module, x: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        output: Tensor = network.eval()(inputs() if x is None else x)
    return output


def joined(plan: Plan) -> set[str]:
    """The layers that put channels in their places, or take some."""
    return {name for name, sides in plan.kept.items() if sides.made is not None or sides.taken is not None}


# --- groups


def test_every_layer_of_a_sum_is_a_group_of_its_own() -> None:
    network, example = made("after"), example_input(SHAPE)
    together = {group.producers for group in channel_groups(network, example)}
    apart = {group.producers: group for group in channel_groups(network, example, coupled=False)}
    assert together == {("stem", "a2", "b2"), ("a1",), ("b1",), ("head",)}
    assert apart.keys() == {("stem",), ("a1",), ("a2",), ("b1",), ("b2",), ("head",)}
    sides = {(m.module, m.side) for m in apart[("a2",)].members}
    assert sides == {("a2", "out"), ("n2", "out"), ("b1", "in"), ("head", "in")}  # what reads later sums


def test_depthwise_layers_and_gates_go_with_what_they_follow_and_a_concatenation_changes_nothing() -> None:
    network, example = made("variety"), example_input(SHAPE)
    apart = {group.producers for group in channel_groups(network, example, coupled=False)}
    assert {("stem",), ("expand", "middle"), ("project", "grow"), ("wide",), ("shortcut",), ("other",)} <= apart
    dense = make_network("densenet22", {}, SHAPE, 10).eval()
    assert channel_groups(dense, example, coupled=False) == channel_groups(dense, example)


def test_a_reader_loses_a_channel_when_all_that_feed_it_have() -> None:
    network, example = made("after"), example_input(SHAPE)
    groups = channel_groups(network, example, coupled=False)
    lost = {"stem": {0, 1}, "a2": {1, 2}, "b2": {1, 3}}
    kept = kept_of(groups, [sorted(set(range(g.size)) - lost.get(g.name, set())) for g in groups])
    assert kept["a1"].inputs == (2, 3, 4, 5, 6, 7)  # of the stem alone
    assert kept["b1"].inputs == kept["head"].inputs == (0, 2, 3, 4, 5, 6, 7)
    assert kept["norm"] == Kept((2, 3, 4, 5, 6, 7), made=(0, 2, 3, 4, 5, 6, 7))
    assert kept["a1"].taken == (0, 2, 3, 4, 5, 6, 7)
    assert kept["head"].taken is None


@pytest.mark.parametrize("name", ["after", "before", "variety", "resnet20"])
@pytest.mark.parametrize("share", [0.15, 0.6])
def test_sliced_is_masked_and_counted_is_planned(name: str, share: float) -> None:
    network, example = made(name), example_input(SHAPE)
    groups = channel_groups(network, example, coupled=False)
    assert all(group.exempt is None for group in groups[:-1])  # the last one gives the output
    chosen = chosen_of(groups, share)
    kept = kept_of(groups, chosen)
    masked, sliced = copy.deepcopy(network), copy.deepcopy(network)
    mask_channels(masked, kept)
    slice_channels(sliced, kept)
    torch.testing.assert_close(outputs(sliced), outputs(masked), rtol=1e-4, atol=1e-5)
    assert any(sides.made is not None for sides in kept.values())
    sizes, counts = sizes_of(network, example, groups, count(network, example).flops), [len(c) for c in chosen]
    counted = count(sliced, example)
    assert sizes.parameters_of(counts, kept) == counted.parameters
    assert sizes.flops_of(counts, kept) == counted.flops
    assert counted.parameters == sum(p.numel() for p in sliced.parameters())


# --- methods


@pytest.mark.parametrize("label", FILTER_METHODS)
@pytest.mark.parametrize("quantity", ["parameters", "flops"])
def test_every_filter_method_meets_both_budgets(label: str, quantity: Quantity) -> None:
    fixed = {"coupled": False, "fold": "mean" if quantity == "parameters" else "none", "refit": True}
    for name in ("after", "before"):
        result = compressor(made(name), label, fixed).compress(0.6, quantity)
        original = count(made(name), example_input(SHAPE))
        limit = original.parameters if quantity == "parameters" else original.flops
        size = result.count.parameters if quantity == "parameters" else result.count.flops
        assert 0.4 * limit < size <= 0.6 * limit
        assert result.plan.parameters == result.count.parameters == sum(p.numel() for p in result.network.parameters())
        assert outputs(result.network).isfinite().all()


def test_filters_are_chosen_layer_by_layer() -> None:
    """FT keeps the filters of largest l1 norm of each layer, also of those that are added."""
    network = made("resnet20")
    plan = compressor(network, "FT", {"coupled": False}).compress(0.5).plan
    for name in ("conv1", "layer1.0.conv2", "layer2.0.downsample.0", "layer3.1.conv2"):
        out = plan.kept[name].out
        assert out is not None
        norms = network.get_submodule(name).get_parameter("weight").abs().sum((1, 2, 3))
        assert sorted(norms.topk(len(out)).indices.tolist()) == list(out)
    assert plan.kept["layer1.0.bn2"].out == plan.kept["layer1.0.conv2"].out != plan.kept["conv1"].out


def test_constants_are_what_layers_without_the_filters_emit() -> None:
    """Exact without padding: the whole network with zero filters, whose BatchNorms still shift."""
    network = made("pointwise")
    result = compressor(network, "FT", {"coupled": False, "fold": "constant"}).compress(0.5)
    ghost = copy.deepcopy(network)
    with torch.no_grad():
        for name in ("stem", "a1", "a2", "b1", "b2"):
            weight = ghost.get_submodule(name).get_parameter("weight")
            weight[sorted(set(range(len(weight))) - set(result.plan.kept[name].out or ()))] = 0
    torch.testing.assert_close(outputs(result.network), outputs(ghost), rtol=1e-4, atol=1e-5)
    plain = compressor(network, "FT", {"coupled": False}).compress(0.5)
    assert not torch.allclose(outputs(plain.network), outputs(ghost), rtol=1e-2)
    assert any(sides.num_constants for sides in result.plan.kept.values())


# --- what becomes of the network


def smaller(name: str = "after", fold: str = "constant", label: str = "FT") -> tuple[nn.Module, Compressed]:
    network = made(name)
    return network, compressor(network, label, {"coupled": False, "fold": fold}).compress(0.5)


@pytest.mark.parametrize("fold", ["none", "constant"])
@pytest.mark.parametrize("name", ["after", "before", "variety"])
def test_dense_weights_compute_the_same_and_give_the_same_network_again(name: str, fold: str) -> None:
    network, result = smaller(name, fold)
    state = expand(result.network, network, result.plan, example_input(SHAPE))
    torch.testing.assert_close(outputs(state.network), outputs(result.network), rtol=1e-4, atol=1e-5)
    again = compressor(network, "WT", {}, state).compress(
        0.95 * result.count.parameters / count(network, state.example).parameters
    )
    assert joined(again.plan) == joined(result.plan)
    whole = build(network, result.plan)
    write_whole(whole, state.network, result.plan)
    torch.testing.assert_close(outputs(whole), outputs(result.network), rtol=1e-4, atol=1e-5)


def test_in_a_cascade_layers_stay_apart_and_keep_their_constants() -> None:
    network, result = smaller()
    state = expand(result.network, network, result.plan, example_input(SHAPE))
    share = result.count.parameters / count(network, state.example).parameters
    same = compressor(network, "FT", {}, state).compress(share + 1e-9)  # coupled, which it cannot be any more
    assert same.count.parameters == result.count.parameters
    torch.testing.assert_close(outputs(same.network), outputs(result.network), rtol=1e-4, atol=1e-5)
    fewer = compressor(network, "FT", {}, state).compress(0.8 * share)
    assert fewer.count.parameters <= 0.8 * result.count.parameters
    for name, sides in fewer.plan.kept.items():
        before = result.plan.kept[name].out
        assert sides.out is None or before is None or set(sides.out) <= set(before)


def test_factors_of_a_layer_in_a_stream_join_it_too() -> None:
    network, result = smaller("variety")
    state = expand(result.network, network, result.plan, example_input(SHAPE))
    share = result.count.parameters / count(network, state.example).parameters
    low = compressor(network, "SVD", {}, state).compress(0.9 * share)
    assert low.plan.factors.keys() & joined(low.plan)
    assert low.count.parameters <= 0.9 * result.count.parameters
    dense = expand(low.network, network, low.plan, state.example)
    torch.testing.assert_close(outputs(dense.network), outputs(low.network), rtol=1e-3, atol=1e-4)


def test_a_training_step_keeps_the_structure_and_moves_the_constants() -> None:
    network, result = smaller()
    small = copy.deepcopy(result.network).train()
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    functional.cross_entropy(small(inputs()), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    changed = {name for name, p in small.named_parameters() if not torch.equal(p, before[name])}
    assert {"norm.stream_constants", "n2.stream_constants"} & changed
    assert count(small, example_input(SHAPE)).parameters == result.count.parameters
    state = expand(small, network, result.plan, example_input(SHAPE))
    torch.testing.assert_close(outputs(state.network), outputs(small), rtol=1e-4, atol=1e-5)


def test_a_fresh_process_loads_the_same_network(tmp_path: Path) -> None:
    with seeded("test_uncoupled", "saved"):
        network = make_network("resnet20", {}, SHAPE, 10).eval()
    x = inputs()
    result = compress(network, "FT", keep=0.5, example=x[:1], coupled=False, fold="constant")
    save_network(result, tmp_path / "network.pt")
    torch.save({"x": x, "original": network.state_dict(), "y": outputs(result.network)}, tmp_path / "expected.pt")
    program = (
        "import sys, torch; from pathlib import Path; from experiment import load_network\n"
        "from experiment.networks.make_network import make_network\n"
        "folder = Path(sys.argv[1]); saved = torch.load(folder / 'expected.pt', weights_only=True)\n"
        f"original = make_network('resnet20', {{}}, {SHAPE}, 10)\n"
        "network = load_network(folder / 'network.pt', network=original)\n"
        "torch.testing.assert_close(network(saved['x']), saved['y'])\n"
        "assert 'torchvision' not in sys.modules, 'it takes longer to import than torch'\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_a_network_on_meta_has_the_structure() -> None:
    network, result = smaller()
    built = build(copy.deepcopy(network).to("meta"), result.plan)
    assert {n: p.shape for n, p in built.state_dict().items()} == {
        n: p.shape for n, p in result.network.state_dict().items()
    }
    built.load_state_dict(result.network.state_dict(), assign=True)
    torch.testing.assert_close(outputs(built), outputs(result.network))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the exporter's own
@pytest.mark.parametrize("name", ["after", "variety"])
def test_onnx_export_and_torchscript_compute_the_same(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    x = inputs()
    small = smaller(name)[1].network
    exported = torch.export.export(small, (x,))
    torch.testing.assert_close(exported.module()(x), outputs(small))
    torch.testing.assert_close(torch.jit.trace(small, (x,))(x), outputs(small))  # type: ignore[no-untyped-call]
    torch.onnx.export(small, (x,), tmp_path / "network.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), outputs(small), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (Kept((0, 1), made=(1, 2, 3)), "those that stay and more"),
        (Kept((0, 1), made=(0, 1, 20)), "must be its own"),
        (Kept((0, 1), made=(0, 1, 2), constants=True), "no bias"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(sides: Kept, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        build(made("after"), Plan(kept={"a2": sides}))
