"""Experiments written by hand, as Ray Tune writes them, and the trial names of a real one."""

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

# The trials of the sweep that the fixture `tiny` runs.
TRIAL_NAMES = [
    f"{cell}-uniform-length{length:03}-seed{seed}"
    for cell in ("lstm", "rnn")
    for length in (3, 5)
    for seed in (0, 1)
]
MEASURED = ("epoch", "training_iteration", "train_loss", "val_loss", "val_accuracy")


def write_trial(
    folder: Path, name: str, config: dict[str, Any], rows: list[dict[str, Any]] | None
) -> Path:
    """Writes a trial's folder with the two files that every Tune experiment has."""
    trial = folder / name
    trial.mkdir(parents=True)
    (trial / "params.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    if rows is not None:
        lines = [json.dumps({**row, "config": config}) + "\n" for row in rows]
        (trial / "result.json").write_text("".join(lines))
    return trial


def write_settings(folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    """Writes the settings of a sweep: those of each trial, by name."""
    (folder / "settings.json").write_text(json.dumps({"sweep": {"trials": configs}}))


def set_age(folder: Path, seconds: float) -> None:
    """Makes all files of a folder look as if they were written that long ago."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


def make_row(iteration: int, **metrics: Any) -> dict[str, Any]:
    return {"loss": 1 / iteration, "training_iteration": iteration, **metrics}


def read_progress_csv(trial: Path) -> list[dict[str, str]]:
    """Returns a trial's rows as Tune's progress.csv has them: as text."""
    with (trial / "progress.csv").open() as file:
        return list(csv.DictReader(file))
