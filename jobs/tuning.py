"""What a sweep adds to Ray Tune: its list of trials, a concurrency limit, its progress."""

import json
import pickletools
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import BasicVariantGenerator

from jobs import interrupt
from jobs.formatting import format_duration
from jobs.progress import LOGS, StatusLine
from jobs.storage import StorageDir

Config = dict[str, Any]


class TrialList(BasicVariantGenerator):
    """Runs exactly the trials of a list, in order, with a limit on concurrent ones.

    A restored experiment brings its own list, but not its old limit.
    """

    def __init__(self, configs: list[Config], at_most: int | None):
        super().__init__(points_to_evaluate=configs, max_concurrent=at_most or 0)

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state({**state, "max_concurrent": self.max_concurrent})


class Limit(FIFOScheduler):
    """Limits concurrent trials, including those that a restored experiment had started."""

    def __init__(self, at_most: int):
        super().__init__()
        self.at_most = at_most

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        # The trial is among the controller's already.
        if trial.status == Trial.PENDING and self._busy(tune_controller) > self.at_most:
            trial.set_status(Trial.PAUSED)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        if self._busy(tune_controller) >= self.at_most:
            return None
        return super().choose_trial_to_run(tune_controller)

    def _busy(self, tune_controller: Any) -> int:
        trials = tune_controller.get_trials()
        return sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in trials)


def param_space(configs: list[Config]) -> Config:
    """Returns the search space that Tune requires beside a list of points: their values."""
    return {name: tune.choice(list({c[name]: 0 for c in configs})) for name in configs[0]}


class Known(NamedTuple):
    """A trial in Tune's snapshot."""

    status: str
    checkpoint: str  # name of the latest, empty without one


def snapshot(folder: StorageDir) -> dict[str, Known] | None:
    """Reads the trials of Tune's latest snapshot, by name; None if it is missing or truncated.

    A snapshot is two files: the trials, and the list that they come from. On a full disk one may
    have been written without the other.
    """
    names = folder.names()
    snapshots = [name for name in names if name.startswith("experiment_state-")]
    if not snapshots:
        return None
    newest = max(snapshots)
    trial_list = newest.replace("experiment_state", "basic-variant-state")
    if trial_list not in names:
        return None
    try:
        known = {}
        for pair in json.loads(folder.read(newest))["trial_data"]:
            trial, metadata = map(json.loads, pair)
            texts = _texts(bytes.fromhex(metadata["checkpoint_manager"]["value"]))
            # Paths only: a row of metrics may contain the names of corrupt checkpoints.
            kept = [found[1] for text in texts if (found := re.search(r"/(checkpoint_\d+)$", text))]
            known[trial["custom_trial_name"]] = Known(trial["status"], max(kept, default=""))
        _texts(folder.read(trial_list))
    except (ValueError, KeyError):  # truncated
        return None
    return known


def _texts(pickled: bytes) -> list[str]:
    """Returns the strings in a pickle, without executing it."""
    return [text for _, text, _ in pickletools.genops(pickled) if isinstance(text, str)]


def can_go_on(folder: StorageDir, trials: dict[str, Known]) -> bool:
    """Returns whether the checkpoints exist that Tune would resume from; else trials fail."""

    def can(name: str) -> bool:
        newest = trials[name].checkpoint
        return not newest or newest in folder.subdir(name).names()

    with ThreadPoolExecutor() as threads:  # storage behind a URI has a high latency
        return all(threads.map(can, trials))


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
        for name in finished:
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
