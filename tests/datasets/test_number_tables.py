"""Tables of numbers and folders with labels: what is read, against scikit-learn, and what is said about bad files."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.preprocessing import StandardScaler

from experiment.datasets.file_stamp import stamp_of_part
from experiment.datasets.image_data import Transforms
from experiment.datasets.loading import load_source, make_splits
from experiment.errors import DataError, ExperimentError
from experiment.tasks import find_task


def parts(name: str, data: Path, outputs: int, **settings: object) -> list[Any]:
    return [load_source(name, settings, data, train, outputs).items for train in (True, False)]


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    random = np.random.default_rng(0)
    columns = {name: random.normal(10, 3, 50) for name in ("age", "height", "price")}
    frame = pd.DataFrame(columns | {"kind": random.choice(["10", "9", "cat"], 50)})
    frame.to_csv(tmp_path / "all.csv", index=False)
    frame[:40].to_csv(tmp_path / "train.csv", index=False)
    frame[40:].to_csv(tmp_path / "test.csv", index=False)
    return frame


def test_columns_are_standardized_on_the_training_part(table: pd.DataFrame, tmp_path: Path) -> None:
    files = {"train": "train.csv", "test": "test.csv"}
    train, test = parts("Table", tmp_path, 1, **files, target="price", features=["height", "age"])
    inputs, target = StandardScaler().fit(table[["height", "age"]][:40]), StandardScaler().fit(table[["price"]][:40])
    for part, rows in ((train, table[:40]), (test, table[40:])):
        x, y = part.tensors
        np.testing.assert_allclose(x, inputs.transform(rows[["height", "age"]]), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(y, target.transform(rows[["price"]]), rtol=1e-5, atol=1e-6)
    two, _ = parts("Table", tmp_path, 2, **files, target=["age", "price"], features="height", standardizeTarget=False)
    np.testing.assert_allclose(two.tensors[1], table[["age", "price"]][:40], rtol=1e-6)


def test_one_file_is_split_by_the_seed(table: pd.DataFrame, tmp_path: Path) -> None:
    settings = {"train": "all.csv", "target": "price", "features": ["age"], "standardizeTarget": False}
    train, test = parts("Table", tmp_path, 1, **settings)
    assert (len(train), len(test)) == (40, 10)
    both = torch.cat([train.tensors[1], test.tensors[1]])
    assert sorted(both[:, 0].tolist()) == sorted(table["price"].astype(np.float32).tolist())
    again, other = (parts("Table", tmp_path, 1, **settings, splitSeed=seed)[1] for seed in (0, 1))
    assert torch.equal(again.tensors[1], test.tensors[1])
    assert not torch.equal(other.tensors[1], test.tensors[1])


def test_classes_are_numbered_by_name(table: pd.DataFrame, tmp_path: Path) -> None:
    settings = {"train": "train.csv", "test": "test.csv", "target": "kind", "classes": True}
    sources = [load_source("Table", settings, tmp_path, train, 3) for train in (True, False)]
    assert sources[0].classes == ("10", "9", "cat")
    assert [sources[0].classes[i] for i in sources[1].items.tensors[1]] == table["kind"][40:].tolist()
    splits = make_splits(
        "Table",
        *sources,
        Transforms(),
        seed=0,
        output_size=3,
        device="cpu",
        workers=0,
        task=find_task("classification"),
    )
    assert splits.input_shape == (3,)
    x, y = splits.test.first(4)
    assert torch.equal(x, sources[1].items.tensors[0][:4])
    assert y.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"age": "old"}, {}, "train.csv: row 3: expected a finite number in column 'age'. Got 'old'. Mend or remove"),
        ({"age": ""}, {}, "train.csv: row 3: expected a finite number in column 'age'. Got ''."),
        ({"price": "inf"}, {}, "train.csv: row 3: expected a finite number in column 'price'. Got 'inf'."),
        ({}, {"features": ["kind"]}, "train.csv: row 6: expected a finite number in column 'kind'. Got 'cat'."),
        ({}, {"features": ["hieght"]}, "train.csv has no column 'hieght'. Did you mean 'height'? It has age, height"),
        ({}, {"target": "cost"}, "train.csv has no column 'cost'. It has age, height, price, kind. Set settings."),
        ({"age": None}, {}, "train.csv: column 'age' has the same value, 5, in all rows of the training part. Leave"),
        ({}, {"target": []}, "settings.target: Table needs the column to predict, or a list of columns. Got none."),
        ({}, {"train": "empty.csv"}, "empty.csv is empty. Expected text."),
        ({}, {"train": "head.csv"}, "head.csv has no rows. Expected one per sample."),
        ({}, {"train": "one.csv", "test": "one.csv"}, "one.csv: the training part needs at least 2 rows. Got 1."),
        ({}, {"train": "semi.csv"}, "semi.csv: columns are separated by ';'. Expected ',', and a decimal point in"),
        ({}, {"train": "no.csv"}, "no.csv cannot be read: No such file or directory. Check the dataset's"),
        ({}, {"testShare": 1.0}, "settings.testShare: must be between 0 and 1. Got 1.0."),
        ({"kind": ""}, {"classes": True, "target": "kind", "features": "age"},
         "train.csv: row 3: expected a class of the training part (10, 9, cat) in column 'kind'. Got ''."),
    ],
)  # fmt: skip
def test_bad_tables(
    table: pd.DataFrame, tmp_path: Path, change: dict[str, Any], settings: dict[str, object], message: str
) -> None:
    frame = table[:40].astype(object)
    for column, value in change.items():
        frame.loc[2 if value is not None else slice(None), column] = 5 if value is None else value
    frame.to_csv(tmp_path / "train.csv", index=False)
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "head.csv").write_text("age,price\n")
    (tmp_path / "one.csv").write_text("age,price\n1,2\n")
    (tmp_path / "semi.csv").write_text("age;price\n1,5;2,5\n1,6;2,6\n")
    with pytest.raises(ExperimentError, match=re.escape(message)):
        parts(
            "Table",
            tmp_path,
            3 if "classes" in settings else 1,
            **{"train": "train.csv", "target": "price", "features": ["age"]} | settings,
        )


def test_targets_must_match_the_outputs(table: pd.DataFrame, tmp_path: Path) -> None:
    settings = {"train": "all.csv", "target": "price", "features": ["age"]}
    sources = [load_source("Table", settings, tmp_path, train, 2) for train in (True, False)]
    with pytest.raises(DataError, match=r"dataset Table: 1 numbers per target, but network.outputSize is 2."):
        make_splits(
            "Table",
            *sources,
            Transforms(),
            seed=0,
            output_size=2,
            device="cpu",
            workers=0,
            task=find_task("regression"),
        )


def test_stamps_follow_both_files(table: pd.DataFrame, tmp_path: Path) -> None:
    one, two = ({"train": "train.csv", "target": "price"} | more for more in ({}, {"test": "test.csv"}))
    before = [stamp_of_part("Table", settings, tmp_path, False) for settings in (one, two)]
    table.to_csv(tmp_path / "train.csv", index=False)
    after = [stamp_of_part("Table", settings, tmp_path, False) for settings in (one, two)]
    assert None not in (*before, *after)
    assert all(old != new for old, new in zip(before, after, strict=True))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for part, count in (("train", 5), ("test", 2)):
        (tmp_path / "photos" / part).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 6), (40 * i, 0, 9)).save(tmp_path / "photos" / part / f"{i}.png")
        rows = "".join(f"{i}.png,{i % 2},{int(i > 2)}\n" for i in reversed(range(count)))
        (tmp_path / "photos" / part / "labels.csv").write_text(f"file,cat,dog\n{rows}")
    return tmp_path


def test_images_get_the_labels_of_their_row(photos: Path) -> None:
    sources = [load_source("MultilabelFolder", {"root": "photos"}, photos, train, 2) for train in (True, False)]
    assert sources[0].classes == ("cat", "dog")
    splits = make_splits(
        "MultilabelFolder", *sources, Transforms(), seed=0, output_size=2, device="cpu", workers=0,
        task=find_task("multilabel"),
    )  # fmt: skip
    x, y = splits.train.first(4)
    shade = (x[:, 0, 0, 0] * 255 / 40).round().int()
    assert torch.equal(y, torch.stack([shade % 2, (shade > 2).int()], dim=1).float())
    before = stamp_of_part("MultilabelFolder", {"root": "photos"}, photos, True)
    table = photos / "photos" / "train" / "labels.csv"
    table.write_text(table.read_text().replace("4.png,0", "4.png,1"))
    assert stamp_of_part("MultilabelFolder", {"root": "photos"}, photos, True) not in (None, before)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("4.png,0", "4.png,2", "labels.csv: row 1: expected 0 or 1 in column 'cat'. Got '2'. Mend the row."),
        ("4.png,0", "4.png,", "labels.csv: row 1: expected 0 or 1 in column 'cat'. Got ''. Mend the row."),
        ("3.png", "4.png", "labels.csv: row 2: '4.png' is named in a row above. Remove one of them."),
        ("3.png", "9.png", "labels.csv: row 2: no file "),
        ("cat,dog", "cat,cow", "have different columns. Expected cat, cow in both."),
    ],
)
def test_bad_labels(photos: Path, old: str, new: str, message: str) -> None:
    table = photos / "photos" / "train" / "labels.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(DataError, match=re.escape(message)):
        parts("MultilabelFolder", photos, 2, root="photos")
    shutil.rmtree(photos / "photos")
    with pytest.raises(DataError, match=r"labels.csv cannot be read: No such file or directory"):
        parts("MultilabelFolder", photos, 2, root="photos")
