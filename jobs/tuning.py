"""What Ray Tune is given beside the job: its list of trials, a limit on them, its progress."""

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
from jobs.progress import LOGS, StatusLine, duration
from jobs.storage import Folder

Config = dict[str, Any]


class TrialList(BasicVariantGenerator):
    """Gives out exactly the trials of a list, in its order, at most so many at a time.

    A restored experiment brings its own list along, but not its old limit.
    """

    def __init__(self, configs: list[Config], at_most: int | None):
        super().__init__(points_to_evaluate=configs, max_concurrent=at_most or 0)

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state({**state, "max_concurrent": self.max_concurrent})


class Limit(FIFOScheduler):
    """Runs at most so many trials at a time, also of those that a restored experiment had begun."""

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
    """Returns the search space that Tune wants to see around a list of points: their values."""
    return {name: tune.choice(list({c[name]: 0 for c in configs})) for name in configs[0]}


class Known(NamedTuple):
    """What Tune's snapshot says of a trial."""

    status: str
    checkpoint: str  # the name of the newest, empty where there is none


def snapshot(folder: Folder) -> dict[str, Known] | None:
    """Returns what Tune's snapshot says of each trial, by name, None where it is not whole.

    It is two files: the trials, and the list that they come from. A disk that is full may have
    taken the one and not the other.
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
            # As paths: a row may have the names of others, which are damaged.
            kept = [found[1] for text in texts if (found := re.search(r"/(checkpoint_\d+)$", text))]
            known[trial["custom_trial_name"]] = Known(trial["status"], max(kept, default=""))
        _texts(folder.read(trial_list))
    except (ValueError, KeyError):  # half-written
        return None
    return known


def _texts(pickled: bytes) -> list[str]:
    """Returns the texts in a pickle, which is read to its end and not run."""
    return [text for _, text, _ in pickletools.genops(pickled) if isinstance(text, str)]


def can_go_on(folder: Folder, trials: dict[str, Known]) -> bool:
    """Returns whether the checkpoints are there from which Tune would go on: else trials fail."""

    def can(name: str) -> bool:
        newest = trials[name].checkpoint
        return not newest or newest in folder.child(name).names()

    with ThreadPoolExecutor() as threads:  # a storage behind a URI answers slowly
        return all(threads.map(can, trials))


class Progress(tune.Callback):
    """Says how far a sweep is.

    Args:
        configs: all trials, by name.
        work: what an epoch of a trial takes, in any unit that is the same for all of one cell.
        finished: the names of the trials that were finished before.
    """

    def __init__(
        self, configs: dict[str, Config], work: Callable[[Config], float], finished: Iterable[str]
    ):
        self.configs = configs
        self.remaining = {name: config["epochs"] for name, config in configs.items()}
        self.work = {name: work(config) for name, config in configs.items()}
        for name in finished:
            self.remaining[name] = 0
        self.spent: dict[str, list[float]] = {}  # by cell: seconds, and the work done in them
        self.failed: set[str] = set()
        self.told: set[tuple[str, str]] = set()
        self.latest = ""
        self.line = StatusLine()
        self.began = time.monotonic()

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
        if result["damaged"] and (name, result["damaged"]) not in self.told:
            self.told.add((name, result["damaged"]))
            self.line.say(
                f"{name}: damaged and passed over: {result['damaged']}; "
                f"goes on from epoch {result['restored_epoch']}"
            )

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.remaining[str(trial)] = 0  # it may end before its last epoch

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.failed.add(str(trial))
        self.line.say(f"{trial}: failed for good: {_last_error(trial)}")

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.line.say(f"{trial}: {_last_error(trial)}; it goes on from its newest checkpoint")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        running = [trial for trial in trials if trial.status == Trial.RUNNING]
        if interrupt.asked.is_set():
            # Tune saves its state and then waits, ten seconds or more: for processes that are just
            # starting, in which case it has nothing to save, and for epochs that it throws away.
            if not running:
                raise KeyboardInterrupt
            for trial in running:
                ray.kill(trial.temporary_state.ray_actor)
            return
        self.line.show(lambda: self._status(len(running)))

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self.line.clear()

    def _status(self, running: int) -> str:
        if not running and not self.latest:
            waited = time.monotonic() - self.began
            silent = f" for {duration(waited)}: see Ray's logs in {LOGS}"
            return "starting" + (silent if waited > 60 else "")
        done = sum(left == 0 for left in self.remaining.values())
        parts = [f"{done}/{len(self.configs)} done", f"{running} running"]
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        left = self._seconds_left(running)
        if left is not None:
            parts.append(f"{duration(left)} left")
        return ", ".join(parts) + (f" | {self.latest}" if self.latest else "")

    def _seconds_left(self, running: int) -> float | None:
        if not self.spent or not running:
            return None
        pace = {cell: seconds / work for cell, (seconds, work) in self.spent.items()}
        slowest = max(pace.values())  # for a cell of which no epoch has been seen yet
        return (
            sum(
                epochs * self.work[name] * pace.get(self.configs[name]["cell"], slowest)
                for name, epochs in self.remaining.items()
                if name not in self.failed
            )
            / running
        )


def _last_error(trial: Trial) -> str:
    """Returns the last line of what Tune writes on this machine, and then to the storage."""
    text = Path(trial.error_file).read_text() if trial.error_file else "an unknown error"
    last = text.rpartition("Failure # ")[2].strip()
    # The second where Ray does not learn within a second that it died, or does not reach its host.
    gone = any(said in last for said in ("The actor died", "ActorUnavailableError"))
    return "its process ended" if gone else last.splitlines()[-1]
