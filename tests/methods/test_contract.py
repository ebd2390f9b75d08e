"""What every method promises, over all methods or one per implementation, several keep ratios and small networks."""

import copy
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError, InfeasibleBudget
from experiment.layers.build import build, expand
from experiment.layers.channels.find_groups import channel_groups
from experiment.layers.channels.group_data import alive_channels, kept_of
from experiment.layers.compressible import compressible_layers, maskable_layers
from experiment.layers.factored_layers import flops, parameters
from experiment.layers.masks import bake_masks, named_masks
from experiment.layers.plan import Plan, State
from experiment.measure import Count, count
from experiment.methods import METHODS
from experiment.methods.base import Budget, Calibration, Compressed, Compressor, Quantity, make_method
from experiment.methods.configure import configure
from experiment.methods.mixed.layer_forms import STEPS
from experiment.random_streams import generator, seeded

pytestmark = pytest.mark.slow

SETTINGS = {  # required ones, and those that do most
    "BlockPrune": {"block_size": (2, 2)},
    "Compose": {"schemes": [{"name": "Prune", "settings": {"density": 1.0}}, {"name": "FT"}]},
    "Mix": {"points": 2, "images": 8, "bits": ("int4",)},  # fewer take less time
    "Quantize": {"dtype": "int4", "group_size": 5, "rounding": "compensated"},  # most code; tests of its own the rest
}
NETWORKS = ("cnn", "residual", "sequences", "mixed")
# one label per target, because presets differ in settings only; ALDS+ has all foldings; Blocks needs other networks
ALL = [*{METHODS[label].target: label for label in reversed(METHODS) if label != "Blocks"}.values(), "ALDS+"]
FIXED = [label for label in ALL if getattr(METHODS[label].settings, "fixed_size", False) is True]
# one label per class that builds and fills networks; two where its code has two branches
IMPLEMENTATIONS = (
    "Reference", "SVD", "ALDS+", "ALDS-K", "KLDS", "RSVD", "PCA", "Tucker", "Messi3", "WT", "Uniform", "SiPPRand",
    "SiPPHybrid", "TorchPrune", "Prune", "BlockPrune", "FT", "ThiNet", "StructurePrune", "PFP (rand)",
    "PFP (partial)", "Compose", "Quantize", "Mix",
)  # fmt: skip
QUANTITIES: tuple[Quantity, ...] = ("parameters", "flops")
KEEPS = (0.9, 0.6, 0.35)
SAMPLED_FILTERS = ("Uniform", "l1", "l2", "(l1+l2)/2")  # masking methods that leave every filter a weight

groups_of = functools.lru_cache(maxsize=8)(channel_groups)

StateOf = Callable[[str], State]
MadeOf = Callable[[str, str], Compressor]
CompressedOf = Callable[[str, str, float, Quantity], Compressed]


def applies(label: str, network: str) -> bool:
    """Whether the network has enough of what a method removes."""
    convolutions = network != "sequences"
    return {"BlockPrune": not convolutions, "NeuronPrune": not convolutions}.get(
        label, convolutions or label not in ("FilterPrune", "Slimming")
    )


def over(labels: tuple[str, ...] | list[str], networks: tuple[str, ...] = NETWORKS) -> pytest.MarkDecorator:
    pairs = [(label, network) for label in labels for network in networks if applies(label, network)]
    return pytest.mark.parametrize(("label", "network"), pairs)


every_label = over(ALL)
every_implementation = over(IMPLEMENTATIONS)
compressing = over([label for label in ALL if METHODS[label].kind != "none" and label not in FIXED])


def compressor(
    label: str, state: State, original: Count | None = None, *, recalibrated: bool = False, **settings: object
) -> Compressor:
    inputs = torch.randn(8, *state.example.shape[1:], generator=generator("test_contract"))
    calibration = Calibration(inputs, torch.zeros(8, dtype=torch.int64))
    original = original or count(state.network, state.example)
    spec = configure(label, {**SETTINGS.get(label, {}), **settings})
    method = make_method(spec.entry, spec.settings)
    return Compressor(method, state, original, calibration, generator("test_contract", 1), recalibrated=recalibrated)


@pytest.fixture(scope="module")
def made_of(state_of: StateOf) -> MadeOf:
    """The compressor of a label and network, analysed once for all tests."""
    return functools.cache(lambda label, network: compressor(label, state_of(network)))


@pytest.fixture(scope="module")
def compressed_of(made_of: MadeOf) -> CompressedOf:
    """The same compressor's network at a keep ratio; tests must not change it."""
    return functools.cache(lambda label, network, keep, quantity: shrink(made_of(label, network), keep, quantity))


def shrink(made: Compressor, keep: float, quantity: Quantity = "parameters") -> Compressed:
    """The network at a keep ratio, or the smallest one where a method's order does not reach so low."""
    try:
        return made.compress(keep, quantity)
    except InfeasibleBudget as error:
        assert keep < 0.5  # what a method must be able to do with these networks
        return made.compress(error.smallest / error.original, quantity)


def achieved(counted: Count, quantity: Quantity) -> int:
    return counted.parameters if quantity == "parameters" else counted.flops_unmasked


def tensors(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@every_label
def test_seed_alone_decides_and_the_input_network_is_unchanged(
    label: str, network: str, state_of: StateOf, made_of: MadeOf, compressed_of: CompressedOf
) -> None:
    """A network in training mode, compressed to one keep ratio, gives what one in eval mode gives after two others."""
    fresh = state_of(network)
    training = State(copy.deepcopy(fresh.network).train(), fresh.example)
    alone = shrink(compressor(label, training), KEEPS[-1])
    *_, last = (compressed_of(label, network, keep, "parameters") for keep in KEEPS)
    assert alone.plan.to_data() == last.plan.to_data()
    assert same(tensors(alone.network), tensors(last.network))
    assert not any(m.training for m in alone.network.modules())
    with torch.no_grad():
        for parameter in alone.network.parameters():
            parameter.add_(1)
    for used, mode in ((training.network, True), (made_of(label, network).state.network, False)):
        assert same(tensors(used), tensors(fresh.network))
        assert all(m.training is mode for m in used.modules())
        assert not named_masks(used)


@pytest.mark.parametrize("quantity", QUANTITIES)
@compressing
def test_planned_is_counted_and_uses_the_budget_up_to_one_step(
    label: str, network: str, quantity: Quantity, made_of: MadeOf, compressed_of: CompressedOf
) -> None:
    """One weight, rank or channel more, of the largest ones that there are, and the network exceeds the budget."""
    made = made_of(label, network)
    for keep in KEEPS:
        compressed = compressed_of(label, network, keep, quantity)
        used, limit = achieved(compressed.count, quantity), int(keep * achieved(made.original, quantity))
        assert compressed.plan.parameters == compressed.count.parameters
        if keep == KEEPS[-1]:  # may be refused; the smallest budgets have a test of their own
            continue
        assert used <= limit
        if label in (*SAMPLED_FILTERS, "Messi3"):  # steps of one weight in many filters, or of one subspace
            larger = [achieved(made.compress(keep * (1 + k / 50), quantity).count, quantity) for k in range(1, 6)]
            assert larger[-1] > used
            assert all(size == used or size > limit for size in larger)
        else:
            assert limit < used + largest_step(label, made, compressed, quantity)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("scheme", ["FT", "PFP", "PFP (partial)", "Global Filters", "Slimming", "StructurePrune"])
def test_budget_is_used_up_after_masks(scheme: str, quantity: Quantity, state_of: Callable[[str], State]) -> None:
    """Weights that are masked before channels go are not paid for."""
    schemes = [{"name": "Prune", "settings": {"density": 0.3}}, {"name": scheme}]
    made = compressor("Compose", state_of("mixed"), schemes=schemes)
    whole = achieved(made.compress(1.0, quantity).count, quantity)
    assert whole < 0.6 * achieved(made.original, quantity)
    compressed = compress_within(made, limit := int(0.7 * whole), quantity)
    used = achieved(compressed.count, quantity)
    assert used <= limit < used + largest_step(scheme, made, compressed, quantity)


class Products(nn.Module):
    """Channels that are dimensions of products of activations: one of them, or both, beside a product of others."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(8, 16)
        self.mix, self.fc = nn.Linear(16, 14), nn.Linear(14, 5)
        self.table = nn.Parameter(torch.ones(9, 9))

    def forward(self, x: Tensor) -> Tensor:
        x = self.table @ x
        y = torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x)
        y = torch.relu(self.mix(y))
        return self.fc(y * (y.mT @ y).sum((1, 2), keepdim=True)).mean(1)


@pytest.mark.parametrize("scheme", ["FT", "Global Filters"])
def test_budget_pays_for_products_that_shrink_with_channels(scheme: str) -> None:
    with seeded("test_contract", "products"):
        state = State(Products().eval(), torch.rand(1, 9, 8))
    made = compressor(scheme, state)
    assert made.original.flops - made.original.other_flops == 9 * (12 * 8 * 2 + 16 * 8 + 16 * 14 + 14 * 5)
    assert made.original.products == (81 * 8, 81 * 12, 81 * 16, 9 * 14 * 14)
    for keep in (0.9, 0.6, 0.35):
        compressed = made.compress(keep, "flops")
        used, limit = compressed.count.flops, int(keep * made.original.flops)
        assert compressed.count.other_flops < made.original.other_flops
        assert used <= limit < used + largest_step(scheme, made, compressed, "flops")


def largest_step(label: str, made: Compressor, compressed: Compressed, quantity: Quantity) -> int:
    """By how much the network grows by the smallest thing that a method can add, where that costs most."""
    state, plan, size = made.state, compressed.plan, achieved(compressed.count, quantity)
    kind = "filter" if label == "Compose" else METHODS[label].kind
    if kind == "weight":
        weights = {name: layer.flops for name, layer in made.original.layers.items()}
        uses = [f // state.network.get_submodule(name).get_parameter("weight").numel() for name, f in weights.items()]
        return (max(uses) if quantity == "flops" else 1) * (4 if label == "BlockPrune" else 1)
    larger = channels_more(state, plan)
    if kind in ("lowrank", "mixed"):
        larger = chain(ranks_more(state, plan), weights_more(plan))
    return max(achieved(count(build(state.network, p), state.example), quantity) for p in larger) - size


def ranks_more(state: State, plan: Plan) -> Iterator[Plan]:
    """Of one layer after the other one rank more, or where that makes it no smaller, the layer itself."""
    layers = compressible_layers(state.network, state.example)
    for name, factors in plan.factors.items():
        layer = name if name in layers else name.removesuffix(".encoder")
        others = {n: f for n, f in plan.factors.items() if n not in (layer, f"{layer}.encoder")}
        if f"{layer}.encoder" in plan.factors:
            more = {**plan.factors, name: replace(factors, rank=factors.rank + 1)}
            wider, whole = (replace(plan, factors=f) for f in (more, others))
            a, b = (count(build(state.network, p), state.example) for p in (wider, whole))
            yield wider if a.parameters < b.parameters and a.flops_unmasked <= b.flops_unmasked else whole
            continue
        rank, info = factors.rank + 1, layers[name]
        cost = parameters(info, rank, factors.groups, factors.folding)
        work = flops(info, rank, factors.groups, factors.folding)
        smaller = cost < info.weight_numel and work <= info.weight_numel * info.positions
        yield replace(plan, factors={**others, name: replace(factors, rank=rank)} if smaller else others)


def weights_more(plan: Plan) -> Iterator[Plan]:
    """Of one masked weight after the other a share of it more."""
    for name, mask in plan.masks.items():
        gone = (~mask).flatten().nonzero().flatten()[: mask.numel() // STEPS + 1]
        more = mask.flatten().index_fill(0, gone, True)
        yield replace(plan, masks={**plan.masks, name: more.reshape(mask.shape)})


def channels_more(state: State, plan: Plan) -> Iterator[Plan]:
    """Of one group after the other one channel more: the first that is gone, the last, and one between them."""
    groups = groups_of(state.network, state.example)
    alive = alive_channels(groups, plan.kept)
    for g, group in enumerate(groups):
        gone = sorted(set(range(group.size)) - set(alive[g]))
        for channel in {*gone[:1], *gone[len(gone) // 2 :][:1], *gone[-1:]}:
            chosen = [(*a, channel) if i == g else a for i, a in enumerate(alive)]
            yield replace(plan, kept=kept_of(groups, chosen))


@pytest.mark.parametrize("quantity", QUANTITIES)
@compressing
def test_less_budget_gives_less_network(
    label: str, network: str, quantity: Quantity, compressed_of: CompressedOf
) -> None:
    sizes = [achieved(compressed_of(label, network, keep, quantity).count, quantity) for keep in (1.0, *KEEPS)]
    assert sizes == sorted(set(sizes), reverse=True)


@over([name for name, e in METHODS.items() if "density" in {f.name for f in fields(e.settings)}])
def test_a_size_of_its_own_is_the_same_under_every_budget_that_it_fits(
    label: str, network: str, state_of: StateOf
) -> None:
    made = compressor(label, state_of(network), density=0.5)
    size = made.compress(1.0).count
    assert made.compress(size.parameters / made.original.parameters).count == size
    assert made.compress(1.0, "flops").count == size
    for quantity in QUANTITIES:
        with pytest.raises(InfeasibleBudget) as caught:
            made.compress((achieved(size, quantity) - 1) / achieved(made.original, quantity), quantity)
        assert caught.value.smallest == achieved(size, quantity)


@every_label
def test_outputs_have_the_same_shape_and_are_finite(
    label: str, network: str, state_of: StateOf, compressed_of: CompressedOf
) -> None:
    state = state_of(network)
    batch = torch.cat([state.example, -state.example])
    expected = state.network(batch)
    for keep in KEEPS:
        output = compressed_of(label, network, keep, "parameters").network(batch)
        assert output.shape == expected.shape
        assert torch.isfinite(output).all()


@every_implementation
def test_plan_and_state_dict_rebuild_the_network(
    label: str, network: str, state_of: StateOf, compressed_of: CompressedOf
) -> None:
    state = state_of(network)
    for keep in KEEPS[::2]:
        compressed = compressed_of(label, network, keep, "parameters")
        data = json.loads(json.dumps(compressed.plan.to_data()))
        rebuilt = build(state.network, Plan.from_data(data, state.network)).eval()
        rebuilt.load_state_dict(compressed.network.state_dict())
        assert torch.equal(rebuilt(state.example), compressed.network(state.example))
        assert count(rebuilt, state.example) == compressed.count


@every_implementation
def test_training_keeps_the_structure(label: str, network: str, state_of: StateOf) -> None:
    state = state_of(network)
    compressed = compressor(label, state).compress(0.5)
    trained = compressed.network.train()
    before = {name: mask.clone() for name, mask in named_masks(trained).items()}
    weights = {name: tensor.clone() for name, tensor in trained.named_parameters()}
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        trained(torch.cat([state.example, -state.example])).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and torch.isfinite(p).all() for p in trained.parameters())
    assert all(not torch.equal(p, weights[name]) for name, p in trained.named_parameters())  # everything trains
    plain = bake_masks(trained)
    for name, mask in named_masks(trained).items():
        assert torch.equal(mask, before[name])
        assert not plain.get_parameter(name)[~mask].any()
    assert count(trained, state.example) == compressed.count


@pytest.mark.parametrize("quantity", QUANTITIES)
@over([label for label in ALL if label not in FIXED])
def test_keeping_everything_changes_nothing(
    label: str, network: str, quantity: Quantity, state_of: StateOf, made_of: MadeOf, compressed_of: CompressedOf
) -> None:
    made, whole = made_of(label, network), tensors(state_of(network).network)
    compressed = compressed_of(label, network, 1.0, quantity)
    assert same(tensors(compressed.network), whole)
    assert compressed.count == made.original
    limit = 10 * achieved(made.original, quantity)
    plan = made.method.plan(made.analysis, Budget(quantity, limit, achieved(made.original, quantity)))
    assert same(tensors(made.instantiate(plan)), whole)


@every_implementation
def test_expanded_network_computes_the_same(
    label: str, network: str, state_of: StateOf, compressed_of: CompressedOf
) -> None:
    state = state_of(network)
    for keep in KEEPS[::2]:
        compressed = compressed_of(label, network, keep, "parameters")
        expanded = expand(compressed.network, state.network, compressed.plan, state.example)
        gained = {f"{name}.bias" for name in expanded.biases}  # some factors have a bias where the layer had none
        assert tensors(expanded.network).keys() == tensors(state.network).keys() | gained
        expected = compressed.network(state.example)
        torch.testing.assert_close(expanded.network(state.example), expected, rtol=1e-4, atol=1e-4)


@over([label for label in ALL if METHODS[label].kind != "none" and label not in FIXED], NETWORKS[1:])
def test_cascade_goes_on_from_what_is_left(
    label: str, network: str, state_of: StateOf, made_of: MadeOf, compressed_of: CompressedOf
) -> None:
    state, made = state_of(network), made_of(label, network)
    quantity: Quantity = "parameters" if network == "residual" else "flops"
    first = compressed_of(label, network, 0.6, quantity)
    middle = expand(first.network, state.network, first.plan, state.example)
    second = compressor(label, middle, made.original).compress(0.5, quantity)
    assert achieved(second.count, quantity) <= 0.5 * achieved(made.original, quantity)
    end = expand(second.network, state.network, second.plan, state.example)
    for name, mask in middle.masks.items():
        assert not (end.masks[name] & ~mask).any()
    for name, kept in middle.kept.items():
        for before, after in ((kept.out, end.kept[name].out), (kept.inputs, end.kept[name].inputs)):
            assert before is None or (after is not None and set(after) <= set(before))


@every_implementation
def test_rewinding_fills_the_plan_from_other_weights(
    label: str, network: str, state_of: StateOf, made_of: MadeOf, compressed_of: CompressedOf
) -> None:
    """The plan is that of the analysed state, the weights are the other state's, as if they had been analysed."""
    made, compressed = made_of(label, network), compressed_of(label, network, 0.6, "parameters")
    state = made.state
    other = state_of(network)
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.mul_(2)
    rewound = made.instantiate(compressed.plan, other)
    assert count(rewound, state.example) == compressed.count
    if label in ("ThiNet", "Quantize", "Mix"):  # these follow the other state's responses, not twice these ones
        expected = compressor(label, other).instantiate(compressed.plan)
        assert same(tensors(rewound), tensors(expected))
        return
    doubled = expand(rewound, state.network, compressed.plan, state.example).network
    unscaled = made.instantiate(replace(compressed.plan, scales={}))  # factors are of the analysed weights alone
    single = expand(unscaled, state.network, compressed.plan, state.example).network
    for name, parameter in single.named_parameters():
        torch.testing.assert_close(doubled.get_parameter(name), 2 * parameter, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantity", QUANTITIES)
@compressing
def test_impossible_budget_names_the_smallest_possible_one(
    label: str, network: str, quantity: Quantity, made_of: MadeOf
) -> None:
    made = made_of(label, network)
    state = made.state
    all_may_go = METHODS[label].kind == "weight" and label not in SAMPLED_FILTERS
    masked = maskable_layers(state.network, state.example)
    rest = made.original.flops - sum(made.original.layers[name].flops for name in masked)
    if all_may_go and quantity == "flops" and not rest:  # with all weights masked nothing is left to multiply
        assert compress_to(made, 0, quantity) == 0
        return
    with pytest.raises(InfeasibleBudget) as caught:
        made.compress(1e-5, quantity)
    smallest, total = caught.value.smallest, achieved(made.original, quantity)
    assert (caught.value.original, caught.value.quantity) == (total, quantity)
    assert compress_to(made, smallest, quantity) == smallest
    with pytest.raises(InfeasibleBudget):
        compress_to(made, smallest - 1, quantity)


def compress_to(made: Compressor, limit: int, quantity: Quantity) -> int:
    return achieved(compress_within(made, limit, quantity).count, quantity)


def compress_within(made: Compressor, limit: int, quantity: Quantity) -> Compressed:
    plan = made.method.plan(made.analysis, Budget(quantity, limit, achieved(made.original, quantity)))
    network = made.instantiate(plan)
    return Compressed(network, plan, count(network, made.state.example))


@over(IMPLEMENTATIONS, ("residual", "mixed"))
def test_recalibration_keeps_the_counts_and_changes_batch_norm_statistics_alone(
    label: str, network: str, state_of: StateOf, made_of: MadeOf
) -> None:
    state = state_of(network)
    statistics = {
        f"{name}.{what}"
        for name, module in state.network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for what in ("running_mean", "running_var")
    }
    plain = shrink(made_of(label, network), 0.1)
    made = shrink(compressor(label, state, recalibrated=True), 0.1)
    assert made.count == plain.count
    assert made.plan.to_data() == plain.plan.to_data()
    before, after = tensors(plain.network), tensors(made.network)
    assert before.keys() == after.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed <= statistics
    assert bool(changed) == (METHODS[label].kind != "none")


def test_recalibration_without_batch_norm_is_refused(state_of: StateOf) -> None:
    with pytest.raises(CompressionError, match="recalibrate has no effect"):
        compressor("SVD", state_of("sequences"), recalibrated=True)


@compressing
def test_layers_of_the_plan_are_told(label: str, network: str, state_of: StateOf, compressed_of: CompressedOf) -> None:
    details = compressed_of(label, network, 0.6, "parameters").plan.details
    modules = dict(state_of(network).network.named_modules())
    assert details
    assert all(isinstance(modules[name], nn.Conv2d | nn.Linear | nn.ConvTranspose2d) for name in details)
    assert len({tuple(detail) for detail in details.values()}) == 1  # the same columns in every row
