"""Images in memory: order, augmentation and last batches."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from experiment.datasets import in_memory
from experiment.datasets.image_data import Step, count_batches
from experiment.datasets.in_memory import MemoryImages, prepare
from experiment.datasets.raw_images import Pixels
from experiment.random_streams import generator

FLIP: list[Step] = [("RandomCrop", {"size": 6, "padding": 2}), ("RandomHorizontalFlip", {}), ("ToTensor", {})]
CPU = torch.device("cpu")


def make_pixels(count: int, channels: int = 3, side: int = 6) -> Pixels:
    images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator("pixels"))
    return Pixels(images, torch.arange(count))  # the label tells which image it is


def make_images(count: int, train: list[Step] = FLIP, indices: Tensor | None = None) -> MemoryImages:
    pixels = make_pixels(count)
    prepared = prepare(pixels, [train, [("ToTensor", {})]], CPU)
    assert prepared is not None
    return MemoryImages(*prepared, pixels.labels, indices)


def gather(images: MemoryImages, batch_size: int, stream: tuple[str | int, ...] | None) -> tuple[Tensor, Tensor]:
    batches = list(images.batches(batch_size, stream=stream))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_evaluation_is_in_order_and_whole() -> None:
    images = make_images(11, indices=torch.arange(3, 10))
    x, y = gather(images, 3, None)
    assert len(images) == 7
    assert y.tolist() == list(range(3, 10))
    torch.testing.assert_close(x, make_pixels(11).images[3:10] / 255)
    assert [len(b) for _, b in images.batches(3, stream=None)] == [3, 3, 1]


@pytest.mark.parametrize(("count", "sizes"), [(7, [3, 3]), (8, [3, 3, 2]), (9, [3, 3, 3]), (2, [2]), (1, [])])
def test_a_single_image_is_left_out_of_training(count: int, sizes: list[int]) -> None:
    assert [len(y) for _, y in make_images(count).batches(3, stream=("s",))] == sizes
    assert count_batches(count, 3, training=True) == len(sizes)


def test_batches_of_one_are_trained_on_if_asked_for() -> None:
    assert len(list(make_images(3).batches(1, stream=("s",)))) == count_batches(3, 1, training=True) == 3


@pytest.mark.parametrize("stream", [("s",), None])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_images_of_one(stream: tuple[str, ...] | None, processes: int) -> None:
    """In training a part of every batch each, else whole batches in turn; the last batch has 6 images."""
    images = make_images(30, indices=torch.arange(8, 30))
    whole = list(images.batches(8, stream=stream))
    shares = [list(images.batches(8, stream=stream, share=(k, processes))) for k in range(processes)]
    for i, (x, y) in enumerate(whole):
        if stream is None:
            parts = [shares[i % processes][i // processes]]
        else:
            parts = [share[i] for share in shares]
            assert max(len(p[1]) for p in parts) - min(len(p[1]) for p in parts) <= 1
        order = torch.cat([part[1] for part in parts]).argsort()
        assert torch.equal(torch.cat([part[0] for part in parts])[order], x[y.argsort()])
    assert sum(map(len, shares)) == len(whole) * (1 if stream is None else processes)


def test_every_image_once_an_epoch_in_an_order_of_its_own() -> None:
    images = make_images(40)
    _, first = gather(images, 8, ("s", 0))
    _, second = gather(images, 8, ("s", 1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(40))
    assert first.tolist() != second.tolist() != list(range(40))


def test_epoch_depends_on_the_stream_alone() -> None:
    images = make_images(40)
    x, y = gather(images, 8, ("s", 3))
    torch.rand(5)  # draws elsewhere change nothing
    again_x, again_y = gather(make_images(40), 8, ("s", 3))
    assert torch.equal(x, again_x)
    assert torch.equal(y, again_y)
    other_x, other_y = gather(images, 20, ("s", 3))  # nor does the batch size
    assert torch.equal(y, other_y)
    assert torch.equal(x, other_x)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = gather(make_images(100), 4, ("s",))
    monkeypatch.setattr(in_memory, "CHUNK_BYTES", {"cpu": 1})
    small_x, small_y = gather(make_images(100), 4, ("s",))
    assert torch.equal(x, small_x)
    assert torch.equal(y, small_y)


def test_each_image_has_its_own_crop_and_flip() -> None:
    """Every batch holds images that could have been made by torchvision, and not all by the same crop."""
    images = make_images(30)
    padded = torch.nn.functional.pad(make_pixels(30).images, [2, 2, 2, 2])
    seen = set()
    for x, y in images.batches(10, stream=("s",)):
        for image, label in zip(x, y.tolist(), strict=True):
            options = {
                (top, left, flip): padded[label, :, top : top + 6, left : left + 6].flip([-1] if flip else [])
                for top in range(5)
                for left in range(5)
                for flip in (False, True)
            }
            fits = [key for key, option in options.items() if torch.allclose(option / 255, image)]
            assert len(fits) == 1
            seen.add(fits[0])
    assert len(seen) > 15


def test_a_part_is_a_view_of_one_tensor() -> None:
    pixels = make_pixels(20)
    prepared = prepare(pixels, [FLIP, [("ToTensor", {})]], CPU)
    assert prepared is not None
    assert prepared[0].pixels.data_ptr() == prepared[1].pixels.data_ptr() == pixels.images.data_ptr()


def test_augmentation_leaves_the_pixels_alone() -> None:
    pixels = make_pixels(20)
    before = pixels.images.clone()
    prepared = prepare(pixels, [[("RandomHorizontalFlip", {"p": 1.0})], []], CPU)
    assert prepared is not None
    gather(MemoryImages(*prepared, pixels.labels), 5, ("s",))
    assert torch.equal(pixels.images, before)


def test_take_and_first() -> None:
    images = make_images(20, indices=torch.arange(5, 15))
    x, y = images.take(torch.tensor([9, 0]))
    assert y.tolist() == [14, 5]
    torch.testing.assert_close(x, make_pixels(20).images[[14, 5]] / 255)
    assert images.first(3)[1].tolist() == [5, 6, 7]
    assert len(images.first(100)[1]) == 10


def test_chance_among_the_test_transforms_is_the_same_every_time() -> None:
    pixels = make_pixels(20)
    prepared = prepare(pixels, [[], [("RandomHorizontalFlip", {})]], CPU)
    assert prepared is not None
    images = MemoryImages(*prepared, pixels.labels)
    x, _ = gather(images, 7, None)
    assert torch.equal(x, gather(images, 20, None)[0])
    assert torch.equal(x[[4, 2]], images.take(torch.tensor([4, 2]))[0])
    assert not torch.equal(x, pixels.images / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_torchvisions_on_pil_images(channels: int) -> None:
    pixels = make_pixels(5, channels, side=10)
    prepared = prepare(pixels, [[("Resize", {"size": 7})]], CPU)
    assert prepared is not None
    assert prepared[0].operations == ()
    resize = v2.Resize(7)
    for i in range(5):
        expected = v2.functional.pil_to_tensor(resize(v2.functional.to_pil_image(pixels.images[i])))
        assert torch.equal(prepared[0].pixels[i], expected)


def test_images_that_a_resize_makes_large_do_not_stay_in_memory() -> None:
    assert prepare(make_pixels(5), [[("Resize", {"size": 65})]], CPU) is None
    assert prepare(make_pixels(5), [[("RandomRotation", {"degrees": 5})]], CPU) is None


def test_memory_format_and_shape() -> None:
    images = make_images(20, [("RandomCrop", {"size": [4, 5]})])
    assert images.input_shape == (3, 6, 6)  # of the test transforms
    (x, _), *_ = images.batches(20, stream=("s",), channels_last=True)
    (plain, _), *_ = images.batches(20, stream=("s",))
    assert x.shape == (20, 3, 4, 5)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert plain.is_contiguous()
    assert torch.equal(x, plain)


def test_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    gather(make_images(20), 4, ("s",))
    assert torch.equal(state, torch.get_rng_state())
