"""All figures of a run: those that the script for its kind of run makes."""

from pathlib import Path

from analysis import gan_figures
from analysis.copy_first_figures import describe_copy_first, plot_copy_first
from analysis.horizon_figures import describe_horizon, plot_horizon
from analysis.results import CONFIG_COLUMNS, Trial, unknown_name
from analysis.sweep_figures import describe_sweep, plot_sweep
from models.classifier import load_classifier


def is_gan(trials: list[Trial]) -> bool:
    return "latent_dim" in trials[0].config


def is_sweep(trials: list[Trial]) -> bool:
    required = {*CONFIG_COLUMNS, "seed", "task", "variant", "epochs", "hidden_size"}
    required.add("stop_after_solved_epochs")
    has_settings = all(
        required <= trial.config.keys() and not unknown_name(trial.config) for trial in trials
    )
    return has_settings and all(
        isinstance(row.get("epoch"), int) and isinstance(row.get(trial.task.metric), float)
        for trial in trials
        for row in trial.rows
    )


def plot_finished(
    finished: list[Trial], trials: list[Trial], num_test_samples: int, out: Path
) -> tuple[list[str], list[Path]]:
    """Returns the findings and figures of a sweep.

    They are those of the script that jobs/sweep.py names when such a sweep is done.
    """
    if trials[0].config["task"] == "palindrome" and any(
        trial.config["stop_after_solved_epochs"] or trial.config["variant"] != "full"
        for trial in trials
    ):
        return describe_horizon(finished, trials), plot_horizon(finished, trials, out)
    return plot_sweep_of_task(finished, trials, num_test_samples, out)


def plot_sweep_of_task(
    finished: list[Trial], trials: list[Trial], num_test_samples: int, out: Path
) -> tuple[list[str], list[Path]]:
    """Returns the findings and figures of analysis/sweep.py."""
    if trials[0].config["task"] == "copy-first":
        table, paths = plot_copy_first(finished, num_test_samples, out)
        return describe_copy_first(table), paths
    return describe_sweep(finished, trials), plot_sweep(finished, trials, num_test_samples, out)


def plot_run(
    results: str, trials: list[Trial], num_test_samples: int, out: Path
) -> tuple[list[str], list[Path]]:
    """Returns the findings and figures of a run; none before a trial of a sweep is finished.

    Raises:
        ResultsError: the GAN has no valid checkpoint yet.
    """
    if is_gan(trials):
        return _plot_gan(results, out)
    finished = [trial for trial in trials if is_sweep(trials) and trial.is_finished()]
    return plot_finished(finished, trials, num_test_samples, out) if finished else ([], [])


def _plot_gan(results: str, out: Path) -> tuple[list[str], list[Path]]:
    run, generators = gan_figures.read_run(results)
    classifier = load_classifier()
    grids = gan_figures.plot_grids(run, generators, classifier, out)
    paths, table, left_out = gan_figures.plot_latest(run, generators, classifier, out)
    figures = [path for path in paths if path.suffix == ".png"]
    return [*table.splitlines(), *left_out], [*grids, *figures]
