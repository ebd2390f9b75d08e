"""Long texts for language models: consecutive windows of tokens, each with the tokens that follow."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiment.datasets.raw_images import Source, check_settings
from experiment.datasets.text_files import part_path, read_text
from experiment.datasets.tokenizers import Bytes, Characters, HuggingFace, length_of, of_short_texts
from experiment.errors import DataError
from experiment.tasks.language_modelling import IGNORED

TEST_EVERY = 5  # every fifth help topic, by name, is in the test part


@dataclass(frozen=True)
class Windows:
    """Windows (T,) of a text's tokens, int64. Every token but the first is predicted exactly once.

    The last window is padded with 0; its missing targets are ignored. `vocabulary` is the number of tokens there are.
    """

    tokens: Tensor
    length: int
    vocabulary: int = 0

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.length)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        part = self.tokens[index * self.length :][: self.length + 1]
        x, y = torch.zeros(self.length, dtype=torch.int64), torch.full((self.length,), IGNORED)
        x[: len(part) - 1], y[: len(part) - 1] = part[:-1], part[1:]
        return x, y


def load_python(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """The characters of the help topics that Python ships; every fifth topic is in the test part.

    Settings: `length` of a window (128). 128 outputs are enough for the topics of all versions of Python.
    """
    check_settings(name, settings, ("length",))
    from pydoc_data.topics import topics  # half a megabyte, for this dataset only

    parts = {True: "", False: ""}
    for i, topic in enumerate(sorted(topics)):
        parts[bool(i % TEST_EVERY)] += topics[topic]
    return _source(name, parts[train], _characters(parts[True]), settings, output_size)


def load_file(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """The user's own text.

    Settings: `train` and `test` (files, UTF-8), `root` (the folder they are in), `tokenizer` (bytes, the default;
    characters: those of the training file; or the folder of a Hugging Face tokenizer), `length` of a window (128).

    Raises:
        ConfigError: a setting is wrong.
        DataError: a file is missing, empty or not UTF-8, or the network has fewer outputs than there are tokens.
    """
    check_settings(name, settings, ("root", "train", "test", "tokenizer", "length"))
    path = part_path(data_dir, train, settings)
    text, tokenizer = read_text(path), None
    if settings.get("tokenizer") == "characters":
        tokenizer = _characters(read_text(part_path(data_dir, True, settings)))
    return _source(str(path), text, tokenizer or of_short_texts(settings, data_dir), settings, output_size)


def _characters(text: str) -> Characters:
    return Characters("".join(sorted(set(text))))


def _source(
    name: str, text: str, by: Bytes | Characters | HuggingFace, settings: Mapping[str, object], output_size: int
) -> Source:
    if output_size < by.size:
        raise DataError(
            f"network.outputSize is {output_size}, but the vocabulary of {name} has {by.size} tokens: {by.meaning}. "
            f"Set outputSize to at least {by.size}."
        )
    tokens = by.tokens(text)
    if len(tokens) < 2:
        raise DataError(f"{name}: expected a text of at least two tokens. Got {len(tokens)}.")
    return Source(Windows(tokens, length_of(settings), by.size))
