"""Counting: against hand-worked numbers, numpy and torch's own counter."""

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiment import compress, random_streams
from experiment.layers.build import build
from experiment.layers.grouped_linear import GroupedLinear
from experiment.layers.masks import add_masks, bake_masks, named_masks
from experiment.layers.plan import Plan
from experiment.measure import (
    Bytes,
    SparseBytes,
    count,
    count_bytes,
    count_sparse_bytes,
    example_input,
    measure_latency,
)
from experiment.networks import NETWORKS
from experiment.networks.lenet import lenet5
from experiment.registry import resolve


def some_mask(shape: tuple[int, ...], kept: int, seed: int = 0) -> Tensor:
    """A mask of the shape with exactly `kept` True places."""
    mask = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool)
    mask[torch.randperm(mask.numel(), generator=random_streams.generator("mask", seed))[:kept]] = True
    return mask.reshape(shape)


def torch_flops(network: nn.Module, example: Tensor) -> float:
    """With gradients, for without them torch takes kernels that its counter cannot look into."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network.eval()(example)
    return counter.get_total_flops() / 2


def small_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 216 weights on a 5 x 4 grid
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, (1, 3), groups=2),  # 6 * 4 * 3 = 72 weights, 6 biases on a 5 x 2 grid
        nn.Flatten(),
        nn.Linear(60, 7),
    )


CNN_INPUT = torch.zeros(1, 3, 9, 8)


def test_convolutions_and_linear() -> None:
    counted = count(small_cnn(), CNN_INPUT)
    assert counted.parameters == 216 + 16 + 72 + 6 + 420 + 7
    assert counted.flops == counted.flops_unmasked == 216 * 20 + 72 * 10 + 420
    assert list(counted.layers) == ["0", "3", "5"]
    assert [(c.kind, c.parameters, c.flops) for c in counted.layers.values()] == [
        ("conv", 216, 4320),
        ("conv", 78, 720),
        ("linear", 427, 420),
    ]


def test_batch_size_does_not_matter() -> None:
    assert count(small_cnn(), CNN_INPUT.expand(5, -1, -1, -1)) == count(small_cnn(), CNN_INPUT)


def test_masks_lower_parameters_and_unmasked_flops_only() -> None:
    network = small_cnn()
    masks = {"0.weight": (8, 3, 3, 3), "5.weight": (7, 60), "5.bias": (7,), "1.weight": (8,)}
    add_masks(network, {n: some_mask(s, 5) for n, s in masks.items()})
    counted = count(network, CNN_INPUT)
    assert counted.parameters == 737 - (216 - 5) - (420 - 5) - (7 - 5) - (8 - 5)
    assert counted.flops == 5460
    assert counted.flops_unmasked == 5 * 20 + 720 + 5
    assert [c.parameters for c in counted.layers.values()] == [5, 78, 10]
    assert [c.flops for c in counted.layers.values()] == [4320, 720, 420]


def test_zeros_are_not_masks() -> None:
    network = small_cnn()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert count(network, CNN_INPUT) == count(small_cnn(), CNN_INPUT)


class Twice(nn.Module):
    """One layer on two grids; another that is never called; two that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.alias = self.conv
        self.unused = nn.Linear(5, 5)
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.conv(x), 2)
        y: Tensor = self.b(self.a(self.alias(x).mean((2, 3))))
        return y


def test_shared_modules_and_weights() -> None:
    counted = count(Twice(), torch.zeros(1, 2, 8, 6))
    assert counted.parameters == 36 + 30 + 4
    assert counted.flops == 36 * (48 + 12) + 4 + 4
    assert list(counted.layers) == ["conv", "a", "b"]


def test_masked_shared_module() -> None:
    network = Twice()
    add_masks(network, {"conv.weight": some_mask((2, 2, 3, 3), 10)})
    counted = count(network, torch.zeros(1, 2, 8, 6))
    assert counted.parameters == 10 + 30 + 4
    assert counted.flops_unmasked == 10 * 60 + 8


class Attend(nn.Module):
    """A linear layer on sequences, once as they are and once with sequences and batch folded into one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.folded = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(input=x)
        z: Tensor = self.folded(y.flatten(0, 1)).unflatten(0, x.shape[:2])
        return z


@pytest.mark.parametrize("batch_size", [1, 4])
def test_linear_on_sequences(batch_size: int) -> None:
    counted = count(Attend(), torch.zeros(batch_size, 5, 6))
    assert [c.flops for c in counted.layers.values()] == [24 * 5, 12 * 5]
    assert counted.flops * batch_size == torch_flops(Attend(), torch.zeros(batch_size, 5, 6))


def test_grouped_linear() -> None:
    network = nn.Sequential(GroupedLinear(12, 6, 3), nn.Linear(6, 5))
    counted = count(network, torch.zeros(1, 7, 12))
    assert counted.parameters == 6 * 4 + 30 + 5
    assert counted.flops == (6 * 4 + 30) * 7 == torch_flops(network, torch.zeros(1, 7, 12))
    assert counted.layers["0"].kind == "linear"


def test_network_that_is_one_layer() -> None:
    network = nn.Linear(4, 3)
    add_masks(network, {"weight": some_mask((3, 4), 5), "bias": some_mask((3,), 1)})
    counted = count(network, torch.zeros(1, 4))
    assert (counted.parameters, counted.flops, counted.flops_unmasked) == (6, 12, 5)
    assert counted.layers[""].parameters == 6


def test_decomposed_layer_costs_its_factors() -> None:
    """f = c = 64, 3 x 3, k = 4 groups of rank j: j (k f + 9 c) elements, and as many multiply-adds a position."""
    rank, groups = 5, 4
    encoder = nn.Conv2d(64, groups * rank, 3, padding=1, groups=groups, bias=False)
    network = nn.Sequential(encoder, nn.Conv2d(groups * rank, 64, 1, bias=False))
    counted = count(network, torch.zeros(1, 64, 8, 8))
    assert counted.parameters == rank * (groups * 64 + 576)
    assert counted.flops == rank * (groups * 64 + 576) * 64


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, groups=2, stride=2), (1, 4, 11)),
        (nn.Conv3d(2, 3, (1, 2, 3)), (1, 2, 4, 5, 6)),
        (nn.ConvTranspose1d(3, 4, 3, stride=2), (1, 3, 6)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), (1, 4, 5, 3)),
        (nn.ConvTranspose3d(2, 2, 2, stride=2), (1, 2, 3, 3, 2)),
    ],
)
def test_other_convolutions(layer: nn.Module, shape: tuple[int, ...]) -> None:
    network = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3))
    network(torch.zeros(shape))
    counted = count(network, torch.zeros(shape))
    assert counted.flops == counted.flops_unmasked == torch_flops(network, torch.zeros(shape))
    assert counted.layers["0"].parameters == sum(p.numel() for p in layer.parameters())


class Functional(nn.Module):
    """Layers that are called by keyword, or not at all, and a weight that is no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 2, stride=2)
        self.weight = nn.Parameter(torch.ones(5, 4))
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(self.up(input=x).mean((2, 3)), self.weight)
        return nn.functional.linear(y, self.fc.weight) + self.fc(input=y)


class Frames(nn.Module):
    """Frames folded into the batch, in two and in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, groups=6, stride=2)
        self.line, self.fc = nn.Conv1d(6, 4, 2), nn.Linear(4, 5)

    def forward(self, clips: Tensor) -> Tensor:
        x = self.depthwise(self.conv(clips.flatten(0, 1)))
        x = self.line(x.transpose(1, 2).flatten(0, 1))
        y: Tensor = self.fc(x.mean(2)).unflatten(0, (*clips.shape[:2], -1)).mean((1, 2))
        return y


class Heads(nn.Module):
    """Attention over positions with its own projections, whose channels can go from all products at once."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(8, 16), nn.Linear(14, 5)
        self.q, self.k, self.v, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 12), nn.Linear(12, 14)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.start(x))
        weights = torch.softmax(self.q(x) @ self.k(x).mT, -1)
        y: Tensor = self.end(torch.relu(self.out(weights @ self.v(x))).mean(1))
        return y


class Crossed(nn.Module):
    """nn.MultiheadAttention of other keys and values than queries."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.fc = nn.MultiheadAttention(8, 2, kdim=5, vdim=5, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.attention(x, x[:, :4, :5], x[:, :4, :5])[0].mean(1))
        return y


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.Sequential(nn.Linear(8, 32), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


# (network, one sample's shape, multiply-adds in layers, multiply-adds outside)
SMALL = {
    "functional": (Functional, (3, 4, 5), 12 * 4 * 20 + 15, 20 + 15),
    "frames": (Frames, (4, 3, 9, 7), 4 * (162 * 63 + 54 * 12 + 4 * (48 * 2 + 20)), 0),
    "heads": (Heads, (9, 8), 9 * (128 + 256 + 256 + 192 + 168) + 70, 81 * (16 + 12)),
    "crossed": (Crossed, (6, 8), 24, 6 * 64 + 2 * 4 * 40 + 6 * 64 + 2 * 6 * 4 * 8),
    "encoder": (encoder, (9, 8), 9 * (256 + 2 * 2 * 32 * 64), 2 * (9 * 4 * 32 * 32 + 2 * 81 * 32)),
}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", SMALL)
def test_counted_is_what_torch_counts(name: str, batch_size: int) -> None:
    make, shape, in_layers, outside = SMALL[name]
    with random_streams.seeded("test_measure", name):
        network, example = make().eval(), torch.rand(batch_size, *shape)
    counted = count(network, example)
    assert (counted.flops - counted.other_flops, counted.other_flops) == (in_layers, outside)
    assert counted.flops == counted.flops_unmasked == torch_flops(network, example[:1])
    assert torch.backends.mha.get_fastpath_enabled()


REGISTERED = {"lenet5": (1, 28, 28), "resnet20": (3, 16, 16), "densenet22": (3, 16, 16)}
COMPRESSED = [(n, m) for n in ("heads", "encoder", *REGISTERED) for m in ("FT", "SVD", "WT")]


@pytest.mark.parametrize(("name", "method"), [("frames", "SVD"), ("frames", "WT"), *COMPRESSED])
def test_counted_is_what_torch_counts_of_compressed_networks(name: str, method: str) -> None:
    with random_streams.seeded("test_measure", name):
        if name in SMALL:
            network, example = SMALL[name][0]().eval(), torch.rand(1, *SMALL[name][1])
        else:
            network = resolve(NETWORKS[name].target)(REGISTERED[name], 10).eval()
            example = torch.rand(1, *REGISTERED[name])
    result = compress(network, method, keep=0.9, budget="flops", example=example)
    counted = count(result.network, example)
    assert counted.flops == result.flops == torch_flops(result.network, example)
    assert 0.5 * torch_flops(network, example) < counted.flops_unmasked <= 0.9 * torch_flops(network, example)
    assert result.layers["flops"].sum() == counted.flops


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_multiply_every_matrix_once_a_step(kind: type[nn.RNNBase]) -> None:
    network, example = kind(5, 7, 2, batch_first=True, bidirectional=True), torch.zeros(2, 6, 5)
    enabled = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    counted = count(network, example)
    assert counted.flops == 6 * sum(p.numel() for p in network.parameters() if p.dim() == 2)
    assert not counted.layers
    assert (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled) == enabled


def test_rows_of_layers_add_up_to_the_network() -> None:
    """A weight that two layers share is in the first one's row, what is in no layer in a row of its own."""
    network = nn.Sequential(encoder(), nn.Linear(32, 32), nn.Linear(32, 32))
    network[2].weight = network[1].weight
    example = torch.zeros(1, 9, 8)
    result = compress(network, "SVD", keep=0.8, example=example)
    assert "(other)" in set(result.layers["layer"])
    rows = result.layers.sum(numeric_only=True)
    original = count(network, example)
    assert (rows["parameters_before"], rows["flops_before"]) == (original.parameters, original.flops)
    assert (rows["parameters"], rows["flops"]) == (result.parameters, result.flops)


def test_rows_of_a_network_that_is_one_layer() -> None:
    result = compress(nn.Linear(64, 64), "SVD", keep=0.5, example=torch.zeros(1, 64))
    assert list(result.layers["parameters"]) == [result.parameters]


def test_the_network_is_left_as_it_is() -> None:
    network = small_cnn().append(nn.Unflatten(1, (7, 1))).append(nn.ConvTranspose1d(7, 2, 1)).train()
    network[1].eval()  # a frozen BatchNorm
    before, modes = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    count(network, CNN_INPUT + 1)
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
    assert [m.training for m in network.modules()] == modes
    assert not [m for m in network.modules() if m._forward_hooks]
    assert network(torch.rand(2, 3, 9, 8)).requires_grad


def test_hooks_are_removed_after_a_failure() -> None:
    network = small_cnn()
    with pytest.raises(RuntimeError):
        count(network, torch.zeros(1, 2, 9, 8))
    assert network.training
    assert not [m for m in network.modules() if m._forward_hooks]


def test_condensas_lenet5() -> None:
    """int(0.007 * 430,500) = 3,013 weights and 580 biases in half precision: 239.96 times smaller than in float32."""
    network = lenet5((1, 28, 28), 10)
    assert count_bytes(network).dense == 1_724_320
    kept = {"conv1": 200, "conv2": 400, "fc1": 2400, "fc2": 13}
    masks = {f"{n}.weight": some_mask(tuple(network.get_submodule(n).weight.shape), k) for n, k in kept.items()}
    add_masks(network, masks)
    size = count_bytes(network.half())
    assert size.values == (3013 + 580) * 2
    assert 1_724_320 / size.values == pytest.approx(239.96, abs=0.005)
    assert size.dense == 431_080 * 2
    # conv1: 500 bits beat 200 columns; conv2: 400 columns and 51 rows; fc1: 2,400 and 501; fc2: 13 and 11
    weights = (400 + 63) + (400 * 6 + 51 * 4) + (2400 * 6 + 501 * 4) + (13 * 6 + 11 * 4)
    assert size.sparse == weights + 580 * 2


def test_condensas_lenet5_as_a_plan_of_ours_makes_it() -> None:
    """The same four sizes from float32 masters: values alone, the best sparse format, dense, and no weight is zero."""
    with random_streams.seeded("lenet5"):
        network = lenet5((1, 28, 28), 10)
    weights = [n for n, _ in network.named_parameters() if n.endswith("weight")]
    largest = torch.cat([network.get_parameter(n).detach().abs().flatten() for n in weights])
    assert len(largest) == 430_500
    threshold = largest.sort(descending=True).values[int(0.007 * 430_500) - 1]
    masks = {n: network.get_parameter(n).detach().abs() >= threshold for n in weights}
    plan = Plan(masks=masks, quantized={n.removesuffix(".weight"): "float16" for n in weights})
    made = build(network, plan)
    size, dense = count_bytes(made), count_bytes(network).dense
    assert dense / size.values == pytest.approx(431_080 * 4 / ((3013 + 580) * 2), rel=1e-9)
    assert dense / size.values == pytest.approx(239.96, abs=0.005)
    baked = bake_masks(made)
    assert sum(int(p.count_nonzero()) for p in baked.parameters()) * 2 == size.values  # what Condensa counts
    assert size.dense == 431_080 * 2
    sparse = 0
    for mask in masks.values():
        kept, rows, total = int(mask.sum()), mask.shape[0], mask.numel()
        sparse += min(kept * 2 + -(-total // 8), kept * (2 + 4) + (rows + 1) * 4, total * 2)
    assert size.sparse == sparse + 580 * 2


def test_bytes_of_four_bits_and_groups() -> None:
    """0: 8 rows of 27 codes, 14 bytes each; 3: a scale for every 10 of 72 weights; 5: masked, codes in a row."""
    plan = Plan(masks={"5.weight": some_mask((7, 60), 101)}, quantized={"0": "int4", "3": "int8/10", "5": "int4/32"})
    network = build(small_cnn(), plan)
    (_, first), (_, second), (_, third) = ((n, network[n].weight) for n in (0, 3, 5))
    assert (first.shape[0], first[0].numel(), third.shape) == (8, 27, (7, 60))
    floats = 4 * sum(p.numel() for n, p in network.named_parameters() if "parametrizations" not in n)
    rest = floats + 8 * 14 + 8 * 4 + second.numel() + second.shape[0] * -(-second[0].numel() // 10) * 4 + 7 * 2 * 4
    assert count_bytes(network) == Bytes(rest + 7 * 30, rest + 51, rest + 51 + 53)
    assert count_sparse_bytes(network) == SparseBytes(rest + 51 + 53, rest + 51 + 101 * 4 + 8 * 4, "bitmask")


def test_bytes_of_codebooks() -> None:
    """0: 8 rows of 27 bits, 4 bytes each; 3: 2 bits; 5: masked, 4 bits, 5 with the zeros; values of 4 bytes."""
    plan = Plan(
        masks={"5.weight": some_mask((7, 60), 101)}, quantized={"0": "codebook2", "3": "codebook4", "5": "codebook16"}
    )
    network = build(small_cnn(), plan)
    shape = network[3].weight.shape
    floats = 4 * sum(p.numel() for n, p in network.named_parameters() if "parametrizations" not in n)
    rest = floats + 8 * 4 + 2 * 4 + shape[0] * -(-network[3].weight[0].numel() // 4) + 4 * 4 + 16 * 4
    assert count_bytes(network) == Bytes(rest + 7 * 38, rest + 51, rest + 51 + 53)
    assert count_sparse_bytes(network) == SparseBytes(rest + 51 + 53, rest + 51 + 101 * 4 + 8 * 4, "bitmask")


def test_quantized_bytes() -> None:
    """0: 8 x 27 weights of a byte and 8 scales, BatchNorm whole; 3: in halves with its bias; 5: int8, masked."""
    plan = Plan(masks={"5.weight": some_mask((7, 60), 100)}, quantized={"0": "int8", "3": "bfloat16", "5": "int8"})
    network = build(small_cnn(), plan)
    rest = 216 + 8 * 4 + 16 * 4 + 72 * 2 + 6 * 2 + 7 * 4
    bitmask, csr = 100 + 53 + 7 * 4, 100 * 5 + 8 * 4 + 7 * 4
    assert count_bytes(network) == Bytes(rest + 420 + 7 * 4, rest + 100 + 7 * 4, rest + bitmask)
    assert count_sparse_bytes(network) == SparseBytes(rest + bitmask, rest + csr, "bitmask")
    assert count(network, CNN_INPUT) == count(build(small_cnn(), Plan(masks=plan.masks)), CNN_INPUT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kept", [0, 1, 40, 400, 1150, 1190, 1200])
def test_sparse_bytes_are_the_smallest_encoding(kept: int, dtype: torch.dtype) -> None:
    network = nn.Linear(60, 20, bias=False).to(dtype)
    mask = some_mask((20, 60), kept)
    add_masks(network, {"weight": mask})
    size, w = torch.finfo(dtype).bits // 8, np.asarray(mask)
    columns, row_pointers = np.nonzero(w)[1].astype(np.int32), np.zeros(21, np.int32)
    encodings = [w.size * size, kept * size + np.packbits(w).nbytes, kept * size + columns.nbytes + row_pointers.nbytes]
    assert count_bytes(network) == Bytes(1200 * size, kept * size, min(encodings))
    names = ["dense", "bitmask", "csr"]
    assert count_sparse_bytes(network) == SparseBytes(*encodings[1:], names[int(np.argmin(encodings))])


def test_a_sparse_format_is_that_of_all_masked_tensors_and_of_no_other() -> None:
    network = nn.Sequential(nn.Linear(60, 20), nn.Linear(20, 50, bias=False), nn.Linear(50, 9, bias=False))
    add_masks(network, {"0.weight": some_mask((20, 60), 30), "1.weight": some_mask((50, 20), 900)})
    bitmask = (30 + 900) * 4 + 1200 // 8 + 1000 // 8
    csr = (30 + 900) * 8 + (21 + 51) * 4
    dense = (20 + 450) * 4
    assert count_sparse_bytes(network) == SparseBytes(bitmask + dense, csr + dense, "bitmask")


def test_latency_grows_with_the_work_and_leaves_the_machine_as_it_was() -> None:
    network, threads = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256)).eval(), torch.get_num_threads()
    small, large = (measure_latency(network, (256,), batch, 1, seconds=0.05) for batch in (1, 512))
    assert (small.batch, large.batch) == (1, 512)
    assert 0 < 3 * small.median_ms < large.median_ms
    assert small.iqr_ms >= 0
    assert torch.get_num_threads() == threads
    assert not network[0].weight.is_inference()


def test_bytes_without_masks() -> None:
    """Dense tensors need no index, mixed types are counted each, buffers and second names of a tensor not at all."""
    network = nn.Sequential(nn.Linear(4, 3).half(), nn.BatchNorm1d(3), nn.Linear(3, 3, bias=False))
    network.append(network[2])
    assert count_bytes(network) == Bytes(*(3 * [15 * 2 + 6 * 4 + 9 * 4]))


def test_bytes_of_masked_network_equal_its_counts() -> None:
    network = small_cnn()
    add_masks(network, {"0.weight": some_mask((8, 3, 3, 3), 50), "5.weight": some_mask((7, 60), 30, seed=1)})
    assert len(named_masks(network)) == 2
    size = count_bytes(network)
    assert size.values == 4 * count(network, CNN_INPUT).parameters
    assert size.dense == 4 * 737
    assert size.values < size.sparse < size.dense


def test_scalar_parameter() -> None:
    network = nn.Linear(2, 2, bias=False)
    network.scale = nn.Parameter(torch.tensor(1.0))
    assert count_bytes(network) == Bytes(20, 20, 20)


def test_example_input() -> None:
    example = example_input((3, 5, 4))
    assert example.shape == (1, 3, 5, 4)
    assert torch.equal(example, example_input((3, 5, 4)))
    assert example.unique().numel() == 60  # a constant image could hide a layer that computes nothing
    assert example_input((2, 2), "meta").device.type == "meta"


@pytest.mark.parametrize("faster", ["contiguous", "channels_last"])
def test_latency_is_that_of_the_faster_layout(monkeypatch: pytest.MonkeyPatch, faster: str) -> None:
    seen = []

    class Timer:
        """Says that one layout takes half as long, and notes what it was asked to time."""

        def __init__(self, statement: str, globals: dict[str, Any], num_threads: int) -> None:
            network, x = globals["network"], globals["x"]
            turned = x.is_contiguous(memory_format=torch.channels_last)
            assert turned == network[0].weight.is_contiguous(memory_format=torch.channels_last)
            self.layout = "channels_last" if turned else "contiguous"
            seen.append(self.layout)

        def blocked_autorange(self, min_run_time: float) -> Any:
            return SimpleNamespace(median=0.001 if self.layout == faster else 0.002, iqr=0.0)

    monkeypatch.setattr("experiment.measure.latency._timer", lambda: Timer)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    found = measure_latency(network, (3, 8, 8), 2, 1)
    assert (found.layout, found.median_ms) == (faster, 1.0)
    assert seen == ["contiguous", "channels_last"]
    assert network[0].weight.is_contiguous()


class Pairwise(nn.Module):
    """Passes a view of a parameter to an inner module in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.inner, self.fc = nn.Parameter(torch.randn(1, 4)), nn.Identity(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, token = self.inner((x, self.token.expand(len(x), -1)))
        return self.fc(x + token)


def test_views_of_parameters_in_tuples_are_counted() -> None:
    network = Pairwise()
    assert count(network, torch.randn(2, 4)).flops == 12
    assert all(parameter.requires_grad for parameter in network.parameters())
