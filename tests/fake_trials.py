"""Trials of a sweep that no training made, for tests of tables and figures."""

from pathlib import Path
from typing import Any

from fake_experiments import write_settings, write_trial

from analysis.results import ResultsDir, Trial
from jobs.grid import trial_name
from models.tasks import LATER_SETTINGS

BATCH_SIZE, STEPS = 128, 10  # steps of an epoch
NO_FILES = ResultsDir(None, "", {})


def make_trial(
    accuracies: list[float],
    cell: str = "lstm",
    init: str = "chrono",
    length: int = 10,
    seed: int = 0,
    variant: str = "full",
    epochs: int = 4,
    **columns: list[Any],
) -> Trial:
    """Returns a trial with these validation accuracies, without checkpoints.

    Args:
        epochs: its setting; with fewer accuracies the trial may be unfinished.
        columns: further metrics, a value for each epoch.
    """
    config = {"cell": cell, "init": init, "length": length, "seed": seed, "variant": variant}
    name = trial_name(config)
    config |= {"epochs": epochs, "num_sequences": BATCH_SIZE * STEPS * 5 // 4}
    config |= {"batch_size": BATCH_SIZE, "hidden_size": 128, "stop_after_solved_epochs": 2}
    config |= LATER_SETTINGS
    rows = [
        {"epoch": n + 1, "training_iteration": n + 1, "val_accuracy": accuracy}
        | {column: values[n] for column, values in columns.items()}
        for n, accuracy in enumerate(accuracies)
    ]
    return Trial("fake", name, "finished", config, rows, failure="", folder=NO_FILES)


def write_trials(folder: Path, *trials: Trial) -> Path:
    """Writes a sweep of these trials."""
    folder.mkdir(parents=True, exist_ok=True)
    write_settings(folder, {trial.name: trial.config for trial in trials})
    for trial in trials:
        write_trial(folder, trial.name, trial.config, trial.rows)
    return folder
