"""Images read one by one: the same whatever the number of workers, and errors that name the image."""

import multiprocessing
from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from experiment.datasets import loading
from experiment.datasets.dataloader import Readers, WorkerImages, _Place
from experiment.datasets.image_data import Step, Transforms
from experiment.datasets.raw_images import Source
from experiment.datasets.transforms import make_pipeline
from experiment.errors import DataError
from experiment.random_streams import generator
from experiment.tasks.classification import TASK

AUGMENT: list[Step] = [("RandomResizedCrop", {"size": 8}), ("ColorJitter", {"brightness": 0.4}), ("ToTensor", {})]
PLAIN: list[Step] = [("Resize", {"size": 10}), ("CenterCrop", {"size": 8}), ("ToTensor", {})]


class Pictures:
    """PIL images of different sizes; the label tells which it is."""

    def __init__(self, count: int, broken: Sequence[int] = ()) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index in self.broken:
            raise OSError("truncated file")
        size = (3, 12 + index % 3, 14)
        return functional.to_pil_image(
            torch.randint(0, 256, size, dtype=torch.uint8, generator=generator("p", index))
        ), index


def make_images(
    items: Pictures, workers: int = 0, indices: Tensor | None = None, test: list[Step] = PLAIN, num_classes: int = 100
) -> WorkerImages:
    readers = Readers(items, make_pipeline(AUGMENT), make_pipeline(test), workers, TASK.target)
    return WorkerImages("dataset Pictures", readers, TASK, num_classes, indices=indices, device=torch.device("cpu"))


def gather(
    images: WorkerImages, batch_size: int, stream: tuple[str | int, ...] | None, channels_last: bool = False
) -> tuple[Tensor, Tensor]:
    batches = list(images.batches(batch_size, stream=stream, channels_last=channels_last))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_test_transforms_are_torchvisions_in_fixed_order() -> None:
    images = make_images(Pictures(9), indices=torch.tensor([4, 2, 8]))
    x, y = gather(images, 2, None)
    assert y.tolist() == [4, 2, 8]
    assert images.input_shape == (3, 8, 8)
    assert len(images) == 3
    for image, label in zip(x, y.tolist(), strict=True):
        expected = (
            functional.pil_to_tensor(functional.center_crop(functional.resize(Pictures(9)[label][0], [10]), [8])) / 255
        )
        torch.testing.assert_close(image, expected)


@pytest.mark.parametrize("stream", [None, ("s", 1)])
def test_number_of_workers_does_not_matter(stream: tuple[str | int, ...] | None) -> None:
    alone = gather(make_images(Pictures(11)), 4, stream)
    two = gather(make_images(Pictures(11), workers=2), 4, stream)
    assert torch.equal(alone[0], two[0])
    assert torch.equal(alone[1], two[1])


def test_readers_stay_for_all_epochs_and_parts() -> None:
    """Also where two epochs are read at once, and where one is left early."""
    here, there = make_images(Pictures(12)), make_images(Pictures(12), workers=2)
    readers = there._readers
    held_out = WorkerImages(
        "dataset Pictures", readers, TASK, 100, indices=torch.tensor([3, 5]), device=torch.device("cpu")
    )
    both = list(zip(there.batches(4, stream=("s", 0)), there.batches(4, stream=("s", 1)), strict=True))
    for got, stream in zip(zip(*both, strict=True), (("s", 0), ("s", 1)), strict=True):
        for (x, y), (image, label) in zip(got, here.batches(4, stream=stream), strict=True):
            assert torch.equal(x, image)
            assert torch.equal(y, label)
    before = {process.pid for process in multiprocessing.active_children()}
    assert len(before) == 2
    assert gather(held_out, 4, None)[1].tolist() == [3, 5]
    assert torch.equal(gather(there, 5, ("s", 2))[0], gather(here, 5, ("s", 2))[0])
    assert {process.pid for process in multiprocessing.active_children()} == before
    next(there.batches(2, stream=None))
    assert not multiprocessing.active_children()
    assert torch.equal(gather(there, 5, None)[0], gather(here, 5, None)[0])


def test_epochs_differ_and_come_again() -> None:
    images = make_images(Pictures(12))
    first, order = gather(images, 5, ("s", 0))
    again, _ = gather(images, 3, ("s", 0))
    second, other = gather(images, 5, ("s", 1))
    assert torch.equal(first, again)
    assert order.tolist() != other.tolist()
    assert sorted(order.tolist()) == list(range(12))
    assert not torch.equal(first[order.argsort()], second[other.argsort()])  # other crops of the same images


def test_each_image_has_its_own_crop() -> None:
    class Same(Pictures):
        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return super().__getitem__(0)[0], index

    x, _ = gather(make_images(Same(8)), 4, ("s",))
    assert len({tuple(image.flatten().tolist()) for image in x}) == 8


FINAL: tuple[Step, ...] = (("ToTensor", {}), ("Normalize", {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}))


def finished(
    items: object,
    stream: tuple[str | int, ...] | None = None,
    final: tuple[Step, ...] = FINAL,
    channels_last: bool = False,
) -> Tensor:
    """The images of a batch with these final transforms."""
    own = tuple(AUGMENT[:2] if stream else PLAIN[:2])
    (images,) = loading.make_images(
        "p", Source(items), transforms=Transforms(own, own, final), output_size=100, device="cpu", workers=0
    )
    return gather(images, 4, stream, channels_last)[0]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("normalize", [[], [FINAL[1]], [("Normalize", {"mean": [0.3], "std": [0.7]}), FINAL[1]]])
def test_finishing_a_batch_gives_the_bits_of_single_images(normalize: list[Step], channels_last: bool) -> None:
    """Images travel as bytes, unless other steps than ToTensor and Normalize come last."""
    final: tuple[Step, ...] = (FINAL[0], *normalize)
    x = finished(Pictures(6), ("s", 1), final, channels_last)
    assert x.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert torch.equal(x, finished(Pictures(6), ("s", 1), (*final, ("RandomErasing", {"p": 0.0}))))


def test_floats_and_bytes_in_one_dataset_are_finished_alike() -> None:
    class Mixed(Pictures):
        def __getitem__(self, index: int) -> tuple[object, int]:
            image = functional.pil_to_tensor(super().__getitem__(index)[0])
            return (image / 255 if index % 2 else image), index

    pictures = make_pipeline([*PLAIN[:2], *FINAL])
    x = finished(Mixed(6))
    for i, image in enumerate(x):
        assert torch.equal(image, pictures(Mixed(6)[i][0]))


def test_batches_of_workers_are_bytes() -> None:
    samples = Readers(Pictures(3), *[make_pipeline(PLAIN[:2], raw=True)] * 2, 0, TASK.target).samples
    x, y = samples.collate([samples[_Place(i, False, ("s",))] for i in range(3)])
    assert (x.dtype, tuple(x.shape), y.tolist()) == (torch.uint8, (3, 3, 8, 8), [0, 1, 2])


def test_final_transforms_that_do_not_fit_fail_when_made() -> None:
    final: tuple[Step, ...] = (("ToTensor", {}), ("Normalize", {"mean": [0.1, 0.2], "std": [1.0, 1.0]}))
    said = "Normalize: mean has 2 values, std 2; images have 3 channels. Expected one or as many as channels."
    for steps, where in ((final, r"transformsFinal\[1\]: "), ((*final, ("RandomErasing", {"p": 0.0})), "")):
        with pytest.raises(DataError, match=f"^dataset p: {where}{said}"):
            finished(Pictures(6), final=steps)


def test_a_single_image_is_left_out_of_training() -> None:
    assert [len(y) for _, y in make_images(Pictures(7)).batches(3, stream=("s",))] == [3, 3]
    assert [len(y) for _, y in make_images(Pictures(7)).batches(3, stream=None)] == [3, 3, 1]


def test_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    gather(make_images(Pictures(5), workers=1), 2, ("s",))
    assert torch.equal(state, torch.get_rng_state())


def test_channels_last() -> None:
    (x, _), *_ = make_images(Pictures(4)).batches(4, stream=None, channels_last=True)
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_clear_error(workers: int) -> None:
    images = make_images(Pictures(8, broken=[5]), workers)
    with pytest.raises(DataError, match="dataset Pictures: image 5 cannot be read.*truncated file") as caught:
        gather(images, 4, None)
    assert "Traceback" not in str(caught.value)


def test_different_sizes_are_refused_with_advice() -> None:
    images = make_images(Pictures(6), test=[("ToTensor", {})])
    with pytest.raises(DataError, match=r"different shapes after the transforms: \(3, 12, 14\).*CenterCrop"):
        gather(images, 4, None)


def test_different_sizes_of_raw_images_are_refused_alike() -> None:
    source = Source(Pictures(6))
    (images,) = loading.make_images("p", source, transforms=Transforms(), output_size=100, device="cpu", workers=0)
    with pytest.raises(DataError, match=r"different shapes after the transforms: \(3, 12, 14\)"):
        gather(images, 4, None)


@pytest.mark.parametrize(("broken", "more"), [((1, 3, 4), ""), (range(1, 9), "; and 3 more")])
def test_all_broken_images_of_a_batch_are_named(broken: Sequence[int], more: str) -> None:
    with pytest.raises(DataError) as raised:
        gather(make_images(Pictures(10, broken=broken)), 10, None)
    named = [f"image {i} cannot be read or transformed" for i in broken[:5]]
    assert [text for text in named if text in str(raised.value)] == named
    assert str(raised.value).count("cannot be read") == len(named)
    assert str(raised.value).endswith(more)


def test_labels_outside_the_outputs_are_refused() -> None:
    with pytest.raises(DataError, match="class numbers from 0 to 3; expected 0 to 2"):
        gather(make_images(Pictures(6), num_classes=3), 4, None)


def test_transforms_that_do_not_fit_fail_when_made() -> None:
    with pytest.raises(DataError, match="image 0 cannot be read or transformed.*larger than"):
        make_images(Pictures(6), test=[("RandomCrop", {"size": 40})])


@pytest.mark.parametrize("stream", [("s",), None])
def test_processes_share_the_images_of_one(stream: tuple[str, ...] | None) -> None:
    """11 images in batches of 4 + 4 + 3: a part of every batch in training, else every second."""
    images = make_images(Pictures(11))
    whole = list(images.batches(4, stream=stream))
    first, second = (list(images.batches(4, stream=stream, share=(k, 2))) for k in range(2))
    assert [len(y) for _, y in first] == ([2, 2, 2] if stream else [4, 3])
    assert [len(y) for _, y in second] == ([2, 2, 1] if stream else [4])
    x, y = (torch.cat([batch[i] for batch in (*first, *second)]) for i in range(2))
    expected_x, expected_y = (torch.cat([batch[i] for batch in whole]) for i in range(2))
    assert torch.equal(x[y.argsort()], expected_x[expected_y.argsort()])
    assert y.sort().values.tolist() == list(range(11))
