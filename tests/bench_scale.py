"""Measures what Ray Tune and the suite add to a trial, in sweeps of up to 1,000.

  python tests/bench_scale.py docs/scale.csv      seven minutes

The trials sleep instead of training, and report and save as those of the sweep
do: five epochs, a checkpoint of an LSTM with each. So eight of them at a time
leave this machine's cores alone.
"""

import argparse
import itertools
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import ray
from ray import tune

from jobs import cluster, storage, sweep
from jobs.grid import Sweep, trial_configs, trial_name
from models import checkpoint, recurrent

SLOTS, EPOCHS, SECONDS = 8, 5, 2.0
LENGTHS = tuple(range(3, 103))


def sleeping(config: dict[str, Any]) -> None:
    network = recurrent.build("lstm", config["hidden"], "uniform", config["seed"], config["length"])
    optimizer = sweep.OPTIMIZERS["adam"](network.parameters(), lr=config["lr"])
    for parameter in network.parameters():
        parameter.grad = parameter.detach()
    optimizer.step()  # from here on it has a state to save
    history: list[dict[str, Any]] = []
    for epoch in range(1, EPOCHS + 1):
        began = time.time()
        time.sleep(SECONDS / EPOCHS)
        row = {"epoch": epoch, "training_iteration": epoch, "val_accuracy": 0.1, "damaged": ""}
        row |= {"began_at": began, "ended_at": time.time(), "epoch_seconds": SECONDS / EPOCHS}
        history.append(row)
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
        with tempfile.TemporaryDirectory() as local:
            checkpoint.save(local, state, history)
            tune.report(row, checkpoint=tune.Checkpoint.from_directory(local))


def measure(count: int, place: Path) -> dict[str, float]:
    """Runs so many trials; returns a row of the table."""
    seeds = tuple(range(-(-count // len(LENGTHS))))
    grid = Sweep(cells=("lstm",), lengths=LENGTHS, seeds=seeds, epochs=EPOCHS)
    made = itertools.islice(trial_configs(grid), count)
    configs = {trial_name(config): config for config in made}
    folder = storage.run_folder(str(place), f"trials-{count}", fresh=False)
    storage.claim(folder, [asdict(grid)])
    run = sweep.Run(storage=str(place), name=folder.name)
    tuner = sweep.tuner(folder, configs, set(), run, {"cpu": 1, "gpu": 0})
    cpu = time.process_time()
    results = tuner.fit()
    cpu = time.process_time() - cpu
    assert results.num_terminated == count
    rows = pd.concat(result.metrics_dataframe for result in results)
    wall = rows["ended_at"].max() - rows["began_at"].min()
    files = [(path, path.stat().st_size) for path in Path(folder.path).rglob("*") if path.is_file()]
    state = sum(size for path, size in files if path.name.startswith("experiment_state"))
    return {
        "trials": count,
        "slots": SLOTS,
        "epochs": EPOCHS,
        "seconds_of_a_trial": SECONDS,
        "wall_seconds": round(wall, 1),
        "slot_seconds_lost_per_trial": round(wall * SLOTS / count - SECONDS, 3),
        "driver_cpu_seconds_per_trial": round(cpu / count, 4),
        "bytes_on_storage_per_trial": round(sum(size for _, size in files) / count),
        "state_bytes_per_trial": round(state / count),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, metavar="TABLE", help="the CSV to write")
    table = parser.parse_args().table
    sweep.train = sleeping
    quiet = {"logging_level": "ERROR", "log_to_driver": False, "include_dashboard": False}
    ray.init(num_cpus=SLOTS, runtime_env=cluster.runtime_env(), **quiet)
    rows = []
    with tempfile.TemporaryDirectory(prefix="scale", dir="/tmp") as place:
        for count in (SLOTS, 10, 100, 1000):  # the first ones only start the processes
            rows.append(measure(count, Path(place)))
            pd.DataFrame(rows[1:]).to_csv(table, index=False)
    print(table.read_text())


if __name__ == "__main__":
    main()
