"""Writes trials to MLflow or Weights & Biases, only what these lack.

Both are optional packages, which only this file imports, and only when they are used.
"""

import hashlib
import json
import logging
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from analysis import cli
from analysis.cli import ResultsError
from analysis.results import Trial

ITERATION = "training_iteration"  # the step of every metric; an epoch in this suite
BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # MLflow's limits for one request
MAX_TEXT = 6000  # MLflow's limit for a parameter
MLFLOW_PACKAGES = "mlflow-skinny sqlalchemy alembic"

MLFLOW_STATUS = {
    "finished": "FINISHED",
    "ended": "FINISHED",  # of another project
    "failed": "FAILED",
    "interrupted": "KILLED",
    "running": "RUNNING",
    "pending": "SCHEDULED",  # again: the sweep was interrupted, and runs again
}


class Tracker(Protocol):
    def export_trial(self, trial: Trial) -> int:
        """Writes a trial with at least one row; returns the number of rows that were new."""

    def export_figures(
        self, trials: list[Trial], version: str, findings: list[str], paths: list[Path]
    ) -> None:
        """Writes the figures of a run into a run of their own, or that of its only trial."""

    def exported_version(self, trials: list[Trial]) -> str:
        """Returns the version of the figures that were exported last, empty without any."""

    def finish(self) -> None:
        """Completes what was written so far."""

    def where(self) -> str:
        """Says where the exported runs are."""


def export_id(trial: Trial) -> str:
    """Returns an ID that a trial keeps if its folder is moved, and another trial does not have."""
    key = (trial.experiment, trial.name, row_time(trial.rows[0]))
    return hashlib.blake2b(repr(key).encode(), digest_size=8).hexdigest()


def figures_version(trials: list[Trial], num_test_samples: int) -> str:
    """Returns a text that changes if the figures of a run may."""
    finished = sum(trial.status == "finished" for trial in trials)
    num_epochs = sum(len(trial.rows) for trial in trials)
    return f"{finished} finished, {num_epochs} epochs, {num_test_samples} test samples"


def row_time(row: dict[str, Any]) -> float:
    """Returns the end of an epoch, in seconds since 1970; `timestamp` is Tune's own column."""
    time = row.get("epoch_end_time", row.get("timestamp"))
    return time if isinstance(time, int | float) else 0.0


def metrics_of(row: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a row. The iteration is last: with it a row is complete."""
    numbers = {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**1023
    }
    return {name: value for name, value in numbers.items() if name != ITERATION} | {
        ITERATION: row[ITERATION]
    }


def texts_of(trial: Trial) -> dict[str, str]:
    """Returns what is known about a trial in words: hardware, versions, status, the error."""
    texts = {name: value for name, value in trial.rows[-1].items() if isinstance(value, str)}
    return texts | {"status": trial.status, "error": trial.failure, "folder": trial.folder.path}


def summary_of(trials: list[Trial]) -> Trial:
    """Returns the trial in whose exported run the figures of a run are."""
    started = [trial for trial in trials if trial.rows]
    first = min(started, key=lambda trial: row_time(trial.rows[0]))
    if first.name == first.experiment:  # the GAN is one trial
        return first
    return Trial(first.experiment, first.experiment, "", {}, first.rows[:1], "", first.folder)


class MlflowTracker:
    """MLflow: an experiment for each run, a run for each trial. MLflow says which epochs it has."""

    def __init__(self, uri: str | None):
        # An unreachable server ends the export within seconds; by default it takes minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # for each trial
        logging.getLogger("mlflow.store.db.utils").addFilter(lambda record: record.levelno > 20)
        try:
            import mlflow
            from mlflow import entities

            self.uri = uri or mlflow.get_tracking_uri()
            if self.uri.startswith("sqlite:"):
                for package in ("alembic", "sqlalchemy"):  # MLflow's error does not name them
                    import_module(package)
        except ImportError as error:
            raise _missing(error, "mlflow", MLFLOW_PACKAGES) from None
        self.entities = entities
        with _errors_of(self.uri):
            self.client = mlflow.MlflowClient(self.uri)

    def export_trial(self, trial: Trial) -> int:
        with _errors_of(self.uri):
            run = self._find_or_create(trial)
            done = run.data.metrics.get(ITERATION, 0)
            rows = [row for row in trial.rows if row[ITERATION] > done]
            run_id, entities = run.info.run_id, self.entities
            texts = texts_of(trial)
            params = {_valid(name): str(value)[:MAX_TEXT] for name, value in trial.config.items()}
            # MLflow's parameters cannot change; those of a sweep that grew, such as epochs, do.
            texts |= {n: v for n, v in params.items() if run.data.params.get(n, v) != v}
            self._log(run_id, "params", [
                entities.Param(n, v) for n, v in params.items() if n not in run.data.params
            ])  # fmt: skip
            self._log(run_id, "tags", [
                entities.RunTag(_valid(n), v[:MAX_TEXT]) for n, v in texts.items() if v
            ])  # fmt: skip
            self._log(run_id, "metrics", [
                entities.Metric(_valid(name), value, _milliseconds(row), row[ITERATION])
                for row in rows
                for name, value in metrics_of(row).items()
            ])  # fmt: skip
            self._set_status(run, MLFLOW_STATUS[trial.status], _milliseconds(trial.rows[-1]))
        return len(rows)

    def export_figures(
        self, trials: list[Trial], version: str, findings: list[str], paths: list[Path]
    ) -> None:
        with _errors_of(self.uri):
            summary = summary_of(trials)
            run = self._find_or_create(summary)
            run_id = run.info.run_id
            for path in paths:
                self.client.log_artifact(run_id, str(path), "figures")
            self.client.set_tag(run_id, "mlflow.note.content", "  \n".join(findings)[:MAX_TEXT])
            self.client.set_tag(run_id, "figures_version", version)
            if summary.name not in {trial.name for trial in trials}:  # that of the GAN has a status
                end = max(_milliseconds(trial.rows[-1]) for trial in trials if trial.rows)
                self._set_status(run, "FINISHED", end)

    def exported_version(self, trials: list[Trial]) -> str:
        with _errors_of(self.uri):
            run = self._find(summary_of(trials))
            return run.data.tags.get("figures_version", "") if run else ""

    def finish(self) -> None:
        pass  # every request is complete

    def where(self) -> str:
        return f"in MLflow: {_without_password(self.uri)}"

    def _find(self, trial: Trial) -> Any:
        """Returns the MLflow run of a trial, None if there is none."""
        experiment = self.client.get_experiment_by_name(trial.experiment)
        query = f"tags.export_id = '{export_id(trial)}'"
        found = experiment and self.client.search_runs([experiment.experiment_id], query)
        return found[0] if found else None

    def _find_or_create(self, trial: Trial) -> Any:
        run = self._find(trial)
        if run:
            return run
        experiment = self.client.get_experiment_by_name(trial.experiment)
        if experiment:
            experiment_id = experiment.experiment_id
        else:
            experiment_id = self.client.create_experiment(trial.experiment)
        first = trial.rows[0]
        start = _milliseconds(first) - round(1000 * first.get("epoch_seconds", 0))
        return self.client.create_run(
            experiment_id, start, tags={"export_id": export_id(trial)}, run_name=trial.name
        )

    def _log(self, run_id: str, kind: str, values: list[Any]) -> None:
        for start in range(0, len(values), BATCH[kind]):
            self.client.log_batch(run_id, **{kind: values[start : start + BATCH[kind]]})

    def _set_status(self, run: Any, status: str, end: int) -> None:
        if status in ("RUNNING", "SCHEDULED"):
            self.client.update_run(run.info.run_id, status)
        elif (run.info.status, run.info.end_time) != (status, end):
            self.client.set_terminated(run.info.run_id, status, end)


class WandbTracker:
    """Weights & Biases, offline: a project for each run, a run for each trial.

    Each export of a trial is a folder in the format that `wandb sync` uploads, with the epochs
    that earlier ones lack. A record beside these folders says which ones they have.
    """

    def __init__(self, out: Path):
        try:
            import wandb
        except ImportError as error:
            raise _missing(error, "wandb", "wandb") from None
        cli.make_out_dir(out)
        self.wandb, self.out, self.record_path = wandb, out, out / "wandb" / "exported.json"
        self.record: dict[str, dict[str, Any]] = {}
        if self.record_path.exists():
            try:
                self.record = json.loads(self.record_path.read_text())
            except ValueError as error:
                raise ResultsError(
                    f"{self.record_path} is corrupt ({error}): use another --out"
                ) from None
        self.sync = f"{shlex.quote(str(out))}/wandb/offline-run-*"
        # No data of this machine and this process: they trained nothing.
        self.settings = wandb.Settings(
            mode="offline", silent=True, console="off", disable_git=True, save_code=False,
            x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
        )  # fmt: skip

    def export_trial(self, trial: Trial) -> int:
        entry = self.record.get(export_id(trial), {})
        rows = [row for row in trial.rows if row[ITERATION] > entry.get(ITERATION, 0)]
        if not rows and entry.get("status") == trial.status:
            return 0
        run = self._start(trial)
        for row in rows:
            run.log(metrics_of(row) | {"_timestamp": row_time(row)}, step=row[ITERATION])
        run.summary.update(texts_of(trial))
        run.finish(exit_code=int(trial.status == "failed"))
        self._record(trial, {ITERATION: trial.rows[-1][ITERATION], "status": trial.status})
        return len(rows)

    def export_figures(
        self, trials: list[Trial], version: str, findings: list[str], paths: list[Path]
    ) -> None:
        summary = summary_of(trials)
        run = self._start(summary)
        images = {f"figures/{path.stem}": self.wandb.Image(str(path)) for path in paths}
        run.summary.update(images | {"findings": "\n".join(findings)})  # of no epoch
        run.finish()
        self._record(summary, {"figures_version": version})

    def exported_version(self, trials: list[Trial]) -> str:
        entry = self.record.get(export_id(summary_of(trials)), {})
        return str(entry.get("figures_version", ""))

    def finish(self) -> None:
        """Waits until wandb's process has written all files, then records what is in them."""
        self.wandb.teardown()
        if not self.record:
            return
        temporary = self.record_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.record, indent=2))
        temporary.replace(self.record_path)

    def where(self) -> str:
        return f"to upload: wandb sync {self.sync}" if self.record else "nothing to upload"

    def _start(self, trial: Trial) -> Any:
        project = re.sub(r"[/\\#?%:]", "_", trial.experiment)[:128]  # what a project may be called
        try:
            return self.wandb.init(
                project=project, name=trial.name, id=export_id(trial), resume="allow",
                config=trial.config, dir=str(self.out), settings=self.settings,
            )  # fmt: skip
        except self.wandb.Error as error:
            raise ResultsError(f"wandb: {error}".splitlines()[0]) from None

    def _record(self, trial: Trial, entry: dict[str, Any]) -> None:
        self.record[export_id(trial)] = self.record.get(export_id(trial), {}) | entry


def _valid(name: str) -> str:
    """Returns a name that MLflow accepts for a metric or a parameter."""
    return re.sub(r"[^\w./ :-]", "_", name)[:250]


def _milliseconds(row: dict[str, Any]) -> int:
    return round(1000 * row_time(row))


def _missing(error: ImportError, name: str, packages: str) -> ResultsError:
    return ResultsError(f"--to {name}: {error}: pip install {packages}")


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


@contextmanager
def _errors_of(uri: str) -> Iterator[None]:
    """Turns MLflow's errors into one line."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (ImportError, MlflowException) as error:  # ImportError: of a database's driver
        line = f"MLflow, {uri}: {error}".splitlines()[0]
        hint = ": is the server running?" if "API request to" in line else ""
        raise ResultsError(_without_password(line) + hint) from None
