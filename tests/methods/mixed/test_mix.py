"""Mix: the best of all combinations of forms, true costs, and one criterion that measures all families alike."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.config.schema.budget import Budget
from experiment.errors import ConfigError, InfeasibleBudget
from experiment.layers.build import build
from experiment.layers.compressible import compressible_layers
from experiment.layers.forms import UNMASKED, Forms
from experiment.layers.plan import Factors, Plan, State
from experiment.measure import count, count_bytes
from experiment.measure.latency_model import LatencyTable
from experiment.measure.storage import form_bytes
from experiment.methods.base import Calibration, Compressor
from experiment.methods.configure import configure
from experiment.methods.data.output_divergence import predictions_of
from experiment.methods.meter import Meter
from experiment.methods.mixed.mix import Mix, MixAnalysis
from experiment.methods.mixed.settings import MixSettings
from experiment.methods.real_budgets import compress_within
from experiment.random_streams import generator, seeded

BUDGET = Budget.read("bytes")


def trained(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A small network of confident predictions, and its inputs, whose features are correlated."""
    with seeded("mix", seed):
        network = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3, bias=False), nn.ReLU(),
            nn.Flatten(), nn.Linear(32, 4),
        ).eval()  # fmt: skip
        images = torch.randn(96, 1, 4, 4) @ torch.randn(4, 8) @ torch.randn(8, 8) / 5
        images = (images.mT @ torch.randn(4, 8)).mT
    with torch.no_grad():
        network[-1].weight.mul_(4)
    return network, images


def made(network: nn.Module, inputs: Tensor, **settings: object) -> Compressor:
    state = State(network, inputs[:1])
    calibration = Calibration(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    method = Mix(MixSettings(**{"points": 3, **settings}))  # type: ignore[arg-type]
    return Compressor(method, state, count(network, inputs[:1]), calibration, generator("mix"))


def meter(compressor: Compressor) -> Meter:
    return Meter(compressor.state.network, compressor.state.example, BUDGET, LatencyTable(None, 1))


def kl(network: nn.Module, other: nn.Module, images: Tensor) -> float:
    p, q = (predictions_of(net, images) for net in (network, other))
    return float((p.exp() * (p - q)).sum(1).mean())


@pytest.mark.parametrize("keep", [0.3, 0.15, 0.08])
def test_no_other_combination_of_forms_is_better(keep: float) -> None:
    """All combinations are tried, with the same losses, and bytes as counted on networks."""
    network, images = trained()
    compressor = made(network, images, min_group_width=3)
    analysis: MixAnalysis = compressor.analysis
    limit = keep * count_bytes(network).dense
    found = compress_within(compressor, keep, BUDGET, meter(compressor))
    bytes_ = found.amounts["bytes"]
    assert bytes_.measured == count_bytes(found.network).sparse <= bytes_.limit == limit
    losses, costs = [], []
    for (name, own), loss in zip(analysis.choices.items(), analysis.losses, strict=True):
        info = compressible_layers(network, images[:1])[name]
        cost = form_bytes(info, network.get_submodule(name), own.all_forms)
        order = np.lexsort((loss, cost))  # of equal costs and of dearer ones the better
        best = [i for i in order if loss[i] <= loss[order[: list(order).index(i) + 1]].min()]
        losses.append(loss[best])
        costs.append(cost[best])
    total_loss, total_cost = (sum(np.ix_(*parts)) for parts in (losses, costs))
    expected = total_loss[total_cost <= limit].min()
    chosen = sum(float(detail["divergence"]) for detail in found.plan.details.values())
    assert chosen == pytest.approx(expected, rel=2e-3)


LAYERS = {
    "linear": (nn.Linear(12, 8), (5, 12)),
    "conv": (nn.Conv2d(6, 9, 3, bias=False), (2, 6, 5, 5)),
    "grouped": (nn.Conv2d(8, 12, 3, groups=2), (2, 8, 5, 5)),
    "transposed": (nn.ConvTranspose2d(6, 10, 3), (2, 6, 5, 5)),
    "odd": (nn.Conv1d(5, 7, 3), (2, 5, 9)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_prices_in_bytes_are_those_of_built_networks(kind: str) -> None:
    layer, shape = LAYERS[kind]
    network = nn.Sequential(layer)
    info = compressible_layers(network, torch.rand(shape))["0"]
    rows = [(rank, groups, folding, UNMASKED, dtype) for rank in (1, 2, 3) for groups in (1, 2)
            for folding in (0, 1) for dtype in ("", "int8", "int4", "int4/5")
            if (info.in_features // info.groups) % groups == 0 and folding < 2 ** len(info.kernel)]  # fmt: skip
    numbers = (UNMASKED, 1, info.weight_numel // 20, info.weight_numel // 2, info.weight_numel - 1)
    rows += [(0, 1, 0, kept, dtype) for kept in numbers for dtype in ("", "int8", "int4", "int4/5")]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    found = form_bytes(info, layer, Forms(*columns, bias=info.bias))  # type: ignore[call-arg]
    for (rank, groups, folding, kept, dtype), price in zip(rows, found, strict=True):
        factors = {"0": Factors(rank, groups, folding, info.bias)} if rank else {}
        mask = torch.arange(info.weight_numel).reshape(layer.weight.shape) < kept
        plan = Plan(factors, {} if kept == UNMASKED else {"0.weight": mask}, quantized={"0": dtype} if dtype else {})
        assert count_bytes(build(network, plan)).sparse == price


def test_one_criterion_for_all_families() -> None:
    """Small changes of a layer of any kind diverge as predicted; the damping of G makes predictions larger."""
    network, images = trained()
    compressor = made(network, images, points=6, images=96)
    analysis: MixAnalysis = compressor.analysis
    ratios = [
        measured[i] / predicted[i]
        for families in analysis.tried.values()
        for _, predicted, measured in families.values()
        for i in range(len(measured))
        if 1e-7 < measured[i] < 3e-3
    ]
    assert len(ratios) > 12
    middle = float(np.median(ratios))
    assert 0.3 < middle * 2 * len(images) < 1.2  # 1/2 tr(G E C E^T), of which G is a sum over the images
    assert np.mean([middle / 2 < ratio < 2 * middle for ratio in ratios]) > 0.8


@pytest.mark.parametrize("quantity", ["parameters", "flops"])
def test_bits_are_for_bytes_alone(quantity: str) -> None:
    compressor = made(*trained())
    plan = compressor.plan(0.5, quantity)  # type: ignore[arg-type]
    assert not plan.quantized
    assert plan.factors or plan.masks
    assert compress_within(compressor, 0.2, BUDGET, meter(compressor)).plan.quantized


def test_fewer_bits_never_help() -> None:
    network, images = trained()
    analysis: MixAnalysis = made(network, images).analysis
    for own, loss in zip(analysis.choices.values(), analysis.losses, strict=True):
        for family in own.names():
            kind, _, dtype = family.partition(" ")
            if dtype and kind != "whole":
                assert (loss[own.of(family)] > loss[own.of(kind)]).all()


@pytest.mark.parametrize("families", [("lowrank",), ("masked",), ("bits",), ("lowrank", "bits"), ("masked", "bits")])
def test_all_families_are_no_worse_than_some(families: tuple[str, ...]) -> None:
    network, images = trained()
    every, some = (made(network, images, families=f) for f in (("lowrank", "masked", "bits"), families))
    for keep in (0.5, 0.2):
        try:
            found = compress_within(some, keep, BUDGET, meter(some))
        except InfeasibleBudget:
            continue
        best = compress_within(every, keep, BUDGET, meter(every))
        sums = [sum(float(d["divergence"]) for d in made.plan.details.values()) for made in (best, found)]
        assert sums[0] <= sums[1] * 1.002
        kinds = {"lowrank": found.plan.factors, "masked": found.plan.masks, "bits": found.plan.quantized}
        assert not any(chosen for kind, chosen in kinds.items() if kind not in families)


def test_fitting_brings_the_outputs_closer() -> None:
    network, images = trained()
    fitted, plain = (made(network, images, refit=refit) for refit in (True, False))
    for keep in (0.2, 0.1, 0.07):
        close, far = (compress_within(one, keep, BUDGET, meter(one)) for one in (fitted, plain))
        assert close.plan.to_data() == far.plan.to_data()
        assert kl(network, close.network, images) < 0.85 * kl(network, far.network, images)


def test_masks_of_the_state_stay() -> None:
    network, images = trained()
    mask = torch.rand(network[3].weight.shape, generator=generator("mask")) < 0.4
    compressor = made(network, images)
    state = replace(compressor.state, masks={"3.weight": mask})
    masked = Compressor(compressor.method, state, compressor.original, Calibration(images), generator("mix"))
    found = compress_within(masked, 0.15, BUDGET, meter(masked))
    assert not (found.plan.masks["3.weight"] & ~mask).any()
    assert found.amounts["bytes"].measured <= found.amounts["bytes"].limit
    assert not found.network[3].weight[~mask].any()  # type: ignore[index]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"families": ["foo"]}, "families[0]: must be one of lowrank, masked, bits. Got 'foo'."),
        ({"families": []}, "families: must not be empty. Got a list of 0."),
        ({"families": ["masked"], "group_size": 4}, "group_size: has no effect without the family bits."),
    ],
)
def test_each_fault_in_settings_is_told_once(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configure("Mix", settings)
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
