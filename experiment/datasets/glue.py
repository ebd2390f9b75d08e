"""The datasets of the GLUE benchmark, as tables of texts. Torch-free.

Source: Wang et al. 2018, https://arxiv.org/abs/1804.07461
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiment.datasets.image_files import File
from experiment.datasets.text_files import text_files

_ENTAILMENT = ("entailment", "not_entailment")
_TABLES: dict[str, dict[str, object]] = {
    "GlueCoLA": {"root": "CoLA", "header": False, "text": "3", "label": "1"},
    "GlueSST2": {"root": "SST-2", "text": "sentence"},
    "GlueMRPC": {"root": "MRPC", "text": "#1 String", "pair": "#2 String", "label": "Quality"},
    "GlueSTSB": {"root": "STS-B", "text": "sentence1", "pair": "sentence2", "label": "score"},
    "GlueQQP": {"root": "QQP", "text": "question1", "pair": "question2", "label": "is_duplicate"},
    "GlueMNLI": {
        "root": "MNLI", "test": "dev_matched.tsv", "text": "sentence1", "pair": "sentence2", "label": "gold_label",
        "classes": ("entailment", "neutral", "contradiction"),
    },
    "GlueQNLI": {"root": "QNLI", "text": "question", "pair": "sentence", "classes": _ENTAILMENT},
    "GlueRTE": {"root": "RTE", "text": "sentence1", "pair": "sentence2", "classes": _ENTAILMENT},
    "GlueWNLI": {"root": "WNLI", "text": "sentence1", "pair": "sentence2"},
}  # fmt: skip


def as_table(name: str, settings: Mapping[str, object]) -> dict[str, object]:
    """The settings of a table of texts for a dataset of GLUE."""
    own = _TABLES[name]
    root = str(Path(str(settings.get("root", "glue"))) / str(own["root"]))
    defaults = {"train": "train.tsv", "test": "dev.tsv", "tokenizer": "bert-base-cased"}
    return {**defaults, **own, **settings, "root": root}


def glue_files(name: str, data_dir: Path, train: bool, settings: Mapping[str, object]) -> Sequence[File]:
    """The files that a part is read from."""
    return text_files(name, data_dir, train, as_table(name, settings))
