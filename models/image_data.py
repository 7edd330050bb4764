"""28x28 grayscale images: MNIST, which comes with the package, or a dataset in its format.

data = load()                         # MNIST (LeCun et al. 1998)
data = load("fashion-mnist")          # downloaded once by torchvision; or load(folder)
data.train.images                     # (60000, 28, 28) uint8
normalize(data.train.images[:64])     # (64, 784) float32, from -1 to 1
"""

import fcntl
import gzip
import hashlib
import io
import struct
import tempfile
import zlib
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

IMAGE_SIZE = 28  # pixels, height and width
PIXELS = IMAGE_SIZE * IMAGE_SIZE
MNIST = Path(__file__).parent / "mnist"

# Classes of torchvision.datasets in MNIST's format, by their names here: Fashion-MNIST (Xiao et al.
# 2017) and KMNIST (Clanuwat et al. 2018).
NAMED_DATASETS = {"fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}

# Checksums published by the distributors of MNIST.
MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}


class DataError(ValueError):
    """A file of a dataset is missing, corrupt or of another format; the message names the file."""


@dataclass(frozen=True)
class LabeledImages:
    images: Tensor  # (count, 28, 28) uint8
    labels: Tensor  # (count,) int64

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "LabeledImages":
        return LabeledImages(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ImageSplits:
    train: LabeledImages
    test: LabeledImages

    def to(self, device: torch.device | str) -> "ImageSplits":
        return ImageSplits(self.train.to(device), self.test.to(device))


def load(source: str | Path | None = None) -> ImageSplits:
    """Reads the four files of a dataset, gzipped or not.

    Args:
        source: a name in NAMED_DATASETS, or a folder of files with MNIST's names. Default: MNIST as
            it comes with the package, which is checked against its published MD5 sums.

    Raises:
        DataError: a file is missing or invalid, or cannot be downloaded.
    """
    if source in NAMED_DATASETS:
        path, check_md5 = named_dataset(str(source)), False
    elif source is not None:
        path, check_md5 = Path(source), False
    else:
        path, check_md5 = MNIST, True
    train, test = (_load_split(path, split, check_md5) for split in ("train", "t10k"))
    return ImageSplits(train, test)


def named_dataset(name: str) -> Path:
    """Returns the folder of a named dataset; one process of each host downloads it.

    Raises:
        DataError: it is not on this host, and cannot be downloaded.
    """
    from torchvision import datasets  # slow to import

    dataset = getattr(datasets, NAMED_DATASETS[name])
    root = Path(torch.hub.get_dir()).parent / "datasets"  # beside torch's own downloads
    folder = root / name
    if folder.exists():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / f".{name}.lock").open("w") as lock:
            with suppress(OSError):  # without locks, each process downloads it
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                with suppress(OSError):  # stdout is closed
                    print(f"downloading {name} to {folder}", flush=True)
                with tempfile.TemporaryDirectory(dir=root) as parent:
                    with redirect_stdout(io.StringIO()):
                        raw_folder = dataset(parent, download=True).raw_folder
                    Path(raw_folder).rename(folder)  # complete, or not there
    except (OSError, RuntimeError) as error:
        if folder.exists():  # another process was faster
            return folder
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name} is not in {folder}, and not downloaded: {reason}: copy its four files there"
        ) from None
    return folder


def normalize(images: Tensor) -> Tensor:
    """Flattens images and scales pixels to -1 ... 1, the range of the generator's tanh.

    Args:
        images: (batch, 28, 28) uint8

    Returns:
        (batch, 784) float32
    """
    return images.flatten(1).float() / 127.5 - 1


def _load_split(folder: Path, split: str, check_md5: bool) -> LabeledImages:
    images, path = _read_idx(folder, f"{split}-images-idx3-ubyte", 3, check_md5)
    labels, _ = _read_idx(folder, f"{split}-labels-idx1-ubyte", 1, check_md5)
    if images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
        height, width = images.shape[1:]
        raise DataError(
            f"{path}: images have {height}x{width} pixels, expected {IMAGE_SIZE}x{IMAGE_SIZE}"
        )
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} images, but {len(labels)} labels")
    return LabeledImages(images, labels.long())


def _read_idx(folder: Path, name: str, dimensions: int, check_md5: bool) -> tuple[Tensor, Path]:
    """Reads a file in IDX format: a magic number, the shape, the values, all big-endian."""
    dotted = name.replace("-idx", ".idx")  # the names of some mirrors
    names = [name, f"{name}.gz", dotted, f"{dotted}.gz"]
    path = next((folder / n for n in names if (folder / n).exists()), folder / f"{name}.gz")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if check_md5 and hashlib.md5(content).hexdigest() != MD5[name]:
        raise DataError(f"{path}: corrupt, its MD5 sum is not {MD5[name]}: reinstall the package")
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: truncated or corrupt ({error})") from None
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{path}: not an IDX file with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    count = len(content) - header
    if not count or count != torch.Size(shape).numel():
        raise DataError(f"{path}: {count} values, but its header says the shape is {shape}")
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).view(shape), path
