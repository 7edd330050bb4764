"""Reads the folders of Ray Tune and Ray Train (finished, running or killed) into tables.

Only plain JSON is read (params.json, result.json, checkpoint.json, Tune's experiment state), and
checkpoints as weights: nothing is unpickled.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from pyarrow import fs

from analysis.cli import ResultsError
from models import checkpoint
from models.recurrent import should_stop

# What makes a trial of a sweep a different one, beside its seed.
CONFIG_COLUMNS = ["cell", "init", "length"]

STATUS = {
    "TERMINATED": "finished",
    "ERROR": "failed",
    "RUNNING": "running",
    "PENDING": "pending",
    "PAUSED": "pending",
}

# Tune saves an experiment's state every ten seconds; if saving is slow, less often, so that it
# takes at most 5 % of the time. A driver that is silent for this long has ended.
SILENCE_SECONDS = 120


@dataclass
class Trial:
    """A trial of a Tune experiment, or a run of Ray Train, as its folder describes it."""

    experiment: str
    name: str
    status: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]  # metrics, one row for each iteration, in order
    failures: int
    error: str  # last line of the error of a trial that failed permanently
    folder: "ResultsDir" = field(repr=False)

    def latest_checkpoint(self) -> checkpoint.Checkpoint | None:
        """Loads the latest valid checkpoint, on the CPU."""
        return checkpoint.load_latest(self.folder.names("checkpoint_"), self.folder.read)[0]

    def checkpoints(self) -> Iterator[checkpoint.Checkpoint]:
        """Yields every valid checkpoint, on the CPU, one at a time: together they may be large."""
        for name in self.folder.names("checkpoint_"):
            loaded, _ = checkpoint.load_latest([name], self.folder.read)
            if loaded:
                yield loaded

    def val_accuracies(self) -> list[float]:
        return [row["val_accuracy"] for row in self.rows]

    def is_finished(self) -> bool:
        """Returns whether a trial of a sweep has trained all epochs or stopped early."""
        solved_epochs = self.config.get("stop_after_solved_epochs")
        return should_stop(self.rows, self.config["epochs"], solved_epochs)


@dataclass(frozen=True)
class ResultsDir:
    """A folder and all files below it, from one recursive listing."""

    filesystem: fs.FileSystem
    path: str
    files: dict[str, fs.FileInfo]  # by path relative to the folder

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_file(f"{self.path}/{name}") as file:
            return file.read()

    def names(self, prefix: str = "") -> list[str]:
        """Returns the names of entries that begin with a prefix."""
        return sorted({name.split("/")[0] for name in self.files if name.startswith(prefix)})

    def subdir(self, name: str) -> "ResultsDir":
        inside = {p[len(name) + 1 :]: i for p, i in self.files.items() if p.startswith(f"{name}/")}
        return ResultsDir(self.filesystem, f"{self.path}/{name}", inside)


def open_results(results: str) -> ResultsDir:
    """Lists a folder, given as a local path or a URI.

    Raises:
        ResultsError: its storage cannot be reached.
    """
    if "://" not in results:
        results = os.path.abspath(os.path.expanduser(results))
    try:
        filesystem, path = fs.FileSystem.from_uri(results)
        entries = filesystem.get_file_info(
            fs.FileSelector(path, allow_not_found=True, recursive=True)
        )
    except (OSError, ValueError) as error:
        raise ResultsError(f"{results}: {error}") from None
    files = {i.path[len(path) :].lstrip("/"): i for i in entries if i.type == fs.FileType.File}
    return ResultsDir(filesystem, path, files)


def read_trials(results: str) -> list[Trial]:
    """Reads every trial of one experiment, sorted by name; a run of jobs/gan.py is one trial.

    Raises:
        ResultsError: the folder does not exist or is neither.
    """
    folder = open_results(results)
    if {"params.json", "settings.json"} <= folder.files.keys():  # trials have no settings.json
        return [_read_train_run(folder)]
    states = {state["relative_logdir"]: state for state in _read_states(folder)}
    runs = _find_runs(folder)
    if runs and not states:
        raise ResultsError(
            f"{results}: a folder of {len(runs)} runs, choose from: {_abbreviate(runs)}"
        )
    trial_dirs = {
        path.split("/")[0] for path in folder.files if re.fullmatch(r"[^/]+/params.json", path)
    }
    names = sorted(trial_dirs | states.keys())
    if not folder.files:
        raise ResultsError(f"{results}: no such folder, or it is empty")
    if not names:
        raise ResultsError(f"{results}: neither a Ray Tune experiment nor a run of jobs/gan.py")
    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(lambda name: _read_trial(folder, name, states.get(name)), names))


def read_sweeps(folders: list[str], config_columns: list[str] = CONFIG_COLUMNS) -> list[Trial]:
    """Reads the trials of one sweep or several, each trial once.

    Args:
        config_columns: settings in which trials may differ, beside the seed.

    Raises:
        ResultsError: there are no trials of jobs/sweep.py, or they differ in other settings.
    """
    trials: dict[tuple, Trial] = {}
    recipes: dict[tuple, dict] = {}
    for folder, trial in ((f, trial) for f in folders for trial in read_trials(f)):
        config = tuple(trial.config.get(name) for name in config_columns)
        if None in config or "epochs" not in trial.config:
            raise ResultsError(f"{folder}: {trial.name} is not a trial of jobs/sweep.py")
        recipe = {name: value for name, value in trial.config.items() if name != "seed"}
        other = recipes.setdefault(config, recipe)
        differing = [name for name in {**recipe, **other} if recipe.get(name) != other.get(name)]
        if differing:
            names = ", ".join(differing)
            raise ResultsError(
                f"trials of equal {', '.join(config_columns)} differ in {names}: "
                "plot them separately"
            )
        key = (*config, trial.config["seed"])
        if len(trial.rows) > len(trials.setdefault(key, trial).rows):
            trials[key] = trial
    return list(trials.values())


def read_finished(
    folders: list[str], config_columns: list[str] = CONFIG_COLUMNS
) -> tuple[list[Trial], list[Trial]]:
    """Reads sweeps; returns the finished trials, and all trials.

    Raises:
        ResultsError: as `read_sweeps`, or no trial is finished.
    """
    trials = read_sweeps(folders, config_columns)
    finished = [trial for trial in trials if trial.is_finished()]
    if not finished:
        raise ResultsError(f"{' '.join(folders)}: no finished trial yet")
    return finished, trials


def epochs_table(trials: list[Trial]) -> pd.DataFrame:
    """Returns one row for each epoch of each trial: its settings and metrics."""
    return pd.DataFrame(
        [
            {"experiment": t.experiment, "trial": t.name, "status": t.status, **t.config, **row}
            for t in trials
            for row in t.rows
        ]
    )


def trials_table(trials: list[Trial]) -> pd.DataFrame:
    """Returns one row for each trial: its settings, its last metrics, and its failures."""
    return pd.DataFrame(
        [
            {"experiment": t.experiment, "trial": t.name, "status": t.status}
            | t.config
            | (t.rows[-1] if t.rows else {})
            | {"failures": t.failures, "error": t.error}
            for t in trials
        ]
    )


def _find_runs(folder: ResultsDir) -> list[str]:
    """Returns the names of the runs in a folder such as ~/ray_results."""
    run_files = r"([^/]+)/(settings\.json|experiment_state-.*\.json)"
    return sorted({match[1] for path in folder.files if (match := re.fullmatch(run_files, path))})


def _abbreviate(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _read_states(folder: ResultsDir) -> list[dict[str, Any]]:
    """Reads each trial's state from the experiment's latest snapshot; empty without one."""
    snapshots = [name for name in folder.files if re.fullmatch(r"experiment_state-.*\.json", name)]
    for name in sorted(snapshots, reverse=True):
        try:
            trials = json.loads(folder.read(name))["trial_data"]
        except (ValueError, KeyError):
            continue  # truncated: use the one before
        silent = time.time() - folder.files[name].mtime.timestamp() > SILENCE_SECONDS
        states = []
        for trial, metadata in trials:
            state = json.loads(trial) | {"num_failures": json.loads(metadata)["num_failures"]}
            state["status"] = STATUS[state["status"]]
            if silent and state["status"] == "running":
                state["status"] = "interrupted"
            states.append(state)
        return states
    return []


def _read_train_run(folder: ResultsDir) -> Trial:
    """Reads a run of jobs/gan.py, whose files are in its folder itself."""
    name = folder.path.rpartition("/")[2]
    try:
        config = json.loads(folder.read("params.json"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{folder.path}/params.json is corrupt: {error}") from None
    if not isinstance(config, dict):
        raise ResultsError(f"{folder.path}/params.json is corrupt: not an object")
    rows = _read_rows(folder)
    done = rows[-1].get("epoch") if rows else 0
    reason = _read_error(folder)
    status = "finished" if done == config.get("epochs") else "failed" if reason else "unfinished"
    return Trial(name, name, status, config, rows, failures=0, error=reason, folder=folder)


def _read_trial(folder: ResultsDir, name: str, state: dict[str, Any] | None) -> Trial:
    state = state or {}
    trial_dir = folder.subdir(name)
    status = state.get("status", "unknown")
    try:
        config = json.loads(trial_dir.read("params.json"))
    except (OSError, ValueError):  # not written yet, or truncated
        config = state.get("config", {})
    return Trial(
        experiment=folder.path.rpartition("/")[2],
        name=name,
        status=status,
        config=_flatten(config),
        rows=_read_rows(trial_dir),
        failures=state.get("num_failures", 0),
        error=_read_error(trial_dir) if status == "failed" else "",
        folder=trial_dir,
    )


def _read_error(folder: ResultsDir) -> str:
    """Returns the last line of the error file; empty without one."""
    if "error.txt" not in folder.files:
        return ""
    return folder.read("error.txt").decode(errors="replace").strip().rpartition("\n")[2]


def _read_rows(folder: ResultsDir) -> list[dict[str, Any]]:
    """Returns one row of metrics for each iteration of a trial.

    result.json has duplicate rows where a trial resumed from a checkpoint, and lacks the last rows
    if the driver was killed before it wrote them to the storage: the checkpoints have those.
    """
    rows: dict[int, dict[str, Any]] = {}
    if "result.json" in folder.files:
        for line in folder.read("result.json").splitlines():
            try:
                row = json.loads(line)
                row.pop("config", None)
                rows[row["training_iteration"]] = _flatten(row)
            except (ValueError, AttributeError, KeyError):
                continue  # truncated when the driver was killed
    for path in folder.files:
        if re.fullmatch(r"checkpoint_[^/]+/checkpoint\.json", path):
            try:
                history = json.loads(folder.read(path))["history"]
            except (OSError, ValueError, KeyError, TypeError):
                continue  # truncated, just deleted by Ray, or not a checkpoint of this suite
            for row in history:
                rows[row["training_iteration"]] = rows.get(row["training_iteration"], {}) | row
    return [rows[iteration] for iteration in sorted(rows)]


def _flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= (
            _flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
