"""What a sweep adds to Ray Tune: its search space and its progress."""

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from jobs import interrupt
from jobs.formatting import format_duration
from jobs.progress import StatusLine
from jobs.ray_internals import trial_error
from jobs.resources import describe_start
from jobs.storage import StorageDir, write_failure
from models.recurrent_training import has_diverged
from models.tasks import task_of

Config = dict[str, Any]


def param_space(configs: list[Config]) -> Config:
    """Returns the search space that Tune requires beside a list of points: their values."""
    return {name: tune.choice(list({c[name]: 0 for c in configs})) for name in configs[0]}


def _epoch_cost(config: Config) -> float:
    """Returns the work of an epoch, in a unit that is the same for all trials of one cell."""
    return config["num_sequences"] * config["length"]


class Progress(tune.Callback):
    """Shows the progress of a sweep.

    Args:
        folder: of the sweep.
        configs: the trials that the command asks for, by name.
        finished: names of those that were finished before.
        resources: of each trial.
    """

    def __init__(
        self,
        folder: StorageDir,
        configs: dict[str, Config],
        finished: Iterable[str],
        resources: dict[str, float],
    ):
        self.folder, self.configs, self.resources = folder, configs, resources
        self.remaining = {name: config["epochs"] for name, config in configs.items()}
        self.work = {name: _epoch_cost(config) for name, config in configs.items()}
        for name in finished:
            self.remaining[name] = 0
        self.spent: dict[str, list[float]] = {}  # by cell: seconds, and the work done in them
        self.failed: set[str] = set()
        self.reported: set[tuple[str, str]] = set()  # trial, names of corrupt checkpoints
        self.warned_of_cpu = False
        self.latest = ""
        self.line = StatusLine()
        self.start = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any
    ) -> None:
        name = str(trial)
        if not self.remaining.get(name):  # finished before: it reports its last row again
            return
        self.failed.discard(name)
        if self.resources["gpu"] and result["device"] == "cpu" and not self.warned_of_cpu:
            self.warned_of_cpu = True
            self.line.print_line("trials reserve GPUs, but train on CPUs: torch finds no GPU there")
        self.remaining[name] = self.configs[name]["epochs"] - result["epoch"]
        seconds, work = self.spent.setdefault(self.configs[name]["cell"], [0.0, 0.0])
        self.spent[self.configs[name]["cell"]] = [
            seconds + result["time_this_iter_s"],  # Tune's: with checkpoint and report
            work + self.work[name],
        ]
        task = task_of(self.configs[name])
        self.latest = f"{name} epoch {result['epoch']} {task.describe(result)}"
        if has_diverged(result):
            self.line.print_line(f"{name}: diverged in epoch {result['epoch']}")
        corrupt = result["corrupt_checkpoints"]
        if corrupt and (name, corrupt) not in self.reported:
            self.reported.add((name, corrupt))
            self.line.print_line(
                f"{name}: skipped corrupt checkpoints: {corrupt}; "
                f"resuming from epoch {result['resumed_from_epoch']}"
            )

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if str(trial) in self.remaining:
            self.remaining[str(trial)] = 0  # early stopping may have ended it

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        reason = trial_error(trial)
        self.failed.add(str(trial))
        with suppress(OSError):  # the storage may be what failed
            write_failure(self.folder.subdir(str(trial)), reason)
        self.line.print_line(f"{trial}: failed permanently: {reason}")

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.line.print_line(f"{trial}: {trial_error(trial)}; resuming from its latest checkpoint")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if interrupt.interrupted.is_set():  # code of Ray has swallowed the KeyboardInterrupt
            raise KeyboardInterrupt
        running = sum(trial.status == Trial.RUNNING for trial in trials)
        self.line.update(lambda: self._status(running))

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self.line.clear()

    def _status(self, running: int) -> str:
        if not running and not self.latest:
            return describe_start(time.monotonic() - self.start, self.resources, "trial")
        done = sum(left == 0 for left in self.remaining.values())
        parts = [f"{done}/{len(self.configs)} done", f"{running} running"]
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        left = self._seconds_left(running)
        if left is not None:
            parts.append(f"{format_duration(left)} left")
        return ", ".join(parts) + (f" | {self.latest}" if self.latest else "")

    def _seconds_left(self, running: int) -> float | None:
        if not self.spent or not running:
            return None
        pace = {cell: seconds / work for cell, (seconds, work) in self.spent.items()}
        slowest = max(pace.values())  # for a cell without a finished epoch
        return (
            sum(
                epochs * self.work[name] * pace.get(self.configs[name]["cell"], slowest)
                for name, epochs in self.remaining.items()
                if name not in self.failed
            )
            / running
        )
