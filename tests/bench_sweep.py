"""Measures the sweep beside what it could be, in one run: `make bench`.

  python tests/bench_sweep.py             four tables in Markdown
  python tests/bench_sweep.py ceiling     one of them

Throughput is measured beside a single process written the usual way, ceiling is
a training step beside the machine's matrix product, vanishing a step whose
gradients vanish with and without subnormal numbers, scheduling how much of the
slots' time is training. Nothing else should run meanwhile: it takes about
twelve minutes on two cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from analysis.results import Trial, read_trials
from jobs import machine
from jobs.cluster import WORKER_ENVIRONMENT
from models.palindromes import palindromes
from models.recurrent import build, train_epoch

BATCH, HIDDEN = 128, 128
ROUNDS = 3
TOP = Path(__file__).parent.parent


class UsualDataset(Dataset):
    """Palindromes made one by one as a DataLoader asks for them, as course templates have it."""

    def __init__(self, length: int, samples: int):
        self.digits, self.samples = length + 1, samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        half = np.random.randint(0, 10, size=(self.digits + 1) // 2)
        palindrome = np.concatenate([half, half[: self.digits // 2][::-1]])
        return palindrome[:-1].astype(np.float32), int(palindrome[-1])


class UsualLSTM(nn.Module):
    """The report's equations as one writes them down first: eight Linears, a loop over steps."""

    def __init__(self):
        super().__init__()
        self.gx, self.ix, self.fx, self.ox = (nn.Linear(1, HIDDEN) for _ in range(4))
        self.gh, self.ih, self.fh, self.oh = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.ph = nn.Linear(HIDDEN, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, length)
        h = torch.zeros(x.size(0), HIDDEN)
        c = torch.zeros(x.size(0), HIDDEN)
        for t in range(x.size(1)):
            x_t = x[:, t : t + 1]
            g = torch.tanh(self.gx(x_t) + self.gh(h))
            i = torch.sigmoid(self.ix(x_t) + self.ih(h))
            f = torch.sigmoid(self.fx(x_t) + self.fh(h))
            o = torch.sigmoid(self.ox(x_t) + self.oh(h))
            c = g * i + c * f
            h = torch.tanh(c) * o
        return self.ph(h)


def usual_sequences_per_second(length: int, seconds: float = 6) -> float:
    """Trains the usual way, in this process with its default threads, for some seconds."""
    loader = DataLoader(UsualDataset(length, 80_000), batch_size=BATCH, shuffle=True)
    model, criterion = UsualLSTM(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    seen, began, total = 0, None, 0.0
    while True:
        for step, (x, y) in enumerate(loader):
            if began is None and step == 5:  # warm
                began = time.perf_counter()
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()
            if began is not None:
                seen += len(y)
                if time.perf_counter() - began > seconds:
                    return seen / (time.perf_counter() - began)


def sweep(*flags: object) -> list[Trial]:
    """Runs jobs/sweep.py and returns its trials."""
    with tempfile.TemporaryDirectory() as storage:
        place = ["--storage", storage, "--name", "bench"]
        command = [sys.executable, TOP / "jobs" / "sweep.py", *flags, *place]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        return read_trials(f"{storage}/bench")


def wall_seconds(trials: list[Trial]) -> float:
    """Returns the time from the start of the first epoch of all to the end of the last."""
    rows = [row for trial in trials for row in trial.rows]
    began = min(row["ended_at"] - row["epoch_seconds"] for row in rows)
    return max(row["ended_at"] for row in rows) - began


def trained_sequences(trial: Trial) -> float:
    return sum(row["sequences_per_second"] * row["train_seconds"] for row in trial.rows)


def throughput(slots: int) -> None:
    """Both are measured in turns and the medians compared: the machine is not always the same.

    "With all else" counts what the sweep does between its epochs, too: it evaluates, writes a
    checkpoint and reports. The usual way only trains.
    """
    print("| length | usual, one process | sweep, all slots | with all else | times as fast |")
    print("| --- | --- | --- | --- | --- |")
    for length, samples in ((6, 100_000), (12, 50_000), (24, 25_000), (35, 20_000)):
        flags = ["--cells", "lstm", "--lengths", length, "--seeds", f"0-{slots - 1}"]
        flags += ["--epochs", 3, "--samples", samples]
        rounds = []
        for _ in range(ROUNDS):
            usual = float(in_a_fresh_process(f"usual:{length}", dict(os.environ)))
            trials = sweep(*flags)
            trained = [sum(row["train_seconds"] for row in t.rows) for t in trials]
            sequences = 3 * (samples * 4 // 5 // BATCH * BATCH)
            ours = sum(sequences / seconds for seconds in trained)
            whole = sum(sequences / wall_seconds([trial]) for trial in trials)
            rounds.append((usual, ours, whole))
        usual, ours, whole = map(median, zip(*rounds, strict=True))
        rates = f"{usual:,.0f} | {ours:,.0f} | {whole:,.0f}"
        print(f"| {length} | {rates} | {ours / usual:.1f} |", flush=True)


def best_rate(work: Callable[[], object], amount: float, repeats: int = 5) -> float:
    """Returns `amount` per second of the fastest of some repetitions."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return amount / min(seconds)


def training_of(length: int, steps: int) -> Callable[[], float]:
    """Returns what trains a new LSTM for so many steps."""
    network = build("lstm", HIDDEN, "uniform", seed=0, length=length)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    data = palindromes(0, length, 20_000).train
    order = torch.randperm(len(data))[: steps * BATCH]
    return lambda: train_epoch(network, optimizer, data, order, BATCH)


def repeated(work: Callable[[], object], times: int) -> Callable[[], None]:
    def repeat() -> None:
        for _ in range(times):
            work()

    return repeat


def step_against_ceiling(length: int) -> list[float]:
    """Returns GFLOP/s of the LSTM's matrix product alone and of whole training steps, one thread.

    The product is measured as torch's `@` does it, and as oneDNN, which has the LSTM: on some
    processors the one is twice as fast as the other. A step's work is counted as its recurrent
    products alone: forward, and two backward.
    """
    machine.compute_with(threads=1)
    h, w = torch.randn(BATCH, HIDDEN), torch.randn(HIDDEN, 4 * HIDDEN)
    h_there, w_there = h.to_mkldnn(), w.T.contiguous().to_mkldnn()
    flop = 2 * BATCH * HIDDEN * 4 * HIDDEN
    steps = max(5, 1400 // length)  # of a part of a second each
    train = training_of(length, steps)
    train()
    works = (
        (repeated(lambda: h @ w, 500), 500 * flop),
        (repeated(lambda: torch.ops.aten.mkldnn_linear(h_there, w_there), 500), 500 * flop),
        (train, 3 * length * steps * flop),
    )
    best = [0.0] * len(works)
    for _ in range(3):  # in turns, so that all see the same machine
        for number, (work, amount) in enumerate(works):
            best[number] = max(best[number], best_rate(work, amount))
    return [rate / 1e9 for rate in best]


def ceiling() -> None:
    print("| length | product, `@` (GFLOP/s) | oneDNN's | training step | share of each |")
    print("| --- | --- | --- | --- | --- |")
    for length in (12, 24, 35, 100, 200):
        answer = in_a_fresh_process(f"step:{length}", {**os.environ, **WORKER_ENVIRONMENT})
        *products, trained = map(float, answer.split())
        rates = " | ".join(f"{rate:.1f}" for rate in (*products, trained))
        shares = ", ".join(f"{trained / product:.0%}" for product in products)
        print(f"| {length} | {rates} | {shares} |", flush=True)


def steps_with_and_without_subnormals(length: int) -> tuple[float, float]:
    """Returns training steps per second, one thread, without and with what a trial does to them."""
    machine.compute_with(threads=1)
    rates = [0.0, 0.0]
    for _ in range(3):
        for flushed in (False, True):
            torch.set_flush_denormal(flushed)
            rates[flushed] = max(rates[flushed], best_rate(training_of(length, 2), 2, 2))
    return rates[0], rates[1]


def vanishing() -> None:
    print("| length | as computed (steps/s) | subnormal numbers as zero | times as fast |")
    print("| --- | --- | --- | --- |")
    for length in (50, 100, 200, 500):
        answer = in_a_fresh_process(f"subnormal:{length}", {**os.environ, **WORKER_ENVIRONMENT})
        without, flushed = map(float, answer.split())
        print(f"| {length} | {without:.1f} | {flushed:.1f} | {flushed / without:.1f} |", flush=True)


def scheduling(slots: int) -> None:
    trials = sweep(
        "--cells", "lstm", "--lengths", 12, "--seeds", "0-43", "--epochs", 5, "--samples", 16_000
    )
    trained = sum(row["train_seconds"] for trial in trials for row in trial.rows)
    wall = wall_seconds(trials)
    print("| trials | training of each (s) | wall (s) | slots | share of slot time in training |")
    print("| --- | --- | --- | --- | --- |")
    print(
        f"| {len(trials)} | {trained / len(trials):.1f} | {wall:.0f} | {slots} "
        f"| {trained / (slots * wall):.0%} |"
    )


def in_a_fresh_process(part: str, environment: dict[str, str]) -> str:
    command = [sys.executable, __file__, part]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


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
    parser.add_argument("part", nargs="?", metavar="PART", help=", ".join(tables))
    asked = parser.parse_args().part or ""
    part, _, length = asked.partition(":")  # with a length: one side, in a process of its own
    if part == "usual":
        print(usual_sequences_per_second(int(length)))
    elif part == "step":
        print(*step_against_ceiling(int(length)))
    elif part == "subnormal":
        print(*steps_with_and_without_subnormals(int(length)))
    elif asked and part not in tables:
        parser.error(f"{asked}: not one of {', '.join(tables)}")
    else:
        for name in [part] if part else tables:
            print(f"\n{name}, {slots} cores\n")
            tables[name]()


if __name__ == "__main__":
    main()
