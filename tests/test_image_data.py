import errno
import fcntl
import gzip
import hashlib
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from mnist_files import write_idx
from torchvision.datasets import FashionMNIST

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


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_names_with_dots_are_read(dataset, suffix):
    expected = image_data.load(dataset).train.images
    for path in [*dataset.iterdir()]:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        path.unlink()
        name = path.name.removesuffix(".gz").replace("-idx", ".idx") + suffix
        (dataset / name).write_bytes(gzip.compress(content) if suffix else content)
    assert torch.equal(image_data.load(dataset).train.images, expected)


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Iterator[tuple[Path, list[str]]]:
    """The folder of a server in place of Fashion-MNIST's, and the paths it was asked for."""
    folder, sent = tmp_path / "mirror", []
    folder.mkdir()
    for split in ("train", "t10k"):
        write_idx(folder, f"{split}-images-idx3-ubyte.gz", [7] * 3 * 784, 3, 28, 28)
        write_idx(folder, f"{split}-labels-idx1-ubyte.gz", [0, 4, 9], 3)

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            sent.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    files = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in folder.iterdir()]
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(FashionMNIST, "resources", files)
    yield folder, sent
    server.shutdown()
    server.server_close()


def test_named_dataset_is_downloaded_once(mirror, capsys):
    folder, sent = mirror
    with ThreadPoolExecutor(4) as threads:  # as the workers of a host
        loaded = [*threads.map(image_data.load, ["fashion-mnist"] * 4)]
    expected = image_data.load(folder)
    for data in loaded:
        assert torch.equal(data.train.images, expected.train.images)
        assert torch.equal(data.test.labels, expected.test.labels)
    assert capsys.readouterr().out.count("downloading fashion-mnist") == 1
    assert {*sent} == {f"/{path.name}" for path in folder.iterdir()}
    requests = len(sent)
    image_data.load("fashion-mnist")
    assert len(sent) == requests


def test_named_dataset_is_downloaded_to_a_file_system_without_locks(mirror, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    loaded = image_data.load("fashion-mnist")
    assert torch.equal(loaded.train.images, image_data.load(mirror[0]).train.images)


def test_interrupted_download_leaves_nothing_and_is_repeated(mirror, tmp_path):
    labels = mirror[0] / "t10k-labels-idx1-ubyte.gz"
    content = labels.read_bytes()
    labels.write_bytes(content[:-1])
    with pytest.raises(image_data.DataError, match=r"is not in .*downloaded") as error:
        image_data.load("fashion-mnist")
    assert "\n" not in str(error.value)
    datasets = tmp_path / "torch" / "datasets"
    assert {path.name for path in datasets.iterdir()} == {".fashion-mnist.lock"}
    labels.write_bytes(content)
    assert len(image_data.load("fashion-mnist").test) == 3


def test_packaged_mnist_is_checked_against_its_md5_sums(tmp_path, monkeypatch):
    copy = shutil.copytree(image_data.MNIST, tmp_path / "mnist")
    monkeypatch.setattr(image_data, "MNIST", copy)
    assert len(image_data.load().train) == 60_000
    labels = copy / "t10k-labels-idx1-ubyte.gz"
    content = gzip.decompress(labels.read_bytes())
    labels.write_bytes(gzip.compress(content[:-1] + bytes([(content[-1] + 1) % 10])))
    with pytest.raises(image_data.DataError, match=r"t10k-labels.*MD5"):
        image_data.load()
