"""What trials came to, as tables: how they ended, how far and how soon, falls, gradients."""

from itertools import pairwise

import pandas as pd

from analysis.figures import NAMES
from analysis.results import Trial
from analysis.sweep import CHANCE, REMEMBERS
from models.palindromes import training_samples

FALL = 0.05  # a fall of validation accuracy, from one epoch to the next, that is counted here
KINDS = ["cell", "start", "variant"]


def sequences_to(trial: Trial, accuracy: float = REMEMBERS) -> int | None:
    """Returns how many sequences a trial had seen when it was first seen at `accuracy`.

    None if it never was: what it takes is more than the sequences of all its epochs.
    """
    batch = trial.config["batch_size"]
    steps = training_samples(trial.config["samples"]) // batch
    for done, row in enumerate(trial.rows):
        looks = row.get("checked") or [row["val_accuracy"]]
        for number, seen in enumerate(looks, start=1):
            if seen >= accuracy:
                return (done * steps + steps * number // len(looks)) * batch
    return None


def outcome(accuracies: list[float]) -> str:
    """Says how a training ended, from its validation accuracy after each epoch.

    A plateau is one that never left chance. It is no fall: it may be a training cut short.
    """
    if accuracies[-1] >= REMEMBERS:
        return "solved"
    if max(accuracies) >= REMEMBERS:
        return "fell"
    return "plateau" if max(accuracies) < 2 * CHANCE else "partly"


def described(trial: Trial) -> dict[str, object]:
    """Returns a row of the table of trials: settings, how it ended, what it took."""
    accuracies = [row["val_accuracy"] for row in trial.rows]
    falls = [before - after > FALL for before, after in pairwise(accuracies)]
    first = next((n for n, found in enumerate(accuracies) if found >= REMEMBERS), len(accuracies))
    batch = trial.config["batch_size"]
    return {
        "cell": trial.config["cell"],
        "start": trial.config["start"],
        "variant": trial.config.get("variant", "plain"),
        "length": trial.config["length"],
        "seed": trial.config["seed"],
        "outcome": outcome(accuracies),
        "val_accuracy": accuracies[-1],
        "best": max(accuracies),
        "epochs": len(accuracies),
        "sequences": len(accuracies) * (training_samples(trial.config["samples"]) // batch) * batch,
        "to_99": sequences_to(trial),
        "falls": sum(falls),
        "falls_after_99": sum(falls[first:]),
        "epochs_after_99": len(accuracies) - min(first + 1, len(accuracies)),
    }


def outcomes_table(trials: list[Trial]) -> pd.DataFrame:
    """Returns the table of trials, a row for each."""
    table = pd.DataFrame([described(trial) for trial in trials])
    return table.sort_values([*KINDS, "length", "seed"])


def kind_name(cell: str, start: str, variant: str) -> str:
    return f"{NAMES[cell]}, {start}" + ("" if variant == "plain" else f", {variant}")


def kind_of(trial: Trial) -> tuple[str, str, str]:
    return trial.config["cell"], trial.config["start"], trial.config.get("variant", "plain")


def reach_of_seeds(table: pd.DataFrame, trials: list[Trial]) -> pd.DataFrame:
    """Returns, for each kind and seed, the length up to which all lengths end at 99 %, else 0.

    Without the seeds of which it is not known yet: a trial of a length up to there is not finished.

    Args:
        table: a row for each finished trial.
        trials: those that are not finished as well.
    """
    asked: dict[tuple, set[int]] = {}
    for trial in trials:
        asked.setdefault((*kind_of(trial), trial.config["seed"]), set()).add(trial.config["length"])
    rows = []
    for kind_and_seed, part in table.groupby([*KINDS, "seed"]):
        lengths = sorted(asked[kind_and_seed])
        ends = part.set_index("length")["val_accuracy"].reindex(lengths)
        learned = ends.dropna() >= REMEMBERS
        stops = lengths.index(learned.idxmin()) if not learned.all() else len(lengths)
        if ends[:stops].notna().all():
            rows.append([*kind_and_seed, lengths[stops - 1] if stops else 0])
    return pd.DataFrame(rows, columns=[*KINDS, "seed", "reach"])


def falls_table(table: pd.DataFrame) -> pd.DataFrame:
    """Returns, by kind: trials by outcome, epochs, falls, and falls per 100 epochs."""
    summed = table.groupby(KINDS)[["epochs", "falls", "epochs_after_99", "falls_after_99"]].sum()
    counts = table.groupby([*KINDS, "outcome"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=["solved", "fell", "partly", "plateau"], fill_value=0)
    found = counts.join(summed)
    found["falls_per_100"] = 100 * found["falls"] / found["epochs"]
    return found.reset_index()


def gradients_table(trials: list[Trial]) -> pd.DataFrame:
    """Returns the gradients' norms of the trials that were probed: early, and at the end.

    One row for each kind, seed, epoch and step back; of the longest length that all kinds have.
    """
    probed = [trial for trial in trials if trial.rows[0].get("gradient_h")]
    by_kind: dict[tuple, set[int]] = {}
    for trial in probed:
        by_kind.setdefault(kind_of(trial), set()).add(trial.config["length"])
    common = set.intersection(*by_kind.values()) if by_kind else set()
    rows = []
    for trial in probed:
        if not common or trial.config["length"] != max(common):
            continue
        for when, row in (("first epoch", trial.rows[0]), ("last epoch", trial.rows[-1])):
            for back, norm in enumerate(row["gradient_h"]):
                rows.append(
                    {name: trial.config.get(name, "plain") for name in (*KINDS, "length", "seed")}
                    | {"when": when, "back": back, "h": norm}
                    | ({"c": row["gradient_c"][back]} if "gradient_c" in row else {})
                )
    return pd.DataFrame(rows)
