"""Metrics of finished trials: outcomes, effective lengths, accuracy drops, gradient norms."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures import CELL_LABELS
from analysis.results import CONFIG_COLUMNS, Trial
from analysis.tables import trials_table
from models.recurrent import NUM_CLASSES
from models.recurrent_training import has_diverged

CHANCE_ACCURACY = 1 / NUM_CLASSES
SOLVED_THRESHOLD = 0.99  # validation accuracy from which on a length counts as solved
DROP_THRESHOLD = 0.05  # an accuracy drop lowers validation accuracy by more, within an epoch
SHARP_DROP_THRESHOLD = 0.2  # a sharp drop, the report's term
OUTCOMES = ("solved", "collapsed", "partial", "at_chance", "diverged")
GROUP_COLUMNS = ["cell", "init", "variant"]

EffectiveLengths = dict[tuple[str, str], int | None]  # by cell and initialization; None: unknown


def outcome(accuracies: list[float]) -> str:
    """Classifies a training by its validation accuracy after each epoch.

    solved: ends at SOLVED_THRESHOLD or above. collapsed: has been there, but ends below.
    at_chance: never reached twice the chance accuracy; training may have been too short.
    partial: all others.
    """
    if accuracies[-1] >= SOLVED_THRESHOLD:
        return "solved"
    if max(accuracies) >= SOLVED_THRESHOLD:
        return "collapsed"
    return "at_chance" if max(accuracies) < 2 * CHANCE_ACCURACY else "partial"


def accuracy_drops(accuracies: list[float], threshold: float) -> list[int]:
    """Returns the indices of epochs with an accuracy more than `threshold` below the one before."""
    return [
        index
        for index in range(1, len(accuracies))
        if accuracies[index - 1] - accuracies[index] > threshold
    ]


def count_sharp_drops(accuracies: list[float]) -> int:
    """Returns how often accuracy falls by more than SHARP_DROP_THRESHOLD within an epoch."""
    return len(accuracy_drops(accuracies, SHARP_DROP_THRESHOLD))


def sharp_drops_table(trials: list[Trial]) -> pd.DataFrame:
    """Returns the epochs whose validation accuracy is over 20 points below the one before."""
    columns = [*CONFIG_COLUMNS, "seed", "epoch", "previous_val_accuracy", "val_accuracy"]
    rows = []
    for trial in trials:
        accuracies = trial.val_accuracies()
        labels = [trial.config[name] for name in (*CONFIG_COLUMNS, "seed")]
        rows += [
            [*labels, trial.rows[i]["epoch"], accuracies[i - 1], accuracies[i]]
            for i in accuracy_drops(accuracies, SHARP_DROP_THRESHOLD)
        ]
    return pd.DataFrame(rows, columns=columns).sort_values([*CONFIG_COLUMNS, "seed", "epoch"])


def sequences_to(trial: Trial, accuracy: float = SOLVED_THRESHOLD) -> int | None:
    """Returns the number of sequences until the first evaluation at `accuracy`, None if never."""
    batch_size, steps = trial.config["batch_size"], steps_per_epoch(trial)
    for epochs, row in enumerate(trial.rows):
        evals = row.get("val_accuracy_within_epoch") or [row["val_accuracy"]]
        for number, value in enumerate(evals, start=1):
            if value >= accuracy:
                return (epochs * steps + steps * number // len(evals)) * batch_size
    return None


def steps_per_epoch(trial: Trial) -> int:
    train = trial.task.num_train(trial.config["num_sequences"])
    return train // trial.config["batch_size"]


def outcomes_table(trials: list[Trial]) -> pd.DataFrame:
    """Returns one row for each finished trial: its group, how it ended and how soon."""
    table = pd.DataFrame([_outcome_row(trial) for trial in trials])
    return table.sort_values([*GROUP_COLUMNS, "length", "seed"])


def _outcome_row(trial: Trial) -> dict[str, object]:
    accuracies = trial.val_accuracies()
    drops = accuracy_drops(accuracies, DROP_THRESHOLD)
    at_99 = (index for index, value in enumerate(accuracies) if value >= SOLVED_THRESHOLD)
    first_solved = next(at_99, len(accuracies))
    return {
        **_labels(trial),
        "outcome": "diverged" if has_diverged(trial.rows[-1]) else outcome(accuracies),
        "val_accuracy": accuracies[-1],
        "best_val_accuracy": max(accuracies),
        "epochs": len(accuracies),
        "sequences_seen": len(accuracies) * steps_per_epoch(trial) * trial.config["batch_size"],
        "sequences_to_99": sequences_to(trial),
        "accuracy_drops": len(drops),
        "accuracy_drops_after_99": sum(index > first_solved for index in drops),
        "epochs_after_99": len(accuracies) - min(first_solved + 1, len(accuracies)),
    }


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a proportion (Wilson 1927), of independent trials."""
    z = 1.959964  # the 97.5th percentile of the normal distribution
    center = successes + z**2 / 2
    margin = z * math.sqrt(successes * (count - successes) / count + z**2 / 4)
    low, high = ((center + sign * margin) / (count + z**2) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def median_interval(values: list[float], resamples: int = 10_000) -> tuple[float, float]:
    """Returns the 95 % percentile bootstrap interval of a median (Efron 1979).

    Values may be infinite. The resamples are always the same. Of fewer than 6 values it is NaN:
    even from the smallest to the largest, the interval would hold the median in less than 95 % of
    the cases.
    """
    if len(values) < 6:
        return math.nan, math.nan
    medians = np.median(np.random.default_rng(0).choice(values, (resamples, len(values))), axis=1)
    low, high = np.percentile(medians, (2.5, 97.5), method="nearest")  # interpolates no infinity
    return float(low), float(high)


def by_length_table(table: pd.DataFrame) -> pd.DataFrame:
    """Returns, by group and length: how many trials are solved, and their sequences until 99 %.

    Both have 95 % intervals. A trial that never reaches 99 % needs infinitely many sequences. While
    a sweep runs, the numbers are too good: early stopping ends solved trials first.

    Args:
        table: outcomes_table of the finished trials.
    """
    rows = []
    for key, part in table.groupby([*GROUP_COLUMNS, "length"]):
        solved = int((part["outcome"] == "solved").sum())
        sequences = part["sequences_to_99"].astype(float).fillna(math.inf).tolist()
        intervals = [*wilson_interval(solved, len(part)), *median_interval(sequences)]
        rows.append([*key, len(part), solved, *intervals[:2], np.median(sequences), *intervals[2:]])
    median = "median_sequences_to_99"
    counts = ["trials", "solved", "solved_low", "solved_high"]
    columns = [*GROUP_COLUMNS, "length", *counts, median, f"{median}_low", f"{median}_high"]
    return pd.DataFrame(rows, columns=columns)


def group_of(trial: Trial) -> tuple[str, str, str]:
    # The trials of an older version have no variant.
    return trial.config["cell"], trial.config["init"], trial.config.get("variant", "full")


def _labels(trial: Trial) -> dict[str, Any]:
    """Returns the columns of a trial's group, its length and its seed."""
    group = dict(zip(GROUP_COLUMNS, group_of(trial), strict=True))
    return group | {name: trial.config[name] for name in ("length", "seed")}


def group_label(cell: str, init: str, variant: str) -> str:
    return f"{CELL_LABELS[cell]}, {init}" + ("" if variant == "full" else f", {variant}")


def summarize_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Returns, for each cell, initialization and length, the seeds' mean, min and max accuracy."""
    summary = table.groupby(CONFIG_COLUMNS)["val_accuracy"].agg(["mean", "min", "max", "count"])
    return summary.reset_index().rename(columns={"count": "seeds"})


def effective_length(accuracies: pd.Series, unfinished: Iterable[int] = ()) -> int | None:
    """Returns the length up to which every length ends at 99 % or above, 0 without one.

    None if that is unknown: an unfinished trial may be the one that decides it.

    Args:
        accuracies: the accuracy at the end of training, indexed by length.
        unfinished: lengths of unfinished trials.
    """
    failed = accuracies.index[accuracies < SOLVED_THRESHOLD]
    stop = min(failed, default=math.inf)
    if any(length < stop for length in unfinished):
        return None
    return int(max((length for length in accuracies.index if length < stop), default=0))


def effective_lengths(finished: list[Trial], trials: list[Trial]) -> EffectiveLengths:
    """Returns the effective length of each cell and initialization: that of the worst seed."""
    worst = trials_table(finished).groupby(CONFIG_COLUMNS)["val_accuracy"].min()
    lengths: EffectiveLengths = {}
    for cell, init in dict.fromkeys(worst.index.droplevel("length")):
        unfinished = [
            trial.config["length"]
            for trial in trials
            if (trial.config["cell"], trial.config["init"]) == (cell, init)
            and not trial.is_finished()
        ]
        lengths[cell, init] = effective_length(worst[cell, init], unfinished)
    return lengths


def effective_length_per_seed(table: pd.DataFrame, trials: list[Trial]) -> pd.DataFrame:
    """Returns the effective length of each group and seed, without those that are unknown.

    Args:
        table: outcomes_table of the finished trials.
        trials: all trials, unfinished ones too.
    """
    lengths: dict[tuple, set[int]] = {}
    for trial in trials:
        key = (*group_of(trial), trial.config["seed"])
        lengths.setdefault(key, set()).add(trial.config["length"])
    rows = []
    for key, part in table.groupby([*GROUP_COLUMNS, "seed"]):
        accuracies = part.set_index("length")["val_accuracy"]
        found = effective_length(accuracies, lengths[key] - {*accuracies.index})
        if found is not None:
            rows.append([*key, found])
    return pd.DataFrame(rows, columns=[*GROUP_COLUMNS, "seed", "effective_length"])


def format_length(length: int | None) -> str:
    return "unknown" if length is None else f"{length or 'none'}"


def drops_table(table: pd.DataFrame) -> pd.DataFrame:
    """Returns, by group: trials by outcome, epochs, and accuracy drops per 100 epochs."""
    columns = ["epochs", "accuracy_drops", "epochs_after_99", "accuracy_drops_after_99"]
    sums = table.groupby(GROUP_COLUMNS)[columns].sum()
    counts = table.groupby([*GROUP_COLUMNS, "outcome"]).size().unstack(fill_value=0)
    outcomes = [name for name in OUTCOMES if name != "diverged" or name in counts]
    drops = counts.reindex(columns=outcomes, fill_value=0).join(sums)
    drops["accuracy_drops_per_100"] = 100 * drops["accuracy_drops"] / drops["epochs"]
    return drops.reset_index()


def gradients_table(trials: list[Trial]) -> pd.DataFrame:
    """Returns the gradient norms of probed trials, after the first and the last epoch.

    One row for each group, seed, epoch and step back, at the longest length that all groups have.
    """
    probed = [trial for trial in trials if trial.rows[0].get("grad_norm_h")]
    by_group: dict[tuple, set[int]] = {}
    for trial in probed:
        by_group.setdefault(group_of(trial), set()).add(trial.config["length"])
    common = set.intersection(*by_group.values()) if by_group else set()
    rows = []
    for trial in probed:
        if not common or trial.config["length"] != max(common):
            continue
        for label, row in (("first epoch", trial.rows[0]), ("last epoch", trial.rows[-1])):
            for steps_back, norm in enumerate(row["grad_norm_h"]):
                rows.append(
                    _labels(trial)
                    | {"epoch_label": label, "steps_back": steps_back, "grad_norm_h": norm}
                    | (
                        {"grad_norm_c": row["grad_norm_c"][steps_back]}
                        if "grad_norm_c" in row
                        else {}
                    )
                )
    return pd.DataFrame(rows)
