"""Figures of a sweep: the report's Figures 1-3, learning, and transfer to other lengths."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures import CELL_LABELS, CELL_STYLES, INIT_LINESTYLES, heat_map, save
from analysis.results import CONFIG_COLUMNS, Trial
from analysis.tables import epochs_table, trials_table
from analysis.transfer import evaluate_transfer
from analysis.trial_metrics import (
    CHANCE_ACCURACY,
    SOLVED_THRESHOLD,
    EffectiveLengths,
    count_sharp_drops,
    effective_lengths,
    format_length,
    sharp_drops_table,
    summarize_seeds,
)

MAX_LENGTH_OF_FIGURE_1 = 24  # the report's Figures 1 and 2 end here, its Figure 3 begins above


def plot_sweep(
    finished: list[Trial], trials: list[Trial], num_test_samples: int, out: Path
) -> list[Path]:
    """Plots all figures of a sweep; returns their paths.

    Args:
        finished: the finished trials.
        trials: all trials, unfinished ones too.
        num_test_samples: palindromes of each test of a network.
    """
    torch.set_num_threads(1)  # the networks are small: threads would wait for each other
    paths = plot_report_figures(finished, trials, out)
    sharp_drops_table(finished).to_csv(out / "sharp_drops.csv", index=False)
    return [*paths, *plot_learning(finished, out), *plot_transfer(finished, num_test_samples, out)]


def describe_sweep(finished: list[Trial], trials: list[Trial]) -> list[str]:
    """Returns a line for each cell and initialization: effective length and sharp drops."""
    lines = []
    for (cell, init), length in effective_lengths(finished, trials).items():
        accuracies = [
            trial.val_accuracies()
            for trial in finished
            if (trial.config["cell"], trial.config["init"]) == (cell, init)
        ]
        drops = sum(map(count_sharp_drops, accuracies))
        lines.append(
            f"{CELL_LABELS[cell]}, {init} initialization: "
            f"effective length {format_length(length)}, "
            f"sharp drops {drops} in {sum(map(len, accuracies))} epochs"
        )
    return lines


def plot_report_figures(finished: list[Trial], trials: list[Trial], out: Path) -> list[Path]:
    """Plots the report's Figures 1, 2 and 3, and all cells in one figure."""
    table, paths = trials_table(finished), []
    summary = summarize_seeds(table)
    short = summary["length"] <= MAX_LENGTH_OF_FIGURE_1
    for name, cell, rows in (
        ("figure1", "lstm", short),
        ("figure2", "rnn", short),
        ("figure3", "lstm", ~short),
    ):
        part = summary[(summary["cell"] == cell) & rows]
        if part.empty:
            continue
        epochs = sorted(table.merge(part[CONFIG_COLUMNS], on=CONFIG_COLUMNS)["epoch"].unique())
        title = (
            f"Figure {name[-1]}: {CELL_LABELS[cell]} after {' or '.join(map(str, epochs))} epochs"
        )
        paths.append(save(accuracy_figure(part, title), part, out, name, describe_accuracy(part)))
    # A length at which only some cells were trained shows no comparison.
    shared = summary.groupby("length")["cell"].transform("nunique") == summary["cell"].nunique()
    compared = summary[shared] if shared.any() else summary
    longest = compared["length"].max()
    lengths = effective_lengths(
        [trial for trial in finished if trial.config["length"] <= longest],
        [trial for trial in trials if trial.config["length"] <= longest],
    )
    cells = ", ".join(CELL_LABELS[cell] for cell in compared["cell"].unique())
    figure = accuracy_figure(compared, f"Validation accuracy: {cells}", lengths)
    paths.append(save(figure, compared, out, "comparison", describe_accuracy(compared, lengths)))
    return paths


def accuracy_figure(
    summary: pd.DataFrame, title: str, lengths: EffectiveLengths | None = None
) -> Figure:
    """Plots accuracy over length by cell and initialization, with effective lengths if given."""
    figure, axes = plt.subplots(figsize=(7, 4))
    plot_accuracies(axes, summary, title, lengths)
    return figure


def plot_accuracies(
    axes: Axes, summary: pd.DataFrame, title: str, lengths: EffectiveLengths | None
) -> None:
    for (cell, init), accuracies in summary.groupby(["cell", "init"]):
        seeds = format_range(accuracies["seeds"])
        seeds += " seed" if seeds == "1" else " seeds"
        label = f"{CELL_LABELS[cell]}, {init} initialization, mean and range of {seeds}"
        if lengths:
            label += f"\n   effective length: {format_length(lengths[cell, init])}"
        _plot_accuracy(axes, cell, init, accuracies, label)
        length = lengths and lengths[cell, init]
        if length:
            axes.axvline(length, color=CELL_STYLES[cell]["color"], lw=1, ls=INIT_LINESTYLES[init])
    axes.axhline(100 * CHANCE_ACCURACY, color="black", lw=1, ls=(0, (1, 2)))
    axes.text(0.01, 100 * CHANCE_ACCURACY + 1, "chance", transform=axes.get_yaxis_transform())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=title, xlabel="sequence length (digits read)", ylabel="validation accuracy (%)")
    axes.set_ylim(0, 103)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _plot_accuracy(axes: Axes, cell: str, init: str, accuracies: pd.DataFrame, label: str) -> None:
    """Plots the seeds' mean over the length, and their range as a band."""
    style = CELL_STYLES[cell]
    percent = 100 * accuracies[["mean", "min", "max"]]
    lengths = accuracies["length"]
    axes.plot(lengths, percent["mean"], ls=INIT_LINESTYLES[init], label=label, lw=1.6, **style)
    axes.fill_between(
        lengths, percent["min"], percent["max"], color=style["color"], alpha=0.18, lw=0
    )


def format_range(numbers: pd.Series) -> str:
    low, high = numbers.min(), numbers.max()
    return f"{low}" if low == high else f"{low}-{high}"


def describe_accuracy(summary: pd.DataFrame, lengths: EffectiveLengths | None = None) -> str:
    """Describes a figure of accuracy over length, as alternative text."""
    lines = []
    for (cell, init), accuracies in summary.groupby(["cell", "init"]):
        (shortest, first), (longest, last) = (
            (row["length"], row["mean"])
            for _, row in accuracies.sort_values("length").iloc[[0, -1]].iterrows()
        )
        length = f"; effective length {format_length(lengths[cell, init])}" if lengths else ""
        lines.append(
            f"{CELL_LABELS[cell]}, {init} initialization: {first:.0%} at {shortest} digits, "
            f"{last:.0%} at {longest}{length}."
        )
    return "Mean validation accuracy over sequence length. " + " ".join(lines)


def plot_learning(trials: list[Trial], out: Path) -> list[Path]:
    """Plots, for each cell and initialization, accuracy over length and epoch, averaged over seeds.

    A seed that stopped early counts with its last accuracy until the last seed ends.
    """
    paths = []
    for (cell, init), table in epochs_table(trials).groupby(["cell", "init"]):
        by_seed = table.pivot(index=["length", "seed"], columns="epoch", values="val_accuracy")
        by_epoch = by_seed.ffill(axis=1).groupby("length").mean()
        by_epoch = by_epoch.where(by_seed.notna().groupby("length").any())
        mean = by_epoch.melt(value_name="val_accuracy", ignore_index=False).dropna().reset_index()
        mean = mean.sort_values(["length", "epoch"])
        solved = [
            f"{length} digits after {above.idxmax()}" if above.any() else f"{length} never"
            for length, above in (by_epoch >= SOLVED_THRESHOLD).iterrows()
        ]
        alt = f"Epochs until the seeds' mean accuracy is 99%: {', '.join(solved)}."
        figure = heat_map(
            by_epoch,
            f"{CELL_LABELS[cell]}, {init} initialization: learning (mean of the seeds)",
            "epoch",
            "sequence length (digits read)",
            "validation accuracy (%)",
        )
        paths.append(save(figure, mean, out, f"learning_{cell}_{init}", alt))
    return paths


def plot_transfer(trials: list[Trial], num_test_samples: int, out: Path) -> list[Path]:
    """Plots, by cell and initialization, trained against tested length, and accuracy by digit."""
    paths = []
    for table, axis, name, xlabel, title in zip(
        evaluate_transfer(trials, num_test_samples),
        ("tested", "digit"),
        ("transfer", "digits"),
        ("tested length (digits read)", "digit to remember"),
        ("trained and tested lengths", "accuracy by digit"),
        strict=True,
    ):
        if table.empty:  # no trial has a checkpoint left
            continue
        for (cell, init), part in table.groupby(["cell", "init"]):
            mean = part.groupby(["length", axis])["accuracy"].mean().unstack()
            figure = heat_map(
                mean,
                f"{CELL_LABELS[cell]}, {init} initialization: {title}",
                xlabel,
                "trained length (digits read)",
                "accuracy (%) on unseen palindromes",
            )
            best, worst = part.loc[part["accuracy"].idxmax()], part.loc[part["accuracy"].idxmin()]
            extremes = ", ".join(
                f"{word} {row['accuracy']:.0%} (trained at {row['length']}, {axis} {row[axis]})"
                for word, row in (("best", best), ("worst", worst))
            )
            alt = f"Accuracy on unseen palindromes: mean {part['accuracy'].mean():.0%}, {extremes}."
            paths.append(save(figure, part, out, f"{name}_{cell}_{init}", alt))
    return paths
