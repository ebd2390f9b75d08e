"""What torch.nn.utils.prune leaves, read and written: the same outputs on both sides."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from experiment.errors import CompressionError
from experiment.layers.masks import named_masks
from experiment.layers.prepare_network import plain_copy
from experiment.layers.quantized_weights import add_quantized
from experiment.layers.torch_prune_state import load_pruned_state, pruned_state
from experiment.measure import count
from experiment.networks.lenet import lenet5_small
from experiment.random_streams import generator, seeded

X = torch.randn(5, 1, 28, 28, generator=generator("test_pruned_state"))


def lenet() -> nn.Module:
    """6-16-120-84-10, as in torch's tutorial on pruning."""
    with seeded("test_pruned_state"):
        return lenet5_small((1, 28, 28), 10).eval()


def pruned() -> nn.Module:
    """20 % of all weights by global magnitude, and half of one bias; what is masked moves on unseen, as in training."""
    network = lenet()
    pairs = [(m, "weight") for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=0.2)
    prune.l1_unstructured(network.get_submodule("fc1"), "bias", amount=0.5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("weight_orig"):
                parameter.add_(0.01)
    network(X)  # which is when torch computes the weights
    return network


def test_the_lecture_network_is_there() -> None:
    counted = count(lenet(), X[:1])
    shapes = [tuple(p.shape) for n, p in lenet().named_parameters() if n.endswith("weight")]
    assert shapes == [(6, 1, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]
    assert counted.parameters == 61_706


def test_a_pruned_network_comes_in() -> None:
    theirs, network = pruned(), lenet()
    ours = load_pruned_state(network, theirs.state_dict())
    torch.testing.assert_close(ours(X), theirs(X), rtol=0, atol=0)
    masks = {n.removesuffix("_mask"): m.bool() for n, m in theirs.named_buffers()}
    assert named_masks(ours).keys() == masks.keys()
    assert all(torch.equal(named_masks(ours)[name], mask) for name, mask in masks.items())
    assert count(ours, X[:1]).parameters == 61_706 - round(0.2 * 61_470) - 60
    assert all(torch.equal(tensor, lenet().state_dict()[name]) for name, tensor in network.state_dict().items())


def test_a_masked_network_goes_out() -> None:
    theirs = pruned()
    ours = load_pruned_state(lenet(), theirs.state_dict())
    state = pruned_state(ours)
    assert state.keys() == theirs.state_dict().keys()
    other = pruned()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(state)
    other(X)
    assert torch.equal(other(X), ours(X))
    assert torch.equal(load_pruned_state(lenet(), state)(X), ours(X))


def test_a_quantized_network_goes_out_rounded() -> None:
    ours = load_pruned_state(lenet(), pruned().state_dict())
    add_quantized(ours, {"fc1": "int8"})
    assert torch.equal(load_pruned_state(lenet(), pruned_state(ours))(X), ours(X))


def test_a_plain_state_dict_is_one_without_masks() -> None:
    assert torch.equal(load_pruned_state(lenet(), lenet().state_dict())(X), lenet()(X))
    assert pruned_state(lenet()).keys() == lenet().state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"fc1.weight_mask": torch.full((120, 400), 0.5)}, r"fc1\.weight_mask: expected a mask"),
        ({"fc1.weight_mask": torch.ones(3)}, r"fc1\.weight_mask: expected a mask"),
        ({"fc1.weight_orig": None}, "not fit this network.*fc1.weight"),
        ({"fc4.weight": torch.ones(3)}, "not fit this network.*fc4.weight"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Tensor | None], match: str) -> None:
    state: dict[str, Tensor | None] = dict(pruned().state_dict()) | changes
    with pytest.raises(CompressionError, match=f"(?s){match}"):
        load_pruned_state(lenet(), {name: tensor for name, tensor in state.items() if tensor is not None})


class _Caching(nn.Linear):
    """Keeps what it has computed, as torchvision's RAFT does."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = [super().forward(x)]
        return self.seen[0]


def test_networks_that_keep_what_they_computed_are_copied() -> None:
    network, x = nn.Sequential(_Caching(4, 3)), torch.ones(2, 4)
    y = network(x)
    torch.testing.assert_close(load_pruned_state(network, pruned_state(network))(x), y)
    torch.testing.assert_close(plain_copy(network)(x), y)
