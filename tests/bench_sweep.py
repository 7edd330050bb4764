"""Measures the speed of the sweep and prints Markdown tables.

  python tests/bench_sweep.py             all four tables, as in `make bench`
  python tests/bench_sweep.py vanishing   one table

throughput: sequences per second, compared with the scripts that others write
            (tests/baseline_scripts.py) and with the limits of the machine
step:       what takes the time of a training step
vanishing:  a step with vanishing gradients, with denormals flushed to zero
overhead:   the fraction of the slots' time that is spent in training

Run nothing else at the same time.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from types import MappingProxyType
from typing import Any

import torch
from baseline_scripts import (
    BATCH_SIZE,
    HIDDEN_SIZE,
    RNN_CLASSES,
    CompetentNetwork,
    sequences_per_second,
)
from machine_limits import ADAM, adam_seconds, best_rate, product_seconds, time_shares
from processes import run_job

from analysis.results import Trial
from jobs import machine
from jobs.cluster import runtime_env
from models.palindromes import num_train, palindromes
from models.recurrent import build
from models.recurrent_training import train_epoch
from models.tasks import TASKS

JOB_ENVIRONMENT = runtime_env()["env_vars"]
ROUNDS = 3
# Lengths, and palindromes of a trial: an epoch then takes half a second to several.
SWEEPS = (((3, 6, 12), 80_000), ((24, 35, 100), 10_000))
CASES = [(cell, length) for cell in RNN_CLASSES for lengths, _ in SWEEPS for length in lengths]


def slot_seconds(trials: list[Trial]) -> list[float]:
    """Returns the time from the start of the first epoch to the end of the last, of each slot."""
    slots: dict[int, list[dict[str, Any]]] = {}  # by process: trials of a slot share one
    for row in (row for trial in trials for row in trial.rows):
        slots.setdefault(row["pid"], []).append(row)
    return [
        max(row["epoch_end_time"] for row in rows)
        - min(row["epoch_end_time"] - row["epoch_seconds"] for row in rows)
        for rows in slots.values()
    ]


def training_seconds(trial: Trial) -> float:
    return sum(row["train_seconds"] for row in trial.rows)


def throughput(slots: int) -> None:
    """Prints medians of rounds in which all sides alternate, and the competent script's best.

    The sweep runs through Ray; its time includes evaluation, checkpoints and reports. The scripts
    only train.
    """
    templates, scripts, copies, sweeps, trainings, limits = [], [], [], [], [], []
    for _ in range(ROUNDS):
        templates.append(measure_cases("template"))
        scripts.append(measure_cases("competent"))
        copies.append(measure_copies(slots))
        trials = [trial for sweep in SWEEPS for trial in run_sweep(*sweep, slots)]
        sweeps.append(sum_by_case(trials, sequences_per_second_of))
        trainings.append(sum_by_case(trials, lambda trial: trial.rows[-1]["sequences_per_second"]))
        limits.append(measure_cases("limit", JOB_ENVIRONMENT))
    print(
        "| cell | length | course template | competent script (best) | a copy for each core "
        "| sweep | sweep / template | sweep / script (best) | sweep / copies | training / limit |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for case in CASES:
        cell, length = case
        template, script, several, sweep, training, limit = (
            median([measured.get(case, 0) for measured in side])
            for side in (templates, scripts, copies, sweeps, trainings, limits)
        )
        best = max(measured[case] for measured in scripts)
        texts = (f"{template:,.0f}", f"{sweep / template:.1f}") if template else ("", "")
        print(
            f"| {cell.upper()} | {length} | {texts[0]} | {script:,.0f} ({best:,.0f}) "
            f"| {several:,.0f} | {sweep:,.0f} | {texts[1]} "
            f"| {sweep / script:.2f} ({sweep / best:.2f}) | {sweep / several:.2f} "
            f"| {training / (slots * limit):.0%} |",
            flush=True,
        )


def measure_cases(
    measurement: str, variables: Mapping[str, str] = MappingProxyType({})
) -> dict[tuple[str, int], float]:
    """Returns a number of sequences per second by cell and length, measured in a new process."""
    rows = map(str.split, run_in_new_process(measurement, variables).splitlines())
    return {(cell, int(length)): float(speed) for cell, length, speed in rows}


def measure_copies(count: int) -> dict[tuple[str, int], float]:
    """Returns the sum of copies of the competent script, of one thread each, side by side."""
    with ThreadPoolExecutor() as threads:
        futures = [
            threads.submit(measure_cases, "competent", {"OMP_NUM_THREADS": "1"})
            for _ in range(count)
        ]
        copies = [future.result() for future in futures]
    return {case: sum(copy[case] for copy in copies) for case in CASES}


def run_sweep(lengths: tuple[int, ...], num_sequences: int, slots: int) -> list[Trial]:
    flags = ["--preset", "figures-adam", "--cells", ",".join(RNN_CLASSES), "--epochs", 2]
    flags += ["--lengths", ",".join(map(str, lengths)), "--seeds", f"0-{slots - 1}"]
    return run_job("jobs/sweep.py", *flags, "--num-sequences", num_sequences)


def sum_by_case(
    trials: list[Trial], speed: Callable[[Trial], float]
) -> dict[tuple[str, int], float]:
    sums = dict.fromkeys(CASES, 0.0)
    for trial in trials:
        sums[trial.config["cell"], trial.config["length"]] += speed(trial)
    return sums


def sequences_per_second_of(trial: Trial) -> float:
    """Returns the speed from the end of the first epoch on, with all that an epoch involves."""
    sequences = num_train(trial.config["num_sequences"]) // BATCH_SIZE * BATCH_SIZE
    first, *_, last = (row["epoch_end_time"] for row in trial.rows)
    return sequences * (len(trial.rows) - 1) / (last - first)


def make_training(length: int, steps: int) -> Callable[[], float]:
    """Returns a function that trains a new LSTM for a number of steps."""
    network = build("lstm", HIDDEN_SIZE, "uniform", seed=0, length=length)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    data = palindromes(0, length, 20_000).train
    perm = torch.randperm(len(data))[: steps * BATCH_SIZE]
    task = TASKS["palindrome"]
    return lambda: train_epoch(network, optimizer, task, data, perm, BATCH_SIZE)


def limit_sequences_per_second(cell: str, length: int) -> float:
    """Returns how many sequences one thread could train on if nothing else took time.

    Counted are the recurrent matrix products of a step (forward, backward to the state at each time
    step, backward to the weights at once), and the memory traffic of Adam at the speed of a copy.
    The first state is zero, so at the first time step there is no product.
    """
    machine.configure_torch(num_threads=1)
    gates = RNN_CLASSES[cell](1, HIDDEN_SIZE).weight_hh_l0.shape[0]  # gates * hidden size
    step = (length - 1) * product_seconds(BATCH_SIZE, HIDDEN_SIZE, gates)
    step += (length - 1) * product_seconds(BATCH_SIZE, gates, HIDDEN_SIZE)
    step += product_seconds(HIDDEN_SIZE, (length - 1) * BATCH_SIZE, gates)
    return BATCH_SIZE / (step + adam_seconds(CompetentNetwork(cell)))


STEP_PARTS = {
    "LSTM forward": ("aten::mkldnn_rnn_layer",),
    "LSTM backward": ("aten::mkldnn_rnn_layer_backward",),
    "Adam": ADAM,
}


def step() -> None:
    print(f"| length | {' | '.join(STEP_PARTS)} | the rest |\n| --- | --- | --- | --- | --- |")
    print(run_in_new_process("parts", JOB_ENVIRONMENT), end="", flush=True)


def print_parts() -> None:
    machine.configure_torch(num_threads=1)
    for length in (3, 6, 12, 24, 35, 100):
        shares = time_shares(make_training(length, 20), STEP_PARTS)
        print(f"| {length} | {' | '.join(shares)} |")


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
    for row in run_in_new_process("denormals", JOB_ENVIRONMENT).splitlines():
        length, kept, flushed = map(float, row.split())
        print(f"| {length:.0f} | {kept:.1f} | {flushed:.1f} | {flushed / kept:.1f} |", flush=True)


def overhead(slots: int) -> None:
    """Prints fractions of the slots' time, from the first epoch of each slot to its last."""
    print(
        "| trials | epochs | training per trial (s) | longest slot (s) | training | evaluation "
        "| start, checkpoints, reports |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for length, seeds, epochs, num_sequences in ((12, 12, 5, 16_000), (3, 4, 20, 100_000)):
        flags = ["--preset", "figures-adam", "--cells", "lstm", "--lengths", length]
        flags += ["--seeds", f"0-{seeds - 1}", "--epochs", epochs]
        trials = run_job("jobs/sweep.py", *flags, "--num-sequences", num_sequences)
        training, in_slots = sum(map(training_seconds, trials)), slot_seconds(trials)
        in_epochs = sum(row["epoch_seconds"] for trial in trials for row in trial.rows)
        total = sum(in_slots)
        shares = (training / total, (in_epochs - training) / total, 1 - in_epochs / total)
        print(
            f"| {seeds} | {epochs} | {training / seeds:.1f} | {max(in_slots):.0f} "
            f"| {' | '.join(f'{share:.1%}' for share in shares)} |",
            flush=True,
        )


def run_in_new_process(measurement: str, variables: Mapping[str, str]) -> str:
    """Runs one of MEASUREMENTS in an environment with additional variables."""
    command = [sys.executable, __file__, measurement]
    return subprocess.run(
        command, env=os.environ | variables, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def print_cases(speed: Callable[[str, int], float], cells: Iterable[str] = RNN_CLASSES) -> None:
    for cell, length in CASES:
        if cell in cells:
            print(cell, length, speed(cell, length))


def print_denormals() -> None:
    for length in (50, 100, 200):
        print(length, *steps_per_second_without_and_with_flush(length))


MEASUREMENTS: dict[str, Callable[[], None]] = {  # in processes of their own; not in the help
    "competent": lambda: print_cases(partial(sequences_per_second, "competent")),
    "template": lambda: print_cases(partial(sequences_per_second, "template"), ["lstm"]),
    "limit": lambda: print_cases(limit_sequences_per_second),
    "parts": print_parts,
    "denormals": print_denormals,
}


def main() -> None:
    slots = len(os.sched_getaffinity(0))
    tables: dict[str, Callable[[], None]] = {
        "throughput": lambda: throughput(slots),
        "step": step,
        "vanishing": vanishing,
        "overhead": lambda: overhead(slots),
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", nargs="?", metavar="TABLE", help=f"{', '.join(tables)} (all)")
    table = parser.parse_args().table
    if table in MEASUREMENTS:
        MEASUREMENTS[table]()
        return
    if table and table not in tables:
        parser.error(f"{table}: not one of {', '.join(tables)}")
    for name in [table] if table else tables:
        print(f"\n{name}, {slots} cores\n", flush=True)
        tables[name]()


if __name__ == "__main__":
    main()
