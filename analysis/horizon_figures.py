"""Figures of how far back networks remember: accuracy, speed of learning, drops, gradients."""

from collections import Counter
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from analysis.figures import CELL_LABELS, CELL_STYLES, PALETTE, heat_map, hide_unused, save
from analysis.results import Trial
from analysis.trial_metrics import (
    GROUP_COLUMNS,
    OUTCOMES,
    by_length_table,
    drops_table,
    effective_length_per_seed,
    gradients_table,
    group_label,
    group_of,
    outcomes_table,
)

# Hochreiter & Schmidhuber 1997, tasks 2b and 2c: the last symbol repeats the first, with random
# ones between. The lag, and the mean number of sequences that their LSTM needed.
PUBLISHED = {100: 5_680, 1_000: 49_000}

FLOAT32_MIN = 2.0**-149  # the smallest positive number of float32; gradients below it are 0

# Fractions of the axis by which seeds and groups are shifted: trials of one length that saw equally
# many sequences would hide each other.
SEED_JITTER, GROUP_JITTER = 0.024, 0.02

OUTCOME_COLORS = {
    "solved": "#009E73", "collapsed": "#D55E00", "partial": "#E6C229", "at_chance": "#999999",
    "diverged": "#332288",
}  # fmt: skip


def plot_horizon(finished: list[Trial], trials: list[Trial], out: Path) -> list[Path]:
    """Plots all figures of the finished trials, and writes tables; returns the figures' paths.

    trials.csv has a row for each trial, by_length.csv one for each group and length.
    """
    table = outcomes_table(finished)
    table.to_csv(out / "trials.csv", index=False)
    by_length_table(table).to_csv(out / "by_length.csv", index=False)
    paths = plot_accuracy(table, out)
    paths += [
        plot_effective_length(table, trials, out),
        plot_sequences(table, out),
        plot_drops(table, out),
    ]
    gradients = gradients_table(finished)
    if len(gradients):
        paths.append(plot_gradients(gradients, out))
    return paths


def describe_horizon(finished: list[Trial], trials: list[Trial]) -> list[str]:
    """Returns a line for each group: effective lengths of its seeds, outcomes, accuracy drops."""
    table = outcomes_table(finished)
    known = effective_length_per_seed(table, trials).groupby(GROUP_COLUMNS)["effective_length"]
    all_seeds = {(*group_of(trial), trial.config["seed"]) for trial in trials}
    num_seeds = Counter(key[: len(GROUP_COLUMNS)] for key in all_seeds)

    def describe_lengths(group: tuple) -> str:
        if group not in known.groups:
            return "unknown"
        seeds = known.get_group(group)
        text = " to ".join(map(str, sorted({seeds.min(), seeds.max()})))
        unknown = num_seeds[group] - len(seeds)
        return text + (f" (unknown for {unknown} of {num_seeds[group]} seeds)" if unknown else "")

    def describe_group(row: dict[str, Any]) -> str:
        group = tuple(row[name] for name in GROUP_COLUMNS)
        counts = [f"{row[name]} {name.replace('_', ' ')}" for name in OUTCOMES if name in row]
        drops = f"accuracy drops: {row['accuracy_drops']} in {row['epochs']} epochs"
        lengths = f"effective length {describe_lengths(group)}"
        return f"{group_label(*group)}: {lengths}; {', '.join(counts)}; {drops}"

    return [describe_group(row) for row in drops_table(table).to_dict("records")]


def plot_accuracy(table: pd.DataFrame, out: Path) -> list[Path]:
    """Plots, for each cell, mean accuracy over initialization (and variant) and length."""
    paths = []
    for cell, part in table.groupby("cell"):
        by_setting = part.groupby(["init", "variant", "length"])["val_accuracy"]
        mean = by_setting.mean()
        by_length = mean.unstack()
        by_length.index = [init if v == "full" else f"{init} {v}" for init, v in by_length.index]
        by_length = by_length.sort_index()
        alt = "Mean accuracy at the end of training. " + " ".join(
            f"{init}: "
            + ", ".join(f"{value:.0%} at {n}" for n, value in row.dropna().items())
            + "."
            for init, row in by_length.iterrows()
        )
        seeds = by_setting.size()
        count = "1 seed" if seeds.max() == 1 else f"{seeds.max()} seeds"
        if seeds.min() < seeds.max():
            count = f"{seeds.min()} to {count}"
        title = f"{CELL_LABELS[cell]}: accuracy at the end of training (mean of {count})"
        figure = heat_map(
            by_length, title, "sequence length (digits read)", "initialization",
            "validation accuracy (%)",
        )  # fmt: skip
        paths.append(save(figure, mean.reset_index(), out, f"accuracy_{cell}", alt))
    return paths


def plot_effective_length(table: pd.DataFrame, trials: list[Trial], out: Path) -> Path:
    """Plots the effective length of each seed, by group."""
    lengths = effective_length_per_seed(table, trials)
    groups = list(lengths.groupby(GROUP_COLUMNS))
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.4 * len(groups)))
    lines = []
    for position, (group, part) in enumerate(groups):
        values = part["effective_length"]
        step = min(0.12, 0.8 / len(part))  # shows equal seeds, too, all of them in their row
        y = position + step * (part["seed"].rank() - (len(part) + 1) / 2)
        axes.plot(values, y, ls="", **CELL_STYLES[group[0]])
        lines.append(f"{group_label(*group)}: {', '.join(map(str, sorted(values)))}.")
    axes.set_yticks(range(len(groups)), [group_label(*group) for group, _ in groups])
    axes.invert_yaxis()
    axes.set(
        title="Effective length of each seed (0: none)",
        xlabel="sequence length up to which every length ends at 99 %",
    )
    alt = "The sequence length up to which every length ends at 99 %, for each seed. "
    return save(figure, lengths, out, "effective_length", alt + " ".join(lines))


def plot_sequences(table: pd.DataFrame, out: Path) -> Path:
    """Plots how many sequences each trial saw until 99 %, over the length, by cell."""
    cells = list(table.groupby("cell"))
    figure, panels = plt.subplots(
        1, len(cells), figsize=(1 + 4.4 * len(cells), 4.4), sharex=True, sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    lines = []
    for axes, (cell, of_cell) in zip(panels.flat, cells, strict=True):
        lines += _plot_sequences_of_cell(axes, cell, of_cell, table["length"])
    figure.supxlabel("sequence length (digits read)")
    panels[0, 0].set_ylabel("sequences until 99 %, line: median (▲: not reached)")
    where = "where more than half of the seeds reached it"
    alt = f"Median sequences until 99 %, {where}. " + " ".join(lines)
    columns = [*GROUP_COLUMNS, "length", "seed", "sequences_to_99", "sequences_seen"]
    return save(figure, table[columns], out, "sequences_to_99", alt)


def _plot_sequences_of_cell(
    axes: Axes, cell: str, table: pd.DataFrame, all_lengths: pd.Series
) -> list[str]:
    """Plots one cell's panel; returns its description, a line for each group."""
    marker = CELL_STYLES[cell]["marker"]
    span = max(2, all_lengths.max() / all_lengths.min())  # 1 if there is a single length
    lines = []
    for number, ((group, part), color) in enumerate(
        zip(table.groupby(GROUP_COLUMNS), cycle(PALETTE), strict=False)
    ):
        rank = part["seed"].rank(method="dense")
        x = part["length"] * span ** (SEED_JITTER * (rank - rank.mean()) / rank.max())
        reached = part[part["sequences_to_99"].notna()]
        never = part[part["sequences_to_99"].isna()]
        # A trial that never reached it took longer than any other.
        sequences = part["sequences_to_99"].astype(float).fillna(np.inf)
        medians = sequences.groupby(part["length"]).median()
        median = medians.where(np.isfinite(medians))
        axes.plot(
            x[reached.index], reached["sequences_to_99"], ls="", marker=marker, ms=4, color=color
        )
        shifted = x[never.index] * span ** (GROUP_JITTER * number)
        axes.plot(shifted, never["sequences_seen"], ls="", marker="^", ms=5, color=color)
        label = group_label(*group).removeprefix(f"{CELL_LABELS[cell]}, ")
        # The marker shows a median between two lengths without one, where there is no line.
        axes.plot(median.index, median, lw=1.2, marker="_", ms=9, label=label, color=color)
        lines.append(
            f"{group_label(*group)}: "
            + ", ".join(f"{value:,.0f} at {length}" for length, value in median.dropna().items())
            + (f"; {len(never)} of {len(part)} trials never." if len(never) else ".")
        )
    axes.set(title=CELL_LABELS[cell], xscale="log", yscale="log")
    ticks = spaced_ticks(all_lengths)
    axes.set_xticks(ticks, [f"{length:,}" for length in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    for lag, sequences in PUBLISHED.items():
        if cell == "lstm" and lag <= 2 * all_lengths.max():
            axes.plot(lag, sequences, ls="", marker="*", ms=11, color="black")
            axes.annotate(
                f"{sequences:,}: Hochreiter\n& Schmidhuber 1997",
                (lag, sequences), (0, 8), textcoords="offset points", ha="center", size=8,
            )  # fmt: skip
    return lines


def spaced_ticks(lengths: pd.Series) -> list[int]:
    """Returns lengths, the longest first, whose labels do not touch on a logarithmic axis."""
    label_width = (lengths.max() / lengths.min()) ** 0.06  # as a factor along the axis
    ticks: list[int] = []
    for length in sorted(lengths.unique(), reverse=True):
        if not ticks or length * label_width <= ticks[-1]:
            ticks.append(length)
    return ticks


def plot_drops(table: pd.DataFrame, out: Path) -> Path:
    """Plots accuracy drops per 100 epochs and the outcomes of the trials, by group."""
    drops = drops_table(table)
    labels = [group_label(*group) for group in drops[GROUP_COLUMNS].itertuples(index=False)]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 1.4 + 0.32 * len(drops)), sharey=True, layout="constrained"
    )
    positions = np.arange(len(drops))
    left.barh(positions, drops["accuracy_drops_per_100"], color=PALETTE[1])
    left.set_yticks(positions, labels)
    left.invert_yaxis()
    left.set(
        title="Accuracy drops (> 5 points)\nper 100 epochs",
        xlim=(0, 1.05 * max(1, drops["accuracy_drops_per_100"].max())),
    )
    edge = np.zeros(len(drops))
    outcomes = [name for name in OUTCOMES if name in drops]
    for name in outcomes:
        label, color = name.replace("_", " "), OUTCOME_COLORS[name]
        right.barh(positions, drops[name], left=edge, color=color, label=label)
        edge += drops[name]
    right.set(title="Outcomes of the trials")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4)
    lines = " ".join(
        f"{label}: drops {row['accuracy_drops']} in {row['epochs']} epochs, "
        + ", ".join(f"{row[name]} {name.replace('_', ' ')}" for name in outcomes)
        + "."
        for label, (_, row) in zip(labels, drops.iterrows(), strict=True)
    )
    return save(
        figure, drops, out, "accuracy_drops", f"Accuracy drops and outcomes of trials. {lines}"
    )


def plot_gradients(gradients: pd.DataFrame, out: Path) -> Path:
    """Plots, by group, the gradient norm over the steps back: the seeds' geometric mean."""
    groups = list(gradients.groupby(GROUP_COLUMNS))
    rows = -(-len(groups) // 4)
    columns = -(-len(groups) // rows)
    figure, panels = plt.subplots(
        rows, columns, figsize=(max(7, 2.6 * columns + 1), 2.4 * rows + 0.6), sharex=True,
        sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    lines = []
    for axes, (group, part) in zip(panels.flat, groups, strict=False):
        for epoch, color in (("first epoch", PALETTE[0]), ("last epoch", PALETTE[1])):
            for state, style in (("h", "-"), ("c", ":")):
                column = f"grad_norm_{state}"
                if column not in part or part[column].isna().all():
                    continue
                norms = part[part["epoch_label"] == epoch].groupby("steps_back")[column]
                mean = norms.apply(lambda n: np.exp(np.log(n.clip(lower=FLOAT32_MIN)).mean()))
                axes.plot(mean.index, mean, style, color=color, label=f"{state}, {epoch}")
                lines.append(
                    f"{group_label(*group)}, {state}, {epoch}: {mean.iloc[0]:.1e} at the end, "
                    f"{mean.iloc[-1]:.1e} at the beginning of the sequence."
                )
        axes.set_title(group_label(*group), size=9)
    hide_unused(panels, len(groups))
    panels[0, 0].set(yscale="log", ylim=(max(1e-12, gradients["grad_norm_h"].min() / 2), None))
    figure.supxlabel("steps back from the end")
    figure.supylabel("gradient norm")
    figure.legend(*_longest_legend(panels), loc="outside right upper")
    length = gradients["length"].iloc[0]
    title = f"Gradient of the loss with respect to the state, sequence length {length}"
    figure.suptitle(title, x=0.01, ha="left", size=10)  # the legend is at the right
    alt = "Gradient norm over the steps back. " + " ".join(lines)
    return save(figure, gradients, out, "gradients", alt)


def _longest_legend(panels: np.ndarray) -> tuple[list, list]:
    return max((axes.get_legend_handles_labels() for axes in panels.flat), key=lambda h: len(h[0]))
