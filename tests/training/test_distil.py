"""Distillation against the formula written out, and what it promises."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.datasets.in_memory import MemoryImages
from experiment.errors import ConfigError
from experiment.random_streams import generator, seeded
from experiment.tasks.distributions import CATEGORICAL
from experiment.training.distil import mixed_loss
from experiment.training.loop import EpochRecord, TrainingLoop
from experiment.training.settings import DistillationSpec, TrainSettings

PLAIN = TrainSettings(num_epochs=2, batch_size=16, optimizer_kwargs={"lr": 0.1, "momentum": 0.9})
TAUGHT = replace(PLAIN, distillation=DistillationSpec(3.0, 0.6))


@pytest.fixture
def teacher(network: nn.Sequential) -> nn.Sequential:
    """Another network, in training mode and with a history of its own in BatchNorm."""
    other = copy.deepcopy(network).train()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator("teacher")), alpha=0.3)
    other(torch.rand(20, 1, 8, 8, generator=generator("x")))
    return other


def run(
    network: nn.Module, images: MemoryImages, settings: TrainSettings, teacher: nn.Module | None = None
) -> tuple[dict[str, Tensor], list[EpochRecord]]:
    loop = TrainingLoop(network, images, settings, valid=None, stream=("t",), device="cpu", teacher=teacher)
    return network.state_dict(), loop.run()


def explicit(z_s: Tensor, z_t: Tensor, T: float) -> np.ndarray:
    """T^2 SUM_c p_t log(p_t / p_s), an image each, in numpy."""
    e_s, e_t = (np.exp(z.double().numpy() / T) for z in (z_s, z_t))
    p_s, p_t = (e / e.sum(1, keepdims=True) for e in (e_s, e_t))
    return T**2 * (p_t * np.log(p_t / p_s)).sum(1)


@pytest.mark.parametrize("T", [1.0, 4.0, 20.0])
def test_the_formula(T: float) -> None:
    z_s, z_t = torch.randn(2, 5, 10, generator=generator("z")) * 3
    y = torch.arange(5)
    kl, ce = explicit(z_s, z_t, T), nn.functional.cross_entropy(z_s, y)
    for a in (0.0, 0.3, 1.0):
        value = mixed_loss(ce, z_s, z_t, DistillationSpec(T, a), CATEGORICAL)
        assert float(value) == pytest.approx((1 - a) * float(ce) + a * kl.mean(), rel=1e-5)
    total = mixed_loss(5 * ce, z_s, z_t, DistillationSpec(T, 0.3), CATEGORICAL, reduction="sum")
    assert float(total) == pytest.approx(0.7 * 5 * float(ce) + 0.3 * kl.sum(), rel=1e-5)
    logs = [torch.log_softmax(z, 1) for z in (z_s, z_t)]
    assert float(mixed_loss(ce, *logs, DistillationSpec(T, 1.0), CATEGORICAL)) == pytest.approx(kl.mean(), rel=1e-5)


def test_the_gradient_of_the_divergence() -> None:
    """In closed form T (softmax(z_s / T) - softmax(z_t / T)) / N, and none for the teacher."""
    z_s, z_t = torch.randn(2, 5, 10, generator=generator("z"))
    z_s.requires_grad_()
    z_t.requires_grad_()
    mixed_loss(torch.zeros(()), z_s, z_t.detach(), DistillationSpec(4.0, 1.0), CATEGORICAL).backward()
    expected = 4.0 * (torch.softmax(z_s / 4, 1) - torch.softmax(z_t / 4, 1)).detach() / 5
    torch.testing.assert_close(z_s.grad, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_against_torch_written_out(
    network: nn.Sequential, teacher: nn.Sequential, images: MemoryImages, smoothing: float
) -> None:
    reference, wise = copy.deepcopy(network).train(), copy.deepcopy(teacher).eval()
    _, records = run(network, images, replace(TAUGHT, loss_kwargs={"label_smoothing": smoothing}), teacher)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        sums = 0.0
        with seeded("t", "epoch", epoch):
            for x, y in images.batches(16, stream=("t", "epoch", epoch)):
                z_s, z_t = reference(x), wise(x).detach()
                p_t = torch.softmax(z_t / 3, 1)
                kl = (p_t * (p_t.log() - torch.softmax(z_s / 3, 1).log())).sum(1).mean()
                hard = nn.functional.cross_entropy(z_s, y, label_smoothing=smoothing)
                loss = 0.4 * hard + 0.6 * 9 * kl
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                sums += float(loss.detach()) * len(y)
        assert records[epoch].loss == pytest.approx(sums / 90, rel=1e-4)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_without_weight_the_teacher_changes_nothing(
    network: nn.Sequential, teacher: nn.Sequential, images: MemoryImages
) -> None:
    """Bit for bit: it draws no random numbers either, though it has dropout."""
    other = copy.deepcopy(network)
    plain, records = run(network, images, PLAIN)
    taught, taught_records = run(other, images, replace(PLAIN, distillation=DistillationSpec(4.0, 0.0)), teacher)
    assert all(torch.equal(plain[name], value) for name, value in taught.items())
    assert [r.loss for r in records] == [r.loss for r in taught_records]


def test_with_all_the_weight_labels_do_not_matter(
    network: nn.Sequential, teacher: nn.Sequential, images: MemoryImages
) -> None:
    other, settings = copy.deepcopy(network), replace(PLAIN, distillation=DistillationSpec(4.0, 1.0))
    taught, _ = run(network, images, settings, teacher)
    changed = copy.copy(images)
    changed._labels = (images._labels + 1) % 4
    again, _ = run(other, changed, settings, teacher)
    assert all(torch.equal(taught[name], value) for name, value in again.items())


@pytest.mark.parametrize("changes", [{}, {"channels_last": True}, {"precision": "bf16", "channels_last": True}])
def test_the_teacher_is_left_as_it_is(
    network: nn.Sequential, teacher: nn.Sequential, images: MemoryImages, changes: dict[str, object]
) -> None:
    before = copy.deepcopy(teacher.state_dict())
    run(network, images, replace(TAUGHT, **changes), teacher)  # type: ignore[arg-type]
    assert teacher.training
    assert all(p.requires_grad and p.grad is None and p.is_contiguous() for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_a_network_with_its_own_weights_as_teacher_learns_nothing(images: MemoryImages) -> None:
    """Student and teacher see the same augmented batch: with equal weights nothing is left to learn."""
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    before = student[1].weight.detach().clone()
    _, records = run(student, images, replace(PLAIN, distillation=DistillationSpec(4.0, 1.0)), copy.deepcopy(student))
    assert records[0].loss == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(student[1].weight.detach(), before, rtol=0, atol=1e-5)


def test_the_teacher_is_compiled_too(
    network: nn.Sequential, teacher: nn.Sequential, images: MemoryImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: compiled.append(module) or module)
    run(network, images, replace(TAUGHT, num_epochs=1, compiled=True), teacher)
    assert compiled[0] is not teacher, "a copy"
    assert torch.equal(compiled[0][6].weight, teacher[6].weight)
    assert compiled[1] is network


@pytest.mark.parametrize("settings", [PLAIN, TAUGHT])
def test_a_teacher_and_its_settings_belong_together(
    network: nn.Sequential, images: MemoryImages, settings: TrainSettings
) -> None:
    with pytest.raises(ConfigError, match="needs both its settings and a teacher"):
        run(network, images, settings, None if settings is TAUGHT else copy.deepcopy(network))
