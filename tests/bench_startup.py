"""Measures how long the jobs take until their first epoch, and after the last one.

  python tests/bench_startup.py

Prints a Markdown table: seconds of each stage, beside a bare script of Ray and
torch that trains nothing; medians of rounds in which they alternate. Run
nothing else at the same time, no other Ray either.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROUNDS = 3
STAGES = ("imports", "Ray", "workers", "the end, after the last epoch")


def job_seconds(script: str, *flags: object) -> list[float]:
    """Returns the seconds of each stage of a job that trains for one epoch."""
    import processes  # not in the bare scripts, nor what it imports

    from analysis.results import read_trials

    job = script.removesuffix(".py").replace("/", ".")
    start = time.time()
    subprocess.run([sys.executable, "-c", f"import {job}"], cwd=processes.REPO, check=True)
    imports = time.time() - start
    with tempfile.TemporaryDirectory() as folder:
        command = processes.script_command(script, *flags, "--storage", folder, "--name", "run")
        start = time.time()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            process.stdout.readline()  # the job prints it as soon as Ray has started
            ray_started = time.time()
            process.stdout.read()
        end = time.time()
        assert process.returncode == 0
        (trial,) = read_trials(f"{folder}/run")
    (row,) = trial.rows
    first_epoch = row["epoch_end_time"] - row["epoch_seconds"]
    return stages(start, start + imports, ray_started, first_epoch, row["epoch_end_time"], end)


def stages(
    start: float, imported: float, ray_started: float, first: float, last: float, end: float
) -> list[float]:
    return [imported - start, ray_started - imported, first - ray_started, end - last]


def bare_seconds(which: str) -> list[float]:
    """Returns the seconds of each stage of a bare script."""
    start = time.time()
    done = subprocess.run(
        [sys.executable, __file__, which], capture_output=True, text=True, check=True
    )
    imported, ray_started, first = map(float, done.stdout.split()[-3:])
    return stages(start, imported, ray_started, first, first, time.time())


def bare_sweep() -> None:
    """Prints the times at which a sweep without training reaches each stage."""
    import ray
    import torch  # noqa: F401  what a script that trains would import
    from ray import tune

    imported = time.time()
    ray.init(include_dashboard=False, log_to_driver=False)
    ray_started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        trial = tune.with_resources(bare_trial, {"cpu": 1})
        config = tune.RunConfig(storage_path=folder, verbose=0)
        (result,) = tune.Tuner(trial, run_config=config).fit()
        print(imported, ray_started, result.metrics["time"])


def bare_trial(config: dict[str, Any]) -> None:
    import torch
    from ray import tune

    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    tune.report({"time": time.time()})


def bare_gan() -> None:
    """Prints the times at which a run of Ray Train without training reaches each stage."""
    import ray
    import torch  # noqa: F401
    from ray import train
    from ray.train.torch import TorchTrainer

    imported = time.time()
    ray.init(include_dashboard=False, log_to_driver=False)
    ray_started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            bare_worker,
            train_loop_config={"folder": folder},
            scaling_config=train.ScalingConfig(num_workers=1),
            run_config=train.RunConfig(storage_path=folder),
        ).fit()
        print(imported, ray_started, Path(folder, "time").read_text())


def bare_worker(config: dict[str, Any]) -> None:
    import torch

    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    Path(config["folder"], "time").write_text(str(time.time()))


BARE_SCRIPTS: dict[str, Callable[[], None]] = {"sweep": bare_sweep, "gan": bare_gan}
SWEEP_FLAGS = ("--cells", "lstm", "--lengths", 5, "--seeds", 0, "--num-sequences", 1000)
JOBS: dict[str, tuple[Any, ...]] = {
    "sweep": ("jobs/sweep.py", *SWEEP_FLAGS, "--epochs", 1),
    "gan": ("jobs/gan.py", "--epochs", 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("script", nargs="?", choices=BARE_SCRIPTS, help=argparse.SUPPRESS)
    if script := parser.parse_args().script:
        BARE_SCRIPTS[script]()
        return
    rounds = [
        [
            seconds
            for name, job in JOBS.items()
            for seconds in (job_seconds(*job), bare_seconds(name))
        ]
        for _ in range(ROUNDS)
    ]
    columns = [
        [median(seconds) for seconds in zip(*stages_of_rounds, strict=True)]
        for stages_of_rounds in zip(*rounds, strict=True)
    ]
    print(
        "| stage (s) | sweep | bare script | GAN | bare script |\n| --- | --- | --- | --- | --- |"
    )
    for stage, *row in zip(STAGES, *columns, strict=True):
        print(f"| {stage} | {' | '.join(f'{seconds:.1f}' for seconds in row)} |")
    first_epoch = " | ".join(f"{sum(column[:-1]):.1f}" for column in columns)
    print(f"| until the first epoch begins | {first_epoch} |")


if __name__ == "__main__":
    main()
