"""The training loop: against a training written out in torch, and its guarantees."""

import copy
import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from experiment.datasets.in_memory import MemoryImages, Prepared
from experiment.errors import ConfigError, DataError, TrainingDiverged
from experiment.layers.masks import add_masks, named_masks
from experiment.random_streams import generator, seeded
from experiment.training import loop
from experiment.training.evaluation import Metrics, evaluate
from experiment.training.loop import EpochRecord, TrainingLoop
from experiment.training.settings import Compiled, SchedulerSpec, TrainSettings

SETTINGS = TrainSettings(
    num_epochs=3,
    batch_size=16,
    optimizer_kwargs={"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3},
    schedulers=(
        SchedulerSpec("MultiStepLR", {"gamma": 0.1}, {"milestones": [2]}),
        SchedulerSpec("WarmupLR", {}, {"warmup_epoch": 1}),
    ),
)


def with_changes(**changes: object) -> TrainSettings:
    return TrainSettings(**{**vars(SETTINGS), **changes})  # type: ignore[arg-type]


def train(network: nn.Module, images: Any, settings: TrainSettings = SETTINGS, **more: Any) -> list[EpochRecord]:
    return TrainingLoop(network, images, settings, **{"valid": None, "stream": ("t",), "device": "cpu", **more}).run()


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_against_torch_written_out(network: nn.Sequential, images: MemoryImages) -> None:
    """SGD with momentum and weight decay, with the learning rate of each step calculated by hand."""
    reference = copy.deepcopy(network).train()
    records = train(network, images)
    velocity = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    steps = math.ceil(90 / 16)
    for epoch in range(3):
        losses, hits, rate = 0.0, 0, 0.0
        with seeded("t", "epoch", epoch):
            for i, (x, y) in enumerate(images.batches(16, stream=("t", "epoch", epoch))):
                e = epoch + i / steps
                rate = 0.1 * min(e, 1.0) * (0.1 if e >= 2 else 1.0)
                logits = reference(x)
                loss = nn.functional.cross_entropy(logits, y)
                gradients = torch.autograd.grad(loss, list(reference.parameters()))
                with torch.no_grad():
                    for (name, p), g in zip(reference.named_parameters(), gradients, strict=True):
                        velocity[name] = 0.9 * velocity[name] + g + 1e-3 * p
                        p -= rate * velocity[name]
                losses += float(loss.detach()) * len(y)
                hits += int((logits.argmax(1) == y).sum())
        record = records[epoch]
        assert (record.epoch, record.images) == (epoch, 90)
        assert record.learning_rate == pytest.approx(rate)
        assert record.loss == pytest.approx(losses / 90, rel=1e-4)
        assert record.values["top1"] == pytest.approx(hits / 90, abs=0.02)
        assert (record.valid_loss, record.valid) == (None, {})
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16", "channels_last": True}])
def test_learns_and_validates(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, changes: dict[str, Any]
) -> None:
    state = torch.get_rng_state()
    records = train(network, images, with_changes(num_epochs=8, **changes), valid=valid)
    assert torch.equal(state, torch.get_rng_state()), "the global generator is not used"
    last = records[-1]
    assert last.valid["top1"] > 0.9
    assert last.loss < records[0].loss
    if not changes:
        metrics = evaluate(network, valid, device="cpu")
        assert (metrics.loss, metrics.values) == (last.valid_loss, last.valid)
    assert not network.training
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in network.parameters())


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_masked_weights_stay_zero(network: nn.Sequential, images: MemoryImages, optimizer: str) -> None:
    mask = torch.rand(4, 64, generator=generator("mask")) < 0.5
    add_masks(network, {"6.weight": mask})
    before = network[6].weight.detach().clone()
    train(network, images, with_changes(optimizer=optimizer, optimizer_kwargs={"lr": 0.05, "weight_decay": 0.1}))
    after = network[6].weight.detach()
    assert torch.equal(named_masks(network)["6.weight"], mask)
    assert float(after[~mask].abs().max()) == 0
    assert not torch.equal(before[mask], after[mask])


def test_the_stream_decides_all_draws(images: MemoryImages, network: nn.Sequential) -> None:
    def trained(*stream: str | int) -> dict[str, Tensor]:
        copied = copy.deepcopy(network)
        torch.rand(3)  # the global generator is not used
        train(copied, images, stream=stream)
        return state_of(copied)

    first = trained("a", 0)
    assert_same(first, trained("a", 0))
    assert not torch.equal(first["6.weight"], trained("a", 1)["6.weight"])


def test_start_epoch_runs_the_rest_at_its_rates(network: nn.Sequential, images: MemoryImages) -> None:
    records = train(network, images, with_changes(start_epoch=2))
    assert [r.epoch for r in records] == [2]
    assert records[0].learning_rate == pytest.approx(0.01)
    before = state_of(network)
    assert train(network, images, with_changes(start_epoch=3)) == []
    assert_same(state_of(network), before)


def test_until_an_epoch_it_is_the_whole_training(network: nn.Sequential, images: MemoryImages) -> None:
    states, part = {}, copy.deepcopy(network)
    settings = with_changes(early_stop_epoch=9)
    with TrainingLoop(network, images, settings, valid=None, stream=("t",), device="cpu") as whole:
        assert whole.next_epoch == 0
        for record in whole.epochs():
            assert whole.next_epoch == record.epoch + 1
            states[record.epoch] = state_of(network)
    TrainingLoop(part, images, settings, valid=None, stream=("t",), device="cpu").run(until=2)
    assert_same(state_of(part), states[1])


@pytest.mark.parametrize("batches", [6, 90])
def test_divergence_is_noticed(network: nn.Sequential, images: MemoryImages, batches: int, watched: Any) -> None:
    counts: list[int] = []
    settings = with_changes(optimizer_kwargs={"lr": 1e30}, schedulers=(), batch_size=90 // batches, num_epochs=9)
    network[1] = nn.Identity()  # BatchNorm would limit the activations
    with pytest.raises(TrainingDiverged, match=r"in epoch 0 .* the loss became (nan|inf) at learning rate 1e\+30"):
        train(network, watched(images, counts.append), settings)
    assert len(counts) <= 50


def test_epochs_of_which_no_target_counts(network: nn.Sequential, images: MemoryImages) -> None:
    settings = with_changes(loss_kwargs={"ignore_index": 1, "weight": [0.0, 1.0, 0.0, 0.0]})
    with pytest.raises(TrainingDiverged, match=r"the loss became nan .* targets of which the loss ignores all"):
        train(network, images, settings)


def test_weights_that_diverge_in_the_last_step_are_noticed(network: nn.Sequential, images: MemoryImages) -> None:
    settings = with_changes(optimizer_kwargs={"lr": math.inf}, schedulers=(), batch_size=90, num_epochs=1)
    with pytest.raises(TrainingDiverged, match="0.weight is not finite"):
        train(network, images, settings)


@pytest.mark.parametrize(
    ("accuracies", "best"), [([0.9, 0.5, 0.7, 0.7, 0.6], 3), ([0.9, 0.8, 0.7, 0.7, 0.6], 1), ([0.1, 0, 0, 0, 0], 4)]
)
def test_early_stopping_keeps_the_best_epoch_and_the_later_of_equals(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, monkeypatch: pytest.MonkeyPatch,
    accuracies: list[float], best: int,
) -> None:  # fmt: skip
    answers = iter(accuracies)
    monkeypatch.setattr(loop, "validate", lambda *_: Metrics(1.0, {"top1": next(answers)}, 30))
    settings = with_changes(num_epochs=5, early_stop_epoch=1)
    with TrainingLoop(network, images, settings, valid=valid, stream=("t",), device="cpu") as training:
        states = {record.epoch: state_of(network) for record in training.epochs()}
    assert_same(state_of(network), states[best])


def test_early_stopping_needs_a_validation_part(network: nn.Sequential, images: MemoryImages) -> None:
    with pytest.raises(ConfigError, match="earlyStopEpoch: needs a validation part"):
        train(network, images, with_changes(early_stop_epoch=2))


def test_weights_are_channels_last_during_training(images: MemoryImages, watched: Any) -> None:
    """This changes only the rounding."""

    def make() -> nn.Sequential:
        with seeded("network"):
            return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 4))

    network, plain, seen = make(), make(), []

    def look(_: int) -> None:
        weight = network[2].weight
        assert weight.grad is not None
        seen.append([t.is_contiguous(memory_format=torch.channels_last) for t in (weight, weight.grad)])

    train(network, watched(images, look), with_changes(channels_last=True, num_epochs=1))
    assert seen[-1] == [True, True]
    assert network[2].weight.is_contiguous()
    train(plain, images, with_changes(num_epochs=1))
    torch.testing.assert_close(network[2].weight, plain[2].weight, rtol=1e-3, atol=1e-5)


def test_too_few_images(network: nn.Sequential) -> None:
    prepared = Prepared(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), ())
    with pytest.raises(DataError, match="1 training images are too few"):
        train(network, MemoryImages(prepared, prepared, torch.zeros(1).long()))


def test_fp16_needs_cuda(network: nn.Sequential, images: MemoryImages) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device"):
        train(network, images, with_changes(precision="fp16"))


@pytest.mark.parametrize("how", [True, "reduce-overhead"])
def test_compiled_steps_change_rounding_only(
    how: Literal[True, "reduce-overhead"], images: MemoryImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as for kernels, which are not built, since that takes half a minute; with a mask, which must hold."""
    calls = []

    def compiler(network: nn.Module, **options: object) -> object:
        calls.append((network, options.pop("mode", True)))
        return traced(network, **options, backend="aot_eager")

    traced = torch.compile
    monkeypatch.setattr(torch, "compile", compiler)

    def trained(compiled: Compiled) -> tuple[nn.Module, list[EpochRecord]]:
        with seeded("network"):
            network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
        add_masks(network, {"0.weight": torch.arange(36).reshape(4, 1, 3, 3) % 3 > 0})
        return network, train(network, images, with_changes(compiled=compiled, num_epochs=1))

    (plain, records), (fast, fast_records) = trained(False), trained(how)
    assert calls == [(fast, how)]
    assert plain.state_dict().keys() == fast.state_dict().keys()
    assert fast_records[0].loss == pytest.approx(records[0].loss, rel=1e-4)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    assert int((fast[0].weight == 0).sum()) == 12  # type: ignore[operator]


def test_every_network_of_a_process_is_compiled(images: MemoryImages, graphs: list[Any]) -> None:
    """More networks of one class than torch compiles if it remembers them all."""
    settings = with_changes(compiled=True, num_epochs=1, batch_size=45)
    for i in range(torch._dynamo.config.recompile_limit + 2):
        train(nn.Sequential(nn.Flatten(), nn.Linear(64, 4 + i)), images, settings)
        assert len(graphs) == i + 1, "one graph each"
