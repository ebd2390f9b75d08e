"""The registry of datasets, torch-free: how one is read lies behind its entry's `target`.

A target is a function `(name, data_dir, train, settings, output_size) -> Source`, see `experiment.datasets.raw_images`.
"""

from experiment.registry import DatasetEntry

IDX_FILES = "experiment.datasets.file_stamp:idx_files"

DATASETS: dict[str, DatasetEntry] = {
    entry.name: entry
    for entry in (
        DatasetEntry("Digits", "experiment.datasets.digits:load", 10, (1, 28, 28), num_train=1_437),
        DatasetEntry("MNIST", "experiment.datasets.mnist:load", 10, (1, 28, 28), num_train=60_000, files=IDX_FILES),
        DatasetEntry(
            "FashionMNIST", "experiment.datasets.mnist:load", 10, (1, 28, 28), num_train=60_000, files=IDX_FILES
        ),
        DatasetEntry("KMNIST", "experiment.datasets.mnist:load", 10, (1, 28, 28), num_train=60_000, files=IDX_FILES),
        DatasetEntry("CIFAR10", "experiment.datasets.cifar_svhn:load_cifar", 10, (3, 32, 32), num_train=50_000),
        DatasetEntry("CIFAR100", "experiment.datasets.cifar_svhn:load_cifar", 100, (3, 32, 32), num_train=50_000),
        DatasetEntry("SVHN", "experiment.datasets.cifar_svhn:load_svhn", 10, (3, 32, 32), num_train=73_257),
        DatasetEntry(
            "ImageFolder",
            "experiment.datasets.image_folder:load",
            None,
            None,
            files="experiment.datasets.file_stamp:folder_files",
        ),
        DatasetEntry(
            "ImageNet",
            "experiment.datasets.image_folder:load_imagenet",
            1000,
            (3, 224, 224),
            num_train=1_281_167,
            files="experiment.datasets.file_stamp:imagenet_files",
        ),
        DatasetEntry("FakeData", "experiment.datasets.factories:load_fake", None, None),
    )
}
