"""Trains recurrent networks on a memory task, one Ray Tune trial each.

  python jobs/sweep.py                       the report's Figures 1-3
  python jobs/sweep.py --preset quick        a small grid, minutes on 2 cores
  python jobs/sweep.py --cells lstm --lengths 10-30,40 --inits uniform,chrono
  ray submit cluster.yaml jobs/sweep.py -- --storage s3://BUCKET/sweeps

Re-running the same command resumes every unfinished trial.
"""

from jobs import interrupt

if __name__ == "__main__":
    interrupt.exit_silently_on_sigint()  # during the imports

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune.logger import TBXLoggerCallback
from ray.tune.search import BasicVariantGenerator

from jobs import cli, cluster, machine, storage, tuning
from jobs.cli import arg
from jobs.errors import UserError
from jobs.formatting import pluralize
from jobs.grid import (
    GridConfig,
    Trials,
    complete,
    describe,
    growth_conflict,
    trial_configs,
    trial_name,
)
from jobs.learner import Learner, run_epoch
from jobs.presets import ABLATION_PRESET, PRESETS, apply_overrides, expand_variants, recipes
from jobs.progress import print_lines
from jobs.ray_internals import describe_error
from jobs.resources import (
    DEFAULT_GPU_FRACTION,
    describe_capacity,
    parse_gpus,
    resolve_trial_resources,
)
from models import checkpoint
from models.recurrent_training import has_diverged, should_stop
from models.tasks import task_of


@dataclass(frozen=True)
class SweepLaunchArgs(cli.LaunchArgs):
    cpus_per_trial: int = arg(1, "CPUs and compute threads of a trial")
    gpus_per_trial: str = arg(
        "auto", f"GPUs of a trial (auto: {DEFAULT_GPU_FRACTION}, without GPUs 0)", "X|auto"
    )
    max_concurrent: int | None = arg(None, "concurrent trials (as many as fit)")


def train_trial(config: dict[str, Any], folder: str) -> None:
    """Trains one network and reports each epoch; a Tune trial runs this on a worker.

    It resumes from the latest valid checkpoint in the trial's folder. Data, initialization and
    order come from the seed, so a killed and resumed trial ends with the numbers of an
    uninterrupted one. A finished trial only reports its last row: Tune lists those that ran.

    Args:
        config: the trial's settings.
        folder: path or URI of the sweep's folder.

    Raises:
        OSError: this node does not see the sweep's folder.
    """
    sweep = storage.open_dir(folder)
    storage.check_visible(sweep)
    trial_dir = sweep.subdir(trial_name(config))
    reserved = tune.get_context().get_trial_resources().required_resources
    device = torch.device("cuda" if reserved.get("GPU") and torch.cuda.is_available() else "cpu")
    latest, corrupt = storage.load_latest_checkpoint(trial_dir, device)
    history = latest.history if latest else []
    if is_finished(history, config):
        storage.clear_failure(trial_dir)  # after the last checkpoint
        tune.report(history[-1])
        return
    storage.start_trial(trial_dir, config)
    machine.configure_torch(num_threads=int(reserved["CPU"]))
    machine.set_gpu_precision(config["tf32"])
    data = task_of(config).sample(config["seed"], config["length"], config["num_sequences"])
    train_split, val_split = data.train.to(device), data.validation.to(device)
    learner = Learner(config, len(train_split) // config["batch_size"], device)
    if latest:
        learner.load_state_dict(latest.state)
    if latest and tune.get_checkpoint() is None:
        # Tune numbers the checkpoints of this run from 0 again, over those that exist.
        storage.keep_checkpoint(trial_dir, latest.name)
    fixed_columns = {
        "trial_id": tune.get_context().get_trial_id(),  # a column of `tune list-trials`
        "resumed_from_epoch": len(history),
        "corrupt_checkpoints": " ".join(corrupt),
        **machine.hardware_info(device),
    }
    while not is_finished(history, config):
        row = run_epoch(learner, len(history) + 1, train_split, val_split) | fixed_columns
        history.append(row)
        storage.write_rows(trial_dir, history)
        save_and_report(learner.state_dict(), row, history)


def is_finished(history: list[dict[str, Any]], config: dict[str, Any]) -> bool:
    solved_epochs = config["stop_after_solved_epochs"]
    return should_stop(history, config["epochs"], solved_epochs, task_of(config))


def save_and_report(
    state: dict[str, Any], row: dict[str, Any], history: list[dict[str, Any]]
) -> None:
    with tempfile.TemporaryDirectory() as local:
        checkpoint.save(local, state, history)
        tune.report(row, checkpoint=tune.Checkpoint.from_directory(local))


def make_tuner(
    folder: storage.StorageDir,
    trials: Trials,
    launch: SweepLaunchArgs,
    resources: dict[str, float],
    progress: tuning.Progress,
) -> tune.Tuner:
    """Returns a Tuner of new trials, also on resume.

    Nothing is restored from Tune's own snapshot, which may be older than the trials' checkpoints.
    """
    configs = list(trials.values())
    trainable = tune.with_parameters(train_trial, folder=folder.uri)
    return tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space=tuning.param_space(configs),
        tune_config=tune.TuneConfig(
            search_alg=BasicVariantGenerator(
                points_to_evaluate=configs, max_concurrent=launch.max_concurrent or 0
            ),
            num_samples=len(configs),
            reuse_actors=True,
            trial_name_creator=lambda trial: trial_name(trial.config),
            trial_dirname_creator=lambda trial: trial_name(trial.config),
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            **folder.parent_for_ray,
            callbacks=[progress, TBXLoggerCallback()],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=3),
            failure_config=tune.FailureConfig(max_failures=3),
            verbose=0,
        ),
    )


def run_trials(tuner: tune.Tuner) -> list[str]:
    """Runs the trials; returns a line for each that failed permanently."""
    try:
        results = tuner.fit()
    except KeyboardInterrupt:
        return []
    except Exception as error:  # Tune itself failed: a full disk, a lost head node
        if isinstance(error.__cause__, OutOfMemoryError):  # which Tune does not expect
            error = error.__cause__
            return [f"the sweep stopped: a trial was {describe_error(str(error))}"]
        return [f"the sweep stopped: {type(error).__name__}: {error}".splitlines()[0]]
    return [
        f"{describe_error(str(result.error))} ({result.path}/error.txt)"
        for result in results
        if result.error
    ]


def finished_trials(folder: storage.StorageDir, trials: Trials) -> dict[str, dict[str, Any]]:
    """Returns the last row of each trial whose latest valid checkpoint is its last."""

    def last_row(name: str) -> dict[str, Any] | None:
        latest, _ = storage.load_latest_checkpoint(folder.subdir(name))
        if latest is None or not is_finished(latest.history, trials[name]):
            return None
        return latest.history[-1]

    with ThreadPoolExecutor() as threads:  # storage behind a URI has a high latency
        rows = zip(trials, threads.map(last_row, trials), strict=True)
        return {name: row for name, row in rows if row is not None}


def parse_args() -> tuple[tuple[GridConfig, ...], list[dict[str, Any]], SweepLaunchArgs]:
    """Parses the command line into grids, their recipes, and where and how to run them."""
    parser = cli.DataclassParser(__doc__)
    group = parser.add_presets({name: p.summary for name, p in PRESETS.items()}, "figures")
    group.add_argument("--ablate", action="store_true", help=ABLATION_PRESET.summary)
    parser.add_dataclass("hyperparameters (defaults: preset figures)", GridConfig)
    parser.add_dataclass("launch", SweepLaunchArgs)
    args = parser.parse_args()
    overrides = cli.explicit_args(args, GridConfig)
    ablate = getattr(args, "ablate", False)
    if ablate and args.preset != "horizon":
        raise UserError("--ablate: requires --preset horizon")
    preset = ABLATION_PRESET if ablate else PRESETS[args.preset]
    grids = apply_overrides(preset, overrides)
    if ablate and "variants" not in overrides:
        grids = expand_variants(grids)
    launch = SweepLaunchArgs(**cli.explicit_args(args, SweepLaunchArgs))
    launch = replace(launch, name=launch.name or args.preset + ("-ablate" if ablate else ""))
    cli.check_positive(launch, "cpus_per_trial", "max_concurrent")
    parse_gpus("--gpus-per-trial", launch.gpus_per_trial)
    return grids, recipes(preset, overrides), launch


def grown_settings(folder: storage.StorageDir, requested: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run after it has grown by the requested trials.

    Raises:
        UserError: it holds trials of other settings.
    """
    existing = storage.read_settings(folder, "sweep")
    if not existing:
        return requested
    try:
        existing = complete(existing)
        conflict = growth_conflict(existing, requested)
        trials = existing["trials"] | requested["trials"]
    except (KeyError, TypeError, AttributeError) as error:
        storage.refuse_corrupt_settings(folder, error)
    if conflict:
        storage.refuse_settings(folder, conflict)
    return requested | {"trials": trials}


def main() -> int:
    grids, preset_recipes, launch = parse_args()
    trials = {trial_name(config): config for config in trial_configs(*grids)}
    folder = storage.run_dir(launch.storage, launch.name, launch.fresh)
    requested = {"recipes": preset_recipes, "trials": trials}
    known: Trials = grown_settings(folder, requested)["trials"]
    finished, failures = finished_trials(folder, known), []
    done = {name: row for name, row in finished.items() if name in trials}
    if len(done) < len(trials):
        logs = cluster.connect(launch.address)
        resources = resolve_trial_resources(launch.cpus_per_trial, launch.gpus_per_trial)
        cluster.check_storage(folder)
        storage.lock_run_dir(folder)
        # Read again: another command may have added trials since.
        storage.write_settings(folder, "sweep", grown_settings(folder, requested))
        lines = [f"{pluralize(len(trials), 'trial')}, {len(done)} of them done:"]
        lines += [f"  {describe(grid)}" for grid in grids]
        lines.append(describe_capacity(resources, launch.max_concurrent))
        cli.print_start(lines, folder, logs)
        progress = tuning.Progress(folder, trials, done, resources)
        # Tune's files then describe all trials that ran, also those of earlier commands.
        listed = {n: config for n, config in known.items() if n in trials or n in finished}
        failures = run_trials(make_tuner(folder, listed, launch, resources, progress))
        try:
            done = finished_trials(folder, trials)
        except OSError as error:
            failures.append(f"{folder.uri} cannot be read: {error}")
        unfinished = len(trials) - len(done)
        if unfinished and not failures and not interrupt.interrupted.is_set():
            failures.append(f"{pluralize(unfinished, 'trial')}, whose errors could not be stored")
    diverged = [name for name, row in done.items() if has_diverged(row)]
    if diverged:
        print_lines(f"diverged: {', '.join(diverged)}: try a lower --lr, under a new --name")
    uses_recipe = any(
        grid.stop_after_solved_epochs or grid.variants != GridConfig().variants for grid in grids
    )
    is_horizon = uses_recipe and grids[0].task == "palindrome"
    analysis = f"analysis/{'horizon' if is_horizon else 'sweep'}.py"
    return cli.print_summary(len(done), len(trials), "trial", folder, failures, analysis)


if __name__ == "__main__":
    cli.run_main(main)
