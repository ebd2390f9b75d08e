"""From names and settings to networks: what is refused, with which words, and what the check leaves alone."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision import models

from experiment import random_streams
from experiment.errors import ConfigError, DataError
from experiment.networks.make_network import make_network
from experiment.networks.resnet import ResNet, resnet20

CIFAR = (3, 32, 32)

USER_MODULE = """
import torch
from torch import nn

def make(input_shape, output_size, hidden=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], hidden),
                         nn.ReLU(), nn.Linear(hidden, output_size)).eval()

class Own(nn.Module):
    def __init__(self, input_shape, output_size):
        super().__init__()
        self.fc = nn.Linear(input_shape[0], output_size)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))

class Features(Own):
    def forward(self, x):
        return {"logits": super().forward(x)}

class Nothing(Own):
    def forward(self, x):
        return {"logits": None}

def forgets_to_return(input_shape, output_size):
    nn.Flatten()

def ignores_outputs(input_shape, output_size):
    return Own(input_shape, 1000)

class Broken(Own):
    def forward(self, x):
        raise RuntimeError("boom")

class NotANumber(Own):
    def forward(self, x):
        return super().forward(x) * float("nan")

def breaks(input_shape, output_size):
    raise KeyError("width")

def anything(input_shape, output_size, **settings):
    return make(input_shape, output_size, settings["width"])

number = 3
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"user_networks_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def problem(name: str, settings: dict[str, object], shape: tuple[int, int, int] = CIFAR, output_size: int = 10) -> str:
    with pytest.raises(ConfigError) as caught:
        make_network(name, settings, shape, output_size)
    return str(caught.value)


def test_users_factory(user_module: str) -> None:
    network = make_network(f"{user_module}:make", {"hidden": 5}, CIFAR, 10)
    assert [m.out_features for m in network.modules() if isinstance(m, nn.Linear)] == [5, 10]
    assert all(m.training for m in network.modules())


def test_users_class_and_open_settings(user_module: str) -> None:
    assert make_network(f"{user_module}:Own", {}, CIFAR, 4)(torch.zeros(1, *CIFAR)).shape == (1, 4)
    assert make_network(f"{user_module}:anything", {"width": 6}, CIFAR, 4)(torch.zeros(1, *CIFAR)).shape == (1, 4)


def test_unknown_name() -> None:
    text = problem("ResNet110", {})
    assert "unknown network 'ResNet110'. Did you mean 'resnet110'?" in text
    assert "package.module:factory" in text


def test_unknown_setting_names_the_signature() -> None:
    text = problem("mnist_fc", {"dropuot": 0.2}, (1, 28, 28))
    assert "'dropuot'" in text
    assert "Did you mean 'dropout'?" in text
    assert "dropout: 'float' = 0.5" in text or "dropout: float = 0.5" in text
    assert "Got settings {'dropuot': 0.2}" in text
    assert "depth" in problem("resnet20", {"depth": 8})
    assert "Did you mean 'rank'?" in problem("resnet20", {"ranks": 8})


@pytest.mark.parametrize("key", ["input_shape", "output_size"])
def test_shape_and_outputs_are_no_settings(key: str) -> None:
    assert f"'{key}'" in problem("resnet20", {key: 3})


def test_bad_value() -> None:
    text = problem("mnist_fc", {"dropout": 1.5}, (1, 28, 28))
    assert "'mnist_fc': its factory failed for inputs 1 x 28 x 28, outputSize 10 and settings {'dropout': 1.5}" in text
    assert "dropout probability has to be between 0 and 1" in text


@pytest.mark.parametrize(("name", "side"), [("lenet5", 15), ("lenet5_small", 11), ("alexnet_bn", 62)])
def test_too_small_images_name_the_least(name: str, side: int) -> None:
    assert f"at least {side + 1} x {side + 1} pixels" in problem(name, {}, (3, side, 200))
    with torch.device("meta"):
        make_network(name, {}, (3, side + 1, 200), 10)


def test_inputs_that_do_not_fit() -> None:
    text = problem("alexnet", {}, (3, 32, 32))
    assert "network 'alexnet': fails for inputs 3 x 32 x 32: RuntimeError" in text
    assert "transform" in text


def test_users_mistakes(user_module: str) -> None:
    assert "returned NoneType" in problem(f"{user_module}:forgets_to_return", {})
    text = problem(f"{user_module}:ignores_outputs", {})
    assert "shape 2 x 10" in text
    assert "It returns 2 x 1000" in text
    assert problem(f"{user_module}:Nothing", {}).endswith("It returns a dict.")
    with random_streams.seeded("init"):
        make_network(f"{user_module}:Features", {}, CIFAR, 10)
    line = 1 + USER_MODULE.split("\n").index('        raise RuntimeError("boom")')
    assert "RuntimeError: boom (" in (text := problem(f"{user_module}:Broken", {}))
    assert f"{user_module}.py:{line})" in text
    assert "returns NaN or infinity" in problem(f"{user_module}:NotANumber", {})
    assert "KeyError: 'width'" in problem(f"{user_module}:breaks", {})
    assert "Got 3" in problem(f"{user_module}:number", {})
    assert "Did you mean 'make'?" in problem(f"{user_module}:mkae", {})
    assert "cannot import 'no_such_module_anywhere'" in problem("no_such_module_anywhere:make", {})


def test_the_check_changes_nothing() -> None:
    """Probing draws no numbers and leaves running statistics as they are."""
    with random_streams.seeded("init"):
        plain, after_plain = resnet20(CIFAR, 10), torch.rand(())
    with random_streams.seeded("init"):
        made, after_made = make_network("resnet20", {}, CIFAR, 10), torch.rand(())
    assert after_plain == after_made
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), made.state_dict().values(), strict=True))
    assert made.get_buffer("bn1.num_batches_tracked") == 0


@pytest.mark.parametrize("depth", [2, 9, 21])
def test_impossible_depth(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth must be 6n \+ 2.*Got {depth}"):
        ResNet(3, 10, depth)


def test_torchvision_wants_three_channels() -> None:
    assert "requires images with 3 channels. Got 1" in problem("resnet18", {}, (1, 64, 64))


def test_pretrained_contradictions() -> None:
    assert "outputSize 10" in problem("resnet18", {"pretrained": True}, (3, 64, 64))
    assert "below 64 pixels" in problem("vgg16_bn", {"pretrained": True})


def test_pretrained_without_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: models.WeightsEnum, *args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        raise URLError("no route to host")

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", refuse)
    with pytest.raises(DataError, match="no route to host") as caught:
        make_network("mobilenet_v2", {"pretrained": True}, (3, 64, 64), 1000)
    assert models.MobileNet_V2_Weights.IMAGENET1K_V1.url in str(caught.value)
    assert "checkpoints" in str(caught.value)


def test_pretrained_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    published = {n: torch.full_like(v, 0.5) for n, v in models.mobilenet_v2(weights=None).state_dict().items()}
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda self, *args, **kwargs: published)
    network = make_network("mobilenet_v2", {"pretrained": True}, (3, 64, 64), 1000)
    assert all(torch.equal(v, published[n]) for n, v in network.state_dict().items())


def test_published_weights_for_segmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the whole network, without its auxiliary head, or of the backbone."""
    plain = {"weights": None, "weights_backbone": None}
    whole = models.get_model("deeplabv3_mobilenet_v3_large", **plain, num_classes=21, aux_loss=True).state_dict()
    backbone = models.mobilenet_v3_large(weights=None).state_dict()

    def published(self: models.WeightsEnum, *args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        return {n: torch.full_like(v, 0.5) for n, v in (whole if "COCO" in self.name else backbone).items()}

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", published)
    name, shape = "deeplabv3_mobilenet_v3_large", (3, 64, 64)
    network = make_network(name, {"pretrained": True, "auxiliary": False}, shape, 21, outputs=None)
    assert all((v == 0.5).all() for v in network.state_dict().values() if v.is_floating_point())
    assert set(network(torch.zeros(2, *shape))) == {"out"}
    network = make_network(name, {"pretrained": "backbone"}, shape, 5, outputs=None)
    loaded = {n: bool((p == 0.5).all()) for n, p in network.named_parameters()}
    assert all(same == name.startswith("backbone") for name, same in loaded.items())
    assert "true with outputSize 21" in problem(name, {"pretrained": True}, shape)
