"""Segmentation: metrics against scikit-learn's confusion matrix, targets, class 255."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score
from torch import Tensor
from torchvision.tv_tensors import Mask

from experiment.errors import DataError
from experiment.random_streams import generator
from experiment.tasks import TASKS, find_task
from experiment.tasks.segmentation import TASK

K = 5


def scenes(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scores and maps with pixels of class 255. Class 3 is never true, class 4 neither true nor found."""
    draws = generator("scenes", seed)
    scores = torch.randn((num, K, 6, 7), generator=draws)
    scores[:, 4] = -100
    maps = torch.randint(0, 3, (num, 6, 7), generator=draws)
    return scores, torch.where(torch.rand(maps.shape, generator=draws) < 0.2, 255, maps)


def figures(batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    return {m.name: m.compute(sum(m.update(x, y) for x, y in batches)) for m in TASK.metrics}  # type: ignore[arg-type]


def test_figures_are_those_of_scikit_learn_over_the_whole_set() -> None:
    batches = [scenes(3, 0), scenes(1, 1), scenes(4, 2)]
    true = torch.cat([y.flatten() for _, y in batches]).numpy()
    found = torch.cat([x.argmax(dim=1).flatten() for x, _ in batches]).numpy()
    counted = true != 255
    each = jaccard_score(true[counted], found[counted], labels=[0, 1, 2, 3], average=None)
    assert each[3] == 0  # found, never true: it counts
    expected = {"mean_iou": each.mean(), "pixel_accuracy": accuracy_score(true[counted], found[counted])}
    assert figures(batches) == pytest.approx(expected, rel=1e-12)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert figures([(x, y)]) == figures(batches)


def test_nan_is_a_wrong_answer() -> None:
    scores, maps = scenes(4, 3)
    scores[0, 1, :3] = torch.nan
    wrong = scores.clone()
    wrong[0, :, :3], wrong[0, 3, :3] = -1.0, 1.0  # class 3 is never true
    assert figures([(scores, maps)])["pixel_accuracy"] == figures([(wrong, maps)])["pixel_accuracy"]
    assert figures([(scores.fill_(torch.nan), maps)]) == {"mean_iou": 0.0, "pixel_accuracy": 0.0}


def test_maps_of_any_kind_become_int64() -> None:
    numbers = np.array([[0, 1, 255], [2, 0, 0]], dtype=np.uint8)
    expected = torch.from_numpy(numbers).long()
    for target in (numbers, torch.from_numpy(numbers), Mask(numbers[None]), Image.fromarray(numbers), numbers > 0):
        made = TASK.target("here", target)
        assert made.dtype == torch.int64
        assert torch.equal(made, expected if target is not None and made.max() == 255 else (expected > 0).long())
    for target in (3, torch.rand(2, 3), torch.zeros(2, 2, 3, dtype=torch.int64), "map"):
        with pytest.raises(DataError, match="here: expected a map of class numbers"):
            TASK.target("here", target)


def test_class_numbers_beyond_the_outputs_are_refused() -> None:
    TASK.check("here", 3, torch.tensor([[0, 2, 255]]))
    for wrong in (3, -1, 254):
        with pytest.raises(DataError, match=f"here: its map has class {wrong}; expected 0 to 2"):
            TASK.check("here", 3, torch.tensor([[0, wrong, 255]]))
    with pytest.raises(DataError, match="at most 255 classes"):
        TASK.check("here", 256, torch.tensor([[0]]))


def test_registered_default_loss_is_the_tasks() -> None:
    for name, entry in TASKS.items():
        assert find_task(name).losses[0] == entry.loss
