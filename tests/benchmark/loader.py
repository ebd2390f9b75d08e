"""How fast a folder of JPEGs is listed, read and augmented, against the rate of the bare decoder.

    python tests/benchmark/loader.py /tmp/jpegs --processes 2

Makes a folder of 20,000 pictures of about 500 x 375 pixels and 60 kB in 100 classes, unless it is there, and prints:

- seconds of a core before the first batch: to list the files, to stamp them, to stamp them again, and to load both;
- images a second of so many processes: Pillow decoding alone; Pillow decoding, and torchvision cropping and resizing,
  without a loader; and the package with ImageNet's transforms. They are measured in turns with the files in the page
  cache; the fastest turn counts. `ms` is the time of all processes on their cores for an image, which other programs on
  the machine change less.
"""

import argparse
import io
import multiprocessing
import resource
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from experiment.datasets.file_stamp import stamp_of_part
from experiment.datasets.image_data import Step, Transforms
from experiment.datasets.image_files import images_below
from experiment.datasets.loading import load_source, make_images
from experiment.datasets.transforms import make_transform
from experiment.training.processor import use_threads

DISTINCT = 200  # pictures, each many times under other names
NORMALIZE = ("Normalize", {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]})
CROP = (("RandomResizedCrop", {"size": 224}), ("RandomHorizontalFlip", {}))
WHOLE = (("Resize", {"size": 256}), ("CenterCrop", {"size": 224}))
TENSORS = (("PILToTensor", {}),)  # resized by torch instead of Pillow
BARE: dict[str, tuple[Step, ...]] = {
    "decoding alone": (),
    "decoding, training's crop and flip": CROP,
    "decoding, evaluation's resize and crop": WHOLE,
    "decoding, training's after PILToTensor": TENSORS + CROP,
    "decoding, evaluation's after PILToTensor": TENSORS + WHOLE,
}
KINDS = {
    "training": (CROP, ("s",)),
    "training, PILToTensor first": (TENSORS + CROP, ("s",)),
    "evaluation": (WHOLE, None),
    "evaluation, PILToTensor first": (TENSORS + WHOLE, None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--images", type=int, default=4000, help="read in every turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="where batches are finished")
    a = parser.parse_args()
    use_threads(1)
    if not a.folder.is_dir():
        make_folder(a.folder, a.files)
    start(a.folder)
    rates(a)


def make_folder(folder: Path, files: int) -> None:
    """Smooth noise with grain, of the size of ImageNet's photographs."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(DISTINCT):
        width, height = int(random.integers(400, 600)), int(random.integers(300, 450))
        smooth = Image.fromarray(random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        grain = random.integers(-12, 13, (height, width, 3))
        pixels = np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC)) + grain
        stream = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
        pictures.append(stream.getvalue())
    for i in range(files + files // 20):
        place = folder / ("train" if i < files else "val") / f"class{i % 100:03}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:07}.jpg").write_bytes(pictures[i * 7 % DISTINCT])


def start(folder: Path) -> None:
    data, settings = folder.parent, {"root": str(folder)}
    shutil.rmtree(data / ".stamps", ignore_errors=True)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("list", lambda: images_below(folder / "train")),
        ("stamp", lambda: stamp_of_part("ImageFolder", settings, data, True)),
        ("stamp again", lambda: stamp_of_part("ImageFolder", settings, data, True)),
        ("load both parts", lambda: [load_source("ImageFolder", settings, data, part, 100) for part in (True, False)]),
    ]
    for name, step in steps:
        spent = cores()
        step()
        print(f"{cores() - spent:8.2f} s   {name}")


def rates(a: argparse.Namespace) -> None:
    source = load_source("ImageFolder", {"root": str(a.folder)}, a.folder.parent, True, 100)
    paths = [str(file.path) for file in source.items.files[: a.images]]  # type: ignore[union-attr]
    parts = [torch.arange(a.images)]
    readers = {}
    for kind, (steps, stream) in KINDS.items():
        transforms = Transforms(steps, steps, (("ToTensor", {}), NORMALIZE))
        (images,) = make_images("jpegs", source, transforms=transforms, parts=parts, output_size=100, device=a.device,
                                workers=a.processes)  # fmt: skip
        readers[kind] = (getattr(images, "_images", images), stream)  # read again in every turn
    turns: dict[str, list[tuple[float, float]]] = {}
    for _ in range(a.turns):
        for kind, steps in BARE.items():
            turns.setdefault(kind, []).append(timed(a.images, partial(bare, paths, a.processes, steps)))
        for kind, (images, stream) in readers.items():
            turns.setdefault(kind, []).append(timed(a.images, partial(read, images, stream)))
    whole = max(rate for rate, _ in turns["decoding alone"])
    print("images/s  share     ms")
    for kind, found in turns.items():
        rate, spent = max(rate for rate, _ in found), min(spent for _, spent in found)
        print(f"{rate:8.0f}  {rate / whole:4.0%}  {spent:5.2f}   {kind}")


def bare(paths: list[str], processes: int, steps: tuple[Step, ...]) -> None:
    transforms = [make_transform(name, arguments) for name, arguments in steps]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for _ in pool.imap_unordered(partial(decode, transforms), paths, chunksize=32):
            pass
        pool.close()
        pool.join()


def decode(transforms: list[Callable[[Any], Any]], path: str) -> None:
    with Image.open(path) as image:
        image.load()
        made: Any = image
        for transform in transforms:
            made = transform(made)


def read(images: Any, stream: tuple[str, ...] | None) -> None:
    for _ in images.batches(128, stream=stream, channels_last=True):
        pass
    images._readers._loader = None  # processes report their time when they end


def timed(count: int, run: Callable[[], object]) -> tuple[float, float]:
    """Images a second, and milliseconds of all cores for an image."""
    began, spent = time.perf_counter(), cores()
    run()
    took = time.perf_counter() - began
    return count / took, 1000 * (cores() - spent) / count


def cores() -> float:
    """Seconds on cores of this process and those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    main()
