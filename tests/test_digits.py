import gzip
import shutil

import pytest
import torch
from sets import write

from models import digits


def test_mnist_is_what_its_authors_describe():
    found = digits.load()
    assert found.train.images.shape == (60_000, 28, 28)
    assert found.test.images.shape == (10_000, 28, 28)
    assert found.train.labels.bincount().tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert found.test.labels.bincount().tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    # The mean and the standard deviation that everybody normalises with.
    pixels = found.train.images.double() / 255
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (0.1307, 0.3081)


def test_pixels_are_scaled_to_the_range_of_tanh():
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(2, 392).view(2, 28, 28)
    scaled = digits.scaled(images)
    assert scaled.shape == (2, 784)
    assert scaled.dtype == torch.float32
    assert scaled.unique().tolist() == [-1.0, 1.0]


@pytest.fixture
def other(tmp_path):
    """A set of three images for each part, in MNIST's format, one part of it not gzipped."""
    for part, end in (("train", ".gz"), ("t10k", "")):
        write(tmp_path, f"{part}-images-idx3-ubyte{end}", [7] * 3 * 784, 3, 28, 28)
        write(tmp_path, f"{part}-labels-idx1-ubyte{end}", [0, 4, 9], 3)
    return tmp_path


def test_any_set_in_the_format_is_read(other):
    found = digits.load(other)
    assert found.test.labels.tolist() == [0, 4, 9]
    assert found.train.images.unique().tolist() == [7]


def damage(folder, kind):
    images = folder / "train-images-idx3-ubyte.gz"
    if kind == "missing":
        images.unlink()
    elif kind == "cut off":
        images.write_bytes(images.read_bytes()[:-9])
    elif kind == "not gzip":
        images.write_bytes(b"x" * 50)
    elif kind == "altered":
        content = bytearray(images.read_bytes())
        content[len(content) // 2] ^= 255
        images.write_bytes(content)
    elif kind == "labels for images":
        shutil.copy(folder / "train-labels-idx1-ubyte.gz", images)
    elif kind == "fewer values":
        write(folder, images.name, [7] * 784, 3, 28, 28)
    elif kind == "no values":
        write(folder, images.name, [], 0, 28, 28)
    elif kind == "fewer images":
        write(folder, images.name, [7] * 2 * 784, 2, 28, 28)
    elif kind == "other size":
        write(folder, images.name, [7] * 3 * 1024, 3, 32, 32)
    return images


@pytest.mark.parametrize(
    "kind",
    ["missing", "cut off", "not gzip", "altered", "labels for images", "fewer values",
     "no values", "fewer images", "other size"],
)  # fmt: skip
def test_a_file_that_is_not_what_it_should_be_is_named_in_one_line(other, kind):
    path = damage(other, kind)
    with pytest.raises(digits.DataError) as refused:
        digits.load(other)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_flipped_byte_changes_nothing_or_is_told(other):
    images = other / "train-images-idx3-ubyte.gz"
    content, told = images.read_bytes(), 0
    for place in range(len(content)):
        images.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        try:
            assert digits.load(other).train.images.unique().tolist() == [7]
        except digits.DataError:
            told += 1
    assert told > len(content) / 2


def test_mnist_itself_is_held_against_its_published_sums(tmp_path, monkeypatch):
    copy = shutil.copytree(digits.MNIST, tmp_path / "mnist")
    monkeypatch.setattr(digits, "MNIST", copy)
    assert len(digits.load().train) == 60_000
    labels = copy / "t10k-labels-idx1-ubyte.gz"
    content = gzip.decompress(labels.read_bytes())
    labels.write_bytes(gzip.compress(content[:-1] + bytes([(content[-1] + 1) % 10])))
    with pytest.raises(digits.DataError, match=r"t10k-labels.*MD5"):
        digits.load()
