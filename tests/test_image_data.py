import gzip
import shutil

import pytest
import torch
from mnist_files import write_idx

from models import image_data


def test_mnist_has_its_published_statistics():
    data = image_data.load()
    assert data.train.images.shape == (60_000, 28, 28)
    assert data.test.images.shape == (10_000, 28, 28)
    assert data.train.labels.bincount().tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert data.test.labels.bincount().tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    pixels = data.train.images.double() / 255
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (0.1307, 0.3081)


def test_normalize_flattens_and_scales_to_the_range_of_tanh():
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(2, 392).view(2, 28, 28)
    normalized = image_data.normalize(images)
    assert normalized.shape == (2, 784)
    assert normalized.dtype == torch.float32
    assert normalized.unique().tolist() == [-1.0, 1.0]


@pytest.fixture
def dataset(tmp_path):
    """A dataset of three images per split in MNIST's format; only the training split is gzipped."""
    for split, suffix in (("train", ".gz"), ("t10k", "")):
        write_idx(tmp_path, f"{split}-images-idx3-ubyte{suffix}", [7] * 3 * 784, 3, 28, 28)
        write_idx(tmp_path, f"{split}-labels-idx1-ubyte{suffix}", [0, 4, 9], 3)
    return tmp_path


def test_any_dataset_in_mnists_format_is_read_gzipped_or_not(dataset):
    data = image_data.load(dataset)
    for split in (data.train, data.test):
        assert split.labels.tolist() == [0, 4, 9]
        assert split.images.shape == (3, 28, 28)
        assert split.images.unique().tolist() == [7]


CORRUPTIONS = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "not gzip": lambda path: path.write_bytes(b"x" * 50),
    "labels": lambda path: shutil.copy(path.with_name("train-labels-idx1-ubyte.gz"), path),
    "fewer values": lambda path: write_idx(path.parent, path.name, [7] * 784, 3, 28, 28),
    "no values": lambda path: write_idx(path.parent, path.name, [], 0, 28, 28),
    "fewer images": lambda path: write_idx(path.parent, path.name, [7] * 1568, 2, 28, 28),
    "other size": lambda path: write_idx(path.parent, path.name, [7] * 3072, 3, 32, 32),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_invalid_file_is_named_in_one_line(dataset, corruption):
    path = dataset / "train-images-idx3-ubyte.gz"
    CORRUPTIONS[corruption](path)
    with pytest.raises(image_data.DataError) as error:
        image_data.load(dataset)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_changed_byte_changes_no_pixel_or_is_detected(dataset):
    images = dataset / "train-images-idx3-ubyte.gz"
    content, detected = images.read_bytes(), 0
    for i in range(len(content)):
        images.write_bytes(content[:i] + bytes([content[i] ^ 255]) + content[i + 1 :])
        try:
            assert image_data.load(dataset).train.images.unique().tolist() == [7]
        except image_data.DataError:
            detected += 1
    assert detected > len(content) / 2


def test_packaged_mnist_is_checked_against_its_md5_sums(tmp_path, monkeypatch):
    copy = shutil.copytree(image_data.MNIST, tmp_path / "mnist")
    monkeypatch.setattr(image_data, "MNIST", copy)
    assert len(image_data.load().train) == 60_000
    labels = copy / "t10k-labels-idx1-ubyte.gz"
    content = gzip.decompress(labels.read_bytes())
    labels.write_bytes(gzip.compress(content[:-1] + bytes([(content[-1] + 1) % 10])))
    with pytest.raises(image_data.DataError, match=r"t10k-labels.*MD5"):
        image_data.load()
