"""Building from plans and expanding back: every part of a plan alone, and channels, factors and masks together."""

import copy

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.build import build, expand, slice_mask, sliced_copy, unslice_mask, write_whole
from experiment.layers.factored_layers import fold, write_factors
from experiment.layers.masks import named_masks
from experiment.layers.plan import Factors, Kept, Plan
from experiment.measure import count
from experiment.random_streams import generator, seeded

EXAMPLE = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)


def chain() -> nn.Sequential:
    """Two convolutions with BatchNorm, and a readout; statistics and affine maps are not the trivial ones."""
    with seeded("test_build"):
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2),
            nn.ReLU(), nn.Flatten(), nn.Linear(72, 10),
        )  # fmt: skip
        norm = network[1]
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


KEPT = {"0": Kept(out=(0, 2, 3, 5)), "1": Kept(out=(0, 2, 3, 5)), "3": Kept(inputs=(0, 2, 3, 5))}


def mask_of(network: nn.Module, name: str) -> Tensor:
    shape = network.get_parameter(name).shape
    return torch.rand(shape, generator=generator("test_build", name)) < 0.5


def plans(network: nn.Module) -> dict[str, Plan]:
    masks = {name: mask_of(network, name) for name in ("0.weight", "6.weight")}
    factors = {"3": Factors(2, 2, 0, True), "6": Factors(3, 4, 0, True)}
    return {
        "nothing": Plan(),
        "factors": Plan(factors=factors),
        "masks": Plan(masks=masks),
        "channels": Plan(kept=KEPT),
        "channels and factors": Plan(factors=factors, kept=KEPT),
        "channels and masks": Plan(masks=masks, kept=KEPT),
        "all": Plan(factors={"3": factors["3"]}, masks=masks, kept=KEPT),
        "masked and sliced in both directions": Plan(masks={"3.weight": mask_of(network, "3.weight")}, kept=KEPT),
    }


CASES = list(plans(chain()))


def filled(network: nn.Module, plan: Plan) -> nn.Module:
    """Built, with the network's weights and random factors."""
    built = build(network, plan)
    write_whole(built, network, plan)
    sliced = sliced_copy(network, plan.kept)
    for seed, (name, factors) in enumerate(plan.factors.items()):
        rows, columns = fold(sliced.get_submodule(name).weight, factors.groups).shape[1:]
        stream = generator("test_build", "factors", seed)
        U = torch.randn(factors.groups, rows, factors.rank, generator=stream)
        V = torch.randn(factors.groups, factors.rank, columns, generator=stream)
        write_factors(built.get_submodule(name), U, V)
    return built.eval()


def tensors(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
def test_original_is_left_alone(case: str) -> None:
    network = chain()
    before, modules = tensors(network), dict(network.named_modules())
    with torch.no_grad():
        for parameter in filled(network, plans(network)[case]).parameters():
            parameter.fill_(7)  # a tensor that were shared would show
    assert modules.keys() == dict(network.named_modules()).keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("case", CASES)
def test_expanded_network_computes_the_same(case: str) -> None:
    network = chain()
    plan = plans(network)[case]
    compressed = filled(network, plan)
    state = expand(compressed, network, plan, EXAMPLE)
    torch.testing.assert_close(state.network(EXAMPLE), compressed(EXAMPLE))
    assert tensors(state.network).keys() == tensors(network).keys()
    assert (dict(state.masks), dict(state.kept)) == (dict(plan.masks), dict(plan.kept))
    assert not state.network.training


@pytest.mark.parametrize("case", CASES)
def test_expanding_and_filling_again_changes_nothing(case: str) -> None:
    network = chain()
    plan = plans(network)[case]
    compressed = filled(network, plan)
    state = expand(compressed, network, plan, EXAMPLE)
    again = build(state.network, plan)
    write_whole(again, state.network, plan)
    for name in plan.factors:  # what write_whole leaves to the method
        again.get_submodule(name).load_state_dict(compressed.get_submodule(name).state_dict())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in compressed.state_dict().items())


@pytest.mark.parametrize("case", CASES)
def test_structure_on_meta_takes_the_state_dict(case: str) -> None:
    network = chain()
    plan = plans(network)[case]
    compressed = filled(network, plan)
    rebuilt = build(copy.deepcopy(network).to("meta"), Plan.from_data(plan.to_data(), network))
    assert {p.device.type for p in rebuilt.parameters()} == {"meta"}
    rebuilt.load_state_dict(compressed.state_dict(), assign=True)
    assert torch.equal(rebuilt(EXAMPLE), compressed(EXAMPLE))


def test_trained_values_survive_in_whole_layers_and_biases() -> None:
    network = chain()
    plan = plans(network)["factors"]
    compressed = filled(network, plan)
    with torch.no_grad():
        for tensor in (*compressed.parameters(), *compressed[1].buffers()):
            tensor.add_(1)
    state = expand(compressed, network, plan, EXAMPLE)
    assert torch.equal(state.network[0].weight, network[0].weight + 1)
    assert torch.equal(state.network[3].bias, network[3].bias + 1)
    assert torch.equal(state.network[1].running_mean, network[1].running_mean + 1)
    assert torch.equal(state.network[1].num_batches_tracked, network[1].num_batches_tracked + 1)


def test_sizes_of_all_parts_together() -> None:
    network = chain()
    plan = plans(network)["all"]
    built = build(network, plan)
    masked = sum(int((~mask).sum()) for mask in named_masks(built).values())
    expected = (4 * 3 * 9 + 4) + 8 + 2 * (2 * 8 + 4 * 9) + 8 + (72 * 10 + 10) - masked
    assert count(built, EXAMPLE).parameters == expected
    assert named_masks(built)["0.weight"].shape == (4, 3, 3, 3)


@pytest.mark.parametrize("case", CASES)
def test_what_is_made_of_channels_last_layers_is_channels_last(case: str) -> None:
    network, last = chain(), chain()
    last[3].to(memory_format=torch.channels_last)
    plain, made = filled(network, plans(network)[case]), filled(last, plans(last)[case])
    assert same_values(plain, made)
    found = {name: parameter for name, parameter in made.named_parameters() if parameter.dim() == 4}
    assert all(p.is_contiguous(memory_format=torch.channels_last) for n, p in found.items() if n.startswith("3."))
    assert all(p.is_contiguous() for n, p in found.items() if n.startswith("0."))


def same_values(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_removed_channels_come_back_as_zeros() -> None:
    network = chain()
    plan = Plan(kept=KEPT)
    state = expand(filled(network, plan), network, plan, EXAMPLE)
    for tensor in (state.network[0].weight, state.network[0].bias, state.network[1].weight, state.network[1].bias):
        assert not tensor[[1, 4]].any()
        assert tensor[[0, 2, 3, 5]].any()


def test_masks_are_sliced_and_put_back() -> None:
    mask = torch.arange(24).reshape(4, 6) % 5 > 0
    kept = {"a": Kept(out=(1, 3), inputs=(0, 2, 5))}
    sliced = slice_mask(mask, kept, "a.weight")
    assert torch.equal(sliced, mask[[1, 3]][:, [0, 2, 5]])
    assert torch.equal(slice_mask(mask[:, 0], kept, "a.bias"), mask[[1, 3], 0])
    whole = unslice_mask(sliced, mask.shape, kept, "a.weight")
    inside = torch.zeros_like(mask)
    inside[[1, 1, 1, 3, 3, 3], [0, 2, 5, 0, 2, 5]] = True
    assert torch.equal(whole, mask & inside)
    assert slice_mask(mask, kept, "b.weight") is mask


def test_layer_that_stands_under_two_names() -> None:
    shared = nn.Linear(8, 8)
    network = nn.ModuleDict({"first": shared, "second": nn.Sequential(shared, nn.ReLU())})
    built = build(network, Plan(factors={"first": Factors(2, 1, 0, True)}))
    assert built["first"] is built["second"][0]
    assert isinstance(built["first"], nn.Sequential)


def test_network_that_is_one_layer() -> None:
    network, x = nn.Linear(12, 9), torch.ones(1, 12)
    plan = Plan(factors={"": Factors(2, 3, 0, True)})
    compressed = filled(network, plan)
    state = expand(compressed, network, plan, x)
    torch.testing.assert_close(state.network(x), compressed(x))
    masked = build(network, Plan(masks={"weight": mask_of(network, "weight")}))
    assert list(named_masks(masked)) == ["weight"]


def test_torch_transformer_layer_keeps_working_in_eval_mode() -> None:
    """Its fast path reads `linear1.weight` directly, which factors do not have."""
    network = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16, generator=generator("test_build"))
    plan = Plan(factors={"linear1": Factors(16, 1, 0, True)}, unfused={"": "switch"})
    compressed = build(network, plan)
    U, S, Vh = torch.linalg.svd(network.linear1.weight.detach(), full_matrices=False)
    write_factors(compressed.linear1, (U * S)[None], Vh[None])
    write_whole(compressed, network, plan)
    with torch.no_grad():
        torch.testing.assert_close(compressed.eval()(x), network(x), rtol=1e-4, atol=1e-5)


def test_plan_of_another_network_is_refused() -> None:
    for plan in (Plan(factors={"9": Factors(1)}), Plan(kept={"x.y": Kept((0,))}), Plan(masks={"z.weight": mask()})):
        with pytest.raises(CompressionError, match="belongs to another network"):
            build(chain(), plan)


def test_layer_is_masked_or_factored_not_both() -> None:
    plan = Plan(factors={"6": Factors(1)}, masks={"6.weight": torch.ones(10, 72, dtype=torch.bool)})
    with pytest.raises(CompressionError, match=r"6\.weight: a layer cannot be both masked and decomposed"):
        build(chain(), plan)


def mask() -> Tensor:
    return torch.ones(1, dtype=torch.bool)
