"""Checks of a few inputs of every part before training: suspicious data are warnings, unusable data are errors."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from experiment.datasets.check_samples import as_pair
from experiment.datasets.content_stamp import content_hash
from experiment.datasets.file_stamp import hash_of
from experiment.datasets.image_data import Images, Splits
from experiment.datasets.image_folder import FolderItems
from experiment.datasets.loading import split
from experiment.datasets.raw_images import Items, Pixels, Source
from experiment.errors import DataError, ExperimentError, raised_at
from experiment.inputs import Inputs, tensors
from experiment.random_streams import seeded
from experiment.tasks.classification import TASK as CLASSIFICATION
from experiment.tasks.distributions import BERNOULLI
from experiment.tasks.task import Task

INSPECTED = 100  # inputs per part, evenly spread, since classes may be sorted
MOST_NAMED = 5  # classes in one message
MOST_READ = 2_000  # training files that are compared with test files
# Images in [0, 1] pass, normalized or not; bytes as floats, and bytes divided by 255 twice, do not.
LARGE, SMALL = 5.0, 0.01


def check_data(
    splits: Splits,
    test: Images,
    seed: int,
    name: str,
    train_source: Source,
    test_source: Source,
    task: Task = CLASSIFICATION,
) -> list[str]:
    """Check transformed inputs, the classes of every part, and whether test inputs are training inputs too.

    Args:
        test: the images of `test_source` that cells are tested on, not always those of `splits`.
        seed, name: determine how the dataset was split.
    Returns: warnings, one line each.
    Raises: DataError: inputs are NaN or infinite, cannot be read, or differ in shape; no target of a part counts.
    """
    train_rows, valid_rows = split(len(train_source.items), seed, name)
    parts = (
        ("training", splits.train, train_source, train_rows),
        ("validation", splits.valid, train_source, valid_rows),
        ("test", test, test_source, torch.arange(len(test))),
    )
    warnings: list[str] = []
    scales: list[str] = []
    for part, images, source, rows in parts:
        x, y = images.take(_spread(len(images)))
        _require_finite(x, f"{part} inputs")
        warnings += _constant(part, _rows(x))
        scales += [text for tensor in tensors(x) for text in _scale("" if part == "training" else f"{part} ", tensor)]
        every = _labels(source.items)
        labels = y.cpu().as_subclass(Tensor) if every is None else every[rows].as_subclass(Tensor)
        warnings += _classes(part, labels, len(images), splits.num_classes, source.classes, task)
    augmented = next(splits.train.batches(min(INSPECTED, len(splits.train)), stream=("check",)))[0]
    _require_finite(augmented, "training inputs after transformsTrain")
    return [*warnings, *scales[:1], *_shared(train_source.items, test_source.items)]  # parts share their transforms


def _spread(length: int) -> Tensor:
    return torch.linspace(0, length - 1, min(INSPECTED, length), dtype=torch.float64).round().long()


def _rows(x: Inputs) -> Tensor:
    """All values of every input: one tensor as it is, several side by side."""
    return x if isinstance(x, Tensor) else torch.cat([part.reshape(len(part), -1).double() for part in tensors(x)], 1)


def _require_finite(inputs: Inputs, what: str) -> None:
    x = _rows(inputs)
    bad = ~x.isfinite().reshape(len(x), -1).all(dim=1)
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} of {len(x)} inspected {what} contain NaN or infinity. Expected finite numbers "
            "after the transforms. Remove or replace them."
        )


def _constant(part: str, x: Tensor) -> Iterator[str]:
    flat = x.reshape(len(x), -1)
    single = int((flat == flat[:, :1]).all(dim=1).sum()) if flat.shape[1] > 1 else 0
    if len(x) > 1 and bool((x == x[:1]).all()):
        yield f"all {len(x)} inspected {part} inputs are the same"
    elif single > len(x) // 2:
        yield f"{single} of {len(x)} inspected {part} inputs are constant"


def _scale(part: str, x: Tensor) -> Iterator[str]:
    """Inputs that are far from standardized. Token ids have no scale."""
    if not x.is_floating_point() or x.numel() < 2:
        return
    mean, std = float(x.double().mean()), float(x.double().std())
    if abs(mean) > LARGE or std > LARGE or 0 < std < SMALL:
        yield (
            f"{part}inputs have mean {mean:.3g}, standard deviation {std:.3g} after transforms: expected about 0 and 1."
            " Add Normalize to transformsFinal, or scale them"
        )


def _labels(items: Pixels | Items) -> Tensor | None:
    """The class of every input, if it is known without reading the inputs."""
    if isinstance(items, Pixels):
        return items.labels
    return torch.tensor(items.labels) if isinstance(items, FolderItems) else None


def _classes(
    part: str, labels: Tensor, num_inputs: int, num_classes: int, names: Sequence[str], task: Task
) -> Iterator[str]:
    counts = task.occurrences(labels, num_classes)
    if counts is None:
        return
    found, of_labels = counts.nonzero()[:, 0].tolist(), task.distribution is BERNOULLI
    inspected = "" if len(labels) == num_inputs else "inspected "
    if not found:
        why = "every label is 0" if of_labels else f"every target is {task.loss_kwargs.get('ignore_index')}, ignored"
        text = f"none of the {len(labels)} {inspected}{part} inputs has a target that counts: {why}"
        if inspected:
            yield text
            return
        raise DataError(f"{text}. The {part} part needs some of them to train or to be measured. Mend the targets.")
    if len(found) == 1 and len(labels) > 1 and labels.dim() == 1:
        yield f"all {len(labels)} {inspected}{part} inputs are of class {_name(found[0], names)}"
    elif not inspected and not task.vocabulary and (missing := (counts == 0).nonzero()[:, 0].tolist()):
        named = ", ".join(_name(label, names) for label in missing[:MOST_NAMED])
        more = ", ..." if len(missing) > MOST_NAMED else ""
        what = "has label" if of_labels else "is of class"
        yield f"no {part} input {what} {named}{more} ({len(missing)} of {num_classes} {task.distribution.name})"


def _name(label: int, names: Sequence[str]) -> str:
    return f"{label} ({names[label][:40]})" if label < len(names) else str(label)


def _shared(train: Pixels | Items, test: Pixels | Items) -> Iterator[str]:
    """How many test inputs are training inputs, compared before any transform."""
    if isinstance(train, Pixels) and isinstance(test, Pixels):
        same, looked = _among(_pixel_hashes(test), set(_pixel_hashes(train))), len(test)
    elif isinstance(train, FolderItems) and isinstance(test, FolderItems):
        places = _spread(len(test)).tolist()
        sizes = {test.files[i].size for i in places}
        alike = [i for i, file in enumerate(train.files) if file.size in sizes][:MOST_READ]
        known = {_file_hash(train, i) for i in alike}
        same, looked = _among((_file_hash(test, i) for i in places), known), len(places)
    else:
        places = _spread(len(test)).tolist()
        known = set(_item_hashes(train, _spread(len(train)).tolist()))
        same, looked = _among(_item_hashes(test, places), known), len(places)
    if same:
        inspected = "" if looked == len(test) else "inspected "
        yield f"{same} of {looked} {inspected}test inputs are training inputs too: they do not test generalization"


def _among(hashes: Iterator[bytes], known: set[bytes]) -> int:
    return sum(found in known for found in hashes)


def _pixel_hashes(pixels: Pixels) -> Iterator[bytes]:
    for image in pixels.images.cpu().contiguous().numpy():
        yield hashlib.blake2b(image.data, digest_size=16).digest()


def _file_hash(items: FolderItems, index: int) -> bytes:
    with items.files[index].path.open("rb") as stream:
        return bytes.fromhex(hash_of(stream))


def _item_hashes(items: Pixels | Items, places: Sequence[int]) -> Iterator[bytes]:
    """Hashes of items read one by one, with the same random draws every time."""
    for i in places:
        try:
            with seeded("check"):
                yield content_hash(as_pair(f"sample {i}", items[i])[0])
        except ExperimentError:
            raise
        except Exception as error:  # decoders and the user's code may raise anything
            raise DataError(f"sample {i}: {type(error).__name__}: {str(error)[:500]}{raised_at(error)}") from error
