"""Experiments on texts: a language model on the user's own file, and BERT on a table with a tokenizer."""

import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiment.config import load
from experiment.main import main
from experiment.run.grid.hardware import Machine
from experiment.run.grid.plan import plan_experiment

WORDS = (
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "one",
    "big",
    "red",
    "bird",
    "fly",
    "while",
    "dogs",
    "ran",
)
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}

pytestmark = pytest.mark.usefixtures("no_plots")


def sentences(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) for _ in range(6)) for _ in range(count)]


@pytest.fixture
def texts(small: dict[str, Any], in_tmp: Path) -> dict[str, Any]:
    """A parameter file, and beside it a text and a table in two parts each."""
    for part, seed, count in (("train", 0, 80), ("test", 1, 20)):
        lines = sentences(seed, count)
        Path(f"{part}.txt").write_text(". ".join(lines))
        rows = [f"{line},{'cat' in line or 'dogs' in line},{len(line)}\n" for line in lines]
        Path(f"{part}.csv").write_text("text,label,length\n" + "".join(rows))
    small["training"] |= {
        "batchSize": 16, "optimizer": "AdamW", "optimizerKwargs": {"lr": 0.01}, "numEpochs": 3, "lrSchedulers": [],
        "transformsTrain": [], "transformsFinal": [],
    }  # fmt: skip
    small["training"].pop("loss", None)
    small["retraining"] = {"numEpochs": 1, "distillation": {"alpha": 0.5}}
    small["experiments"]["spacing"][0]["values"] = [0.6]
    return small


def results(path: str, *options: str) -> pd.DataFrame:
    assert main([path, "-q", *options]) == 0
    frame = pd.read_csv(Path("data/results/small/results.csv"))
    assert set(frame["status"]) == {"done"}
    return frame


def test_a_language_model(texts: dict[str, Any], write: Any) -> None:
    dataset = {"train": "train.txt", "test": "test.txt", "tokenizer": "characters", "length": 31}
    texts["network"] = {
        "name": "gpt_small", "settings": {"layers": 1, "width": 16, "heads": 2}, "outputSize": 32,
        "dataset": {"name": "TextFile", "settings": dataset},
    }  # fmt: skip
    texts["experiments"]["methods"] = ["WT", "SNIP", "KLDS"]
    frame = results(str(write(texts)), "-j", "1")
    assert set(frame["primary"] + " " + frame["better"] + " " + frame["unit"]) == {"perplexity lower value"}
    assert (frame["perplexity"] < 20).all()  # about 20 characters
    assert frame["perplexity"].to_numpy() == pytest.approx(frame["loss"].map(lambda x: 2.718281828459045**x), rel=1e-5)
    assert frame["token_top1"].between(0.05, 1).all()


@pytest.mark.parametrize(("column", "outputs", "task"), [("label", 2, None), ("length", 1, "text_regression")])
def test_bert_on_a_table(column: str, outputs: int, task: str | None, texts: dict[str, Any], write: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra hf")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.train_from_iterator(sentences(0, 50), tokenizers.trainers.WordLevelTrainer(special_tokens=special))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained("words")
    dataset = {"train": "train.csv", "test": "test.csv", "label": column, "tokenizer": "words", "length": 10}
    texts["network"] = {
        "name": "bert", "settings": {"config": BERT | {"vocab_size": 32}}, "outputSize": outputs,
        "dataset": {"name": "TextTable", "settings": dataset},
    } | ({"task": task} if task else {})  # fmt: skip
    texts["experiments"]["methods"] = ["WT"]
    frame = results(str(write(texts)), "-j", "1")
    assert set(frame["primary"]) == {"pearson" if task else "top1"}
    assert frame[["pearson", "spearman"] if task else ["top1", "mcc", "f1"]].notna().all(axis=None)


@pytest.mark.parametrize(("name", "outputs"), [("GlueCoLA", 2), ("GlueSTSB", 1), ("GlueMNLI", 3)])
def test_files_of_torchprune_plan(name: str, outputs: int, small: dict[str, Any], write: Any) -> None:
    small["network"] = {"name": "bert", "dataset": name, "outputSize": outputs}
    small["training"] = {
        "file": "training/glue/bert_acc.yaml", "loss": "LossFromInput", "lossKwargs": {},
        "metricsTest": [{"type": "MCorr", "kwargs": {}}],
    }  # fmt: skip
    small["retraining"] = {"startEpoch": 3}
    file = load(write(small))
    assert file.parameters.training.loss is None
    plan = plan_experiment(file, Machine("cpu"))
    assert not plan.problems
    assert plan.chains
