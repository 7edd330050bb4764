"""Measures both jobs beside a busy process, as on a laptop with a browser open.

  python tests/bench_neighbor.py       all three jobs, as in `make bench`
  python tests/bench_neighbor.py gan   one of them

Prints a Markdown table: each job alone, then beside one process that never
waits. Run nothing else at the same time.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from mnist_files import mnist_subset
from processes import run_job

EPOCHS = 4  # of which the first one is a warmup


@contextmanager
def busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def sweep_sequences_per_second() -> float:
    """Two concurrent trials of an LSTM at 24 digits; their training, medians over the epochs."""
    flags = ["--preset", "figures-adam", "--cells", "lstm", "--lengths", 24, "--seeds", "0,1"]
    trials = run_job("jobs/sweep.py", *flags, "--epochs", EPOCHS, "--num-sequences", 12_500)
    return sum(median(row["sequences_per_second"] for row in trial.rows[1:]) for trial in trials)


def gan_images_per_second(workers: int, threads: int) -> float:
    """The training, median over the epochs."""
    flags = ["--workers", workers, "--cpus-per-worker", threads]
    flags += ["--epochs", EPOCHS, "--eval-every", EPOCHS]
    with tempfile.TemporaryDirectory() as folder:
        data = mnist_subset(Path(folder, "mnist"), train=10_240, test=1000)
        (run,) = run_job("jobs/gan.py", *flags, "--data", data)
    return median(row["images_per_second"] for row in run.rows[1:])


JOBS: dict[str, tuple[str, Callable[[], float]]] = {
    "sweep": ("sweep, two trials of one thread (sequences/s)", sweep_sequences_per_second),
    "gan": ("GAN, one worker of two threads (images/s)", lambda: gan_images_per_second(1, 2)),
    "workers": ("GAN, two workers of one thread (images/s)", lambda: gan_images_per_second(2, 1)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", nargs="?", choices=JOBS, help=f"{', '.join(JOBS)} (all)")
    only = parser.parse_args().job
    print("| job | alone | beside one busy process | fraction |\n| --- | --- | --- | --- |")
    for name, measure in [JOBS[only]] if only else JOBS.values():
        alone = measure()
        with busy_process():
            beside = measure()
        print(f"| {name} | {alone:,.0f} | {beside:,.0f} | {beside / alone:.2f} |", flush=True)


if __name__ == "__main__":
    main()
