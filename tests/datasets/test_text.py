"""Datasets of texts: windows, tokenizers, tables, GLUE's files, and what is said about bad ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiment.datasets import DATASETS
from experiment.datasets.file_stamp import stamp_of_part
from experiment.datasets.loading import load_source
from experiment.datasets.token_windows import Windows
from experiment.datasets.tokenizers import Bytes
from experiment.errors import ConfigError, DataError
from experiment.tasks.language_modelling import IGNORED

ROWS = [('good, "really"', "yes"), ("bad", "no"), ("so-so", "no"), ("ärgerlich", "yes")]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def load(folder: Path, name: str, part: bool = True, outputs: int = 2, /, **settings: Any) -> Any:
    return load_source(name, settings, folder, part, outputs)


@pytest.mark.parametrize("count", [2, 5, 8, 9, 10, 17])
def test_every_token_is_predicted_once(count: int) -> None:
    tokens = torch.arange(100, 100 + count)
    windows = Windows(tokens, 4)
    x, y = (torch.cat(part) for part in zip(*(windows[i] for i in range(len(windows))), strict=True))
    assert y[y != IGNORED].tolist() == tokens[1:].tolist()
    assert x[y != IGNORED].tolist() == tokens[:-1].tolist()
    assert len(x) - count < 4  # no window without a target


def test_python_docs() -> None:
    parts = [load(Path(), "PythonDocs", train, 128, length=64).items for train in (True, False)]
    train, test = (part.tokens for part in parts)
    assert parts[0][3][0].shape == parts[0][3][1].shape == (64,)
    assert set(train.tolist()) == set(range(1, int(train.max()) + 1))  # the vocabulary is that of the training part
    assert int(test.max()) <= int(train.max())
    assert 0.05 < len(test) / (len(train) + len(test)) < 0.35
    with pytest.raises(DataError, match=r"outputSize is 50, but the vocabulary of PythonDocs has \d+ tokens"):
        load(Path(), "PythonDocs", True, 50)
    assert stamp_of_part("PythonDocs", {}, Path("/nonexistent"), True)


def test_text_file(tmp_path: Path) -> None:
    write(tmp_path, "own/a.txt", "\ufeffabba ä")
    write(tmp_path, "own/b.txt", "bäx")
    settings = {"root": "own", "train": "a.txt", "test": "b.txt", "tokenizer": "characters"}
    assert load(tmp_path, "TextFile", True, 9, **settings).items.tokens.tolist() == [2, 3, 3, 2, 1, 4]
    assert load(tmp_path, "TextFile", False, 9, **settings).items.tokens.tolist() == [3, 4, 0]
    settings["tokenizer"] = "bytes"
    assert load(tmp_path, "TextFile", False, 256, **settings).items.tokens.tolist() == list("bäx".encode())
    before = stamp_of_part("TextFile", settings, tmp_path, False)
    write(tmp_path, "own/a.txt", "another vocabulary")
    assert stamp_of_part("TextFile", settings, tmp_path, False) != before


@pytest.mark.parametrize(("text", "pair"), [("ab", None), ("abcdefgh", None), ("ab", "c"), ("ab", "cdefghi"),
                                            ("abcdefgh", "c"), ("abcdefgh", "ijklmnop")])  # fmt: skip
def test_bytes_cut_the_longer_text_and_pad(text: str, pair: str | None) -> None:
    made = Bytes().inputs(text, pair, 8)
    kept = bytes(made["input_ids"].tolist())
    assert made["attention_mask"].tolist() == [int(byte != 0) for byte in kept]
    first, *second = kept.rstrip(b"\0").decode().split("\x1e")
    assert text.startswith(first[1:])
    assert first[0] == "\x02"
    whole = 1 + len(text) + (0 if pair is None else 1 + len(pair))
    assert made["attention_mask"].sum() == min(8, whole)
    if pair is not None:
        assert pair.startswith(second[0])
        assert whole <= 8 or min(len(first), 1 + len(second[0])) >= min(4, 1 + len(text), 1 + len(pair))


def table(folder: Path, kind: str, rows: list[tuple[str, str]]) -> Path:
    texts = {
        ".csv": "text,label\n" + "".join('"{}",{}\n'.format(t.replace('"', '""'), label) for t, label in rows),
        ".tsv": "text\tlabel\r\n" + "".join(f"{t}\t{label}\r\n" for t, label in rows),
        ".jsonl": "".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in rows),
    }
    return write(folder, f"part{kind}", texts[kind])


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
def test_tables_of_every_kind(tmp_path: Path, kind: str) -> None:
    source = load(tmp_path, "TextTable", train=str(table(tmp_path, kind, ROWS)), length=16)
    assert source.items.texts == [text for text, _ in ROWS]
    assert source.items.labels == [1, 0, 0, 1]
    assert source.classes == ("no", "yes")
    inputs, label = source.items[1]
    assert bytes(inputs["input_ids"].tolist()) == b"\x02bad".ljust(16, b"\0")
    assert label == 0


def test_labels(tmp_path: Path) -> None:
    """Numbers stay; names are numbered as in the training part, or as `classes` says."""
    train = write(tmp_path, "train.csv", "text,label\na,b\nc,a\nd,c\n")
    test = write(tmp_path, "test.csv", "text,label\na,c\n")
    settings = {"train": str(train), "test": str(test)}
    assert load(tmp_path, "TextTable", False, 3, **settings).items.labels == [2]
    assert load(tmp_path, "TextTable", False, 3, classes=["c", "b", "a"], **settings).items.labels == [0]
    numbers = write(tmp_path, "numbers.csv", "text,label\na,1\nc,2.5\n")
    assert load(tmp_path, "TextTable", True, 1, train=str(numbers)).items.labels == [1.0, 2.5]


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("a.csv|", {}, r"a\.csv is empty"),
        ("a.csv|text,label\n", {}, r"a\.csv has no rows"),
        ("a.csv|text,lable\na,1\n", {}, r"no column 'label'\. Did you mean 'lable'\? .*Set settings\.label"),
        ("a.csv|text,label\na,1\nb,\n", {}, r"a\.csv: row 2: no label\. Fill it in, or remove the row"),
        ("a.csv|text,label\na,1\nb,nan\n", {}, r"a\.csv: row 2: no label"),
        ("a.csv|text,label\na,1\nb,inf\n", {}, r"a\.csv: row 2: expected a finite number as label\. Got 'inf'"),
        ("a.csv|text,label\na,x\nb,y\n", {"classes": ["x", "z"]}, r"row 2: expected one of the classes x, z .*Got 'y'"),
        ("a.csv|text,label\na,1\nb,2,3\n", {}, r"a\.csv: expected texts that hold the separator in quotes: .* line 3"),
        ("a.csv|text,label\na,1,2\nb,2,3\n", {}, r"a\.csv: expected texts that hold the separator in quotes"),
        ('a.csv|text,label\n"a,1\n', {}, r"a\.csv: expected texts .* EOF inside string"),
        ("a.jsonl|{\"text\": \"a\", \"label\": 1}\n{\"text\n", {}, r"a\.jsonl:2: expected one JSON object per line"),
        ("a.jsonl|{\"text\": \"a\", \"label\": 1}\n{\"label\": 1}\n", {}, r"a\.jsonl: row 2: no text in column 'text'"),
        ("a.jsonl|{\"text\": \"a\", \"label\": 1}\n{\"text\": \"a\", \"label\": null}\n", {}, r"row 2: no label"),
        ("a.parquet|no", {}, r"a\.parquet: (parquet needs pyarrow|expected a \.?parquet table)"),
        ("a.xls|no", {}, r"a\.xls: expected a file that ends in \.csv, \.tsv, \.jsonl or \.parquet"),
        ("a.csv|text,label\na,1\n", {"tokenizer": "no/such"}, r"settings\.tokenizer: "),
        ("a.csv|text,label\na,1\n", {"length": 1}, r"settings\.length: must be a whole number of at least 2"),
        ("a.csv|text,label\na,1\n", {"header": "no"}, r"settings\.header: must be true or false"),
        ("a.csv|text,label\na,1\n", {"classes": "x"}, r"settings\.classes: must be a list"),
        ("a.csv|text,label\na,1\n", {"labels": "x"}, r"settings\.labels: TextTable has no such setting"),
        ("a.csv|text,label\na,1\n", {"train": None}, r"settings\.train: expected the name of a file"),
    ],
)  # fmt: skip
def test_bad_tables_are_named(tmp_path: Path, content: str, settings: dict[str, Any], message: str) -> None:
    name, _, text = content.partition("|")
    path = write(tmp_path, name, text)
    with pytest.raises((DataError, ConfigError), match=message):
        load(tmp_path, "TextTable", **{"train": str(path), **settings})


def test_wrong_encodings_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "text\tlabel\ngut\t1\nsch\xf6n\t2\n".encode("latin1"))
    message = r"a\.tsv:3: expected UTF-8\. Got the byte 0xf6\. Convert it: iconv"
    for name in ("TextTable", "TextFile"):
        with pytest.raises(DataError, match=message):
            load(tmp_path, name, True, 256, train=str(path))
    with pytest.raises(DataError, match=r"none\.txt cannot be read: No such file"):
        load(tmp_path, "TextFile", True, 256, train="none.txt")
    with pytest.raises(DataError, match="expected a text of at least two tokens. Got 1"):
        load(tmp_path, "TextFile", True, 256, train=str(write(tmp_path, "one.txt", "x")))


GLUE_FILES = {  # name -> file, content in GLUE's own layout, texts, second texts, labels
    "GlueCoLA": ("CoLA/train.tsv", 'gj\t1\t\tThe "x".\r\nbc\t0\t*\tRan.\r\n', ['The "x".', "Ran."], None, [1, 0]),
    "GlueSST2": ("SST-2/train.tsv", 'sentence\tlabel\n"good \t1\nbad \t0\n', ['"good', "bad"], None, [1, 0]),
    "GlueMRPC": (
        "MRPC/train.tsv",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta\tb\n",
        ["a"], ["b"], [1],
    ),
    "GlueQQP": (  # a row is cut off
        "QQP/train.tsv",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\tb\t0\n4\t5\t6\tcut\n",
        ["a"], ["b"], [0],
    ),
    "GlueSTSB": ("STS-B/train.tsv", "index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.8\n", ["a"], ["b"], [3.8]),
    "GlueMNLI": (
        "MNLI/train.tsv",
        "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tneutral\n",
        ["a"], ["b"], [1],
    ),
    "GlueQNLI": ("QNLI/train.tsv", "index\tquestion\tsentence\tlabel\n0\ta\tb\tentailment\n", ["a"], ["b"], [0]),
    "GlueRTE": ("RTE/train.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n", ["a"], ["b"], [1]),
    "GlueWNLI": ("WNLI/train.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n", ["a"], ["b"], [1]),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in DATASETS if name.startswith("Glue")])
def test_glue(tmp_path: Path, name: str) -> None:
    file, content, texts, pairs, labels = GLUE_FILES[name]
    outputs = DATASETS[name].num_classes or 0
    with pytest.raises(DataError, match=f"dataset {name} is missing: no file .*glue/{file}"):
        load(tmp_path, name, True, outputs, tokenizer="bytes")
    write(tmp_path / "glue", file, content)
    items = load(tmp_path, name, True, outputs, tokenizer="bytes").items
    assert (items.texts, items.pairs, items.labels) == (texts, pairs or [None] * len(texts), labels)
