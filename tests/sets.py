"""Sets of images in MNIST's format, made by hand or cut from MNIST itself."""

import gzip
import struct
from collections.abc import Iterable
from pathlib import Path

from models import digits


def write(folder: Path, name: str, values: Iterable[int], *shape: int) -> None:
    """Writes a file of the IDX format, gzipped if its name says so."""
    content = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(values)
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def part_of_mnist(folder: Path, train: int, test: int) -> Path:
    """Writes the first images of both parts of MNIST."""
    whole = digits.load()
    folder.mkdir(parents=True)
    for name, images, count in (("train", whole.train, train), ("t10k", whole.test, test)):
        pixels = images.images[:count].flatten().tolist()
        write(folder, f"{name}-images-idx3-ubyte", pixels, count, digits.SIDE, digits.SIDE)
        write(folder, f"{name}-labels-idx1-ubyte", images.labels[:count].tolist(), count)
    return folder
