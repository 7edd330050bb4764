"""Measures the speed of the sweep and prints Markdown tables.

  python tests/bench_sweep.py             all four tables, as in `make bench`
  python tests/bench_sweep.py ceiling     one table

throughput: compared with a baseline script, a single process that trains in
            the usual way
ceiling:    a training step, in GFLOP/s, compared with the matrix product alone
vanishing:  a step with vanishing gradients, with denormals flushed to zero
scheduling: the fraction of the slots' time that is spent in training

Takes about twelve minutes on two cores. Run nothing else at the same time.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from processes import run_job
from torch import nn
from torch.utils.data import DataLoader, Dataset

from analysis.results import Trial
from jobs import machine
from jobs.cluster import WORKER_ENVIRONMENT
from models.palindromes import num_train, palindromes
from models.recurrent import build
from models.recurrent_training import train_epoch
from models.tasks import TASKS

BATCH_SIZE, HIDDEN_SIZE = 128, 128
ROUNDS = 3


class BaselineDataset(Dataset):
    """Samples one palindrome at a time, when a DataLoader asks for it, as course templates do."""

    def __init__(self, length: int, num_sequences: int):
        self.num_digits, self.num_sequences = length + 1, num_sequences

    def __len__(self) -> int:
        return self.num_sequences

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        half = np.random.randint(0, 10, size=(self.num_digits + 1) // 2)
        palindrome = np.concatenate([half, half[: self.num_digits // 2][::-1]])
        return palindrome[:-1].astype(np.float32), int(palindrome[-1])


class BaselineLSTM(nn.Module):
    """The report's equations, written in the usual way: eight Linears, a loop over time steps."""

    def __init__(self):
        super().__init__()
        self.gx, self.ix, self.fx, self.ox = (nn.Linear(1, HIDDEN_SIZE) for _ in range(4))
        self.gh, self.ih, self.fh, self.oh = (nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE) for _ in range(4))
        self.ph = nn.Linear(HIDDEN_SIZE, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, length)
        h = torch.zeros(x.size(0), HIDDEN_SIZE)
        c = torch.zeros(x.size(0), HIDDEN_SIZE)
        for t in range(x.size(1)):
            x_t = x[:, t : t + 1]
            g = torch.tanh(self.gx(x_t) + self.gh(h))
            i = torch.sigmoid(self.ix(x_t) + self.ih(h))
            f = torch.sigmoid(self.fx(x_t) + self.fh(h))
            o = torch.sigmoid(self.ox(x_t) + self.oh(h))
            c = g * i + c * f
            h = torch.tanh(c) * o
        return self.ph(h)


def baseline_sequences_per_second(length: int, seconds: float = 6) -> float:
    """Trains in the usual way for some seconds, with torch's default threads."""
    loader = DataLoader(BaselineDataset(length, 80_000), batch_size=BATCH_SIZE, shuffle=True)
    model, criterion = BaselineLSTM(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    sequences, start, total = 0, None, 0.0
    while True:
        for step, (x, y) in enumerate(loader):
            if start is None and step == 5:  # after a warmup
                start = time.perf_counter()
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()
            if start is not None:
                sequences += len(y)
                if time.perf_counter() - start > seconds:
                    return sequences / (time.perf_counter() - start)


def wall_seconds(trials: list[Trial]) -> float:
    """Returns the time from the start of the first epoch of all trials to the end of the last."""
    rows = [row for trial in trials for row in trial.rows]
    start = min(row["epoch_end_time"] - row["epoch_seconds"] for row in rows)
    return max(row["epoch_end_time"] for row in rows) - start


def training_seconds(trial: Trial) -> float:
    return sum(row["train_seconds"] for row in trial.rows)


def throughput(slots: int) -> None:
    """Prints medians of rounds in which both sides alternate: a machine's speed varies.

    "Including overhead" also counts the time of evaluation, checkpoints and reports. The baseline
    script only trains.
    """
    print(
        "| length | baseline script, one process | sweep, all slots "
        "| sweep, including overhead | speedup |"
    )
    print("| --- | --- | --- | --- | --- |")
    for length, num_sequences in ((6, 100_000), (12, 50_000), (24, 25_000), (35, 20_000)):
        flags = ["--preset", "figures-adam", "--cells", "lstm", "--lengths", length]
        flags += ["--seeds", f"0-{slots - 1}", "--epochs", 3, "--num-sequences", num_sequences]
        sequences = 3 * (num_train(num_sequences) // BATCH_SIZE * BATCH_SIZE)  # of each trial
        rounds = []
        for _ in range(ROUNDS):
            baseline = float(run_in_new_process("baseline", length, {}))
            trials = run_job("jobs/sweep.py", *flags)
            training = sum(sequences / training_seconds(trial) for trial in trials)
            including = sum(sequences / wall_seconds([trial]) for trial in trials)
            rounds.append((baseline, training, including))
        baseline, training, including = map(median, zip(*rounds, strict=True))
        speeds = f"{baseline:,.0f} | {training:,.0f} | {including:,.0f}"
        print(f"| {length} | {speeds} | {training / baseline:.1f} |", flush=True)


def best_rate(work: Callable[[], object], amount: float, repeats: int = 5) -> float:
    """Returns `amount` per second of the fastest of several repetitions."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return amount / min(seconds)


def make_training(length: int, steps: int) -> Callable[[], float]:
    """Returns a function that trains a new LSTM for a number of steps."""
    network = build("lstm", HIDDEN_SIZE, "uniform", seed=0, length=length)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    data = palindromes(0, length, 20_000).train
    perm = torch.randperm(len(data))[: steps * BATCH_SIZE]
    task = TASKS["palindrome"]
    return lambda: train_epoch(network, optimizer, task, data, perm, BATCH_SIZE)


def repeated(work: Callable[[], object], times: int) -> Callable[[], None]:
    def repeat() -> None:
        for _ in range(times):
            work()

    return repeat


def product_and_step_gflops(length: int) -> list[float]:
    """Returns GFLOP/s of torch's `@`, of oneDNN's product and of a training step, on one thread.

    The LSTM is oneDNN's, whose product is twice as fast as `@` on some processors. A step is
    counted as its recurrent products alone: one forward, two backward.
    """
    machine.configure_torch(num_threads=1)
    h, w = torch.randn(BATCH_SIZE, HIDDEN_SIZE), torch.randn(HIDDEN_SIZE, 4 * HIDDEN_SIZE)
    h_mkldnn, w_mkldnn = h.to_mkldnn(), w.T.contiguous().to_mkldnn()
    flop = 2 * BATCH_SIZE * HIDDEN_SIZE * 4 * HIDDEN_SIZE
    steps = max(5, 1400 // length)  # they take a fraction of a second
    train = make_training(length, steps)
    train()
    works = (
        (repeated(lambda: h @ w, 500), 500 * flop),
        (repeated(lambda: torch.ops.aten.mkldnn_linear(h_mkldnn, w_mkldnn), 500), 500 * flop),
        (train, 3 * length * steps * flop),
    )
    best = [0.0] * len(works)
    for _ in range(3):  # alternating: the machine's speed varies
        for i, (work, amount) in enumerate(works):
            best[i] = max(best[i], best_rate(work, amount))
    return [rate / 1e9 for rate in best]


def ceiling() -> None:
    print(
        "| length | `@` | oneDNN's product | training step "
        "| fraction of `@` | fraction of oneDNN's product |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for length in (12, 24, 35, 100, 200):
        output = run_in_new_process("gflops", length, WORKER_ENVIRONMENT)
        *products, step = map(float, output.split())
        speeds = " | ".join(f"{speed:.1f}" for speed in (*products, step))
        fractions = " | ".join(f"{step / product:.0%}" for product in products)
        print(f"| {length} | {speeds} | {fractions} |", flush=True)


def steps_per_second_without_and_with_flush(length: int) -> list[float]:
    """Returns training steps per second, on one thread, without and with flushing of denormals."""
    machine.configure_torch(num_threads=1)
    rates = [0.0, 0.0]
    for _ in range(3):
        for flush in (False, True):
            torch.set_flush_denormal(flush)
            rates[flush] = max(rates[flush], best_rate(make_training(length, 2), 2, 2))
    return rates


def vanishing() -> None:
    print("| length | denormals kept (steps/s) | denormals flushed to zero (steps/s) | speedup |")
    print("| --- | --- | --- | --- |")
    for length in (50, 100, 200, 500):
        output = run_in_new_process("denormals", length, WORKER_ENVIRONMENT)
        kept, flushed = map(float, output.split())
        print(f"| {length} | {kept:.1f} | {flushed:.1f} | {flushed / kept:.1f} |", flush=True)


def scheduling(slots: int) -> None:
    flags = ["--preset", "figures-adam", "--cells", "lstm", "--lengths", 12, "--seeds", "0-43"]
    trials = run_job("jobs/sweep.py", *flags, "--epochs", 5, "--num-sequences", 16_000)
    training, wall = sum(map(training_seconds, trials)), wall_seconds(trials)
    print(
        "| trials | training per trial (s) | wall time (s) | slots "
        "| fraction of slot time in training |"
    )
    print("| --- | --- | --- | --- | --- |")
    times = f"{training / len(trials):.1f} | {wall:.0f}"
    print(f"| {len(trials)} | {times} | {slots} | {training / (slots * wall):.0%} |")


def run_in_new_process(measurement: str, length: int, variables: dict[str, str]) -> str:
    """Runs one of MEASUREMENTS in an environment with additional variables."""
    command = [sys.executable, __file__, f"{measurement}:{length}"]
    return subprocess.run(
        command, env=os.environ | variables, check=True, capture_output=True, text=True
    ).stdout


MEASUREMENTS: dict[str, Callable[[int], None]] = {  # for one length; not in the help
    "baseline": lambda length: print(baseline_sequences_per_second(length)),
    "gflops": lambda length: print(*product_and_step_gflops(length)),
    "denormals": lambda length: print(*steps_per_second_without_and_with_flush(length)),
}


def main() -> None:
    slots = os.cpu_count()
    tables: dict[str, Callable[[], None]] = {
        "throughput": lambda: throughput(slots),
        "ceiling": ceiling,
        "vanishing": vanishing,
        "scheduling": lambda: scheduling(slots),
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", nargs="?", metavar="TABLE", help=f"{', '.join(tables)} (all)")
    table = parser.parse_args().table
    measurement, _, length = (table or "").partition(":")
    if measurement in MEASUREMENTS:
        MEASUREMENTS[measurement](int(length))
        return
    if table and table not in tables:
        parser.error(f"{table}: not one of {', '.join(tables)}")
    for name in [table] if table else tables:
        print(f"\n{name}, {slots} cores\n", flush=True)
        tables[name]()


if __name__ == "__main__":
    main()
