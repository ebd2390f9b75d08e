"""Readers of files from strangers under seeded damage: a result or DataError, in bounded memory.

As a program: python tests/datasets/test_fuzz_readers.py 20000
"""

import gzip
import io
import random
import resource
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from experiment.datasets.decode_image import read_rgb
from experiment.datasets.mnist import read_idx
from experiment.errors import DataError
from experiment.random_streams import generator

MUTATIONS = 2000
MAX_GROWTH = 1_500_000  # kB of peak memory: pixels of the largest image allowed, decoded, and once more as RGB


def encoded(image_format: str, mode: str, **options: object) -> bytes:
    pixels = torch.randint(0, 256, (9, 11, 3), dtype=torch.uint8, generator=generator("fuzz"))
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).convert(mode).save(file, image_format, **options)
    return file.getvalue()


def pictures() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        encoded("PNG", "RGB"),
        encoded("PNG", "P", transparency=3),
        encoded("JPEG", "RGB", exif=exif),
        encoded("JPEG", "CMYK"),
        encoded("BMP", "RGB"),
        encoded("GIF", "P"),
        encoded("TIFF", "RGB"),
        encoded("TIFF", "L", compression="tiff_lzw"),
        encoded("PPM", "RGB"),
        encoded("WEBP", "RGB"),
    ]


def arrays() -> list[bytes]:
    return [bytes([0, 0, 8, 3]) + struct.pack(">3I", 3, 4, 5) + bytes(range(60))]


def packed_arrays() -> list[bytes]:
    return [gzip.compress(data, mtime=0) for data in arrays()]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Bits flipped, bytes replaced by extreme ones, a piece cut out, doubled, or the end cut off."""
    mutated = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(max(1, min(len(mutated), 64 if chance.random() < 0.5 else len(mutated))))
        match chance.randrange(5):
            case 0:
                mutated[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                mutated[place : place + 4] = chance.choice(
                    [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\xff\xff"]
                )
            case 2:
                del mutated[place : place + chance.randint(1, 16)]
            case 3:
                mutated[place:place] = mutated[place : place + chance.randint(1, 16)]
            case _:
                del mutated[place:]
    return bytes(mutated)


def fuzz(read: Callable[[Path], object], seeds: Sequence[bytes], path: Path, mutations: int) -> tuple[int, int]:
    """Numbers of files read and refused; anything but DataError comes out."""
    for seed in seeds:  # what is whole is read
        path.write_bytes(seed)
        read(path)
    chance, refused = random.Random(17), 0
    for i in range(mutations):
        path.write_bytes(damaged(seeds[i % len(seeds)], chance))
        try:
            read(path)
        except DataError as error:
            refused += 1
            named = str(path) in str(error) and len(str(error)) < 2000
            if not named:
                raise AssertionError(f"the file is not named: {error}") from error
    return mutations - refused, refused


READERS: list[tuple[str, Callable[[Path], object], Callable[[], list[bytes]]]] = [
    ("images", read_rgb, pictures),
    ("idx", read_idx, arrays),
    ("idx.gz", read_idx, packed_arrays),
]


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damage as well
@pytest.mark.parametrize(("name", "read", "seeds"), READERS, ids=[name for name, _, _ in READERS])
def test_damaged_files_are_read_or_refused_by_name(
    tmp_path: Path, name: str, read: Callable[[Path], object], seeds: Callable[[], list[bytes]]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted, refused = fuzz(read, seeds(), tmp_path / f"file.{name}", MUTATIONS)
    assert refused > MUTATIONS // 10
    assert accepted > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH


def bomb(dimensions: int, side: int, content: int) -> bytes:
    return bytes([0, 0, 8, dimensions]) + struct.pack(">I", side) * dimensions + bytes(content)


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("x", bomb(100, 2, 4), "1 to 4 dimensions"),
        ("x", bomb(0, 2, 4), "1 to 4 dimensions"),
        ("x", bomb(3, 2**31, 4), "at most 1,000,000,000 are read"),
        ("x", bomb(3, 900, 4), "it has 4"),
        ("x.gz", gzip.compress(bomb(1, 16, 50_000_000), compresslevel=1), "more than 16"),
    ],
)
def test_no_more_is_read_than_an_idx_header_promises(tmp_path: Path, name: str, data: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_idx(tmp_path / name)
    assert text in str(caught.value)


def main() -> None:
    import tempfile
    import warnings

    warnings.simplefilter("ignore")
    for name, read, seeds in READERS:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            accepted, refused = fuzz(read, seeds(), Path(folder) / f"file.{name}", int(sys.argv[1]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
        print(f"{name}: {accepted} read, {refused} refused, {time.perf_counter() - start:.1f} s, peak {peak} MB")


if __name__ == "__main__":
    main()
