"""Experiments on the user's own datasets whose inputs are dictionaries or tuples of tensors."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from experiment import load_network, load_results
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
        return {**sample, "ids": sample["ids"][: 8 - i % 3]}


class TooMany(Texts):
    def __getitem__(self, i):
        return {**super().__getitem__(i), "token_type_ids": torch.zeros(8, dtype=torch.int64)}


class Lists(Texts):
    def __getitem__(self, i):
        return {**super().__getitem__(i), "ids": [1, 2, 3]}


def texts(root, train, kind="Texts"):
    return globals()[kind](160 if train else 60, int(train))


class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(23, 12), nn.Linear(12, 24), nn.Linear(24, 12)
        self.head = nn.Linear(12, outputs)

    def forward(self, ids, attention_mask):
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
  methods: [WT, ALDS, KLDS, FT]
  mode: retrain
  numNets: 1
  spacing: [{{type: geometric, numIntervals: 1, maxVal: 0.7, minVal: 0.7}}]
  measure: [latency]
"""


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> int:
    (folder / "several_inputs.py").write_text(MODULE)
    (folder / "own.yaml").write_text(FILE.format(kind=kind))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "several_inputs", raising=False)
    return main(["own.yaml", "-j", "1"])


@pytest.mark.parametrize("kind", ["Texts", "Pairs"])
def test_a_whole_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    assert run(tmp_path, monkeypatch, kind) == 0
    table = load_results("own.yaml")
    assert len(table) == 5
    assert (table.top1 > 0.8).all()
    network = load_network("own.yaml", method="ALDS", keep=0.7)
    ids, mask = torch.randint(0, 20, (2, 8)), torch.ones(2, 8)
    assert network(ids, mask)["logits"].shape == (2, 3)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Uneven", "inputs of different shapes after the transforms: .*ids: .*Pad them in the dataset"),
        ("TooMany", "unexpected keyword argument 'token_type_ids'"),
        (
            "Lists",
            "expected tensors in the input. Got a list of 3. Make it a tensor, for example by dataset.with_format",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, message: str
) -> None:
    assert run(tmp_path, monkeypatch, kind) != 0
    assert re.search(message, capsys.readouterr().err)
