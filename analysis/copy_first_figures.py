"""Figures of task copy-first: test error over length, learning, gradients."""

import math
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from analysis.cli import show_progress
from analysis.figures import (
    CELL_LABELS,
    CELL_STYLES,
    INIT_LINESTYLES,
    LINESTYLES,
    PALETTE,
    hide_unused,
    save,
)
from analysis.horizon_figures import FLOAT32_MIN, plot_gradients, spaced_ticks
from analysis.results import CONFIG_COLUMNS, Trial
from analysis.transfer import losses_on_unseen
from analysis.trial_metrics import gradients_table, steps_per_epoch
from models import recurrent
from models.gradient_flow import gradient_norms
from models.sequences import Sequences
from models.tasks import CopyFirst

INIT_COLORS = dict(zip(sorted(recurrent.INIT_NAMES), cycle(PALETTE), strict=False))
THRESHOLDS = {"chance": CopyFirst.chance, "solved": CopyFirst.solved_mse}
PAPER_LENGTHS = (5, 50, 100, 300, 600)  # of Vecoven et al. 2021
FIRST_GRADIENT_LABEL = "norm of the gradient with respect to\nthe states after the first input"
UNTRAINED_SEQUENCES = 20  # for the gradient of an untrained network: a mean over sequences


def plot_copy_first(
    finished: list[Trial], num_test_samples: int, out: Path
) -> tuple[pd.DataFrame, list[Path]]:
    """Plots all figures of the finished trials; returns the table of test errors, and the paths.

    Args:
        num_test_samples: sequences of each test of a network.
    """
    table = losses_on_unseen(finished, num_test_samples)
    table = table.rename(columns={"test_loss": "test_mse"}).sort_values([*CONFIG_COLUMNS, "seed"])
    paths = [plot_test_mse(table, out)] if len(table) else []
    history = history_table(finished)
    paths.append(plot_learning(history, out))
    if "grad_norm_first_input" in history and history["grad_norm_first_input"].notna().any():
        paths.append(plot_first_gradient(history.dropna(subset="grad_norm_first_input"), out))
        probed = [trial for trial in finished if trial.rows[0].get("grad_norm_h")]
        paths.append(plot_untrained_gradient(untrained_gradients_table(probed), out))
    gradients = gradients_table(finished)
    if len(gradients):
        paths.append(plot_gradients(gradients, out))
    return table, paths


def describe_copy_first(table: pd.DataFrame) -> list[str]:
    """Returns a line for each cell, initialization and length: the test errors of its seeds."""
    lines = []
    for (cell, init, length), part in table.groupby(CONFIG_COLUMNS):
        errors = ", ".join(f"{mse:.4f}" for mse in part["test_mse"])
        solved = (part["test_mse"] < CopyFirst.solved_mse).sum()
        lines.append(
            f"{CELL_LABELS[cell]}, {init} initialization, length {length}: "
            f"{solved} of {len(part)} solved; test MSE {errors}"
        )
    return lines


def plot_test_mse(table: pd.DataFrame, out: Path) -> Path:
    """Plots the test error over the length: each seed, and a line through the seeds' medians."""
    figure, panels = _plot_over_length(table, "test_mse", "test mean squared error")
    for axes in panels:
        _plot_thresholds(axes, THRESHOLDS)
    alt = "Test mean squared error. " + ". ".join(describe_copy_first(table)) + "."
    return save(figure, table, out, "test_mse", alt)


def untrained_gradients_table(trials: list[Trial]) -> pd.DataFrame:
    """Returns the gradient at the first input of the trials' networks before training.

    It is that with respect to the hidden states after the first input, at each of PAPER_LENGTHS,
    also those without a trial; with the other settings of the trial of the longest sequences. In
    float64: float32 has no positive numbers below 1e-45.
    """
    rows = []
    networks = {
        (trial.config["cell"], trial.config["init"], trial.config["seed"]): trial
        for trial in sorted(trials, key=lambda trial: trial.config["length"])
    }
    for (cell, init, seed), trial in show_progress([*networks.items()], "probing network"):
        config = trial.config
        for length in PAPER_LENGTHS:
            network = recurrent.build(
                cell, config["hidden_size"], init, seed, length, config["input_encoding"],
                config["num_layers"], trial.task.num_outputs,
            ).double()  # fmt: skip
            data = trial.task.sample_unseen(seed, length, UNTRAINED_SEQUENCES)
            data = Sequences(data.inputs.double(), data.targets.double())
            norm = gradient_norms(network, trial.task, data)["h"][length - 1].item()
            labels = {"cell": cell, "init": init, "length": length, "seed": seed}
            rows.append({**labels, "grad_norm_first_input": norm})
    return pd.DataFrame(rows).sort_values([*CONFIG_COLUMNS, "seed"])


def plot_untrained_gradient(table: pd.DataFrame, out: Path) -> Path:
    """Plots over the length the gradient that reaches the first input before training."""
    column = "grad_norm_first_input"
    figure, panels = _plot_over_length(table, column, FIRST_GRADIENT_LABEL)
    if table[column].min() < FLOAT32_MIN:
        for axes in panels:
            _plot_thresholds(axes, {"smallest\nfloat32": FLOAT32_MIN})
            axes.yaxis.set_major_locator(LogLocator(base=1e20))
    medians = table.groupby(CONFIG_COLUMNS)[column].median()
    text = " ".join(
        f"{CELL_LABELS[cell]}, {init}, length {length}: {norm:.0e}."
        for (cell, init, length), norm in medians.items()
    )
    alt = f"Gradient norm after the first input before training, median of the seeds. {text}"
    return save(figure, table, out, "untrained_gradient", alt)


def _plot_over_length(table: pd.DataFrame, column: str, ylabel: str) -> tuple[Figure, list[Axes]]:
    """Plots a column over the length: each seed, and a line through the seeds' medians.

    In a panel for each cell. Initializations are plotted side by side, so that none hides
    another at the same value.
    """
    cells, inits = sorted(table["cell"].unique()), sorted(table["init"].unique())
    figure, panels = plt.subplots(
        1, len(cells), figsize=(1.6 + 3.4 * len(cells), 4), sharex=True, sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    span = max(2, table["length"].max() / table["length"].min())  # 1 with a single length
    gap = span**0.02  # as a factor along the axis
    shown: dict[str, Artist] = {}
    for axes, cell in zip(panels[0], cells, strict=True):
        for init, part in table[table["cell"] == cell].groupby("init"):
            style = {**CELL_STYLES[cell], "color": INIT_COLORS[init]}
            offset = gap ** (inits.index(init) - (len(inits) - 1) / 2)
            # That of a network that has diverged is NaN: it counts as infinite. Of two seeds, the
            # larger: no trial has the mean of both.
            by_length = part.fillna({column: math.inf}).groupby("length")[column]
            median = by_length.quantile(interpolation="higher")
            axes.plot(part["length"] * offset, part[column], ls="", **style)
            (shown[init],) = axes.plot(
                median.index * offset,
                median,
                ls=INIT_LINESTYLES[init],
                lw=1.4,
                color=style["color"],
            )
        axes.set(title=CELL_LABELS[cell], xscale="log", yscale="log")
        axes.xaxis.set_major_locator(FixedLocator(spaced_ticks(table["length"])))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
    figure.supxlabel("sequence length (numbers read)")
    figure.supylabel(ylabel)
    _add_legend(figure, shown)
    return figure, list(panels[0])


def history_table(trials: list[Trial]) -> pd.DataFrame:
    """Returns a row for each epoch: the error; of probed trials the gradient at the first input.

    It is that with respect to the hidden states after the first input.
    """
    rows = []
    for trial in trials:
        settings = {name: trial.config[name] for name in (*CONFIG_COLUMNS, "seed")}
        for row in trial.rows:
            found = {"step": row["epoch"] * steps_per_epoch(trial), "val_mse": row["val_loss"]}
            if norms := row.get("grad_norm_h"):  # by steps back from the end
                found["grad_norm_first_input"] = norms[trial.config["length"] - 1]
            rows.append(settings | found)
    return pd.DataFrame(rows)


def plot_learning(table: pd.DataFrame, out: Path) -> Path:
    """Plots the validation error over the training steps."""
    figure, panels = _plot_over_steps(table, "val_mse", "validation mean squared error")
    for axes in panels:
        _plot_thresholds(axes, THRESHOLDS)
    text = _describe_ends(table, "val_mse", "{:.4f}")
    alt = f"Validation mean squared error over the steps. {text}"
    data = table.drop(columns="grad_norm_first_input", errors="ignore")
    return save(figure, data, out, "learning", alt)


def plot_first_gradient(table: pd.DataFrame, out: Path) -> Path:
    """Plots over the training steps the gradient that reaches the first input."""
    name = "grad_norm_first_input"
    figure, panels = _plot_over_steps(table, name, FIRST_GRADIENT_LABEL)
    if table[name].min() < FLOAT32_MIN:
        for axes in panels:
            _plot_thresholds(axes, {"0 in\nfloat32": FLOAT32_MIN})
            axes.yaxis.set_major_locator(LogLocator(base=1e10))
    text = _describe_ends(table, name, "{:.0e}")
    alt = f"Norm of the gradient with respect to the state after the first input. {text}"
    return save(figure, table.drop(columns="val_mse"), out, "first_gradient", alt)


def _plot_over_steps(table: pd.DataFrame, column: str, ylabel: str) -> tuple[Figure, list[Axes]]:
    """Plots a column over the training steps, in a panel for each cell and length.

    Colors are initializations. Line styles are seeds, if there are as many styles.
    """
    seeds = sorted(table["seed"].unique())
    tell_apart = 1 < len(seeds) <= len(LINESTYLES)
    styles = dict(zip(seeds, LINESTYLES if tell_apart else cycle("-"), strict=False))
    groups = list(table.groupby(["cell", "length"]))
    columns = min(4, table["length"].nunique())
    rows = -(-len(groups) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(1 + 3.6 * columns, 0.8 + 2.6 * rows), sharey=True,
        sharex=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    shown: dict[str, Artist] = {}
    for axes, ((cell, length), part) in zip(panels.flat, groups, strict=False):
        for (init, seed), curve in part.groupby(["init", "seed"]):
            values = curve[column].clip(lower=FLOAT32_MIN)  # a gradient may be 0 in float32
            axes.plot(curve["step"], values, lw=1.2, ls=styles[seed], color=INIT_COLORS[init])
            shown[init] = Line2D([], [], color=INIT_COLORS[init])
        axes.set(title=f"{CELL_LABELS[cell]}, length {length}", xscale="log", yscale="log")
    axes, steps = panels[0, 0], table["step"]
    subs = (1, 3) if steps.max() > 10 * steps.min() else (1, 2, 5)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    hide_unused(panels, len(groups))
    figure.supxlabel("training steps")
    figure.supylabel(ylabel)
    _add_legend(figure, shown)
    if tell_apart:
        lines = [Line2D([], [], color="black", ls=styles[seed]) for seed in seeds]
        figure.legend(lines, seeds, title="seed", loc="outside right lower")
    return figure, list(panels.flat[: len(groups)])


def _add_legend(figure: Figure, shown: dict[str, Artist]) -> None:
    names = sorted(shown)
    lines = [shown[name] for name in names]
    figure.legend(lines, names, title="initialization", loc="outside right upper")


def _describe_ends(table: pd.DataFrame, column: str, form: str) -> str:
    """Says of each trial what a column was after its last epoch."""
    last = table.groupby([*CONFIG_COLUMNS, "seed"]).tail(1)
    return " ".join(
        f"{CELL_LABELS[row['cell']]}, {row['init']}, length {row['length']}, seed {row['seed']}: "
        f"{form.format(row[column])} after {row['step']:,} steps."
        for row in last.to_dict("records")
    )


def _plot_thresholds(axes: Axes, values: dict[str, float]) -> None:
    """Plots horizontal lines, labeled at the right of the last panel of a row."""
    for name, value in values.items():
        axes.axhline(value, color="black", lw=1, ls=(0, (1, 2)))
        panel, transform = axes.get_subplotspec(), axes.get_yaxis_transform()
        if panel and panel.is_last_col():
            axes.text(1.01, value, name, transform=transform, va="center", size=8)
