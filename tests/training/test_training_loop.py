"""The training loop against torch written out, and what it promises."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiment.datasets.in_memory import MemoryImages, Prepared
from experiment.errors import ConfigError, DataError, TrainingDiverged
from experiment.layers.masks import add_masks, named_masks
from experiment.random_streams import generator, seeded
from experiment.training import loop
from experiment.training.loop import EpochRecord, Metrics, SchedulerSpec, TrainSettings, evaluate, train

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


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_against_torch_written_out(network: nn.Sequential, images: MemoryImages) -> None:
    """Plain SGD with momentum and weight decay, the rate of every step by hand."""
    reference = copy.deepcopy(network).train()
    records = train(network, images, SETTINGS, valid=None, stream=("t",), device="cpu")
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
        assert record.top1 == pytest.approx(hits / 90, abs=0.02)
        assert (record.valid_loss, record.valid_top1, record.valid_top5) == (None, None, None)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_what_is_added_to_the_gradients(network: nn.Sequential, images: MemoryImages) -> None:
    """A decay added by hand does what the optimizer's own does."""
    other = copy.deepcopy(network)
    plain = with_changes(optimizer_kwargs={"lr": 0.1, "momentum": 0.9})

    def decay() -> None:
        for p in other.parameters():
            assert p.grad is not None
            p.grad.add_(p.detach(), alpha=1e-3)

    train(network, images, SETTINGS, valid=None, stream=("t",), device="cpu")
    train(other, images, plain, valid=None, stream=("t",), device="cpu", adjust_gradients=decay)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_learns_and_validates(network: nn.Sequential, images: MemoryImages, valid: MemoryImages) -> None:
    records = train(network, images, with_changes(num_epochs=8), valid=valid, stream=("t",), device="cpu")
    assert records[-1].valid_top1 is not None
    assert records[-1].valid_top1 > 0.9
    assert records[-1].loss < records[0].loss
    metrics = evaluate(network, valid, device="cpu")
    assert (metrics.loss, metrics.top1, metrics.top5) == (
        records[-1].valid_loss,
        records[-1].valid_top1,
        records[-1].valid_top5,
    )
    assert not network.training


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_masked_weights_stay_zero(network: nn.Sequential, images: MemoryImages, optimizer: str) -> None:
    mask = torch.rand(4, 64, generator=generator("mask")) < 0.5
    add_masks(network, {"6.weight": mask})
    before = network[6].weight.detach().clone()
    kwargs = {"lr": 0.05, "weight_decay": 0.1}
    train(
        network, images, with_changes(optimizer=optimizer, optimizer_kwargs=kwargs), valid=None, stream=(), device="cpu"
    )
    after = network[6].weight.detach()
    assert torch.equal(named_masks(network)["6.weight"], mask)
    assert float(after[~mask].abs().max()) == 0
    assert not torch.equal(before[mask], after[mask])


def test_stream_decides_everything(images: MemoryImages, network: nn.Sequential) -> None:
    def trained(*stream: str | int) -> dict[str, Tensor]:
        copied = copy.deepcopy(network)
        torch.rand(3)  # the global generator plays no part
        train(copied, images, SETTINGS, valid=None, stream=stream, device="cpu")
        return state_of(copied)

    state = torch.get_rng_state()
    first = trained("a", 0)
    torch.set_rng_state(state)
    assert_same(first, trained("a", 0))
    assert not torch.equal(first["6.weight"], trained("a", 1)["6.weight"])


def test_global_generator_is_left_alone(network: nn.Sequential, images: MemoryImages, valid: MemoryImages) -> None:
    state = torch.get_rng_state()
    train(network, images, SETTINGS, valid=valid, stream=("t",), device="cpu")
    assert torch.equal(state, torch.get_rng_state())


def test_start_epoch_runs_the_rest_at_its_rates(network: nn.Sequential, images: MemoryImages) -> None:
    told: list[EpochRecord] = []
    records = train(
        network, images, with_changes(start_epoch=2), valid=None, stream=(), device="cpu", on_epoch=told.append
    )
    assert [r.epoch for r in records] == [2]
    assert told == records
    assert records[0].learning_rate == pytest.approx(0.01)


def test_no_epochs_change_nothing(network: nn.Sequential, images: MemoryImages, tmp_path: Path) -> None:
    before = state_of(network)
    settings = with_changes(start_epoch=3)
    assert train(network, images, settings, valid=None, stream=(), device="cpu", rewind_to=(3, tmp_path / "r.pt")) == []
    assert_same(state_of(network), before)
    assert_same(torch.load(tmp_path / "r.pt", weights_only=True), before)


def test_rewind_file_is_the_state_at_the_start_of_the_epoch(
    network: nn.Sequential, images: MemoryImages, tmp_path: Path
) -> None:
    path, states = tmp_path / "new" / "rewind.pt", {}
    untrained = copy.deepcopy(network)
    train(
        network, images, SETTINGS, valid=None, stream=("t",), device="cpu", rewind_to=(2, path),
        on_epoch=lambda record: states.update({record.epoch: state_of(network)}),
    )  # fmt: skip
    assert_same(torch.load(path, weights_only=True), states[1])
    train(untrained, images, with_changes(num_epochs=2), valid=None, stream=("t",), device="cpu", rewind_to=(0, path))
    assert float(torch.load(path, weights_only=True)["1.num_batches_tracked"]) == 0


def test_callbacks_count_the_images(network: nn.Sequential, images: MemoryImages) -> None:
    counts: list[int] = []
    train(network, images, SETTINGS, valid=None, stream=(), device="cpu", on_batch=counts.append)
    assert counts == [16, 16, 16, 16, 16, 10] * 3


@pytest.mark.parametrize("batches", [6, 90])
def test_divergence_is_noticed(network: nn.Sequential, images: MemoryImages, batches: int) -> None:
    counts: list[int] = []
    settings = with_changes(optimizer_kwargs={"lr": 1e30}, schedulers=(), batch_size=90 // batches, num_epochs=9)
    network[1] = nn.Identity()  # BatchNorm would hold the activations down
    with pytest.raises(TrainingDiverged, match=r"in epoch 0 .* the loss became (nan|inf) at learning rate 1e\+30"):
        train(network, images, settings, valid=None, stream=(), device="cpu", on_batch=counts.append)
    assert len(counts) <= 50


def test_weights_ruined_by_the_last_step_are_noticed(network: nn.Sequential, images: MemoryImages) -> None:
    settings = with_changes(optimizer_kwargs={"lr": math.inf}, schedulers=(), batch_size=90, num_epochs=1)
    with pytest.raises(TrainingDiverged, match="0.weight is not finite"):
        train(network, images, settings, valid=None, stream=(), device="cpu")


@pytest.mark.parametrize(
    ("accuracies", "best"), [([0.9, 0.5, 0.7, 0.7, 0.6], 3), ([0.9, 0.8, 0.7, 0.7, 0.6], 1), ([0.1, 0, 0, 0, 0], 4)]
)
def test_early_stopping_keeps_the_best_epoch_and_the_later_of_equals(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, monkeypatch: pytest.MonkeyPatch,
    accuracies: list[float], best: int,
) -> None:  # fmt: skip
    answers = iter(accuracies)
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: Metrics(1.0, next(answers), 1.0, 30))
    states = {}
    train(
        network, images, with_changes(num_epochs=5, early_stop_epoch=1), valid=valid, stream=(), device="cpu",
        on_epoch=lambda record: states.update({record.epoch: state_of(network)}),
    )  # fmt: skip
    assert_same(state_of(network), states[best])


def test_early_stopping_that_never_begins(network: nn.Sequential, images: MemoryImages) -> None:
    train(network, images, with_changes(early_stop_epoch=3), valid=None, stream=(), device="cpu")
    with pytest.raises(ConfigError, match="earlyStopEpoch: there is no validation part"):
        train(network, images, with_changes(early_stop_epoch=2), valid=None, stream=(), device="cpu")


def test_bf16_channels_last(network: nn.Sequential, images: MemoryImages, valid: MemoryImages) -> None:
    network[0] = nn.Conv2d(1, 4, 3, padding=1)
    settings = with_changes(num_epochs=8, precision="bf16", channels_last=True)
    records = train(network, images, settings, valid=valid, stream=("t",), device="cpu")
    assert records[-1].valid_top1 is not None
    assert records[-1].valid_top1 > 0.9
    for parameter in network.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.is_contiguous()


def test_weights_are_channels_last_while_training(images: MemoryImages) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 4))
    seen = []

    def look(_: int) -> None:
        weight = network[1].weight
        assert weight.grad is not None
        seen.append([t.is_contiguous(memory_format=torch.channels_last) for t in (weight, weight.grad)])

    train(network, images, with_changes(channels_last=True), valid=None, stream=(), device="cpu", on_batch=look)
    assert seen[-1] == [True, True]
    assert network[1].weight.is_contiguous()


def test_channels_last_changes_rounding_only(images: MemoryImages) -> None:
    def trained(channels_last: bool) -> Tensor:
        with seeded("network"):
            network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 4))
        settings = with_changes(channels_last=channels_last, num_epochs=1)
        train(network, images, settings, valid=None, stream=(), device="cpu")
        return network[2].weight.detach()

    torch.testing.assert_close(trained(True), trained(False), rtol=1e-3, atol=1e-5)


def test_too_few_images(network: nn.Sequential) -> None:
    prepared = Prepared(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), ())
    with pytest.raises(DataError, match="1 training images are too few"):
        train(
            network,
            MemoryImages(prepared, prepared, torch.zeros(1).long()),
            SETTINGS,
            valid=None,
            stream=(),
            device="cpu",
        )


def test_fp16_needs_cuda(network: nn.Sequential, images: MemoryImages) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device"):
        train(network, images, with_changes(precision="fp16"), valid=None, stream=(), device="cpu")


def test_compiled_steps_change_rounding_only(images: MemoryImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured as for kernels, which are not built, for that takes half a minute; with a mask, which must hold."""
    calls = []

    def compiler(network: nn.Module, **options: object) -> object:
        calls.append(network)
        return captured(network, **options, backend="aot_eager")

    captured = torch.compile
    monkeypatch.setattr(torch, "compile", compiler)

    def trained(compiled: bool) -> tuple[nn.Module, list[EpochRecord]]:
        with seeded("network"):
            network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
        add_masks(network, {"0.weight": torch.arange(36).reshape(4, 1, 3, 3) % 3 > 0})
        settings = with_changes(compiled=compiled, num_epochs=1)
        return network, train(network, images, settings, valid=None, stream=("t",), device="cpu")

    (plain, records), (fast, fast_records) = trained(False), trained(True)
    assert calls == [fast]
    assert plain.state_dict().keys() == fast.state_dict().keys()
    assert fast_records[0].loss == pytest.approx(records[0].loss, rel=1e-4)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    assert int((fast[0].weight == 0).sum()) == 12  # type: ignore[operator]
