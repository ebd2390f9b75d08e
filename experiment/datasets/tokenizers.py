"""Tokenizers: bytes, the characters of a text, or one of Hugging Face from a local folder."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiment.datasets.text_files import find
from experiment.errors import ConfigError, first_line
from experiment.inputs import ATTENTION_MASK
from experiment.user_code import missing_module

START, BETWEEN = b"\x02", b"\x1e"  # ASCII's control characters; the padding is 0


class Bytes:
    """The 256 bytes of UTF-8."""

    size, meaning = 256, "bytes"

    def tokens(self, text: str) -> Tensor:
        """Token ids (T,) of a whole text."""
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()

    def inputs(self, text: str, pair: str | None, length: int) -> dict[str, Tensor]:
        """Inputs (length,) of a text or a pair, cut and padded: 2, text, 30, second text."""
        first, second = START + text.encode(), b"" if pair is None else BETWEEN + pair.encode()
        first = first[: max(length - len(second), (length + 1) // 2)]  # the longer one is cut first
        ids = (first + second)[:length]
        padded = torch.frombuffer(bytearray(ids.ljust(length, b"\0")), dtype=torch.uint8).long()
        return {"input_ids": padded, ATTENTION_MASK: (torch.arange(length) < len(ids)).long()}


@dataclass(frozen=True)
class Characters:
    """Some characters, numbered from 1 in sorted order; 0 is every other one."""

    characters: str

    @property
    def size(self) -> int:
        """The number of ids."""
        return 1 + len(self.characters)

    @property
    def meaning(self) -> str:
        """What the ids are."""
        return f"0 for unknown characters, and the {len(self.characters)} characters of the training part"

    def tokens(self, text: str) -> Tensor:
        """Token ids (T,) of a whole text."""
        number = {character: i for i, character in enumerate(self.characters, start=1)}
        return torch.tensor([number.get(character, 0) for character in text], dtype=torch.int64)


class HuggingFace:
    """A tokenizer that `save_pretrained` has written into a folder.

    Raises: ConfigError: transformers is not installed, or the folder holds no tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        try:
            transformers: Any = importlib.import_module("transformers")
        except ModuleNotFoundError as error:
            raise ConfigError(f"settings.tokenizer: {missing_module(error.name or 'transformers')}") from None
        try:
            self._made = transformers.AutoTokenizer.from_pretrained(
                str(folder.resolve(strict=True)), local_files_only=True
            )
        except Exception as error:  # transformers may raise anything
            why = first_line(error).rstrip(".")
            raise ConfigError(
                f"settings.tokenizer: no tokenizer in {folder}: {why}. Nothing is downloaded: "
                "write one by AutoTokenizer.from_pretrained(name).save_pretrained(folder), or use bytes."
            ) from None
        self.size, self.meaning = len(self._made), f"those of {folder}"

    def tokens(self, text: str) -> Tensor:
        """Token ids (T,) of a whole text, without special tokens."""
        return torch.tensor(self._made(text, add_special_tokens=False, verbose=False)["input_ids"])

    def inputs(self, text: str, pair: str | None, length: int) -> dict[str, Tensor]:
        """Inputs (length,) of a text or a pair, cut and padded, with the tokenizer's special tokens."""
        made = self._made(text, pair, truncation=True, max_length=length, padding="max_length")
        return {str(key): torch.tensor(ids) for key, ids in made.items()}


def of_short_texts(settings: Mapping[str, object], data_dir: Path) -> Bytes | HuggingFace:
    """The tokenizer that settings name: `bytes`, the default, or a folder.

    Raises: ConfigError: it is neither.
    """
    given = settings.get("tokenizer", "bytes")
    if not isinstance(given, str) or given in ("", "characters"):
        raise ConfigError(f"settings.tokenizer: expected bytes, or the folder of a tokenizer. Got {given!r}.")
    return Bytes() if given == "bytes" else HuggingFace(find(data_dir, given))


def length_of(settings: Mapping[str, object]) -> int:
    """The number of tokens of an input: `length`, 128 by default.

    Raises: ConfigError: it is no whole number of at least 2.
    """
    length = settings.get("length", 128)
    if not isinstance(length, int) or isinstance(length, bool) or length < 2:
        raise ConfigError(f"settings.length: must be a whole number of at least 2. Got {length!r}.")
    return length
