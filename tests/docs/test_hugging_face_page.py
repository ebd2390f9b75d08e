"""The code of docs/huggingface.md runs from top to bottom; needs the extra hf."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from experiment.layers.masks import named_masks
from experiment.networks.make_network import make_network
from experiment.registry import InputShape

PAGE = Path(__file__).resolve().parents[2] / "docs" / "huggingface.md"

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # of the exporter and its parts
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def _extra() -> None:
    for name in ("transformers", "tokenizers", "onnxscript"):
        pytest.importorskip(name, reason="needs the extras hf and onnx")


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block, names)
    example, small, masked = names["example"], names["small"], names["masked"]
    with torch.inference_mode():
        expected = masked.network(**example).logits
        torch.testing.assert_close(small(**example).logits, expected)
        torch.testing.assert_close(names["again"](**example).logits, expected)
        narrow, loaded, prompt = names["narrow"], names["loaded"], names["prompt"]
        torch.testing.assert_close(loaded(**prompt).logits, narrow.network(**prompt).logits)
    assert named_masks(masked.network)
    assert masked.keep_parameters <= 0.5
    assert names["low_rank"].keep_parameters <= 0.5
    assert loaded.config.hidden_size < names["writer"].config.hidden_size
    assert names["small_heads"].network.config.intermediate_size == 80
    assert names["written"].shape[1] > names["prompt"]["input_ids"].shape[1]
    assert (tmp_path / "small.onnx").stat().st_size > 0


def test_the_network_of_the_parameter_file_is_made() -> None:
    network = yaml.safe_load(blocks("yaml")[0])["network"]
    made = make_network(network["name"], network["settings"], InputShape((12,), tokens=True), network["outputSize"])
    assert type(made).__name__ == "BertForSequenceClassification"
