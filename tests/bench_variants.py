"""Measures what torch.compile and bfloat16 would give to a training step of each job.

  python tests/bench_variants.py

Prints a Markdown table: milliseconds of a training step. Takes two minutes;
torch.compile needs a C++ compiler. Run nothing else at the same time.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from jobs import machine
from jobs.cluster import WORKER_ENVIRONMENT
from models import gan, image_data
from models.palindromes import palindromes
from models.recurrent import CELLS, build
from models.recurrent_training import train_epoch
from models.tasks import TASKS

STEPS, ROUNDS = 20, 15
LENGTH, HIDDEN_SIZE, BATCH_SIZE = 24, 128, 128
LATENT_DIM = 100
GAN_BATCH_SIZES = (64, 256)

AUTOCAST = partial(torch.autocast, "cpu", torch.bfloat16)
VARIANTS: dict[str, tuple[bool, Callable[[], AbstractContextManager]]] = {
    "as it is": (False, nullcontext),
    "torch.compile": (True, nullcontext),
    "bfloat16": (False, AUTOCAST),
    "both": (True, AUTOCAST),
}


def cell_step(cell: str, compiled: bool) -> Callable[[], object]:
    network = build(cell, HIDDEN_SIZE, "uniform", seed=0, length=LENGTH)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    data = palindromes(0, LENGTH, 10_000).train
    perm = torch.randperm(len(data))[: STEPS * BATCH_SIZE]
    module = torch.compile(network) if compiled else network
    return lambda: train_epoch(module, optimizer, TASKS["palindrome"], data, perm, BATCH_SIZE)


def gan_step(batch_size: int, compiled: bool) -> Callable[[], object]:
    model = gan.GAN(LATENT_DIM, 0, 0.0002, (0.5, 0.999))
    images = image_data.load().train.images[: STEPS * batch_size]
    if compiled:
        model.generator = torch.compile(model.generator)
        model.discriminator = torch.compile(model.discriminator)
    return lambda: gan.train_epoch(model, images, 0, 1, batch_size)


def measure(make_step: Callable[[bool], Callable[[], object]], threads: int, name: str) -> None:
    """Prints the best of rounds in which the variants alternate."""
    machine.configure_torch(num_threads=threads)
    steps = {variant: make_step(compiled) for variant, (compiled, _) in VARIANTS.items()}
    best = dict.fromkeys(VARIANTS, float("inf"))
    for number in range(ROUNDS + 1):  # the first one compiles
        for variant, (_, context) in VARIANTS.items():
            start = time.perf_counter()
            with context():
                steps[variant]()
            seconds = time.perf_counter() - start
            if number:
                best[variant] = min(best[variant], seconds)
    times = " | ".join(f"{1000 * seconds / STEPS:.2f}" for seconds in best.values())
    print(f"| {name} | {times} |")


def cases() -> dict[str, Callable[[str], None]]:
    return {
        f"{cell.upper()}, {LENGTH} digits, one thread": partial(
            measure, partial(cell_step, cell), 1
        )
        for cell in CELLS
    } | {
        f"GAN, batch size {size}, all cores": partial(
            measure, partial(gan_step, size), len(os.sched_getaffinity(0))
        )
        for size in GAN_BATCH_SIZES
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", nargs="?", help=argparse.SUPPRESS)
    if case := parser.parse_args().case:
        cases()[case](case)
        return
    print(f"| step (ms) | {' | '.join(VARIANTS)} |\n| --- | --- | --- | --- | --- |", flush=True)
    for case in cases():  # each in a process of its own
        command = [sys.executable, __file__, case]
        subprocess.run(command, env=os.environ | WORKER_ENVIRONMENT, check=True)


if __name__ == "__main__":
    main()
