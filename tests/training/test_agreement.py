"""Agreement with a reference network against figures counted by hand with numpy and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score
from torch import Tensor, nn

from experiment.datasets.python_samples import PairData
from experiment.random_streams import generator
from experiment.tasks.classification import TASK
from experiment.tasks.distributions import BERNOULLI, GAUSSIAN
from experiment.tasks.task import Metric, Task
from experiment.training.agreement import Agreement
from experiment.training.evaluation import evaluate
from experiment.training.factories import make_loss

N, K = 203, 5
Z, Z_REF = torch.randn(2, N, K, generator=generator("outputs"))
Y = torch.randint(0, K, (N,), generator=generator("labels"))


def softmax(z: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    p = np.exp(z.double().numpy())
    return p / p.sum(1, keepdims=True)


def agreement_of(task: Task, z: Tensor, z_ref: Tensor, y: Tensor, loss: str = "CrossEntropyLoss") -> dict[str, float]:
    found = Agreement(task, lambda start, x: z_ref[start : start + len(x)])
    found.restart()
    for start in range(0, len(z), 64):
        part = slice(start, start + 64)
        found.observe(start, z[part], z[part], y[part], make_loss(loss, {}))
    return found.figures()


def test_classes() -> None:
    found = agreement_of(TASK, Z, Z_REF, Y)
    p, q = softmax(Z_REF), softmax(Z)
    before, now = p.argmax(1), q.argmax(1)
    assert found["flips"] == pytest.approx(np.mean(before != now))
    assert found["kl"] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-5)
    drop = recall_score(Y, before, average=None) - recall_score(Y, now, average=None)
    assert found["worst_class_drop"] == pytest.approx(drop.max())
    assert agreement_of(TASK, Z, Z, Y) == {"flips": 0, "kl": 0, "worst_class_drop": 0}


def test_classes_with_few_targets_are_noise() -> None:
    """Only class 1 has ten targets; class 0, which is lost completely, has nine."""
    y = torch.tensor([0] * 9 + [1] * 10)
    right, wrong = nn.functional.one_hot(y, 2).float(), nn.functional.one_hot(1 - y, 2).float()
    half = torch.where(torch.arange(19) % 2 == 0, 1, 0).unsqueeze(1).bool()
    found = agreement_of(TASK, torch.where(half, wrong, right), right, y)
    assert found["worst_class_drop"] == pytest.approx(0.5)
    assert set(agreement_of(TASK, wrong[:9], right[:9], y[:9])) == {"flips", "kl"}, "unknown"


def test_ignored_pixels_do_not_count() -> None:
    z, z_ref = (t.reshape(7, 29, K).transpose(1, 2) for t in (Z, Z_REF))  # maps with one row
    y = Y.reshape(7, 29).clone()
    y[:, ::2] = -100
    found, seen = agreement_of(TASK, z, z_ref, y), (y != -100).flatten()
    assert found == pytest.approx(agreement_of(TASK, Z[seen], Z_REF[seen], Y[seen]))


def test_labels_and_numbers() -> None:
    own = Task("own", (Metric("m", "m", torch.add, float),), ("BCEWithLogitsLoss",), lambda where, t: t)
    y = torch.randint(0, 2, (N, K), generator=generator("labels")).float()
    labels = Task(**{**vars(own), "distribution": BERNOULLI})
    found = Agreement(labels, lambda start, x: Z_REF)
    found.observe(0, Z, Z, y, nn.BCEWithLogitsLoss())
    p, q = (1 / (1 + np.exp(-z.double().numpy())) for z in (Z_REF, Z))
    kl = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(1).mean()
    right = [((z > 0) == y.bool()).double().mean(0) for z in (Z_REF, Z)]
    assert found.figures() == pytest.approx(
        {
            "flips": float(((Z > 0) != (Z_REF > 0)).double().mean()),
            "kl": kl,
            "worst_class_drop": float((right[0] - right[1]).max()),
        },
        rel=1e-5,
    )
    numbers = Agreement(Task(**{**vars(own), "distribution": GAUSSIAN}), lambda start, x: Z_REF)
    numbers.observe(0, Z, Z, y, nn.MSELoss())
    assert numbers.figures() == {}


def test_in_the_pass_of_the_metrics() -> None:
    """Batches of another size see the same samples of the reference."""
    data, reference = PairData("test", (Z, Y), torch.device("cpu")), nn.Linear(K, K)
    with torch.no_grad():
        kept = reference(Z)
    found = []
    for size in (10, 64):
        agreement = Agreement(TASK, lambda start, x: kept[start : start + len(x)])
        metrics = evaluate(nn.Identity(), data, device="cpu", batch_size=size, observers=[agreement])
        found.append(agreement.figures())
    for figures in found:
        assert figures == pytest.approx(agreement_of(TASK, Z, kept, Y))
    assert metrics == evaluate(nn.Identity(), data, device="cpu", batch_size=64)
