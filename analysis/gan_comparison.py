"""Runs of the GAN side by side: quality over the epochs, and at their last evaluations."""

from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from analysis.cli import ResultsError
from analysis.figures import LINESTYLES, PALETTE, save
from analysis.gan_figures import read_run
from analysis.interpolation import smoothness_table
from analysis.results import Trial
from models import gan
from models.classifier import load_classifier

METRICS = {
    "frechet_distance": "Fréchet distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "confidence": "confidence",
    "kl_to_uniform": "KL to uniform (nats)",
    "rarest_class_fraction": "rarest class fraction",
}
STYLES = [{"color": c, "ls": ls} for c, ls in zip(PALETTE, LINESTYLES, strict=True)]

Runs = dict[str, tuple[Trial, gan.Generator]]  # each with its latest generator, by its name


def read_runs(folders: dict[str, str]) -> Runs:
    """Reads runs of jobs/gan.py from folders or URIs, by the names of the runs.

    Raises:
        ResultsError: a folder is not such a run, or has no checkpoint or evaluation yet.
    """
    runs = {}
    for name, folder in folders.items():
        run, generators = read_run(folder)
        if not any("frechet_distance" in row for row in run.rows):
            raise ResultsError(f"{folder}: no evaluation yet")
        runs[name] = run, generators[max(generators)]
    return runs


def quality_over_epochs(runs: Runs) -> pd.DataFrame:
    """Returns the metrics of each evaluation of each run: run, seed, epoch, METRICS."""
    tables = []
    for name, (run, _) in runs.items():
        rows = pd.DataFrame(run.rows).dropna(subset="frechet_distance")
        rows = rows.assign(run=name, seed=run.config["seed"])
        tables.append(rows[["run", "seed", "epoch", *METRICS]])
    return pd.concat(tables, ignore_index=True)


def median_smoothness(run: Trial, generator: gan.Generator) -> dict[str, float]:
    """Returns the median of largest step / mean step, for each kind of path between two digits."""
    table = smoothness_table(generator, run.config["seed"], load_classifier())
    medians = table.groupby("path", sort=False)["largest/mean step"].median()
    return {f"smoothness, {path}": ratio for path, ratio in medians.items()}


def plot_quality_over_epochs(table: pd.DataFrame, out: Path) -> Path:
    """Plots each metric over the epochs, with a line for each run."""
    figure, panels = plt.subplots(2, 4, figsize=(14, 6), sharex=True, layout="constrained")
    for axes, (metric, label) in zip(panels.flat, METRICS.items(), strict=True):
        groups = table.groupby("run", sort=False)
        for (run, rows), style in zip(groups, cycle(STYLES), strict=False):
            axes.plot(rows["epoch"], rows[metric], lw=1.4, label=run, **style)
        axes.set_title(label)
        if metric in ("frechet_distance", "kl_to_uniform"):
            axes.set_yscale("log")
        else:
            axes.set_ylim(0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    alt = "At the last evaluation of each run: " + "; ".join(
        f"{row.run}, epoch {row.epoch}: Fréchet distance {row.frechet_distance:.3g}, "
        f"recall {row.recall:.3g}, coverage {row.coverage:.3g}"
        for row in table.groupby("run", sort=False).tail(1).itertuples()
    )
    return save(figure, table, out, "quality_over_epochs", alt)


def compare_gans(runs: Runs, out: Path) -> tuple[pd.DataFrame, list[Path]]:
    """Plots the quality of each run; returns the table that quality.csv has, and the paths.

    The table has a row for each metric, and for the smoothness of interpolations; a column for each
    run, and their median, smallest and largest value.
    """
    table = quality_over_epochs(runs)
    path = plot_quality_over_epochs(table, out)
    final = table.groupby("run", sort=False).tail(1).set_index("run")[["epoch", *METRICS]].T
    smoothness = pd.DataFrame({name: median_smoothness(*run) for name, run in runs.items()})
    values = pd.concat([final, smoothness])
    quality = values.assign(
        median=values.median(axis=1), smallest=values.min(axis=1), largest=values.max(axis=1)
    )
    quality.rename_axis("metric").reset_index().to_csv(out / "quality.csv", index=False)
    return quality, [path, out / "quality.csv"]
