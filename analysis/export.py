"""Exports runs to MLflow or Weights & Biases: finished, running, killed.

  python analysis/export.py ~/ray_results/figures --to mlflow
  python analysis/export.py ~/ray_results/figures s3://BUCKET/gan/gan-report \\
      --to mlflow --tracking-uri http://127.0.0.1:5000
  python analysis/export.py ~/ray_results/figures --to wandb --out export

Each trial becomes a run: its settings, its metrics by epoch with their times,
its status. One more run has the figures of a sweep. The same command again adds
what is new. MLflow gets the runs immediately (without --tracking-uri and
MLFLOW_TRACKING_URI: into ./mlflow.db); Weights & Biases with `wandb sync`.
"""

from analysis import cli

if __name__ == "__main__":
    cli.start_script()  # before the imports, which take seconds

import argparse
import sys
import tempfile
from pathlib import Path

from analysis.cli import ResultsError
from analysis.results import Trial, read_trials
from analysis.run_figures import plot_run
from analysis.trackers import MlflowTracker, Tracker, WandbTracker, figures_version
from analysis.transfer import add_num_test_samples


def parse_args() -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders or URIs of runs")
    parser.add_argument("--to", choices=("mlflow", "wandb"), required=True, help="tracker")
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow's server or local store (MLflow's default)"
    )
    parser.add_argument(
        "--out",
        type=cli.expand_path,
        metavar="DIR",
        help="parent of the folder wandb, for --to wandb (.)",
    )
    parser.add_argument("--no-figures", action="store_true", help="export no figures")
    add_num_test_samples(parser)
    args = parser.parse_args()
    if args.tracking_uri and args.to != "mlflow":
        parser.error("--tracking-uri requires --to mlflow")
    if args.out and args.to != "wandb":
        parser.error("--out requires --to wandb")
    return args


def export_figures(
    results: str, trials: list[Trial], tracker: Tracker, num_test_samples: int
) -> int:
    """Exports the figures of a run if they may have changed; returns their number."""
    version = figures_version(trials, num_test_samples)
    if version == tracker.exported_version(trials):
        return 0
    with tempfile.TemporaryDirectory() as out:
        try:
            findings, paths = plot_run(results, trials, num_test_samples, Path(out))
        except ResultsError as error:  # no checkpoint yet
            print(f"export.py: no figures: {error}", file=sys.stderr)
            return 0
        if paths:
            tracker.export_figures(trials, version, findings, paths)
    return len(paths)


def main() -> int:
    args = parse_args()
    experiments = {run: read_trials(run) for run in args.runs}
    tracker: Tracker
    if args.to == "mlflow":
        tracker = MlflowTracker(args.tracking_uri)
    else:
        tracker = WandbTracker(args.out or Path())
    for run, trials in experiments.items():
        started = [trial for trial in trials if trial.rows]
        new, figures = 0, 0
        for trial in cli.show_progress(started, f"{run}: trial"):
            new += tracker.export_trial(trial)
        if started and not args.no_figures:
            figures = export_figures(run, trials, tracker, args.num_test_samples)
        tracker.finish()
        count = f"{len(started)} of {len(trials)} trials"
        print(f"{run}: {count}, {new} new epochs, {figures} new figures")
    print(tracker.where())
    return 0


if __name__ == "__main__":
    cli.run_main(main)
