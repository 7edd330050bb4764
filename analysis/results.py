"""Reads the folders of Ray Tune and Ray Train: of runs that are finished, running or killed.

Only plain JSON is read (settings.json, params.json, result.json, checkpoint.json), and checkpoints
as weights: nothing is unpickled.
"""

import json
import operator
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from pyarrow import fs

from analysis.cli import ResultsError
from models import checkpoint
from models.recurrent import CELLS, INIT_NAMES
from models.recurrent_training import should_stop
from models.tasks import LATER_SETTINGS, TASKS, Task, TaskName, task_of

# What makes a trial of a sweep a different one, beside its seed.
CONFIG_COLUMNS = ["cell", "init", "length"]

SETTINGS = "settings.json"  # of a run of this suite, as jobs/storage.py writes it
FAILURE = "failure.txt"  # why a trial of this suite failed permanently
ERROR = "error.txt"  # the failures of any other trial, as Tune writes them
NEVER = datetime.fromtimestamp(0, timezone.utc)

# A run writes a file at least every ten seconds (Tune's snapshot), unless that takes longer than
# half a second, or once in an epoch (the GAN). One that is silent for this long has ended.
SILENCE_SECONDS = 120
SILENCE_EPOCHS = 3


@dataclass
class Trial:
    """A trial of a Tune experiment, or a run of Ray Train, as its folder describes it."""

    experiment: str
    name: str
    status: str  # finished, failed, running, pending or interrupted; of another project, ended
    config: dict[str, Any]
    rows: list[dict[str, Any]]  # metrics, one row for each iteration, in order
    failure: str  # why it failed permanently
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

    def resumes(self) -> int:
        """Returns from how many different epochs it resumed."""
        return len({row.get("resumed_from_epoch", 0) for row in self.rows} - {0})

    def val_accuracies(self) -> list[float]:
        return [row["val_accuracy"] for row in self.rows]

    @property
    def task(self) -> Task:
        """Returns what a trial of a sweep learns."""
        return task_of(self.config)

    def is_finished(self) -> bool:
        """Returns whether a trial of a sweep has trained all epochs or stopped early."""
        solved_epochs = self.config.get("stop_after_solved_epochs")
        return should_stop(self.rows, self.config["epochs"], solved_epochs, self.task)


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

    def newest(self) -> datetime:
        """Returns when the latest file was written; long ago without a file."""
        return max((file.mtime for file in self.files.values()), default=NEVER)

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
    if results.startswith(("gs://", "gcs://")) and "?" not in results:
        results += "?retry_limit_seconds=5"  # without credentials, 15 minutes
    try:
        filesystem, path = fs.FileSystem.from_uri(results)
        entries = filesystem.get_file_info(
            fs.FileSelector(path, allow_not_found=True, recursive=True)
        )
    except (OSError, ValueError) as error:
        raise ResultsError(f"{results}: {error}".splitlines()[0]) from None
    files = {i.path[len(path) :].lstrip("/"): i for i in entries if i.type == fs.FileType.File}
    return ResultsDir(filesystem, path, files)


def read_trials(results: str) -> list[Trial]:
    """Reads every trial of one experiment, sorted by name; a run of jobs/gan.py is one trial.

    Raises:
        ResultsError: the folder does not exist or is neither.
    """
    folder = open_results(results)
    settings = _read_settings(folder)
    runs = _find_runs(folder)
    if runs and not settings:
        raise ResultsError(
            f"{results}: a folder of {len(runs)} runs, choose from: {_abbreviate(runs)}"
        )
    if "gan" in settings:
        return [_read_trial(folder, "", settings["gan"])]
    configs = settings.get("sweep", {})
    trial_dirs = {
        path.split("/")[0] for path in folder.files if re.fullmatch(r"[^/]+/params.json", path)
    }
    names = sorted(trial_dirs | configs.keys())
    if not folder.files:
        raise ResultsError(f"{results}: no such folder, or it is empty")
    if not names:
        raise ResultsError(f"{results}: neither a Ray Tune experiment nor a run of jobs/gan.py")
    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(lambda name: _read_trial(folder, name, configs.get(name)), names))


def read_sweeps(
    folders: list[str],
    config_columns: list[str] = CONFIG_COLUMNS,
    tasks: tuple[TaskName, ...] = ("palindrome",),
) -> list[Trial]:
    """Reads the trials of one sweep or several, each trial once.

    Args:
        config_columns: settings in which trials may differ, beside the seed.
        tasks: those of which the caller can take one.

    Raises:
        ResultsError: there are no trials of jobs/sweep.py, or they differ in other settings.
    """
    trials: dict[tuple, Trial] = {}
    recipes: dict[tuple, dict] = {}
    found_tasks: set[str] = set()
    for folder, trial in ((f, trial) for f in folders for trial in read_trials(f)):
        config = tuple(trial.config.get(name) for name in config_columns)
        if None in config or not {"seed", "epochs"} <= trial.config.keys():
            raise ResultsError(f"{folder}: {trial.name} is not a trial of jobs/sweep.py")
        if unknown := unknown_name(trial.config):
            raise ResultsError(f"{folder}: {trial.name}: {unknown}")
        found_tasks.add(trial.config["task"])
        if other_tasks := found_tasks - {*tasks}:
            raise ResultsError(f"{folder}: of task {max(other_tasks)}: use analysis/sweep.py")
        if len(found_tasks) > 1:
            raise ResultsError(f"tasks {' and '.join(sorted(found_tasks))}: plot them separately")
        recipe = {name: value for name, value in trial.config.items() if name != "seed"}
        other = recipes.setdefault(config, recipe)
        # A setting that a version of this suite does not know is not compared.
        differing = [name for name in recipe if recipe[name] != other.get(name, recipe[name])]
        if differing:
            names = ", ".join(differing)
            advice = "use analysis/horizon.py" if "variant" in differing else "plot them separately"
            raise ResultsError(
                f"{folder}: trials of equal {', '.join(config_columns)} differ in {names}: {advice}"
            )
        key = (*config, trial.config["seed"])
        if len(trial.rows) > len(trials.setdefault(key, trial).rows):
            trials[key] = trial
    return list(trials.values())


def unknown_name(config: dict[str, Any]) -> str:
    """Returns what is wrong with a task, cell or initialization of another version; else empty."""
    for setting, names in ("task", [*TASKS]), ("cell", [*CELLS]), ("init", [*INIT_NAMES]):
        if config[setting] not in names:
            return f"{setting} {config[setting]!r} is unknown to this version ({', '.join(names)})"
    return ""


def read_finished(
    folders: list[str],
    config_columns: list[str] = CONFIG_COLUMNS,
    tasks: tuple[TaskName, ...] = ("palindrome",),
) -> tuple[list[Trial], list[Trial]]:
    """Reads sweeps; returns the finished trials, and all trials.

    Raises:
        ResultsError: as `read_sweeps`, or no trial is finished.
    """
    trials = read_sweeps(folders, config_columns, tasks)
    finished = [trial for trial in trials if trial.is_finished()]
    if not finished:
        raise ResultsError(f"{' '.join(folders)}: no finished trial yet")
    return finished, trials


def _find_runs(folder: ResultsDir) -> list[str]:
    """Returns the names of the runs in a folder such as ~/ray_results."""
    run_files = r"([^/]+)/(settings\.json|experiment_state-.*\.json)"
    return sorted({match[1] for path in folder.files if (match := re.fullmatch(run_files, path))})


def _abbreviate(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _read_settings(folder: ResultsDir) -> dict[str, Any]:
    """Returns the settings of a run of this suite: of a "gan", or of the trials of a "sweep"."""
    if SETTINGS not in folder.files:
        return {}
    try:
        settings = json.loads(folder.read(SETTINGS))
        if not isinstance(settings, dict):
            raise TypeError("not an object")
        found = {}
        for job, content in settings.items():
            if job in ("sweep", "gan"):
                found[job] = dict(content["trials"] if job == "sweep" else content)
                for config in found[job].values() if job == "sweep" else [found[job]]:
                    if "epochs" not in config:
                        raise KeyError("epochs")
        return found
    except (ValueError, TypeError, KeyError) as error:
        raise ResultsError(f"{folder.path}/{SETTINGS} is corrupt: {error!r}") from None


def _read_trial(run: ResultsDir, name: str, config: dict[str, Any] | None) -> Trial:
    """Reads a trial of a run, or the run itself if it has only one.

    Args:
        name: of the trial's folder; empty if it is that of the run.
        config: the settings, None in an experiment of another project.
    """
    folder, of_suite = run.subdir(name) if name else run, config is not None
    if config is None:
        try:
            config = _flatten(json.loads(folder.read("params.json")))
        except (*checkpoint.MISSING, ValueError, AttributeError):  # not written yet, or truncated
            config = {}
    if {*CONFIG_COLUMNS} <= config.keys():
        config = LATER_SETTINGS | config
        if of_suite and config["task"] not in [*TASKS]:  # without it the status is unknown
            raise ResultsError(f"{run.path}: {name}: {unknown_name(config)}")
    experiment = run.path.rpartition("/")[2]
    trial = Trial(experiment, name or experiment, "", config, _read_rows(folder), "", folder)
    trial.status = _status(trial, run) if of_suite else _status_of_other(trial, run)
    if trial.status == "failed":
        lines = folder.read(FAILURE if of_suite else ERROR).decode(errors="replace").strip()
        trial.failure = lines.rpartition("\n")[2]
    return trial


def _status(trial: Trial, run: ResultsDir) -> str:
    finished = trial.is_finished()
    if FAILURE in trial.folder.files:
        latest = trial.latest_checkpoint()  # the last one may be what could not be written
        return "finished" if finished and latest and latest.epoch == len(trial.rows) else "failed"
    if finished:
        return "finished"
    if _is_silent(trial, run):
        return "interrupted" if trial.folder.files else "pending"
    # Each command writes the settings before it starts a trial.
    return "running" if trial.folder.newest() >= run.files[SETTINGS].mtime else "pending"


def _status_of_other(trial: Trial, run: ResultsDir) -> str:
    if ERROR in trial.folder.files:
        return "failed"
    return "ended" if _is_silent(trial, run) else "running"


def _is_silent(trial: Trial, run: ResultsDir) -> bool:
    epoch_seconds = max((row.get("epoch_seconds", 0) for row in trial.rows), default=0)
    age = datetime.now(timezone.utc) - run.newest()
    return age.total_seconds() > max(SILENCE_SECONDS, SILENCE_EPOCHS * epoch_seconds)


def _read_rows(folder: ResultsDir) -> list[dict[str, Any]]:
    """Returns one row of metrics for each iteration of a trial.

    Where Tune writes result.json, it has duplicate rows if the trial resumed from a checkpoint, and
    lacks the last rows if the driver was killed before it wrote them: the checkpoints have those.
    """
    rows: dict[int, dict[str, Any]] = {}
    if "result.json" in folder.files:
        for line in folder.read("result.json").splitlines():
            try:
                row = json.loads(line)
                row.pop("config", None)
                rows |= _by_iteration([_flatten(row)])
            except (ValueError, TypeError, AttributeError, KeyError):
                continue  # truncated when the driver was killed, or not a row
    for path in folder.files:
        if re.fullmatch(r"checkpoint_[^/]+/checkpoint\.json", path):
            try:
                by_iteration = _by_iteration(json.loads(folder.read(path))["history"])
            except (*checkpoint.MISSING, ValueError, KeyError, TypeError):
                continue  # truncated, just deleted by Ray, or not a checkpoint of this suite
            for iteration, row in by_iteration.items():
                rows[iteration] = rows.get(iteration, {}) | row
    return [rows[iteration] for iteration in sorted(rows)]


def _by_iteration(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Returns rows by their iteration; raises TypeError or ValueError if one has none."""
    return {operator.index(row["training_iteration"]): row for row in rows}


def _flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= (
            _flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
