"""Measures the speed of the GAN's training and prints Markdown tables.

  python tests/bench_gan.py             throughput and step, as in `make bench`
  python tests/bench_gan.py workers     one table

throughput: compared with the usual public script (tests/public_gan.py), with
            the same script on images in memory, and the limits of the machine
step:       what takes the time of a training step
products:   the matrix products of a step, with each kind that torch has
workers:    two workers of one thread, compared with one worker of two threads
            and with DistributedDataParallel

Run nothing else at the same time.
"""

import argparse
import gzip
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine_limits import ADAM, PRODUCTS, adam_seconds, product_seconds, time_shares
from mnist_files import mnist_subset
from processes import run_job
from public_gan import PublicGAN
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST

from jobs.cluster import runtime_env
from models import distributed, gan, image_data

JOB_ENVIRONMENT = runtime_env()["env_vars"]
ROUNDS = 3
WARMUP_IMAGES = 5_120
JOB_IMAGES = 20_480
# The workers are timed in windows, of which the best one counts: other load on the host only slows
# a window down, by up to a half.
WINDOWS = 3
WINDOW_IMAGES = 10_240
LATENT_DIM = 100
BETAS = (0.5, 0.999)
BATCH_SIZES = (64, 256)
WORKERS_BATCH_SIZE = 512


def script_images_per_second(batch_size: int) -> float:
    """Trains as the usual public script does, with torch's default threads."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "MNIST", "raw")
        raw.mkdir(parents=True)
        for path in image_data.MNIST.glob("*.gz"):
            (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])
        loader = DataLoader(MNIST(folder, transform=transform), batch_size, shuffle=True)
        return script_speed(images.flatten(1) for images, _ in loader)


def in_memory_images_per_second(batch_size: int) -> float:
    """Trains the networks of the public script on images that are in memory."""
    images = image_data.normalize(image_data.load().train.images)
    perm = torch.randperm(len(images))
    return script_speed(images[batch] for batch in perm.split(batch_size))


def script_speed(batches: Iterator[Tensor]) -> float:
    """Returns images per second, of as many images as an epoch of the job has."""
    model = PublicGAN()
    train_script(model, batches, WARMUP_IMAGES)
    start = time.perf_counter()
    num_images = train_script(model, batches, JOB_IMAGES)
    return num_images / (time.perf_counter() - start)


def train_script(model: PublicGAN, batches: Iterator[Tensor], at_least: int) -> int:
    """Trains on a number of images, up to a batch more; returns how many."""
    num_images = 0
    while num_images < at_least:
        images = next(batches)
        model.step(images)
        num_images += len(images)
    return num_images


def limit_images_per_second(batch_size: int) -> float:
    """Returns how many images all cores could train on if nothing else took time.

    Counted are the matrix products of a step (15.9 MFLOP for each image), and the memory traffic
    of Adam at the speed of a copy.
    """
    adam = adam_seconds(gan.Generator(LATENT_DIM)) + adam_seconds(gan.Discriminator())
    return batch_size / (products_of_step(batch_size) + adam)


def products_of_step(batch_size: int, products: Sequence[str] = PRODUCTS) -> float:
    """Returns the seconds of the matrix products of a step, of the fastest kind or of some."""
    pass_seconds = partial(products_of_pass, batch_size=batch_size, products=products)
    generator, discriminator = gan.Generator(LATENT_DIM), gan.Discriminator()
    # G's step: through G, and D on its images; then back through both, to G's weights.
    # D's step: D on real and generated images; then back to D's weights.
    return (
        pass_seconds(generator, weights=True)
        + pass_seconds(discriminator, to_inputs=True)
        + pass_seconds(discriminator, batch_size=2 * batch_size, weights=True)
    )


def products_of_pass(
    network: nn.Sequential,
    batch_size: int,
    products: Sequence[str],
    weights: bool = False,
    to_inputs: bool = False,
) -> float:
    """Returns the seconds of the matrix products of a forward and a backward pass.

    Args:
        weights: backward to the weights of each layer.
        to_inputs: backward to the inputs of the network, too.
    """
    seconds = 0.0
    for number, layer in enumerate(layer for layer in network if isinstance(layer, nn.Linear)):
        inputs, outputs = layer.in_features, layer.out_features
        seconds += product_seconds(batch_size, inputs, outputs, products)
        if weights:
            seconds += product_seconds(outputs, batch_size, inputs, products)
        if number or to_inputs:
            seconds += product_seconds(batch_size, outputs, inputs, products)
    return seconds


def throughput() -> None:
    """Prints medians of rounds in which all sides alternate, and each script's best round.

    The job runs through Ray, with reports and checkpoints, without evaluation of image quality.
    Its epochs are a third as long as MNIST's.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = mnist_subset(Path(folder, "mnist"), train=JOB_IMAGES, test=1000)
        compare_throughput(data)


def compare_throughput(data: Path) -> None:
    print(
        "| batch size | public script (best) | on images in memory (best) | job "
        "| job / script (best) | job / in memory (best) | training / limit |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for batch_size in BATCH_SIZES:
        scripts, in_memory, jobs, trainings, limits = [], [], [], [], []
        for _ in range(ROUNDS):
            for side, speeds in (("script", scripts), ("memory", in_memory), ("limit", limits)):
                speeds.append(float(run_in_new_process(side, batch_size)))
            flags = ["--batch-size", batch_size, "--epochs", 2, "--eval-every", 2]
            (run,) = run_job("jobs/gan.py", *flags, "--data", data)
            first, second = run.rows
            evaluation = second["epoch_seconds"] - second["train_seconds"]
            seconds = second["epoch_end_time"] - first["epoch_end_time"] - evaluation
            jobs.append(JOB_IMAGES / seconds)
            trainings.append(second["images_per_second"])
        job, sides = median(jobs), (scripts, in_memory)
        texts = " | ".join(f"{median(side):,.0f} ({max(side):,.0f})" for side in sides)
        ratios = " | ".join(f"{job / median(side):.2f} ({job / max(side):.2f})" for side in sides)
        limit = median(trainings) / median(limits)
        print(f"| {batch_size} | {texts} | {job:,.0f} | {ratios} | {limit:.0%} |", flush=True)


STEP_PARTS = {
    "matrix products": ("aten::mm", "aten::addmm"),
    "Adam": ADAM,
    "batch norm": ("aten::native_batch_norm", "aten::native_batch_norm_backward"),
    "leaky ReLU": ("aten::leaky_relu", "aten::leaky_relu_backward"),
}


def step() -> None:
    print(f"| batch size | {' | '.join(STEP_PARTS)} | the rest |")
    print("| --- | --- | --- | --- | --- | --- |")
    for batch_size in BATCH_SIZES:
        print(run_in_new_process("parts", batch_size), end="", flush=True)


def print_parts(batch_size: int) -> None:
    images = image_data.load().train.images[: 40 * batch_size]
    model = gan.GAN(LATENT_DIM, 0, 0.0002, BETAS)
    shares = time_shares(lambda: gan.train_epoch(model, images, 0, 1, batch_size), STEP_PARTS)
    print(f"| {batch_size} | {' | '.join(shares)} |")


def products() -> None:
    """Prints milliseconds of the matrix products of a step, with each of torch's."""
    print(f"| batch size | {' | '.join(PRODUCTS)} |\n| --- | --- | --- | --- |")
    for batch_size in BATCH_SIZES:
        print(run_in_new_process("each_product", batch_size), end="", flush=True)


def print_products(batch_size: int) -> None:
    times = " | ".join(f"{1000 * products_of_step(batch_size, [p]):.2f}" for p in PRODUCTS)
    print(f"| {batch_size} | {times} |")


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
    os.environ.update(JOB_ENVIRONMENT)
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


def run_in_new_process(side: str, batch_size: int) -> str:
    """Runs a side in its own environment: the scripts have none of the jobs' variables."""
    environment = os.environ | ({} if side in ("script", "memory") else JOB_ENVIRONMENT)
    command = [sys.executable, __file__, f"{side}:{batch_size}"]
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


TABLES: dict[str, Callable[[], None]] = {
    "throughput": throughput,
    "step": step,
    "products": products,
    "workers": workers,
}
DEFAULT_TABLES = ("throughput", "step")
SIDES: dict[str, Callable[[int], None]] = {  # in processes of their own; not in the help
    "parts": print_parts,
    "each_product": print_products,
    "script": lambda batch_size: print(script_images_per_second(batch_size)),
    "memory": lambda batch_size: print(in_memory_images_per_second(batch_size)),
    "limit": lambda batch_size: print(limit_images_per_second(batch_size)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "table",
        nargs="?",
        metavar="TABLE",
        help=f"{', '.join(TABLES)} ({' and '.join(DEFAULT_TABLES)})",
    )
    table = parser.parse_args().table
    side, _, batch_size = (table or "").partition(":")
    if side in SIDES:
        SIDES[side](int(batch_size))
        return
    if table and table not in TABLES:
        parser.error(f"{table}: not one of {', '.join(TABLES)}")
    for name in [table] if table else DEFAULT_TABLES:
        print(f"\n{name}, {os.cpu_count()} cores\n", flush=True)
        TABLES[name]()


if __name__ == "__main__":
    main()
