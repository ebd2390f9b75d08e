"""Experiments on the user's own datasets whose inputs are dictionaries or tuples of tensors."""

import re
import sys
from pathlib import Path

import pytest
import torch

from experiment import calibration_inputs, evaluate, load_network, load_results
from experiment.errors import CompressionError
from experiment.main import main

MODULE = """
import torch
from torch import nn


class Texts:
    classes = ("a", "b", "c")
    keywords = True

    def __init__(self, size, seed):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(3, (size,), generator=generator)
        self.ids = torch.randint(1, 20, (size, 8), generator=generator)
        self.ids[:, 2] = 20 + self.labels  # one token tells the class
        self.lengths = torch.randint(4, 9, (size,), generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        mask = (torch.arange(8) < self.lengths[i]).long()
        ids = self.ids[i] * mask
        if self.keywords:
            return {"ids": ids, "attention_mask": mask, "labels": int(self.labels[i])}
        return (ids, mask.float()), int(self.labels[i])


class Pairs(Texts):
    keywords = False


class Uneven(Texts):
    def __getitem__(self, i):
        sample = super().__getitem__(i)
        return {key: value if key == "labels" else value[: 8 - i % 3] for key, value in sample.items()}


class TooMany(Texts):
    def __getitem__(self, i):
        return {**super().__getitem__(i), "token_type_ids": torch.zeros(8, dtype=torch.int64)}


class Lists(Texts):
    def __getitem__(self, i):
        return {**super().__getitem__(i), "ids": [1, 2, 3]}


class Words(Texts):
    def __getitem__(self, i):
        return {**super().__getitem__(i), "text": "a word"}


class OtherKeys(Texts):
    def __getitem__(self, i):
        sample = super().__getitem__(i)
        return {("tokens" if i % 2 and key == "ids" else key): value for key, value in sample.items()}


class Label(Texts):
    def __getitem__(self, i):
        sample = super().__getitem__(i)
        return {**{key: value for key, value in sample.items() if key != "labels"}, "label": sample["labels"]}


class TwoRanks(Texts):
    def __getitem__(self, i):
        sample = super().__getitem__(i)
        return {**sample, "attention_mask": sample["attention_mask"][None]}


def texts(root, train, kind="Texts"):
    return globals()[kind](160 if train else 60, int(train))


class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(23, 12), nn.Linear(12, 24), nn.Linear(24, 12)
        self.head = nn.Linear(12, outputs)

    def forward(self, ids, attention_mask):
        assert ids.max() > 19, "no token tells the class: zeros are no inputs of this network"
        x = self.embedding(ids)
        x = x + self.down(self.up(x).relu())
        mask = attention_mask[..., None].float()
        return {"hidden": x, "logits": self.head((x * mask).sum(1) / mask.sum(1))}


def network(input_shape, output_size):
    return Net(output_size)
"""

FILE = """
network:
  name: several_inputs:network
  dataset: {{name: "several_inputs:texts", settings: {{kind: {kind}}}}}
  outputSize: 3
training: {{numEpochs: 6, batchSize: 16, optimizer: Adam, optimizerKwargs: {{lr: 0.02}}}}
retraining: {{numEpochs: 1, distillation: {{alpha: 0.5}}}}
experiments:
  methods: {methods}
  mode: retrain
  numNets: 1
  spacing: [{{type: geometric, numIntervals: 1, maxVal: 0.7, minVal: 0.7}}]
  measure: [latency]
"""


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, methods: str = "[WT, ALDS, KLDS, FT]") -> int:
    (folder / "several_inputs.py").write_text(MODULE)
    (folder / "own.yaml").write_text(FILE.format(kind=kind, methods=methods))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "several_inputs", raising=False)
    return main(["own.yaml", "-j", "1"])


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(("kind", "methods"), [("Texts", "[WT, ALDS, KLDS, FT]"), ("Pairs", "[FT]")])
def test_a_whole_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, methods: str) -> None:
    """Trained, compressed, retrained by distillation, tested, timed; loaded and tested again in Python."""
    assert run(tmp_path, monkeypatch, kind, methods) == 0
    table = load_results("own.yaml").set_index("method")
    assert len(table) == 1 + methods.count(",") + 1
    assert (table.top1 > 0.8).all()
    assert (table.latency_ms_b64 > 0).all()
    network = load_network("own.yaml", method="FT", keep=0.7)
    assert evaluate("own.yaml", network)["loss"] == pytest.approx(table.loss["FT"], abs=1e-5)
    inputs = calibration_inputs("own.yaml", size=5)
    assert [x.shape for x in (inputs.values() if kind == "Texts" else inputs)] == [(5, 8), (5, 8)]
    with pytest.raises(CompressionError, match=r"dataset several_inputs:texts: the network fails on its first sample"):
        evaluate("own.yaml", torch.nn.Linear(2, 3))
    with pytest.raises(CompressionError, match=r"expected 3 outputs of the network for one input. Got shape \(1, 2\)"):
        evaluate("own.yaml", sys.modules["several_inputs"].Net(2))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Uneven", "inputs of different shapes after the transforms: .*ids: .*Pad them in the dataset"),
        ("TooMany", "unexpected keyword argument 'token_type_ids'"),
        ("Lists", "sample 0, 'ids': expected tensors in the input. Got a list of 3. Remove it, or make it a tensor"),
        ("Words", "sample 0, 'text': expected tensors in the input. Got the text 'a word'. Remove it"),
        ("OtherKeys", "inputs of different shapes after the transforms: .*tokens: .*give every sample the same keys"),
        ("Label", "Got a mapping with the keys ids, attention_mask, label. Rename 'label' to 'labels'"),
        ("TwoRanks", "batch of 2 inputs {ids: 8, attention_mask: 1 x 8}. It returns 2 x 8 x 3"),
    ],
)
def test_inputs_that_do_not_fit_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, message: str
) -> None:
    assert run(tmp_path, monkeypatch, kind) != 0
    assert re.search(message, capsys.readouterr().err)
