"""Measures the training of each job under other settings.

  python tests/bench_variants.py

Prints three Markdown tables: what torch.compile and bfloat16 would give, what
the variables for glibc give, and what more frequent polls of Ray Train give.
Takes ten minutes; torch.compile needs a C++ compiler. Run nothing else at the
same time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from machine_limits import best_rate
from mnist_files import mnist_subset
from processes import run_job

from jobs import RAY_VARIABLES, machine
from jobs.cluster import WORKER_ENVIRONMENT
from models import gan, image_data
from models.palindromes import palindromes
from models.recurrent import CELLS, build
from models.recurrent_training import train_epoch
from models.tasks import TASKS

STEPS, ROUNDS = 20, 15
LENGTH, HIDDEN_SIZE, BATCH_SIZE = 24, 128, 128
GLIBC_LENGTHS, GLIBC_ROUNDS = (12, 24, 35, 100), 3
LATENT_DIM = 100
GAN_BATCH_SIZES = (64, 256)

AUTOCAST = partial(torch.autocast, "cpu", torch.bfloat16)
VARIANTS: dict[str, tuple[bool, Callable[[], AbstractContextManager]]] = {
    "as it is": (False, nullcontext),
    "torch.compile": (True, nullcontext),
    "bfloat16": (False, AUTOCAST),
    "both": (True, AUTOCAST),
}


# The defaults return memory to the kernel at each step, which clears it for the next one.
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "as it is": WORKER_ENVIRONMENT,
    "without huge pages": {k: v for k, v in WORKER_ENVIRONMENT.items() if k != "GLIBC_TUNABLES"},
    "defaults of glibc": {},
}


def cell_step(cell: str, compiled: bool, length: int = LENGTH) -> Callable[[], object]:
    network = build(cell, HIDDEN_SIZE, "uniform", seed=0, length=length)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    data = palindromes(0, length, 10_000).train
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


def print_step_seconds(length: int) -> None:
    machine.configure_torch(num_threads=1)
    print(1 / best_rate(cell_step("lstm", compiled=False, length=length), STEPS))


def glibc() -> None:
    """Prints the best of rounds in which the environments alternate."""
    print(f"\n| LSTM, step (ms) | {' | '.join(ENVIRONMENTS)} |\n| --- | --- | --- | --- |")
    for length in GLIBC_LENGTHS:
        best = dict.fromkeys(ENVIRONMENTS, float("inf"))
        for _ in range(GLIBC_ROUNDS):
            for name, environment in ENVIRONMENTS.items():
                seconds = float(run_in_new_process(f"glibc:{length}", environment))
                best[name] = min(best[name], seconds)
        times = " | ".join(f"{1000 * seconds:.2f}" for seconds in best.values())
        print(f"| {length} digits | {times} |", flush=True)


def polling() -> None:
    """Prints the time of an epoch of ten steps of the GAN, reports and checkpoints included."""
    print("\n| interval between polls (s) | training (s) | epoch (s) |\n| --- | --- | --- |")
    variable = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
    with tempfile.TemporaryDirectory() as folder:
        data = mnist_subset(Path(folder, "mnist"), train=10 * GAN_BATCH_SIZES[1], test=1000)
        for interval in ("2", RAY_VARIABLES[variable]):
            flags = ["--data", data, "--epochs", 12, "--eval-every", 12]
            with patch.dict(os.environ, {variable: interval}):  # the driver reads it
                (run,) = run_job("jobs/gan.py", *flags)
            rows = run.rows[:-1]  # the last epoch has an evaluation
            ends = [row["epoch_end_time"] for row in rows]
            epoch = (ends[-1] - ends[0]) / (len(ends) - 1)
            training = median(row["train_seconds"] for row in rows)
            print(f"| {interval} | {training:.2f} | {epoch:.2f} |", flush=True)


def run_in_new_process(case: str, environment: dict[str, str]) -> str:
    command = [sys.executable, __file__, case]
    return subprocess.run(
        command, env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", nargs="?", help=argparse.SUPPRESS)
    case = parser.parse_args().case or ""
    if case.startswith("glibc:"):
        print_step_seconds(int(case.removeprefix("glibc:")))
        return
    if case:
        cases()[case](case)
        return
    print(f"| step (ms) | {' | '.join(VARIANTS)} |\n| --- | --- | --- | --- | --- |")
    for case in cases():
        print(run_in_new_process(case, WORKER_ENVIRONMENT), end="", flush=True)
    glibc()
    polling()


if __name__ == "__main__":
    main()
