"""What a dataset of one's own may give, and how its integers are read."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from experiment.api.calibration_data import calibration_of
from experiment.datasets.calibration import calibration_size
from experiment.datasets.check_samples import as_pair, check_map_style
from experiment.datasets.integer_inputs import with_8_bits
from experiment.datasets.transforms import as_float
from experiment.errors import CompressionError, DataError
from experiment.tasks.classification import TASK

X = torch.zeros(3)


@pytest.mark.parametrize("label", [4, np.int64(4), torch.tensor(4), torch.tensor([4]), torch.tensor(4.0), 4.0])
def test_class_numbers(label: object) -> None:
    assert TASK.target("d", as_pair("d", (X, label))[1]).equal(torch.tensor(4))


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        ((X, 0.614), "the float 0.614"),
        ((X, torch.tensor(0.25)), "a torch.float32 tensor of value 0.25"),
        ((X, torch.tensor([0, 1, 1])), "a torch.int64 tensor of shape 3"),
        ((X, "neg"), "the text 'neg'"),
        ((X, {"boxes": 1}), "a mapping with the keys boxes"),
        ((X, None), "Got None"),
        ((X, float("nan")), "the float nan"),
        ((X, 1, 2), "a tuple of 3"),
        ({"image": X, "label": 1}, "a mapping with the keys image, label"),
        ((np.zeros((3, 4)), 1), "a float64 array of shape 3 x 4"),
    ],
)
def test_other_targets_are_refused_with_what_is_possible(sample: object, text: str) -> None:
    with pytest.raises(DataError) as caught:
        TASK.target("sample 7", as_pair("sample 7", sample)[1])
    assert str(caught.value).startswith("sample 7: expected")
    assert text in str(caught.value)


class Stream(torch.utils.data.IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter([X])


@pytest.mark.parametrize("items", [None, Stream(), {}, iter([])])
def test_datasets_that_are_not_map_style(items: object) -> None:
    with pytest.raises(DataError, match="with __len__ and __getitem__"):
        check_map_style(items)


class Own:
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integer_pixels_are_read_by_their_values(dtype: torch.dtype) -> None:
    pixels = torch.arange(256).reshape(1, 1, 16, 16)
    x, _ = with_8_bits(Own(pixels.to(dtype)))[0]
    assert isinstance(x, Tensor)
    torch.testing.assert_close(as_float(x), pixels[0] / 255)


@pytest.mark.parametrize("values", [[-1, 3], [0, 4000]])
def test_integers_of_unknown_range_are_refused(values: list[int]) -> None:
    with pytest.raises(DataError, match="must lie in 0 to 255"):
        with_8_bits(Own(torch.tensor(values).reshape(1, 1, 1, 2)))


def test_a_sequence_of_integers_holds_token_ids() -> None:
    x, _ = with_8_bits(Own(torch.tensor([[3, 400]], dtype=torch.int32)))[0]
    assert isinstance(x, Tensor)
    assert torch.equal(as_float(x), torch.tensor([3, 400]))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"x": "text"}, "a mapping with the keys x"),
        ([{"x": "text"}], "Batch 0 of the loader is a mapping"),
        ([1, 2], "Batch 0 of the loader is the int 1"),
        ([(X, X, X)], "Batch 0"),
        ([], "gave no batch"),
        ([torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 4)], "one shape"),
        (torch.zeros(2, 3, dtype=torch.uint8), "pixels"),
        ((torch.zeros(2, 3), torch.zeros(3)), "one target per sample"),
        (torch.zeros(0, 3), "at least one sample"),
    ],
)
def test_calibration_data_that_cannot_be_used(data: object, text: str) -> None:
    with pytest.raises(CompressionError) as caught:
        calibration_of(data)  # type: ignore[arg-type]
    assert text in str(caught.value)


def test_calibration_without_compressible_layers() -> None:
    assert 0 < calibration_size([], 1000) <= 500
