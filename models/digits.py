"""Images of handwritten digits: MNIST, which comes with the package, or any set in its format.

digits = load()                    # MNIST (LeCun et al. 1998)
digits.train.images                # (60000, 28, 28) uint8
scaled(digits.train.images[:64])   # (64, 784) float32, from -1 to 1
"""

import gzip
import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SIDE = 28  # pixels
PIXELS = SIDE * SIDE
MNIST = Path(__file__).parent / "mnist"

# The sums that the set's distributors publish.
MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}


class DataError(ValueError):
    """A file of a set is missing, cut off, altered or of another kind: the message names it."""


@dataclass(frozen=True)
class Images:
    images: Tensor  # (count, 28, 28) uint8
    labels: Tensor  # (count,) int64

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Images":
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Digits:
    train: Images
    test: Images

    def to(self, device: torch.device | str) -> "Digits":
        return Digits(self.train.to(device), self.test.to(device))


def load(folder: str | Path | None = None) -> Digits:
    """Reads a set's four files, gzipped or not.

    Args:
        folder: where they are, under MNIST's names; by default MNIST as it comes with the package,
            which is held against its published MD5 sums.

    Raises:
        DataError: a file is not there or is not what it should be.
    """
    place, published = (Path(folder), False) if folder else (MNIST, True)
    return Digits(_images(place, "train", published), _images(place, "t10k", published))


def scaled(images: Tensor) -> Tensor:
    """Returns flat images with pixels from -1 to 1, the range of the generator's tanh.

    Args:
        images: (batch, 28, 28) uint8

    Returns:
        (batch, 784) float32
    """
    return images.flatten(1).float() / 127.5 - 1


def _images(folder: Path, part: str, published: bool) -> Images:
    images, path = _read(folder, f"{part}-images-idx3-ubyte", 3, published)
    labels, _ = _read(folder, f"{part}-labels-idx1-ubyte", 1, published)
    if images.shape[1:] != (SIDE, SIDE):
        height, width = images.shape[1:]
        raise DataError(f"{path}: images of {height}x{width} pixels, and not of {SIDE}x{SIDE}")
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} images, but {len(labels)} labels beside them")
    return Images(images, labels.long())


def _read(folder: Path, name: str, dimensions: int, published: bool) -> tuple[Tensor, Path]:
    """Reads a file of the IDX format: a magic number, the sizes, the values, all big-endian."""
    path = folder / name
    if not path.exists():
        path = folder / f"{name}.gz"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if published and hashlib.md5(content).hexdigest() != MD5[name]:
        raise DataError(
            f"{path}: damaged, its MD5 sum is not {MD5[name]}: install the package anew"
        )
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: cut off or damaged ({error})") from None
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{path}: not an IDX file of {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    count = len(content) - header
    if not count or count != torch.Size(shape).numel():
        raise DataError(f"{path}: {count} values, and not the {shape} that it promises")
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).view(shape), path
