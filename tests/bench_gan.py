"""Measures the speed of the GAN's training and prints Markdown tables.

  python tests/bench_gan.py             all three tables, as in `make bench`
  python tests/bench_gan.py workers     one table

throughput: compared with a baseline script, written in the usual way
workers:    two workers of one thread, compared with one worker of two threads
overhead:   what Ray Train, reports and checkpoints add to an epoch

Takes about ten minutes on two cores. Run nothing else at the same time.
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
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST

from analysis.results import read_trials
from jobs.cluster import WORKER_ENVIRONMENT
from models import distributed, gan, image_data

REPO = Path(__file__).parent.parent

# Each side is timed in windows, alternating with the other side, and its best window counts: other
# load on the host only slows a window down, by up to a half.
ROUNDS = 3
WINDOWS = 4
WINDOW_IMAGES = 10_240
LATENT_DIM = 100
BETAS = (0.5, 0.999)
THROUGHPUT_BATCH_SIZE = 64
WORKERS_BATCH_SIZE = 512


def baseline_networks() -> tuple[nn.Module, nn.Module]:
    """Returns the report's two networks, written in the usual way."""

    def block(inputs: int, outputs: int, norm: bool) -> list[nn.Module]:
        layers = [nn.Linear(inputs, outputs)]
        return [*layers, *([nn.BatchNorm1d(outputs)] if norm else []), nn.LeakyReLU(0.2)]

    generator = nn.Sequential(
        *block(LATENT_DIM, 128, False), *block(128, 256, True), *block(256, 512, True),
        *block(512, 1024, True), nn.Linear(1024, 784), nn.Tanh(),
    )  # fmt: skip
    discriminator = nn.Sequential(
        *block(784, 512, False), *block(512, 256, False), nn.Linear(256, 1), nn.Sigmoid()
    )
    return generator, discriminator


def baseline_images_per_second(batch_size: int) -> float:
    """Trains in the usual way, with torch's default threads; returns the best window's speed."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "MNIST", "raw")
        raw.mkdir(parents=True)
        for path in image_data.MNIST.glob("*.gz"):
            (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])
        loader = DataLoader(MNIST(folder, transform=transform), batch_size, shuffle=True)
        generator, discriminator = baseline_networks()
        criterion = nn.BCELoss()
        optimizer_g = torch.optim.Adam(generator.parameters(), lr=0.0002, betas=BETAS)
        optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=0.0002, betas=BETAS)
        times = []
        for step, (images, _) in enumerate(loader):
            if step % (WINDOW_IMAGES // batch_size) == 0:
                times.append(time.perf_counter())
                if len(times) > WINDOWS + 1:  # the first window is warmup
                    break
            real, ones = images.flatten(1), torch.ones(len(images), 1)
            fake = generator(torch.randn(len(images), LATENT_DIM))
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
        return WINDOW_IMAGES / min(end - start for start, end in pairwise(times[1:]))


def suite_images_per_second(batch_size: int) -> float:
    """Trains as the job does, with the current workers and threads; the best window's speed."""
    model = gan.GAN(LATENT_DIM, 0, 0.0002, BETAS)
    images = image_data.load().train.images[: WINDOW_IMAGES // batch_size * batch_size]
    gan.train_epoch(model, images, 0, 0, batch_size)  # warmup
    best = 0.0
    for epoch in range(1, WINDOWS + 1):
        start = time.perf_counter()
        gan.train_epoch(model, images, 0, epoch, batch_size)
        best = max(best, len(images) / (time.perf_counter() - start))
    return best


def throughput() -> None:
    print("| batch size | baseline script (images/s) | this suite (images/s) | speedup |")
    print("| --- | --- | --- | --- |")
    rounds = [[float(run_in_new_process(side)) for side in SIDES] for _ in range(ROUNDS)]
    baseline, suite = map(max, zip(*rounds, strict=True))
    speedup = suite / baseline
    print(
        f"| {THROUGHPUT_BATCH_SIZE} | {baseline:,.0f} | {suite:,.0f} | {speedup:.1f} |", flush=True
    )


def train_worker(rank: int, num_workers: int, num_threads: int, folder: str) -> None:
    torch.set_num_threads(num_threads)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_workers
    )
    distributed.pin_threads_to_cores(rank, num_workers, num_threads)
    speed = suite_images_per_second(WORKERS_BATCH_SIZE)
    if rank == 0:
        Path(folder, "speed").write_text(str(speed))
    dist.barrier()
    dist.destroy_process_group()


def images_per_second_of_workers(num_workers: int, num_threads: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(train_worker, (num_workers, num_threads, folder), nprocs=num_workers)
        return float(Path(folder, "speed").read_text())


def workers() -> None:
    print(
        "| batch size | one worker, two threads (images/s) "
        "| two workers, one thread each (images/s) | fraction |"
    )
    print("| --- | --- | --- | --- |")
    os.environ.update(WORKER_ENVIRONMENT)
    rounds = [
        [images_per_second_of_workers(1, 2), images_per_second_of_workers(2, 1)]
        for _ in range(ROUNDS)
    ]
    one, two = map(max, zip(*rounds, strict=True))
    print(f"| {WORKERS_BATCH_SIZE} | {one:,.0f} | {two:,.0f} | {two / one:.2f} |", flush=True)


def overhead() -> None:
    """Wall time from one epoch's end to the next, minus training; without quality evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--epochs", 7, "--keep-every", 1, "--eval-every", 7]
        command = [sys.executable, REPO / "jobs" / "gan.py", *flags]
        command += ["--storage", folder, "--name", "bench"]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        (trial,) = read_trials(f"{folder}/bench")
    *rows, _ = trial.rows  # the last epoch includes the evaluation
    epochs = len(rows) - 1
    training = sum(row["train_seconds"] for row in rows[1:])
    wall = rows[-1]["epoch_end_time"] - rows[0]["epoch_end_time"]
    print("| epochs | training per epoch (s) | wall time per epoch (s) | overhead |")
    print("| --- | --- | --- | --- |")
    times = f"{training / epochs:.2f} | {wall / epochs:.2f}"
    print(f"| {epochs} | {times} | {1 - training / wall:.1%} |", flush=True)


def run_in_new_process(side: str) -> str:
    """Runs a side in its own environment: the baseline script has none of the jobs' variables."""
    environment = os.environ | (WORKER_ENVIRONMENT if side == "suite" else {})
    command = [sys.executable, __file__, side]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


TABLES: dict[str, Callable[[], None]] = {
    "throughput": throughput,
    "workers": workers,
    "overhead": overhead,
}
SIDES: dict[str, Callable[[], None]] = {  # of the first table; not in the help
    "baseline": lambda: print(baseline_images_per_second(THROUGHPUT_BATCH_SIZE)),
    "suite": lambda: print(suite_images_per_second(THROUGHPUT_BATCH_SIZE)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", nargs="?", metavar="TABLE", help=f"{', '.join(TABLES)} (all)")
    table = parser.parse_args().table
    if table in SIDES:
        SIDES[table]()
        return
    if table and table not in TABLES:
        parser.error(f"{table}: not one of {', '.join(TABLES)}")
    for name in [table] if table else TABLES:
        print(f"\n{name}, {os.cpu_count()} cores\n", flush=True)
        TABLES[name]()


if __name__ == "__main__":
    main()
