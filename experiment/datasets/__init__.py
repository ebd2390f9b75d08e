"""The registry of datasets, torch-free: how one is read lies behind its entry's `target`.

A target is a function `(name, data_dir, train, settings, output_size) -> Source`, see `experiment.datasets.raw_images`.
"""

from experiment.registry import DatasetEntry

ROOT = "experiment.datasets"
IDX_FILES = f"{ROOT}.file_stamp:idx_files"

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
            files=f"{ROOT}.map_folders:voc_2012_files", task="segmentation",
        ),
        DatasetEntry(
            "VOCSegmentation2011", f"{ROOT}.segmentation_folder:load_voc", 21, (3, 513, 513), num_train=8_498,
            files=f"{ROOT}.map_folders:voc_2011_files", task="segmentation",
        ),
        DatasetEntry("FakeData", f"{ROOT}.factories:load_fake", None, None),
    )
}  # fmt: skip
