"""The files of texts and tables: where they lie, their text, and what a stamp covers. Torch-free."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiment.datasets.image_files import ROOT, File, listed
from experiment.errors import ConfigError, DataError

WITHOUT_FOLDER = ("bytes", "characters")  # tokenizers that need no files
BOM = b"\xef\xbb\xbf"  # with which some programs mark UTF-8


def find(data_dir: Path, given: str) -> Path:
    """A file or folder, which is absolute, below `data_dir`, or relative to the working directory, in this order."""
    places = (data_dir / given, Path(given))
    return next((place for place in places if place.exists()), places[0])


def part_path(data_dir: Path, train: bool, settings: Mapping[str, object]) -> Path:
    """The file of the training or the test part: `train` or `test`, below `root`.

    Raises: ConfigError: the settings name none.
    """
    part = "train" if train else "test"
    given = settings.get(part)
    if not isinstance(given, str) or not given:
        raise ConfigError(f"settings.{part}: expected the name of a file, below settings.root. Got {given!r}.")
    return find(data_dir, str(Path(str(settings.get("root", ""))) / given))


def text_files(name: str, data_dir: Path, train: bool, settings: Mapping[str, object]) -> Sequence[File]:
    """The files that a part is read from. Vocabulary, classes and means are those of the training part."""
    parts = (True,) if train or settings.get("test") is None else (False, True)
    paths = [part_path(data_dir, part, settings) for part in parts]
    tokenizer = settings.get("tokenizer", "bytes")
    if tokenizer not in WITHOUT_FOLDER:
        paths += sorted(path for path in find(data_dir, str(tokenizer)).iterdir() if path.is_file())
    return listed(*paths)


def python_files(name: str, data_dir: Path, train: bool, settings: Mapping[str, object]) -> Sequence[File]:
    """The module with Python's help topics, which differs between versions of Python."""
    from pydoc_data import topics

    return listed(Path(topics.__file__))


def read_text(path: Path) -> str:
    """The text of a file.

    Raises: DataError: it cannot be read, is empty, or is not UTF-8.
    """
    try:
        data = path.read_bytes().removeprefix(BOM)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. Check the dataset's settings: root ({ROOT})."
        ) from None
    if not data.strip():
        raise DataError(f"{path} is empty. Expected text.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise DataError(
            f"{path}:{line}: expected UTF-8. Got the byte 0x{byte:02x}. Convert it: iconv -f latin1 -t utf-8."
        ) from None
