"""Tables of trials and epochs, and how a screen shows them: which columns, and how wide."""

from typing import Any

import pandas as pd

from analysis.results import Trial

# Columns that tables leave out by default. First what Tune adds to every row of metrics, then
# metrics of this suite that are rarely read. A new metric is shown unless it is listed here.
HIDDEN_COLUMNS = [
    "training_iteration", "timestamp", "checkpoint_dir_name", "should_checkpoint", "done", "date",
    "trial_id", "time_this_iter_s", "time_total_s", "pid", "hostname", "node_ip",
    "time_since_restore", "iterations_since_restore", "experiment_tag",

    "epoch_seconds", "train_seconds", "sequences_per_second", "images_per_second",
    "resumed_from_epoch", "corrupt_checkpoints", "epoch_end_time", "device", "hardware",
    "library_versions", "num_threads", "numeric_precision", "num_workers", "keep_every",
    "eval_every", "density", "coverage", "confidence", "kl_to_uniform", "rarest_class_fraction",
    "val_accuracy_within_epoch", "val_loss_within_epoch", "grad_norm_h", "grad_norm_c",
    "spectral_radii", "forget_gate_quantiles", "grad_norm", "update_rms_over_lr",
]  # fmt: skip


def epochs_table(trials: list[Trial]) -> pd.DataFrame:
    """Returns one row for each epoch of each trial: its settings and metrics.

    Before the first epoch it has the columns of the settings.
    """
    rows = [_table_row(trial, row) for trial in trials for row in trial.rows]
    return pd.DataFrame(rows) if rows else pd.DataFrame([_table_row(t, {}) for t in trials]).head(0)


def trials_table(trials: list[Trial]) -> pd.DataFrame:
    """Returns one row for each trial: its settings, its last metrics, and its interruptions."""
    return pd.DataFrame(
        [
            _table_row(t, t.rows[-1] if t.rows else {})
            | {"resumes": t.resumes(), "failure": t.failure}
            for t in trials
        ]
    )


def _table_row(trial: Trial, metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns the columns of a trial and of one of its rows.

    A metric that another project calls like a setting, or like a column of these tables, gets a
    prefix.
    """
    row = {"experiment": trial.experiment, "trial": trial.name, "status": trial.status}
    row |= trial.config
    taken = {*row, "resumes", "failure"}
    return row | {f"reported/{n}" if n in taken else n: v for n, v in metrics.items()}


def always_shown(table: pd.DataFrame) -> tuple[str, ...]:
    """Returns the columns that stay on the narrowest screen, with the metric of the task."""
    return "trial", "status", "epoch", "val_accuracy" if "val_accuracy" in table else "val_loss"


def default_columns(table: pd.DataFrame) -> list[str]:
    """Returns the columns worth a screen: not hidden, and not settings with a single value."""
    varying = {name for name in table if table[name].astype(str).nunique(dropna=False) > 1}
    return [
        name
        for name in table
        if name in always_shown(table)
        or (
            name not in HIDDEN_COLUMNS
            and (name in varying or (len(table) == 1 and name != "experiment"))
        )
    ]


def format_table(table: pd.DataFrame) -> str:
    return table.to_string(index=False, na_rep="", float_format="{:.4g}".format)


def fit_to_width(table: pd.DataFrame, width: int) -> pd.DataFrame:
    """Drops columns, the last ones first, until a line has at most `width` characters."""
    for name in reversed([name for name in table if name not in always_shown(table)]):
        if len(format_table(table).partition("\n")[0]) <= width:
            break
        table = table.drop(columns=name)
    return table
