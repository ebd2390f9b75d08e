"""The registry of datasets, torch-free: how one is read lies behind its entry's `target`.

A target is a function `(name, data_dir, train, settings, output_size) -> Source`, see `experiment.datasets.raw_images`.
"""

from dataclasses import replace

from experiment.datasets.corruptions import SEVERITIES, VERSION
from experiment.datasets.torchprune_names import corruption_in, is_relabelled
from experiment.registry import DatasetEntry

ROOT = "experiment.datasets"
OTHERS, PUBLISHED = f"{ROOT}.other_test_sets", f"{ROOT}.published_files"
CIFAR10_1_FILES = f"{PUBLISHED}:cifar10_1_files"
IDX_FILES = f"{ROOT}.file_stamp:idx_files"
TEXT_FILES = f"{ROOT}.text_files:text_files"
GLUE_LOADER, GLUE_FILES = f"{ROOT}.text_table:load_glue", f"{ROOT}.glue:glue_files"
GLUE = (  # name, outputs, and the task with GLUE's own primary metric
    ("GlueCoLA", 2, "text_classification_mcc"),
    ("GlueSST2", 2, "text_classification"),
    ("GlueMRPC", 2, "text_classification_f1"),
    ("GlueSTSB", 1, "text_regression"),
    ("GlueQQP", 2, "text_classification_f1"),
    ("GlueMNLI", 3, "text_classification"),
    ("GlueQNLI", 2, "text_classification"),
    ("GlueRTE", 2, "text_classification"),
    ("GlueWNLI", 2, "text_classification"),
)

DATASETS: dict[str, DatasetEntry] = {
    entry.name: entry
    for entry in (
        DatasetEntry("Digits", f"{ROOT}.digits:load", 10, (1, 28, 28), num_train=1_437),
        DatasetEntry(
            "DigitScenes", f"{ROOT}.digit_scenes:load", 11, (1, 64, 64), num_train=1_500, task="segmentation"
        ),
        DatasetEntry("MNIST", f"{ROOT}.mnist:load", 10, (1, 28, 28), num_train=60_000, files=IDX_FILES),
        DatasetEntry("FashionMNIST", f"{ROOT}.mnist:load", 10, (1, 28, 28), num_train=60_000, files=IDX_FILES),
        DatasetEntry("KMNIST", f"{ROOT}.mnist:load", 10, (1, 28, 28), num_train=60_000, files=IDX_FILES),
        DatasetEntry("CIFAR10", f"{ROOT}.cifar_svhn:load_cifar", 10, (3, 32, 32), num_train=50_000),
        DatasetEntry("CIFAR100", f"{ROOT}.cifar_svhn:load_cifar", 100, (3, 32, 32), num_train=50_000),
        DatasetEntry("SVHN", f"{ROOT}.cifar_svhn:load_svhn", 10, (3, 32, 32), num_train=73_257),
        DatasetEntry("ImageFolder", f"{ROOT}.image_folder:load", None, None, files=f"{ROOT}.file_stamp:folder_files"),
        DatasetEntry(
            "ImageNet", f"{ROOT}.image_folder:load_imagenet", 1000, (3, 224, 224), num_train=1_281_167,
            files=f"{ROOT}.file_stamp:imagenet_files",
        ),
        DatasetEntry(
            "SegmentationFolder", f"{ROOT}.segmentation_folder:load", None, None,
            files=f"{ROOT}.file_stamp:folder_files", task="segmentation",
        ),
        DatasetEntry(
            "VOCSegmentation2012", f"{ROOT}.segmentation_folder:load_voc", 21, (3, 513, 513),
            files=f"{ROOT}.map_folders:voc_files", task="segmentation",
        ),
        DatasetEntry(
            "VOCSegmentation2011", f"{ROOT}.segmentation_folder:load_voc", 21, (3, 513, 513), num_train=8_498,
            files=f"{ROOT}.map_folders:voc_files", task="segmentation",
        ),
        DatasetEntry("FakeData", f"{ROOT}.factories:load_fake", None, None),
        DatasetEntry(
            "PythonDocs", f"{ROOT}.token_windows:load_python", None, None,
            files=f"{ROOT}.text_files:python_files", task="language_modelling",
        ),
        DatasetEntry(
            "TextFile", f"{ROOT}.token_windows:load_file", None, None, files=TEXT_FILES, task="language_modelling"
        ),
        DatasetEntry("TextTable", f"{ROOT}.text_table:load", None, None, files=TEXT_FILES, task="text_classification"),
        DatasetEntry("Diabetes", f"{ROOT}.number_tables:load_diabetes", 1, None, num_train=354, task="regression"),
        DatasetEntry("Table", f"{ROOT}.number_tables:load", None, None, files=TEXT_FILES, task="regression"),
        DatasetEntry(
            "MultilabelFolder", f"{ROOT}.multilabel_folder:load", None, None,
            files=f"{ROOT}.file_stamp:labelled_files", task="multilabel",
        ),
        *(DatasetEntry(name, GLUE_LOADER, outputs, None, files=GLUE_FILES, task=task) for name, outputs, task in GLUE),
        DatasetEntry("CIFAR10_1", f"{OTHERS}:load_cifar10_1", 10, (3, 32, 32), num_train=50_000, files=CIFAR10_1_FILES),
        DatasetEntry("CIFAR10_C_Mix1", f"{OTHERS}:load_mixture", 10, (3, 32, 32), num_train=50_000),
        DatasetEntry("CIFAR10_C_Mix2", f"{OTHERS}:load_mixture", 10, (3, 32, 32), num_train=50_000),
        DatasetEntry(
            "ObjectNet", f"{OTHERS}:load_objectnet", 1000, (3, 224, 224), num_train=1_281_167,
            files=f"{PUBLISHED}:objectnet_files",
        ),
    )
}  # fmt: skip


def find_dataset(name: str) -> DatasetEntry | None:
    """The entry of a registered dataset, or of one of torchprune's names for corrupted and relabelled datasets.

    These are `BASE_C_CORRUPTION` (all severities), `BASE_C_CORRUPTION_SEVERITY` and `CIFAR10Rand` with a percentage,
    see `experiment.datasets.torchprune_names`.
    """
    if name in DATASETS:
        return DATASETS[name]
    if is_relabelled(name):
        return replace(DATASETS["CIFAR10"], name=name, target=f"{OTHERS}:load_relabelled")
    found = corruption_in(name)
    if found is None or found.base not in DATASETS:
        return None
    base, copies = DATASETS[found.base], 1 if found.severity else len(SEVERITIES)
    files = f"{PUBLISHED}:corrupted_files" if base.files or found.base == "CIFAR10" else ""
    return replace(
        base, name=name, target=f"{OTHERS}:load_corrupted", version=base.version + VERSION - 1,
        num_train=base.num_train and copies * base.num_train, files=files,
    )  # fmt: skip
