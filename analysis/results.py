"""Reads the folders that Ray Tune and Ray Train leave, finished, running or killed, into tables.

Only plain JSON is read (params.json, result.json, checkpoint.json, the experiment's state), and
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

from models import checkpoint

# What Tune adds to every row, beside what a trial reports.
TUNE_COLUMNS = [
    "training_iteration", "timestamp", "checkpoint_dir_name", "should_checkpoint", "done", "date",
    "trial_id", "time_this_iter_s", "time_total_s", "pid", "hostname", "node_ip",
    "time_since_restore", "iterations_since_restore", "experiment_tag",
]  # fmt: skip

STATUS = {
    "TERMINATED": "finished",
    "ERROR": "failed",
    "RUNNING": "running",
    "PENDING": "pending",
    "PAUSED": "pending",
}

# Tune writes an experiment's state every ten seconds or more often; while it takes long to write,
# at most every twentieth of the time. Of a driver that is silent for this long nothing is left.
SILENCE_SECONDS = 120


class NoResults(Exception):
    """There is no experiment where one was looked for."""


@dataclass
class Trial:
    """One trial of a Tune experiment, or one run of Ray Train, as its folder tells it."""

    experiment: str
    name: str
    status: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]  # one for each iteration, in order
    failures: int
    error: str  # the last line of what went wrong for good
    folder: "Folder" = field(repr=False)

    def newest_checkpoint(self) -> checkpoint.Checkpoint | None:
        """Returns the newest whole checkpoint, on the CPU."""
        return checkpoint.newest(self.folder.names("checkpoint_"), self.folder.read)[0]

    def checkpoints(self) -> Iterator[checkpoint.Checkpoint]:
        """Yields every whole checkpoint, on the CPU, one at a time: together they may be large."""
        for name in self.folder.names("checkpoint_"):
            found, _ = checkpoint.newest([name], self.folder.read)
            if found:
                yield found


@dataclass(frozen=True)
class Folder:
    """A folder as one recursive listing saw it."""

    filesystem: fs.FileSystem
    path: str
    files: dict[str, fs.FileInfo]  # by path below the folder

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_file(f"{self.path}/{name}") as file:
            return file.read()

    def names(self, prefix: str = "") -> list[str]:
        """Returns the names, one level down, that begin with a prefix."""
        return sorted({name.split("/")[0] for name in self.files if name.startswith(prefix)})

    def below(self, name: str) -> "Folder":
        inside = {p[len(name) + 1 :]: i for p, i in self.files.items() if p.startswith(f"{name}/")}
        return Folder(self.filesystem, f"{self.path}/{name}", inside)


def open_folder(results: str) -> Folder:
    """Lists a folder, given as a local path or as a URI.

    Raises:
        NoResults: there is none, or its storage cannot be reached.
    """
    if "://" not in results:
        results = os.path.abspath(os.path.expanduser(results))
    try:
        filesystem, path = fs.FileSystem.from_uri(results)
        found = filesystem.get_file_info(
            fs.FileSelector(path, allow_not_found=True, recursive=True)
        )
    except (OSError, ValueError) as error:
        raise NoResults(f"{results}: {error}") from None
    files = {i.path[len(path) :].lstrip("/"): i for i in found if i.type == fs.FileType.File}
    return Folder(filesystem, path, files)


def read_trials(results: str) -> list[Trial]:
    """Reads every trial of one experiment, sorted by name; of a run of jobs/gan.py, the one it is.

    Raises:
        NoResults: the folder is not there, or holds neither.
    """
    folder = open_folder(results)
    if {"params.json", "settings.json"} <= folder.files.keys():  # a trial's folder has no settings
        return [_run(folder)]
    states = {state["relative_logdir"]: state for state in _states(folder)}
    runs = _runs_within(folder)
    if runs and not states:
        raise NoResults(f"{results}: a folder of {len(runs)} runs, give one or some: {_some(runs)}")
    named = {
        path.split("/")[0] for path in folder.files if re.fullmatch(r"[^/]+/params.json", path)
    }
    names = sorted(named | states.keys())
    if not folder.files:
        raise NoResults(f"{results}: no such folder, or nothing in it")
    if not names:
        raise NoResults(f"{results}: neither trials of Ray Tune nor a run of jobs/gan.py")
    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(lambda name: _trial(folder, name, states.get(name, {})), names))


def _runs_within(folder: Folder) -> list[str]:
    """Returns the names of the runs that lie in a folder, if it is one such as ~/ray_results."""
    own = r"([^/]+)/(settings\.json|experiment_state-.*\.json)"
    return sorted({found[1] for path in folder.files if (found := re.fullmatch(own, path))})


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def epochs_table(trials: list[Trial]) -> pd.DataFrame:
    """Returns one row for each epoch of each trial: its settings and what it reported."""
    return pd.DataFrame(
        [
            {"experiment": t.experiment, "trial": t.name, "status": t.status, **t.config, **row}
            for t in trials
            for row in t.rows
        ]
    )


def trials_table(trials: list[Trial]) -> pd.DataFrame:
    """Returns one row for each trial: its settings, what it last reported, and how it ended."""
    return pd.DataFrame(
        [
            {"experiment": t.experiment, "trial": t.name, "status": t.status}
            | t.config
            | (t.rows[-1] if t.rows else {})
            | {"failures": t.failures, "error": t.error}
            for t in trials
        ]
    )


def _states(folder: Folder) -> list[dict[str, Any]]:
    """Returns what the experiment's newest snapshot says of each trial, nothing without one."""
    snapshots = [name for name in folder.files if re.fullmatch(r"experiment_state-.*\.json", name)]
    for name in sorted(snapshots, reverse=True):
        try:
            trials = json.loads(folder.read(name))["trial_data"]
        except (ValueError, KeyError):
            continue  # half-written: the one before still stands
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


def _run(folder: Folder) -> Trial:
    """Returns a run of jobs/gan.py, whose files lie in its folder itself."""
    name = folder.path.rpartition("/")[2]
    try:
        config = dict(json.loads(folder.read("params.json")))
    except (OSError, ValueError, TypeError) as error:
        raise NoResults(f"{folder.path}/params.json is damaged: {error}") from None
    rows = _rows(folder)
    done = rows[-1].get("epoch") if rows else 0
    error = _error(folder)
    status = "finished" if done == config.get("epochs") else "failed" if error else "unfinished"
    return Trial(name, name, status, config, rows, failures=0, error=error, folder=folder)


def _trial(folder: Folder, name: str, state: dict[str, Any]) -> Trial:
    inside = folder.below(name)
    status = state.get("status", "unknown")
    try:
        config = json.loads(inside.read("params.json"))
    except (OSError, ValueError):  # not written yet, or half
        config = state.get("config", {})
    return Trial(
        experiment=folder.path.rpartition("/")[2],
        name=name,
        status=status,
        config=_flat(config),
        rows=_rows(inside),
        failures=state.get("num_failures", 0),
        error=_error(inside) if status == "failed" else "",
        folder=inside,
    )


def _error(folder: Folder) -> str:
    """Returns the last line of what went wrong, if anything did."""
    if "error.txt" not in folder.files:
        return ""
    return folder.read("error.txt").decode(errors="replace").strip().rpartition("\n")[2]


def _rows(folder: Folder) -> list[dict[str, Any]]:
    """Returns one row for each iteration of a trial.

    result.json has rows twice where a trial went on from a checkpoint, and lacks the last ones
    where the driver was killed before it brought them to the storage: the checkpoints have those.
    """
    rows: dict[int, dict[str, Any]] = {}
    if "result.json" in folder.files:
        for line in folder.read("result.json").splitlines():
            try:
                row = json.loads(line)
                row.pop("config", None)
                rows[row["training_iteration"]] = _flat(row)
            except (ValueError, AttributeError, KeyError):
                continue  # cut off where the driver was killed
    for path in folder.files:
        if re.fullmatch(r"checkpoint_[^/]+/checkpoint\.json", path):
            try:
                history = json.loads(folder.read(path))["history"]
            except (OSError, ValueError, KeyError, TypeError):
                continue  # half-written, just deleted for a newer one, or not of this suite
            for row in history:
                rows[row["training_iteration"]] = rows.get(row["training_iteration"], {}) | row
    return [rows[iteration] for iteration in sorted(rows)]


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= (
            _flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
