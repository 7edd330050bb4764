"""Trains the recurrent networks of a grid on the palindrome task, by Ray Tune.

  python jobs/sweep.py                       the report's Figures 1-3
  python jobs/sweep.py --preset quick        a small grid, minutes on 2 cores
  python jobs/sweep.py --preset horizon      how far back can it remember?
  python jobs/sweep.py --cells lstm --lengths 10-30,40 --start uniform,chrono

On a cluster:
  ray submit cluster.yaml jobs/sweep.py -- --storage s3://BUCKET/sweeps

The same command again continues: finished trials stay, the others go on from
their last epoch.
"""

from jobs import interrupt

if __name__ == "__main__":
    interrupt.end_quietly()  # for as long as the imports take

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import PurePath
from typing import Any

import torch
from ray import tune
from ray.tune.experiment import Trial

from jobs import cluster, flags, machine, storage, tuning
from jobs.flags import Trouble, setting
from jobs.grid import (
    ABLATION,
    PRESETS,
    Sweep,
    ablated,
    changed,
    describe,
    trial_configs,
    trial_name,
)
from jobs.progress import plural, tell_end
from models import checkpoint, memory, palindromes, recurrent
from models.randomness import generator


@dataclass(frozen=True)
class Run(flags.Run):
    cpus_per_trial: int = setting(1, "CPUs that a trial reserves, and its threads")
    gpus_per_trial: str = setting(
        "auto", "share of a GPU, or auto: a quarter, 0 where there are none"
    )
    max_concurrent: int | None = setting(None, "trials at a time, or none for all that fit")


CHECKED = 500  # palindromes of the validation part that are looked at within an epoch


def train(config: dict[str, Any]) -> None:
    """Trains one network and reports each epoch; a Tune trial runs this on a worker.

    It goes on from the newest whole checkpoint in the trial's folder, whatever Tune remembers:
    Tune's own snapshot may be older than the last epochs. Data, start and order all come from the
    seed, so that a trial which was killed ends with the numbers of one which was not.
    """
    trial = tune.get_context()
    reserved = trial.get_trial_resources().required_resources
    machine.compute_with(threads=int(reserved["CPU"]))
    device = torch.device("cuda" if reserved.get("GPU") and torch.cuda.is_available() else "cpu")
    seed, length, batch_size = config["seed"], config["length"], config["batch_size"]
    data = palindromes.palindromes(seed, length, config["samples"])
    training, validation = data.train.to(device), data.validation.to(device)
    network = recurrent.build(
        config["cell"], config["hidden"], config["start"], seed, length, config["inputs"]
    )
    network.to(device)
    optimizer = OPTIMIZERS[config["optimizer"]](network.parameters(), lr=config["lr"])
    steps = len(training) // batch_size  # of an epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: recurrent.learning_rate(
            step, steps * config["epochs"], config["warmup"], config["decay"]
        ),
    )
    few = validation[:CHECKED]
    looks = {steps * number // config["checks"] for number in range(1, config["checks"])}

    context = trial.get_storage()
    path = context.experiment_fs_path
    sweep = storage.Folder(path, context.storage_filesystem, path)
    storage.check_seen(sweep)
    folder = sweep.child(trial_name(config))
    last, damaged = storage.newest_checkpoint(folder, device)
    history = last.history if last else []
    if last:
        network.load_state_dict(last.state["network"])
        optimizer.load_state_dict(last.state["optimizer"])
        schedule.load_state_dict(last.state["schedule"])
        torch.set_rng_state(last.state["random"].cpu())
    else:
        torch.manual_seed(seed)
    for row in history:  # Tune may have lost them: readers take one row for each epoch
        tune.report(row | {"damaged": ""})  # which was told at its time

    optimizer_steps = memory.OptimizerSteps(network)
    restored_epoch, where = len(history), machine.described(device)
    while not recurrent.has_ended(history, config["epochs"], config["hold"]):
        epoch, checked = len(history) + 1, []

        def after_step(step: int, checked: list[float] = checked) -> None:
            if config["probe"]:
                optimizer_steps.see(schedule.get_last_lr()[0])
            schedule.step()
            if step in looks:
                checked.append(recurrent.evaluate(network, few)[1])

        began = time.perf_counter()
        order = torch.randperm(len(training), generator=generator(seed, "order", epoch)).to(device)
        train_loss = recurrent.train_epoch(
            network, optimizer, training, order, batch_size, config["clip"], after_step
        )
        trained = time.perf_counter()
        val_loss, val_accuracy = recurrent.evaluate(network, validation)
        row = {
            "epoch": epoch,
            "training_iteration": epoch,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "train_seconds": trained - began,
            "epoch_seconds": time.perf_counter() - began,
            "sequences_per_second": steps * batch_size / (trained - began),
            "restored_epoch": restored_epoch,
            "ended_at": time.time(),  # seconds since 1970
            "damaged": " ".join(damaged),
            **where,
        }
        if looks:  # and the last one is the epoch's own
            row["checked"] = [*checked, val_accuracy]
        if config["probe"]:
            row |= memory.probe(network, few) | optimizer_steps.means_since_last()
        history.append(row)
        state = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "random": torch.get_rng_state(),
        }
        with tempfile.TemporaryDirectory() as local:
            checkpoint.save(local, state, history)
            tune.report(row, checkpoint=tune.Checkpoint.from_directory(local))


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "rmsprop": torch.optim.RMSprop,
}


def tuner(
    folder: storage.Folder,
    configs: dict[str, dict[str, Any]],
    finished: set[str],
    run: Run,
    resources: dict[str, float],
) -> tune.Tuner:
    """Returns the Tuner that runs the trials that are not finished."""
    trials = list(configs.values())
    trainable = tune.with_resources(train, resources)
    made = tune.Tuner(
        trainable,
        param_space=tuning.param_space(trials),
        tune_config=tune.TuneConfig(
            search_alg=tuning.TrialList(trials, run.max_concurrent),
            num_samples=len(trials),
            scheduler=tuning.Limit(run.max_concurrent) if run.max_concurrent else None,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial_name(trial.config),
            trial_dirname_creator=lambda trial: trial_name(trial.config),
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=folder.parent,
            callbacks=[tuning.Progress(configs, work_of_an_epoch, finished)],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=3),
            failure_config=tune.FailureConfig(max_failures=3),
            verbose=0,
        ),
    )
    # A Tuner that is made writes its configuration into the folder, and one that is restored reads
    # it there: so a run that goes on obeys the limits of this command, not of the first one.
    known = tuning.snapshot(folder)
    if known is None or not tuning.can_go_on(folder, known):
        return made
    resume = tune.ResumeConfig(errored=tune.ResumeConfig.ResumeType.RESUME)
    if any(t.status == Trial.TERMINATED for name, t in known.items() if name not in finished):
        # Their last checkpoints are damaged: each trial looks at its own again.
        resume.finished = tune.ResumeConfig.ResumeType.RESUME
    return tune.Tuner.restore(folder.uri, trainable, _resume_config=resume)


def run_trials(tuner: tune.Tuner, folder: storage.Folder) -> list[str]:
    """Runs the trials, and returns what failed for good, a line for each."""
    try:
        results = tuner.fit()
    except KeyboardInterrupt:  # before any trial runs; later Tune has a handler of its own
        return []
    except Exception as error:  # whatever stopped Tune itself: a full disk, a head that is gone
        return [f"the sweep stopped: {type(error).__name__}: {error}".splitlines()[0]]
    if not results.num_errors:
        return []
    known: dict[str, tuning.Known] = {}
    with suppress(OSError):  # which is told when the trials are counted
        known = tuning.snapshot(folder) or {}
    # Others have errors, too: trials that went on after one, and have not ended.
    failed = {name for name, trial in known.items() if trial.status == Trial.ERROR}
    failures = [
        f"{str(result.error).strip().splitlines()[-1]} ({result.path}/error.txt)"
        for result in results
        if result.error and PurePath(result.path).name in failed
    ]
    untold = results.num_errors - len(failures)
    if untold > 0:  # Tune reads errors from the storage, and we its snapshot
        failures.append(f"{plural(untold, 'trial')}, whose errors the storage did not take")
    return failures


def work_of_an_epoch(config: dict[str, Any]) -> float:
    return config["samples"] * config["length"]


def finished_trials(folder: storage.Folder, configs: dict[str, dict[str, Any]]) -> set[str]:
    """Returns the names of the trials whose newest whole checkpoint is of their end."""

    def is_finished(name: str) -> bool:
        last, _ = storage.newest_checkpoint(folder.child(name))
        if last is None:
            return False
        return recurrent.has_ended(last.history, configs[name]["epochs"], configs[name]["hold"])

    with ThreadPoolExecutor() as threads:  # a storage behind a URI answers slowly
        return {
            name
            for name, yes in zip(configs, threads.map(is_finished, configs), strict=True)
            if yes
        }


def settings() -> tuple[tuple[Sweep, ...], Run]:
    """Returns what the command line asks for: the grids, and where and how to run them."""
    parser = flags.Parser(__doc__)
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="figures",
        help="figures: the report's; quick: both at 3-20 with less of all; "
        "recipe: steady training at 3-35; horizon: that at 10-150, "
        "by start. Flags below override it (figures)",
    )
    parser.add_argument(
        "--ablate",
        action="store_true",
        help="of horizon: a part changed at a time, at 35 and 100",
    )
    parser.add_settings("the experiment", Sweep)
    parser.add_settings("the run", Run)
    typed = parser.parse_args()
    changes = flags.given(typed, Sweep)
    ablate = getattr(typed, "ablate", False)
    if ablate and typed.preset != "horizon":
        raise Trouble("--ablate: only of --preset horizon")
    parts = changed(ABLATION if ablate else PRESETS[typed.preset], changes)
    if ablate and "variants" not in changes:
        parts = ablated(parts)
    run = Run(**flags.given(typed, Run))
    run = replace(run, name=run.name or typed.preset + ("-ablate" if ablate else ""))
    if run.cpus_per_trial < 1:
        raise Trouble(f"--cpus-per-trial {run.cpus_per_trial}: must be 1 or more")
    if run.max_concurrent is not None and run.max_concurrent < 1:
        raise Trouble(f"--max-concurrent {run.max_concurrent}: must be 1 or more")
    return parts, run


def main() -> int:
    parts, run = settings()
    identity = [asdict(part) for part in parts]
    configs = {trial_name(config): config for config in trial_configs(*parts)}
    folder = storage.run_folder(run.storage, run.name, run.fresh)
    storage.compare(folder, identity)
    finished, failures = finished_trials(folder, configs), []
    if len(finished) < len(configs):
        cluster.connect(run.address)
        resources = cluster.resources(run.cpus_per_trial, run.gpus_per_trial)
        cluster.check_storage(folder)
        storage.claim(folder, identity)
        print(f"{plural(len(configs), 'trial')}, {len(finished)} of them done:")
        print("\n".join(f"  {describe(part)}" for part in parts))
        print(cluster.plan(resources, run.max_concurrent))
        print(f"results: {folder.uri}", flush=True)
        failures = run_trials(tuner(folder, configs, finished, run, resources), folder)
        try:
            finished = finished_trials(folder, configs)
        except OSError as error:
            failures.append(f"{folder.uri} cannot be read: {error}")
    far = any(part.hold or part.variants != Sweep().variants for part in parts)
    script = "horizon" if far else "sweep"
    return tell_end(len(finished), len(configs), "trial", folder, failures, f"analysis/{script}.py")


if __name__ == "__main__":
    flags.one_line(main)
