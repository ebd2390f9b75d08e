"""Images of every mode become the RGB that they show, or are refused by file."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiment.datasets.decode_image import read_rgb
from experiment.datasets.image_folder import load
from experiment.errors import DataError

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
GREY = np.rint(RAMP * 255).astype(np.uint8)


def colours(name: str) -> Image.Image:
    image = Image.fromarray(np.stack([GREY, GREY.T, 255 - GREY], axis=2))
    return image if name == "RGB" else image.convert(name)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("x.png", Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16))),
        ("x.tif", Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16))),
        ("x.pgm", Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16))),
        ("float.tif", Image.fromarray(RAMP.astype(np.float32))),
        ("x.png", Image.fromarray(GREY)),
        ("alpha.png", Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(255 - GREY)])),
    ],
)
def test_grey_images_keep_their_values(tmp_path: Path, name: str, image: Image.Image) -> None:
    image.save(tmp_path / name)
    np.testing.assert_array_equal(np.asarray(read_rgb(tmp_path / name)), np.repeat(GREY[:, :, None], 3, axis=2))


@pytest.mark.parametrize(("name", "mode"), [("x.png", "RGBA"), ("x.tif", "CMYK"), ("x.png", "1"), ("x.png", "P")])
def test_colours_are_what_the_image_shows(tmp_path: Path, name: str, mode: str) -> None:
    image = colours(mode)
    image.save(tmp_path / name, **({"transparency": bytes(range(256))} if mode == "P" else {}))
    np.testing.assert_array_equal(np.asarray(read_rgb(tmp_path / name)), np.asarray(image.convert("RGB")))


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    colours("RGB").save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(
        np.asarray(read_rgb(tmp_path / "x.png")), np.rot90(np.asarray(colours("RGB")), k=-1, axes=(0, 1))
    )


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        (np.arange(64, dtype=np.int32).reshape(8, 8), "32-bit integer pixels"),
        ((RAMP * 255).astype(np.float32), "float pixels from 0 to 255"),
        (np.full((8, 8), np.nan, dtype=np.float32), "float pixels"),
    ],
)
def test_an_unknown_range_is_refused_by_file(tmp_path: Path, pixels: np.ndarray, text: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    with pytest.raises(DataError) as caught:
        read_rgb(tmp_path / "x.tif")
    assert str(tmp_path / "x.tif") in str(caught.value)
    assert text in str(caught.value)


def make_folder(root: Path) -> Path:
    for part in ("train", "test"):
        for name in ("a", "b"):
            (root / part / name / "deeper").mkdir(parents=True)
            colours("RGB").save(root / part / name / "x.png")
    return root / "train"


def read(root: Path) -> int:
    return len(load("ImageFolder", root.parent, True, {"root": root.name}, 2).items)


def test_hidden_files_and_folders_hold_no_images(tmp_path: Path) -> None:
    train = make_folder(tmp_path / "data")
    for name in (".ipynb_checkpoints", "__MACOSX", "a/.hidden", "a/__MACOSX", "a/deeper/.ipynb_checkpoints"):
        (train / name).mkdir()
        (train / name / "x.png").write_bytes(b"no image")
    (train / "a" / "._x.png").write_bytes(b"no image")
    (train / "a" / ".DS_Store").write_bytes(b"no image")
    assert read(tmp_path / "data") == 2


@pytest.mark.parametrize("damage", ["loop", "pipe", "broken link"])
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = make_folder(tmp_path / "data") / "a" / "deeper" / "y.png"
    if damage == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "data" if damage == "loop" else tmp_path / "nothing")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "data")
    assert "y.png" in str(caught.value)


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    train = make_folder(tmp_path / "data")
    colours("L").save(os.fsdecode(os.fsencode(train) + b"/a/caf\xe9.png"))
    assert read(tmp_path / "data") == 3
