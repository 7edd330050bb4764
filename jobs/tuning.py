"""What a sweep adds to Ray Tune: its search space and its progress."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from jobs import interrupt
from jobs.formatting import format_duration
from jobs.progress import LOGS, StatusLine

Config = dict[str, Any]


def param_space(configs: list[Config]) -> Config:
    """Returns the search space that Tune requires beside a list of points: their values."""
    return {name: tune.choice(list({c[name]: 0 for c in configs})) for name in configs[0]}


class Progress(tune.Callback):
    """Shows the progress of a sweep.

    Args:
        configs: all trials, by name.
        epoch_cost: the work of an epoch, in a unit that is the same for all trials of one cell.
        finished: names of the trials that were finished before.
    """

    def __init__(
        self,
        configs: dict[str, Config],
        epoch_cost: Callable[[Config], float],
        finished: Iterable[str],
    ):
        self.configs = configs
        self.remaining = {name: config["epochs"] for name, config in configs.items()}
        self.work = {name: epoch_cost(config) for name, config in configs.items()}
        self.finished = {*finished}  # they report their rows again
        for name in self.finished:
            self.remaining[name] = 0
        self.spent: dict[str, list[float]] = {}  # by cell: seconds, and the work done in them
        self.failed: set[str] = set()
        self.reported: set[tuple[str, str]] = set()  # trial, names of corrupt checkpoints
        self.latest = ""
        self.line = StatusLine()
        self.start = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any
    ) -> None:
        name = str(trial)
        if name in self.finished:
            return
        self.failed.discard(name)
        self.remaining[name] = self.configs[name]["epochs"] - result["epoch"]
        seconds, work = self.spent.setdefault(self.configs[name]["cell"], [0.0, 0.0])
        self.spent[self.configs[name]["cell"]] = [
            seconds + result["epoch_seconds"],
            work + self.work[name],
        ]
        self.latest = f"{name} epoch {result['epoch']} val {result['val_accuracy']:.1%}"
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
        self.remaining[str(trial)] = 0  # early stopping may have ended it

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.failed.add(str(trial))
        self.line.print_line(f"{trial}: failed permanently: {_last_error(trial)}")

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.line.print_line(f"{trial}: {_last_error(trial)}; resuming from its latest checkpoint")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        running = [trial for trial in trials if trial.status == Trial.RUNNING]
        if interrupt.interrupted.is_set():
            # Tune saves its state and then waits ten seconds or more: for processes that are just
            # starting, when there is nothing to save, and for epochs that it discards.
            if not running:
                raise KeyboardInterrupt
            for trial in running:
                ray.kill(trial.temporary_state.ray_actor)
            return
        self.line.update(lambda: self._status(len(running)))

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self.line.clear()

    def _status(self, running: int) -> str:
        if not running and not self.latest:
            elapsed = time.monotonic() - self.start
            details = f" for {format_duration(elapsed)}: see Ray's logs in {LOGS}"
            return "starting" + (details if elapsed > 60 else "")
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


def _last_error(trial: Trial) -> str:
    """Returns the last line of the error file that Tune writes on this machine."""
    text = Path(trial.error_file).read_text() if trial.error_file else "unknown error"
    last = text.rpartition("Failure # ")[2].strip()
    # The second if Ray does not notice the death within a second, or cannot reach the host.
    if "OutOfMemoryError" in last:  # by Ray's memory monitor
        return "killed: the node ran out of memory (lower --max-concurrent or --num-sequences)"
    died = any(message in last for message in ("The actor died", "ActorUnavailableError"))
    return "its process died" if died else last.splitlines()[-1]
