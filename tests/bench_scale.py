"""Measures the overhead of Ray and the suite per trial; estimates large sweeps.

  python tests/bench_scale.py scale.csv              seven minutes
  python tests/bench_scale.py scale.csv --estimate   from an existing file
  python tests/bench_scale.py scale.csv --estimate --trials 10000
  python tests/bench_scale.py --resume               two minutes

The measured trials sleep instead of training, and report and save like those of
the sweep: five epochs, with a checkpoint of an LSTM each. So eight concurrent
trials leave the cores of this machine idle.

--resume runs the real sweep with a thousand trials of milliseconds, then the
same command again, then with ten more trials.
"""

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import processes
import ray
from ray import tune

from analysis.results import read_trials
from jobs import cluster, storage, sweep, tuning
from jobs.grid import GridConfig, trial_configs, trial_name
from jobs.learner import OPTIMIZERS
from models import checkpoint, recurrent

SLOTS, EPOCHS, SECONDS = 8, 5, 2.0
LENGTHS = tuple(range(3, 103))


def sleep_instead_of_training(config: dict[str, Any], folder: str) -> None:
    trial_dir = storage.open_dir(folder).subdir(trial_name(config))
    storage.start_trial(trial_dir, config)
    network = recurrent.build(
        "lstm", config["hidden_size"], "uniform", config["seed"], config["length"]
    )
    optimizer = OPTIMIZERS["adam"](network.parameters(), lr=config["lr"])
    for parameter in network.parameters():
        parameter.grad = parameter.detach()
    optimizer.step()  # from here on it has a state to save
    history: list[dict[str, Any]] = []
    for epoch in range(1, EPOCHS + 1):
        epoch_start = time.time()
        time.sleep(SECONDS / EPOCHS)
        row = {"epoch": epoch, "training_iteration": epoch, "val_accuracy": 0.1}
        row |= {"epoch_start_time": epoch_start, "epoch_end_time": time.time()}
        row |= {"corrupt_checkpoints": ""}
        history.append(row)
        storage.write_rows(trial_dir, history)
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
        with tempfile.TemporaryDirectory() as local:
            checkpoint.save(local, state, history)
            tune.report(row, checkpoint=tune.Checkpoint.from_directory(local))


def measure(count: int, parent: Path) -> dict[str, float]:
    """Runs `count` trials; returns a row of the table."""
    seeds = tuple(range(-(-count // len(LENGTHS))))
    grid = GridConfig(cells=("lstm",), lengths=LENGTHS, seeds=seeds, epochs=EPOCHS)
    trials = itertools.islice(trial_configs(grid), count)
    configs = {trial_name(config): config for config in trials}
    folder = storage.run_dir(str(parent), f"trials-{count}", fresh=False)
    storage.lock_run_dir(folder)
    storage.write_settings(folder, "sweep", {"trials": configs})
    launch = sweep.SweepLaunchArgs(storage=str(parent), name=folder.name)
    resources = {"cpu": 1.0, "gpu": 0.0}
    progress = tuning.Progress(folder, configs, set(), resources)
    tuner = sweep.make_tuner(folder, configs, launch, resources, progress)
    cpu_start = time.process_time()
    results = tuner.fit()
    cpu_seconds = time.process_time() - cpu_start
    assert results.num_terminated == count
    rows = pd.concat(result.metrics_dataframe for result in results)
    wall = rows["epoch_end_time"].max() - rows["epoch_start_time"].min()
    files = [(path, path.stat().st_size) for path in Path(folder.path).rglob("*") if path.is_file()]
    state = sum(size for path, size in files if path.name.startswith("experiment_state"))
    return {
        "trials": count,
        "slots": SLOTS,
        "epochs": EPOCHS,
        "seconds_of_a_trial": SECONDS,
        "wall_seconds": round(wall, 1),
        "slot_seconds_lost_per_trial": round(wall * SLOTS / count - SECONDS, 3),
        "driver_cpu_seconds_per_trial": round(cpu_seconds / count, 4),
        "bytes_on_storage_per_trial": round(sum(size for _, size in files) / count),
        "state_bytes_per_trial": round(state / count),
    }


def write_measurements(table: Path) -> None:
    sweep.train_trial = sleep_instead_of_training
    quiet = {"logging_level": "ERROR", "log_to_driver": False, "include_dashboard": False}
    ray.init(num_cpus=SLOTS, runtime_env=cluster.runtime_env(), **quiet)
    rows = []
    with tempfile.TemporaryDirectory(prefix="scale", dir="/tmp") as parent:
        for count in (SLOTS, 10, 100, 1000):  # the first ones only start the processes
            rows.append(measure(count, Path(parent)))
            pd.DataFrame(rows[1:]).to_csv(table, index=False)
    print(table.read_text())


def measure_resume() -> None:
    """Prints a Markdown table."""
    slots = len(os.sched_getaffinity(0))
    flags = ("--cells", "lstm", "--lengths", "3-12", "--epochs", 1, "--num-sequences", 200)
    print("| command | wall time (s) | slot time per trial, without its epoch (s) |")
    print("| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as parent:
        flags += ("--storage", parent, "--name", "run")
        for name, seeds in (
            ("1,000 trials", "0-99"),
            ("the same command again", "0-99"),
            ("ten more trials", "0-100"),
        ):
            start = time.monotonic()
            processes.run_script("jobs/sweep.py", *flags, "--seeds", seeds).check_returncode()
            wall, lost = time.monotonic() - start, ""
            if name == "1,000 trials":
                rows = [trial.rows[0] for trial in read_trials(f"{parent}/run")]
                ends = [row["epoch_end_time"] for row in rows]
                in_epochs = sum(row["epoch_seconds"] for row in rows)
                lost = f"{((max(ends) - min(ends)) * slots - in_epochs) / len(rows):.2f}"
            print(f"| {name} | {wall:.0f} | {lost} |", flush=True)


def extrapolate(table: pd.DataFrame, column: str, trials: int) -> float:
    """Extrapolates a column linearly from the two largest sweeps to `trials`.

    In small sweeps, what a sweep costs once is much of the cost per trial.
    """
    (x0, y0), (x1, y1) = table[["trials", column]].tail(2).to_numpy()
    return y1 + (y1 - y0) / (x1 - x0) * (trials - x1)


def estimate(table: pd.DataFrame, trials: int, slots: int, minutes: float) -> pd.DataFrame:
    """Returns a row for each resource that can run short.

    Args:
        table: measurements, a row for each number of trials.
        slots: concurrent trials.
        minutes: training time of a trial.
    """
    hours = trials * minutes / slots / 60
    driver = extrapolate(table, "driver_cpu_seconds_per_trial", trials)
    state = extrapolate(table, "state_bytes_per_trial", trials) * trials
    size = table["bytes_on_storage_per_trial"].iloc[-1] * trials
    rows = {
        "hours without overhead": f"{hours:.1f}",
        "concurrent trials": f"{slots}",
        "driver CPU seconds per trial": f"{driver:.2f}",
        "driver load (fraction of one core)": f"{driver * trials / (hours * 3600):.0%}",
        "concurrent trials that saturate the driver": f"{minutes * 60 / driver:,.0f}",
        "Tune snapshot, rewritten each time (MB)": f"{state / 1e6:,.0f}",
        "final size on storage (GB)": f"{size / 1e9:,.1f}",
        "written per second without old checkpoints (MB)": f"{size / (hours * 3600) / 1e6:.2f}",
    }
    return pd.DataFrame(rows.items(), columns=["estimate", f"{trials:,} trials"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "table", type=Path, nargs="?", metavar="FILE", help="CSV: written, or read with --estimate"
    )
    parser.add_argument(
        "--estimate", action="store_true", help="estimate a large sweep without measuring"
    )
    parser.add_argument("--resume", action="store_true", help="measure the resume of a sweep")
    parser.add_argument("--trials", type=int, default=10_000, metavar="N", help="trials (10000)")
    parser.add_argument(
        "--slots", type=int, default=256, metavar="N", help="concurrent trials (256, on 64 GPUs)"
    )
    parser.add_argument(
        "--minutes", type=float, default=4, metavar="X", help="training time of a trial (4)"
    )
    args = parser.parse_args()
    if min(args.trials, args.slots, args.minutes) <= 0:
        parser.error("--trials, --slots and --minutes must be positive")
    if args.resume:
        measure_resume()
        return
    if args.table is None:
        parser.error("FILE is missing")
    if not args.estimate:
        write_measurements(args.table)
    table = pd.read_csv(args.table)
    print(estimate(table, args.trials, args.slots, args.minutes).to_string(index=False))


if __name__ == "__main__":
    main()
