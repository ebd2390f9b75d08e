"""SNIP: the scores against one gradient at a time, in one pass, and what it must be given."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.masks import named_masks
from experiment.layers.plan import Kept, State
from experiment.measure import count
from experiment.methods.base import Calibration, Compressor
from experiment.methods.data import fisher
from experiment.methods.data.fisher import SAMPLES
from experiment.methods.masks.gradients import _Gradients, snip
from experiment.methods.masks.settings import WeightSettings
from experiment.methods.starting_state import Start, start_of
from experiment.random_streams import generator

NUM = 2 * SAMPLES + 5  # the last batch is a part of one


def data(state: State, num: int = NUM, classes: int = 10) -> Calibration:
    inputs = torch.randn(num, *state.example.shape[1:], generator=generator("test_snip"))
    return Calibration(inputs, torch.randint(classes, (num,), generator=generator("test_snip", 1)))


def sensitivities(start: Start, calibration: Calibration | None) -> dict[str, Tensor]:
    return _Gradients(start, calibration, "SNIP").sums(lambda weight, grad: weight * grad, torch.abs)


def one_at_a_time(state: State, calibration: Calibration) -> dict[str, Tensor]:
    """|mean of w dL/dw| over samples, each on its own, in double precision."""
    network = nn.ModuleList([state.network]).double()[0].eval()
    sums: dict[str, Tensor] = {}
    for x, y in zip(calibration.inputs.double(), calibration.targets, strict=True):
        network.zero_grad()
        outputs = network(x[None])
        outputs = outputs.reshape(-1, outputs.shape[-1])
        nn.functional.cross_entropy(outputs, y.expand(len(outputs))).backward()
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                key = f"{name}.weight" if name else "weight"
                sums[key] = sums.get(key, 0) + module.weight.grad * module.weight.detach()
    return {name: (total / len(calibration.inputs)).abs() for name, total in sums.items()}


def test_scores_are_the_mean_of_signed_products(state: State) -> None:
    calibration = data(state, classes=6)
    scores = sensitivities(start_of(state), calibration)
    expected = one_at_a_time(state, calibration)
    assert scores.keys() == expected.keys()
    for name, score in scores.items():
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, expected[name].float(), rtol=1e-3, atol=1e-6)


def test_passes_that_keep_little_give_the_same_scores(
    state_of: Callable[[str], State], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = state_of("residual")
    whole, sizes = sensitivities(start_of(state), data(state)), list[int]()
    monkeypatch.setattr(fisher, "ACTIVATIONS", 2**18)
    state.network.register_forward_hook(lambda module, inputs, _: sizes.append(len(inputs[0])))
    parts = sensitivities(start_of(state), data(state))
    assert 1 <= max(sizes) < SAMPLES
    for name, score in whole.items():
        torch.testing.assert_close(parts[name], score, rtol=1e-3, atol=1e-6)


def test_signs_cancel_before_the_absolute_value() -> None:
    """Two samples that pull one weight in opposite directions: score 0; on its own the second pulls."""
    network = nn.Linear(1, 2, bias=False)
    nn.init.constant_(network.weight, 1.0)
    state = State(network.eval(), torch.zeros(1, 1))
    both = Calibration(torch.ones(2, 1), torch.tensor([0, 1]))
    assert sensitivities(start_of(state), both)["weight"].flatten().tolist() == pytest.approx([0, 0], abs=1e-7)
    alone = Calibration(torch.ones(1, 1), torch.tensor([1]))
    assert sensitivities(start_of(state), alone)["weight"].flatten().tolist() == pytest.approx([0.5, 0.5])


def test_the_largest_scores_of_the_network_stay(state_of: Callable[[str], State]) -> None:
    state = state_of("cnn")
    calibration = data(state)
    scores = sensitivities(start_of(state), calibration)
    made = Compressor(snip(WeightSettings()), state, count(state.network, state.example), calibration, generator("x"))
    compressed = made.compress(0.4)
    assert compressed.count.parameters == int(0.4 * made.original.parameters)
    masks = named_masks(compressed.network)
    kept = torch.cat([scores[name][mask] for name, mask in masks.items()])
    gone = torch.cat([scores[name][~mask] for name, mask in masks.items()])
    assert masks.keys() == scores.keys()
    assert kept.min() >= gone.max()


def test_one_pass_for_all_layers_in_eval_mode(state_of: Callable[[str], State]) -> None:
    state = state_of("residual")
    state.network.train()
    seen: list[tuple[int, bool]] = []
    state.network.stem.register_forward_hook(lambda module, inputs, _: seen.append((len(inputs[0]), module.training)))
    start = start_of(state)
    seen.clear()
    before = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
    sensitivities(start, data(state))
    assert seen == [(1, False), (SAMPLES, False), (SAMPLES, False), (5, False)]  # the first to see what it keeps
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in state.network.parameters())


def test_masked_weights_count_as_zero_and_cut_channels_as_gone(state_of: Callable[[str], State]) -> None:
    state = state_of("cnn")
    mask = torch.rand(12, 8, 3, 3, generator=generator("mask")) < 0.5
    kept = {"0": Kept(out=(1, 2, 5)), "1": Kept(out=(1, 2, 5)), "4": Kept(inputs=(1, 2, 5))}
    clean = State(state.network, state.example, {"4.weight": mask}, kept)
    with torch.no_grad():
        reference = sensitivities(start_of(clean), data(state))
        state.network[4].weight[~mask] = 1000
        scores = sensitivities(start_of(clean), data(state))
    assert scores["4.weight"].shape == (12, 3, 3, 3)
    assert not scores["4.weight"][~mask[:, [1, 2, 5]]].any()
    assert all(torch.equal(score, reference[name]) for name, score in scores.items())


def test_a_layer_that_the_loss_does_not_depend_on_scores_zero() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.idle(x)
            return self.used(x)

    state = State(Idle().eval(), torch.zeros(1, 4))
    scores = sensitivities(start_of(state), data(state, classes=3))
    assert scores["used.weight"].any()
    assert not scores["idle.weight"].any()


def test_one_target_a_position() -> None:
    """As for segmentation: classes in the second of four dimensions, targets on the grid."""
    state = State(nn.Conv2d(2, 3, 1, bias=False).eval(), torch.zeros(1, 2, 4, 5))
    inputs = torch.randn(6, 2, 4, 5, generator=generator("x"))
    targets = torch.randint(3, (6, 4, 5), generator=generator("y"))
    targets[1, 2:] = -100  # ignored, as torch's losses ignore it
    weight = state.network.weight
    nn.functional.cross_entropy(state.network(inputs), targets).backward()
    expected = (weight.grad * weight.detach()).abs()
    torch.testing.assert_close(sensitivities(start_of(state), Calibration(inputs, targets))["weight"], expected)


BAD = {
    "no data": (None, "needs calibration data with targets"),
    "no inputs": (Calibration(torch.zeros(0, 3, 8, 8)), "needs calibration data with targets"),
    "no targets": (Calibration(torch.zeros(4, 3, 8, 8)), "needs the targets of the calibration data"),
    "too few": (Calibration(torch.zeros(4, 3, 8, 8), torch.zeros(3, dtype=torch.int64)), "Got 4 inputs and targets"),
    "no classes": (Calibration(torch.zeros(4, 3, 8, 8), torch.zeros(4)), "integer class index"),
    "no such class": (Calibration(torch.zeros(2, 3, 8, 8), torch.tensor([0, 10])), "from 0 to 9"),
    "negative class": (Calibration(torch.zeros(2, 3, 8, 8), torch.tensor([0, -1])), "Got -1 to 0"),
    "a grid": (Calibration(torch.zeros(2, 3, 8, 8), torch.zeros(2, 4, dtype=torch.int64)), "Got 8 targets for 2 pred"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_missing_or_wrong_is_said(state_of: Callable[[str], State], bad: str) -> None:
    calibration, text = BAD[bad]
    state = state_of("cnn")
    with pytest.raises(CompressionError, match=text):
        Compressor(snip(WeightSettings()), state, count(state.network, state.example), calibration, generator("x"))


def test_the_error_says_how_to_give_targets(state_of: Callable[[str], State]) -> None:
    with pytest.raises(CompressionError, match=r"compress\(\.\.\., data=\(inputs, targets\)\)"):
        sensitivities(start_of(state_of("cnn")), None)
