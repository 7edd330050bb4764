"""Image datasets in MNIST's format: made by hand, or a subset of MNIST."""

import gzip
import struct
from collections.abc import Iterable
from pathlib import Path

from models import image_data


def write_idx(folder: Path, name: str, values: Iterable[int], *shape: int) -> None:
    """Writes a file in IDX format, gzipped if its name ends with .gz."""
    content = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(values)
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def mnist_subset(folder: Path, train: int, test: int) -> Path:
    """Writes the first images of both splits of MNIST."""
    mnist = image_data.load()
    folder.mkdir(parents=True)
    size = image_data.IMAGE_SIZE
    for name, split, count in (("train", mnist.train, train), ("t10k", mnist.test, test)):
        pixels = split.images[:count].flatten().tolist()
        write_idx(folder, f"{name}-images-idx3-ubyte", pixels, count, size, size)
        write_idx(folder, f"{name}-labels-idx1-ubyte", split.labels[:count].tolist(), count)
    return folder
