"""Networks that parameter files name as `transformers:...` and `timm:...`; most tests need the extras hf and timm."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiment.errors import ConfigError
from experiment.inputs import scored
from experiment.networks.make_network import make_network
from experiment.random_streams import seeded
from experiment.registry import InputShape

TOKENS = InputShape((12,), tokens=True)
IMAGES = InputShape((3, 16, 16))
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
BERT = {"vocab_size": 40, **SIZES}
VIT = {"image_size": 16, "patch_size": 8, **SIZES}


def made(name: str, config: object, shape: tuple[int, ...], classes: int = 3) -> nn.Module:
    with seeded("test_transformers"):
        return make_network(name, {"config": config}, shape, classes).eval()


def logits(network: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return scored(network(torch.arange(24).reshape(2, 12)))


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs the extra hf")


def test_nothing_is_imported_before_a_network_needs_it() -> None:
    code = "import sys, experiment.main, experiment.api.compression, experiment.networks.make_network\n"
    code += "print([name for name in ('transformers', 'timm', 'tokenizers', 'safetensors') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "extra"), [("transformers:BertModel", "hf"), ("timm:resnet18", "timm")])
def test_without_the_library_the_error_names_the_extra(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name.partition(":")[0], None)
    with pytest.raises(ConfigError) as caught:
        make_network(name, {}, IMAGES, 3)
    assert f"pip install 'experiment[{extra}]'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "config", "shape"),
    [
        ("transformers:AutoModelForSequenceClassification", {"model_type": "bert", **BERT}, TOKENS),
        ("transformers:BertForSequenceClassification", BERT, TOKENS),
        ("transformers:ViTForImageClassification", VIT, IMAGES),
    ],
)
def test_a_configuration_makes_the_network_that_transformers_makes(
    name: str, config: Mapping[str, Any], shape: InputShape, transformers: Any
) -> None:
    network = made(name, config, shape)
    kind = transformers.ViTConfig if shape is IMAGES else transformers.BertConfig
    fields = {key: value for key, value in config.items() if key != "model_type"}
    with seeded("test_transformers"):
        expected = type(network)(kind(**fields, num_labels=3))
    assert type(network).__name__ == {"Auto": "BertForSequenceClassification"}.get(name[13:17], name[13:])
    torch.testing.assert_close(dict(network.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)


def test_a_folder_gives_its_weights(transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, num_labels=3)).eval()
    saved.save_pretrained(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)  # a folder may be named from the working directory
    for config in ("mine", str(tmp_path / "mine")):
        network = made("transformers:AutoModelForSequenceClassification", config, TOKENS)
        torch.testing.assert_close(logits(network), logits(saved))


def test_pickled_weights_are_not_read(transformers: Any, tmp_path: Path) -> None:
    saved = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, num_labels=3))
    saved.config.save_pretrained(tmp_path)
    torch.save(saved.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"has no \*.safetensors file, and pickled weights are not read"):
        made("transformers:BertForSequenceClassification", str(tmp_path), TOKENS)


@pytest.mark.parametrize(
    ("name", "config", "text"),
    [
        ("BertForSequenceClasification", BERT, "Did you mean 'BertForSequenceClassification'?"),
        ("BertConfig", BERT, "transformers has no network 'BertConfig'"),
        ("BertForSequenceClassification", {"hiden_size": 8}, "config.hiden_size: BertConfig has no such field."),
        ("BertForSequenceClassification", {"num_labels": 3}, "the number of labels is network.outputSize"),
        ("BertForSequenceClassification", "nowhere", "no folder 'nowhere'"),
        ("BertForSequenceClassification", 3, "Got an int."),
        ("AutoModelForSequenceClassification", BERT, "config.model_type: AutoModelForSequenceClassification needs"),
        ("AutoModelForSequenceClassification", {"model_type": "brt"}, "Did you mean 'bert'?"),
        ("BertModel", BERT, "must return a tensor of shape 2 x 3"),
        ("BertForSequenceClassification", {**BERT, "num_attention_heads": 3}, "its factory failed"),
    ],
)
def test_what_is_wrong_is_said(name: str, config: object, text: str, transformers: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        made(f"transformers:{name}", config, TOKENS)
    assert text in str(caught.value)


def test_networks_of_timm() -> None:
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    network = made("timm:resnet10t", None, IMAGES)
    with seeded("test_transformers"):
        expected = timm.create_model("resnet10t", num_classes=3)
    torch.testing.assert_close(dict(network.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)
    small = made("timm:vit_tiny_patch16_224", {"img_size": 16, "depth": 1}, IMAGES)
    assert sum(p.numel() for p in small.parameters()) < 1_000_000


@pytest.mark.parametrize(
    ("name", "config", "text"),
    [
        ("resnt18", {}, "Did you mean 'resnet18'?"),
        ("resnet18", {"checkpoint_path": "a.pth"}, "weights are named by network.weights"),
        ("resnet18", {"wings": 2}, "its factory failed"),
    ],
)
def test_what_is_wrong_with_timm_is_said(name: str, config: object, text: str) -> None:
    pytest.importorskip("timm", reason="needs the extra timm")
    with pytest.raises(ConfigError) as caught:
        made(f"timm:{name}", config, IMAGES)
    assert text in str(caught.value)
