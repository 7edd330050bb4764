"""Measures the speed of the GAN's training and prints Markdown tables.

  python tests/bench_gan.py             all three tables, as in `make bench`
  python tests/bench_gan.py workers     one table

throughput: compared with a baseline script, written in the usual way
workers:    two workers of one thread, compared with one worker of two threads
            and with DistributedDataParallel
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
from typing import Any

import torch
from processes import run_job
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST

from jobs.cluster import WORKER_ENVIRONMENT
from models import distributed, gan, image_data

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


class DDPGAN(gan.GAN):
    """The same GAN with DistributedDataParallel, which ray.train.torch.prepare_model() wraps it in.

    torch.nn.SyncBatchNorm needs a GPU: the suite's own batch norm stands in for it.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.parallel = [DistributedDataParallel(n) for n in (self.generator, self.discriminator)]

    def step(self, real: Tensor, z: Tensor, batch_size: int) -> Tensor:
        generator, discriminator = self.parallel
        fake = generator(z)
        logits = discriminator(torch.cat([real, fake.detach()]))
        loss_d = gan.discriminator_loss(*logits.chunk(2), len(real))
        self.optimizer_d.zero_grad()
        loss_d.backward()
        self.optimizer_d.step()
        self.discriminator.requires_grad_(False)
        loss_g = gan.generator_loss(self.discriminator(fake), len(real))
        self.optimizer_g.zero_grad()
        loss_g.backward()
        self.optimizer_g.step()
        self.discriminator.requires_grad_(True)
        return torch.stack([loss_d, loss_g, logits[0, 0], logits[-1, 0]]).detach()


def train_worker(
    rank: int, num_workers: int, num_threads: int, model_class: type[gan.GAN], folder: str
) -> None:
    """Writes the best window's images per second, and G's weights after some steps in float64."""
    torch.set_num_threads(num_threads)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_workers
    )
    distributed.pin_threads_to_cores(rank, num_workers, num_threads)
    images = image_data.load().train.images[:WINDOW_IMAGES]
    model, best = model_class(LATENT_DIM, 0, 0.0002, BETAS), 0.0
    for epoch in range(WINDOWS + 1):  # the first one is warmup
        start = time.perf_counter()
        gan.train_epoch(model, images, 0, epoch, WORKERS_BATCH_SIZE)
        best = max(best, len(images) / (time.perf_counter() - start) if epoch else 0)
    model = model_class(LATENT_DIM, 0, 0.0002, BETAS, dtype=torch.float64)
    gan.train_epoch(model, images, 0, 0, WORKERS_BATCH_SIZE)
    if rank == 0:
        weights = nn.utils.parameters_to_vector(model.generator.parameters())
        torch.save((best, weights), f"{folder}/result")
    dist.barrier()
    dist.destroy_process_group()


def speed_and_weights(
    num_workers: int, num_threads: int, model_class: type[gan.GAN]
) -> tuple[float, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        arguments = (num_workers, num_threads, model_class, folder)
        multiprocessing.spawn(train_worker, arguments, nprocs=num_workers)
        return torch.load(f"{folder}/result")


def workers() -> None:
    """Prints the best of rounds in which all sides alternate."""
    os.environ.update(WORKER_ENVIRONMENT)
    sides = {
        "one worker of two threads": (1, 2, gan.GAN),
        "two workers of one thread": (2, 1, gan.GAN),
        "two workers of one thread, DistributedDataParallel": (2, 1, DDPGAN),
    }
    results: dict[str, list[tuple[float, Tensor]]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            results[name].append(speed_and_weights(*side))
    alone, *_ = results.values()
    one, expected = max(speed for speed, _ in alone), alone[0][1]
    print(
        "| workers | images/s | fraction | largest difference of a weight, float64 |\n"
        "| --- | --- | --- | --- |"
    )
    for name, rounds in results.items():
        speed = max(speed for speed, _ in rounds)
        difference = max((weights - expected).abs().max().item() for _, weights in rounds)
        print(f"| {name} | {speed:,.0f} | {speed / one:.2f} | {difference:.0e} |", flush=True)


def overhead() -> None:
    """Wall time from one epoch's end to the next, minus training; without quality evaluation."""
    (run,) = run_job("jobs/gan.py", "--epochs", 7, "--keep-every", 1, "--eval-every", 7)
    *rows, _ = run.rows  # the last epoch includes the evaluation
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
