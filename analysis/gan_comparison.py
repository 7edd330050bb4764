"""Runs of the GAN side by side: quality over the epochs, and at their last evaluations."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from analysis.cli import ResultsError
from analysis.figures import LINESTYLES, PALETTE, hide_unused, save
from analysis.gan_figures import read_run
from analysis.interpolation import smoothness_table
from analysis.results import Trial
from models import gan
from models.classifier import Classifier, load_classifier

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
COLUMNS = 4  # panels beside each other

# By run name, with the generator of its last evaluation: None if its checkpoint was not kept.
Runs = dict[str, tuple[Trial, gan.Generator | None]]


def read_runs(folders: dict[str, str]) -> Runs:
    """Reads runs of jobs/gan.py from folders or URIs, by the names of the runs.

    Raises:
        ResultsError: a folder is not such a run, or has no checkpoint or evaluation yet; or the
            runs have different datasets.
    """
    runs: Runs = {}
    for name, folder in folders.items():
        run, generators = read_run(folder)
        evaluated = [row["epoch"] for row in run.rows if "frechet_distance" in row]
        if not evaluated:
            raise ResultsError(f"{folder}: no evaluation yet")
        runs[name] = run, generators.get(evaluated[-1])
    if len({run.config["data"] for run, _ in runs.values()}) > 1:
        raise ResultsError("runs of different datasets: their metrics cannot be compared")
    return runs


def quality_over_epochs(runs: Runs) -> pd.DataFrame:
    """Returns the metrics of each evaluation of each run: run, seed, epoch, METRICS."""
    tables = []
    for name, (run, _) in runs.items():
        rows = pd.DataFrame(run.rows).dropna(subset="frechet_distance")
        rows = rows.assign(run=name, seed=run.config["seed"])
        # A run of an older version may lack a metric.
        tables.append(rows.reindex(columns=["run", "seed", "epoch", *METRICS]))
    return pd.concat(tables, ignore_index=True)


def median_smoothness(
    run: Trial, generator: gan.Generator | None, classifier: Classifier
) -> dict[str, float]:
    """Returns the median of largest step / mean step, for each kind of path between two digits.

    Without a generator, or where it makes no two digits, there is none.
    """
    if generator is None:
        return {}
    table = smoothness_table(generator, run.config["seed"], classifier)
    medians = table.groupby("path", sort=False)["largest/mean step"].median()
    return {f"smoothness, {path}": ratio for path, ratio in medians.items()}


def plot_quality_over_epochs(table: pd.DataFrame, labels: dict[str, str], out: Path) -> Path:
    """Plots each metric over the epochs, with a line for each run.

    Args:
        labels: what the legend says of each run.
    """
    figure, panels = plt.subplots(
        -(-len(METRICS) // COLUMNS), COLUMNS, figsize=(14, 6), sharex=True, layout="constrained"
    )
    for axes, (metric, title) in zip(panels.flat, METRICS.items(), strict=False):
        for i, (run, rows) in enumerate(table.groupby("run", sort=False)):
            # With more runs than colors, each color gets another line style.
            color = PALETTE[i % len(PALETTE)]
            style = LINESTYLES[(i + i // len(PALETTE)) % len(LINESTYLES)]
            axes.plot(rows["epoch"], rows[metric], "o", ms=2.5, ls=style, lw=1.4, color=color,
                      label=labels[run])  # fmt: skip
        axes.set_title(title)
        if metric in ("frechet_distance", "kl_to_uniform"):
            axes.set_yscale("log")
        else:
            axes.set_ylim(0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in hide_unused(panels, len(METRICS)):
        axes.set_xlabel("epoch")
    handles, texts = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=min(5, len(texts)))
    alt = "At the last evaluation of each run: " + "; ".join(
        f"{labels[row.run]}, epoch {row.epoch}: Fréchet distance {row.frechet_distance:.3g}, "
        f"recall {row.recall:.3g}, coverage {row.coverage:.3g}"
        for row in table.groupby("run", sort=False).tail(1).itertuples()
    )
    return save(figure, table, out, "quality_over_epochs", alt)


def compare_gans(runs: Runs, labels: dict[str, str], out: Path) -> tuple[pd.DataFrame, list[Path]]:
    """Plots the quality of each run; returns the table that quality.csv has, and the paths.

    The table has a row for each metric, and for the smoothness of interpolations; a column for each
    run, and their median, smallest and largest value. These are missing where a run has no value.

    Args:
        labels: what the figure's legend says of each run.
    """
    table, classifier = quality_over_epochs(runs), load_classifier()
    path = plot_quality_over_epochs(table, labels, out)
    final = table.groupby("run", sort=False).tail(1).set_index("run")[["epoch", *METRICS]].T
    smoothness = {name: median_smoothness(*run, classifier) for name, run in runs.items()}
    values = pd.concat([final, pd.DataFrame(smoothness, columns=list(runs))])
    spread = values.agg(["median", "min", "max"], axis=1, skipna=False)
    quality = values.join(spread.rename(columns={"min": "smallest", "max": "largest"}))
    quality.rename_axis("metric").reset_index().to_csv(out / "quality.csv", index=False)
    return quality, [path, out / "quality.csv"]
