"""Compares sweeps that differ in a setting, or runs of the GAN.

  python analysis/compare.py ~/ray_results/figures ~/ray_results/figures-adam
  python analysis/compare.py ~/ray_results/gan-seed0 ~/ray_results/gan-seed1

For sweeps, it plots accuracy over length, a panel for each, and writes
outcomes.csv: the outcomes, effective length and sharp drops of each cell. Only
cells and lengths that all sweeps have are compared.
For GANs, it plots image quality over the epochs, and writes quality.csv: the
last evaluation of each run, with median, smallest and largest value.
"""

from analysis import cli

if __name__ == "__main__":
    cli.start_script()  # before the imports, which take seconds

import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from analysis.cli import ResultsError
from analysis.figures import CELL_LABELS, save
from analysis.gan_comparison import compare_gans, read_runs
from analysis.gan_figures import OTHER_DATA
from analysis.results import CONFIG_COLUMNS, Trial, read_sweeps, read_trials
from analysis.run_figures import is_gan
from analysis.sweep_figures import describe_accuracy, format_range, plot_accuracies
from analysis.tables import format_table, trials_table
from analysis.trial_metrics import (
    OUTCOMES,
    count_sharp_drops,
    effective_lengths,
    format_length,
    outcomes_table,
    summarize_seeds,
)

Sweeps = dict[str, list[Trial]]  # trials by the name of their run


def by_name(runs: list[str]) -> dict[str, str]:
    """Returns the folders or URIs of runs by their names.

    Raises:
        ResultsError: two runs have the same name.
    """
    folders: dict[str, str] = {}
    for run in runs:
        name = Path(run.partition("?")[0] if "://" in run else os.path.abspath(run)).name
        if name in folders:
            raise ResultsError(f"two runs are called {name}: rename a folder, for the labels")
        folders[name] = run
    return folders


def read_comparable(folders: dict[str, str]) -> Sweeps:
    """Returns the trials of each run: those of cells, initializations and lengths that all have.

    Raises:
        ResultsError: the runs have no trials in common, or a run has no finished trial of these.
    """
    sweeps = {run: read_sweeps([folder]) for run, folder in folders.items()}
    keys = [{_key(trial) for trial in trials} for trials in sweeps.values()]
    common = set.intersection(*keys)
    found = {run: [t for t in trials if _key(t) in common] for run, trials in sweeps.items()}
    for run, trials in found.items():
        if not any(trial.is_finished() for trial in trials):
            raise ResultsError(
                f"{run}: no finished trial of a cell, initialization and length that all runs have"
            )
    return found


def _key(trial: Trial) -> tuple:
    return tuple(trial.config[name] for name in CONFIG_COLUMNS)


def differing_settings(sweeps: Sweeps) -> dict[str, dict[str, Any]]:
    """Returns, by run, the settings that each run has one value of, and not all runs the same."""
    values = {
        run: {name: {str(trial.config.get(name)) for trial in trials} for name in trials[0].config}
        for run, trials in sweeps.items()
    }
    names = [
        name
        for name in next(iter(values.values()))
        if all(len(found.get(name, ())) == 1 for found in values.values())
        and len({min(found[name]) for found in values.values()}) > 1
    ]
    return {run: {name: min(found[name]) for name in names} for run, found in values.items()}


def _label(run: str, settings: dict[str, Any]) -> str:
    """Returns the name of a run with the settings in which it differs."""
    differing = ", ".join(f"{name} {value}" for name, value in settings.items())
    return f"{run}: {differing}" if differing else run


def outcomes(sweeps: Sweeps) -> pd.DataFrame:
    """Returns a row for each run, cell and initialization, over all lengths and seeds."""
    rows = []
    for run, trials in sweeps.items():
        finished = [trial for trial in trials if trial.is_finished()]
        lengths = effective_lengths(finished, trials)
        for (cell, init), part in outcomes_table(finished).groupby(["cell", "init"], sort=False):
            histories = [
                trial.val_accuracies()
                for trial in finished
                if (trial.config["cell"], trial.config["init"]) == (cell, init)
            ]
            counts = part["outcome"].value_counts()
            rows.append(
                {"run": run, "cell": CELL_LABELS[cell], "init": init}
                | {"lengths": format_range(part["length"]), "trials": len(part)}
                | {name: int(counts.get(name, 0)) for name in OUTCOMES}
                | {"effective_length": format_length(lengths[cell, init])}
                | {
                    "sharp_drops": sum(map(count_sharp_drops, histories)),
                    "epochs": sum(map(len, histories)),
                }
            )
    return pd.DataFrame(rows)


def plot_comparison(sweeps: Sweeps, out: Path) -> Path:
    """Plots accuracy over length, with a panel for each run."""
    figure, panels = plt.subplots(
        1, len(sweeps), figsize=(6.2 * len(sweeps), 4), sharey=True, squeeze=False
    )
    settings, tables, texts = differing_settings(sweeps), [], []
    for axes, (run, trials) in zip(panels[0], sweeps.items(), strict=True):
        finished = [trial for trial in trials if trial.is_finished()]
        summary = summarize_seeds(trials_table(finished))
        lengths = effective_lengths(finished, trials)
        title = _label(run, settings[run])
        plot_accuracies(axes, summary, title, lengths)
        axes.label_outer()
        tables.append(summary.assign(run=run))
        texts.append(f"{title}. {describe_accuracy(summary, lengths)}")
    return save(figure, pd.concat(tables), out, "side_by_side", " ".join(texts))


def main() -> int:
    parser = cli.ArgumentParser(__doc__)
    cli.add_runs_and_out(parser, "compare", runs="sweeps, or of runs of the GAN")
    args = parser.parse_args()
    folders = by_name(args.runs)
    if is_gan(read_trials(args.runs[0])):
        gans = read_runs(folders)
        cli.make_out_dir(args.out)
        settings = differing_settings({name: [run] for name, (run, _) in gans.items()})
        labels = {name: _label(name, differing) for name, differing in settings.items()}
        quality, figures = compare_gans(gans, labels, args.out)
        if any(run.config["data"] for run, _ in gans.values()):
            print(OTHER_DATA, end="")
        print(quality.to_string(float_format="{:.4g}".format))
        for name, (_, generator) in gans.items():
            if generator is None:
                print(f"{name}: no smoothness, its last evaluated generator was not kept")
        print(*figures, sep="\n")
        return 0
    sweeps = read_comparable(folders)
    cli.make_out_dir(args.out)
    table = outcomes(sweeps)
    table.to_csv(args.out / "outcomes.csv", index=False)
    everything = [trial for trials in sweeps.values() for trial in trials]
    finished = sum(trial.is_finished() for trial in everything)
    figures = [plot_comparison(sweeps, args.out), args.out / "outcomes.csv"]
    cli.print_summary([format_table(table)], figures, finished, len(everything))
    return 0


if __name__ == "__main__":
    cli.run_main(main)
