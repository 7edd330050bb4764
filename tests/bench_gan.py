"""Measures the GAN's training beside what it could be, in one run: `make bench`.

  python tests/bench_gan.py             three tables in Markdown
  python tests/bench_gan.py workers     one of them

Throughput is measured beside a script written the usual way, two workers of one
thread beside one of two; overhead is what Ray Train, reports and checkpoints
take of an epoch. Nothing else should run meanwhile: it takes about ten minutes
on two cores.
"""

import argparse
import gzip
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from scripts import run
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST

from analysis.results import read_trials
from jobs.cluster import WORKER_ENVIRONMENT
from models import digits, gan, parallel

# Each side is timed in slices, by turns, and its best slice counts: whatever else runs on
# the host, beside this machine, only ever slows a slice down, by up to a half.
ROUNDS = 3
SLICES = 4
SLICE = 10_240  # images
LATENT = 100
BETAS = (0.5, 0.999)


def usual_networks() -> tuple[nn.Module, nn.Module]:
    """The report's two networks as one writes them down first."""

    def block(inputs: int, outputs: int, norm: bool) -> list[nn.Module]:
        layers = [nn.Linear(inputs, outputs)]
        return [*layers, *([nn.BatchNorm1d(outputs)] if norm else []), nn.LeakyReLU(0.2)]

    generator = nn.Sequential(
        *block(LATENT, 128, False), *block(128, 256, True), *block(256, 512, True),
        *block(512, 1024, True), nn.Linear(1024, 784), nn.Tanh(),
    )  # fmt: skip
    discriminator = nn.Sequential(
        *block(784, 512, False), *block(512, 256, False), nn.Linear(256, 1), nn.Sigmoid()
    )
    return generator, discriminator


def usual_images_per_second(batch_size: int) -> float:
    """Trains the usual way, in this process with its default threads: the best slice."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "MNIST", "raw")
        raw.mkdir(parents=True)
        for packed in digits.MNIST.glob("*.gz"):
            (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])
        loader = DataLoader(MNIST(folder, transform=transform), batch_size, shuffle=True)
        generator, discriminator = usual_networks()
        criterion = nn.BCELoss()
        optimizer_g = torch.optim.Adam(generator.parameters(), lr=0.0002, betas=BETAS)
        optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=0.0002, betas=BETAS)
        ends = []
        for step, (images, _) in enumerate(loader):
            if step % (SLICE // batch_size) == 0:
                ends.append(time.perf_counter())
                if len(ends) > SLICES + 1:  # the first one is warm-up
                    break
            real, ones = images.flatten(1), torch.ones(len(images), 1)
            fake = generator(torch.randn(len(images), LATENT))
            loss_d = criterion(discriminator(real), ones)
            loss_d = loss_d + criterion(discriminator(fake.detach()), torch.zeros_like(ones))
            optimizer_d.zero_grad()
            loss_d.backward()
            optimizer_d.step()
            loss_g = criterion(discriminator(fake), ones)
            optimizer_g.zero_grad()
            loss_g.backward()
            optimizer_g.step()
            loss_d.item(), loss_g.item()
        return SLICE / min(end - start for start, end in pairwise(ends[1:]))


def images_per_second(batch_size: int) -> float:
    """Trains as the job does, with whatever workers and threads there are: the best slice."""
    trained = gan.GAN(LATENT, 0, 0.0002, BETAS)
    images = digits.load().train.images[: SLICE // batch_size * batch_size]
    gan.train_epoch(trained, images, 0, 0, batch_size)  # warm
    best = 0.0
    for epoch in range(1, SLICES + 1):
        began = time.perf_counter()
        gan.train_epoch(trained, images, 0, epoch, batch_size)
        best = max(best, len(images) / (time.perf_counter() - began))
    return best


def throughput() -> None:
    print("| batch | usual script (images/s) | this suite (images/s) | times as fast |")
    print("| --- | --- | --- | --- |")
    rounds = [
        [float(in_a_fresh_process(part)) for part in ("usual", "ours")] for _ in range(ROUNDS)
    ]
    usual, ours = map(max, zip(*rounds, strict=True))
    print(f"| 64 | {usual:,.0f} | {ours:,.0f} | {ours / usual:.1f} |", flush=True)


def as_one_of(rank: int, workers: int, threads: int, folder: str) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers
    )
    parallel.settle_on_cores(rank, workers, threads)
    found = images_per_second(512)
    if rank == 0:
        Path(folder, "found").write_text(str(found))
    dist.barrier()
    dist.destroy_process_group()


def images_per_second_of(workers: int, threads: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(as_one_of, (workers, threads, folder), nprocs=workers)
        return float(Path(folder, "found").read_text())


def workers() -> None:
    print("| batch | one worker, two threads | two workers, one thread each | share |")
    print("| --- | --- | --- | --- |")
    os.environ.update(WORKER_ENVIRONMENT)
    rounds = [[images_per_second_of(1, 2), images_per_second_of(2, 1)] for _ in range(ROUNDS)]
    one, two = map(max, zip(*rounds, strict=True))
    print(f"| 512 | {one:,.0f} | {two:,.0f} | {two / one:.2f} |", flush=True)


def overhead() -> None:
    """Of the time from one epoch's end to the next one's, what is neither training nor quality."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--epochs", 7, "--keep-every", 1, "--quality-every", 7, "--storage", folder]
        done = run("jobs/gan.py", *flags, "--name", "bench")
        assert done.returncode == 0, done.stdout + done.stderr
        (trial,) = read_trials(f"{folder}/bench")
    *rows, _ = trial.rows  # the quality is measured in the last one
    trained = sum(row["train_seconds"] for row in rows[1:])
    wall = rows[-1]["ended_at"] - rows[0]["ended_at"]
    print("| epochs | training of each (s) | from end to end (s) | lost |")
    print("| --- | --- | --- | --- |")
    count = len(rows) - 1
    lost = 1 - trained / wall
    print(f"| {count} | {trained / count:.2f} | {wall / count:.2f} | {lost:.1%} |", flush=True)


def in_a_fresh_process(part: str) -> str:
    """Each side has the environment that it has in use: the usual script none of ours."""
    environment = os.environ | (WORKER_ENVIRONMENT if part == "ours" else {})
    command = [sys.executable, __file__, part]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


TABLES: dict[str, Callable[[], None]] = {
    "throughput": throughput,
    "workers": workers,
    "overhead": overhead,
}
SIDES: dict[str, Callable[[], None]] = {  # of the first table, each in a process of its own
    "usual": lambda: print(usual_images_per_second(64)),
    "ours": lambda: print(images_per_second(64)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = ", ".join(TABLES)
    parser.add_argument("part", nargs="?", choices=[*TABLES, *SIDES], metavar="PART", help=words)
    part = parser.parse_args().part
    if part in SIDES:
        SIDES[part]()
        return
    for name in [part] if part else TABLES:
        print(f"\n{name}, {os.cpu_count()} cores\n", flush=True)
        TABLES[name]()


if __name__ == "__main__":
    main()
