"""Measures both jobs beside a busy process, as on a laptop with a browser open.

  python tests/bench_neighbor.py       all three jobs, as in `make bench`
  python tests/bench_neighbor.py gan   one of them

Prints a Markdown table: each job alone, then beside one process that never
waits, in turns. Run nothing else at the same time.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median

from mnist_files import mnist_subset
from processes import run_job

ROUNDS = 2


@contextmanager
def busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def sweep_sequences_per_second() -> float:
    """Two concurrent trials of an LSTM at 24 digits; the training of the second epoch."""
    flags = ["--preset", "figures-adam", "--cells", "lstm", "--lengths", 24, "--seeds", "0,1"]
    trials = run_job("jobs/sweep.py", *flags, "--epochs", 2, "--num-sequences", 25_000)
    return sum(trial.rows[1]["sequences_per_second"] for trial in trials)


def gan_images_per_second(workers: int, threads: int) -> float:
    """The training of the second epoch."""
    flags = ["--workers", workers, "--cpus-per-worker", threads, "--epochs", 2, "--eval-every", 2]
    with tempfile.TemporaryDirectory() as folder:
        data = mnist_subset(Path(folder, "mnist"), train=20_480, test=1000)
        (run,) = run_job("jobs/gan.py", *flags, "--data", data)
    return run.rows[1]["images_per_second"]


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
        alone, beside = [], []
        for _ in range(ROUNDS):
            for speeds, neighbor in ((alone, nullcontext()), (beside, busy_process())):
                with neighbor:
                    speeds.append(measure())
        idle, busy = median(alone), median(beside)
        print(f"| {name} | {idle:,.0f} | {busy:,.0f} | {busy / idle:.2f} |", flush=True)


if __name__ == "__main__":
    main()
