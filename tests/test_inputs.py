"""Inputs as pytrees: how a network is called with them, and how batches are taken apart."""

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment import compress
from experiment.api.calibration_data import calibration_of
from experiment.errors import CompressionError
from experiment.inputs import (
    as_inputs,
    attended,
    batch_size,
    call_network,
    described,
    first,
    join,
    moved,
    output_tensors,
    same_form,
    scored,
    split,
)

TOKENS = torch.arange(12).reshape(4, 3)
FORMS: dict[str, Any] = {
    "tensor": torch.arange(12.0).reshape(4, 3),
    "tuple": (torch.arange(12.0).reshape(4, 3), TOKENS, None, torch.tensor(2.0)),
    "dict": {"input_ids": TOKENS, "attention_mask": TOKENS > 2, "use_cache": False},
    "nested": {"pair": (TOKENS, {"deep": torch.ones(4)})},
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_are_taken_apart_and_joined(form: str) -> None:
    inputs = as_inputs(FORMS[form])
    assert batch_size(inputs) == 4
    parts = list(split(inputs, 3))
    assert [batch_size(part) for part in parts] == [3, 1]
    whole = join(parts)
    assert same_form(whole, inputs)
    assert same_form(first(inputs), parts[1])
    torch.testing.assert_close(whole, inputs)


def test_a_network_is_called_with_positions_or_keywords() -> None:
    def network(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        return scale * (a - b)

    a, b = torch.ones(2), torch.full((2,), 3.0)
    assert call_network(network, as_inputs([a, b, 2.0])).tolist() == [-4, -4]
    assert call_network(network, as_inputs(UserDict(b=a, a=b))).tolist() == [2, 2]
    assert call_network(torch.neg, a).tolist() == [-1, -1]


def test_integers_keep_their_dtype() -> None:
    found = moved(FORMS["tuple"], "cpu", torch.float64)
    assert [x.dtype for x in (found[0], found[1], found[3])] == [torch.float64, torch.int64, torch.float64]
    assert attended(FORMS["dict"]).sum() == 9
    assert attended(FORMS["tuple"]) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "example: expected a tensor with a batch dimension, .* Got a str"),
        (torch.tensor(1.0), r"example: expected a tensor with a batch dimension, .* Got a tensor of shape \(\)"),
        ((torch.ones(2, 3), torch.ones(3)), r"the batch, so it must have one size\. Got \(\(2, 3\), \(3,\)\)"),
        (
            {"ids": [1, 2], "m": 3},
            r'Got {ids: a list, m: an int}. A tokenizer returns tensors with return_tensors="pt"',
        ),
        ({}, r"Got {}\."),
        (
            (torch.ones(2), torch.full((2, 2), torch.nan)),
            r"example: expected numbers\. Got NaN in \(\(2,\), \(2, 2\)\)",
        ),
        ({"x": torch.ones(0, 3)}, r"at least one input\. Got an empty batch, {x: \(0, 3\)}"),
    ],
)
def test_what_is_no_batch_is_told(value: object, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        as_inputs(value)


def test_outputs_of_any_form_are_read() -> None:
    logits, other = torch.ones(2), torch.zeros(3)
    assert scored({"hidden": other, "logits": logits}) is logits
    assert scored((other, logits)) is other
    assert [len(x) for x in output_tensors({"a": [logits, (other,)], "b": None})] == [2, 3]
    with pytest.raises(CompressionError, match="It returned a str"):
        scored("scores")
    assert described({"ids": TOKENS, "n": 1}) == "{ids: (4, 3) int64, n: 1}"


class TextAndImage(nn.Module):
    """Reads token ids with a mask, and an image; returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(20, 12), nn.Linear(12, 24), nn.Linear(24, 12)
        self.conv, self.head = nn.Conv2d(3, 12, 3), nn.Linear(12, 3)

    def forward(self, ids: Tensor, mask: Tensor, image: Tensor) -> dict[str, Tensor]:
        x = self.embedding(ids)
        x = x + self.down(self.up(x).relu())
        text = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return {"hidden": x, "logits": self.head(text + self.conv(image).relu().mean((2, 3)))}


@pytest.mark.parametrize("method", ["WT", "ALDS", "KLDS", "PCA", "SNIP", "SiPP", "ThiNet", "PFP"])
def test_methods_take_dictionaries_of_inputs(method: str) -> None:
    torch.manual_seed(0)
    inputs = {
        "ids": torch.randint(0, 20, (6, 5)),
        "mask": torch.tensor([1, 1, 1, 1, 0]).repeat(6, 1),
        "image": torch.randn(6, 3, 5, 5),
    }
    network = TextAndImage()
    targets = torch.randint(0, 3, (6,))
    result = compress(network, method, keep=0.8, example=inputs, data=(inputs, targets), progress=False)
    assert result.parameters <= 0.8 * result.parameters_before
    assert call_network(result.network, inputs)["logits"].shape == (6, 3)


def test_calibration_data_in_every_form() -> None:
    ids, image, y = torch.arange(12).reshape(4, 3), torch.ones(4, 2), torch.arange(4)
    forms: list[tuple[Any, Any, bool]] = [
        ({"ids": ids}, {"ids": ids}, False),
        ({"ids": ids, "labels": y}, {"ids": ids}, True),
        ((ids, y[:, None].expand(4, 3)), ids, True),
        ([ids, ids], torch.cat([ids, ids]), False),
        ((image, image), torch.cat([image, image]), False),
        (((ids, image), y), (ids, image), True),
        ([((ids[:3], image[:3]), y[:3]), ((ids[3:], image[3:]), y[3:])], (ids, image), True),
        ([{"ids": ids[:1], "labels": y[:1]}, {"ids": ids[1:], "labels": y[1:]}], {"ids": ids}, True),
    ]
    for data, inputs, has_targets in forms:
        found = calibration_of(data)
        assert found is not None
        torch.testing.assert_close(found.inputs, inputs)
        assert (found.targets is not None) == has_targets
        assert found.targets is None or torch.equal(found.targets, y) or torch.equal(found.targets[:, 0], y)


def test_a_tuple_in_the_form_of_the_example_is_inputs() -> None:
    image, y = torch.ones(4, 2), torch.ones(4, 3)
    for data, example, inputs in (
        ((image, y), (image[:1], y[:1]), (image, y)),
        ((image, y), image[:1], image),
        (((image, y), y), (image[:1], y[:1]), (image, y)),
    ):
        found = calibration_of(data, example)  # type: ignore[arg-type]
        assert found is not None
        torch.testing.assert_close(found.inputs, inputs)


def test_calibration_data_without_a_token_or_a_sample_are_refused() -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(CompressionError, match="data: expected tokens that count. Got 0 everywhere"):
        calibration_of({"input_ids": ids, "attention_mask": ids * 0})
    with pytest.raises(CompressionError, match="data: expected at least one sample"):
        calibration_of(torch.ones(0, 3))
