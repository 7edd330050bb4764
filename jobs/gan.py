"""Trains the GAN of the report, with data-parallel workers of Ray Train.

  python jobs/gan.py                        200 epochs, the report's Figures 4-7
  python jobs/gan.py --preset quick         a few epochs, minutes on 2 cores
  python jobs/gan.py --workers 2-8 --data ~/fashion --name fashion
  ray submit cluster.yaml jobs/gan.py -- --workers 4 --storage s3://BUCKET/gan

Re-running the same command resumes from the last completed epoch.
"""

from jobs import interrupt

if __name__ == "__main__":
    interrupt.exit_silently_on_sigint()  # during the imports

import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from ray import train
from ray.train.torch import TorchTrainer, get_device

from jobs import cli, cluster, machine, storage
from jobs.cli import arg
from jobs.errors import UserError
from jobs.formatting import format_difference, format_value, pluralize
from jobs.ray_internals import (
    WORKER_GROUP_START_TIMEOUT,
    RayInterfaceTorchConfig,
    remove_stale_checkpoint_index,
)
from jobs.resources import describe_workers, parse_gpus, resolve_worker_group
from jobs.tensorboard import EventFile
from jobs.training import Progress, load_checkpoint_on_all_ranks, run_training
from models import checkpoint, distributed, gan, gan_metrics, image_data

MAX_LATENT_DIM = 10_000  # the latent vectors of an epoch are in memory together


@dataclass(frozen=True)
class GANConfig:
    """Hyperparameters. They identify the run and cannot change on resume."""

    epochs: int = arg(200, "number of epochs")
    batch_size: int = arg(256, "global batch size, over all workers")
    latent_dim: int = arg(100, "dimension of the latent vectors")
    lr: float = arg(0.0002, "Adam's learning rate, for both networks")
    betas: tuple[float, float] = arg((0.5, 0.999), "Adam's betas, for both networks")
    seed: int = arg(0, "seed of initialization, order and latent vectors")
    data: str | None = arg(None, "fashion-mnist, kmnist, or a folder in MNIST's format (MNIST)")
    keep_every: int = arg(10, "epochs between permanent checkpoints")
    eval_every: int = arg(10, "epochs between evaluations of sample quality")
    tf32: bool = arg(False, "TF32 instead of IEEE float32, on GPUs")


@dataclass(frozen=True)
class GANLaunchArgs(cli.LaunchArgs):
    workers: str = arg("auto", "workers (auto: one per GPU, else 1)", "N|N-N|auto")
    cpus_per_worker: int | None = arg(
        None, "CPUs and threads of a worker (with a GPU 1, else all, split evenly)"
    )
    gpus_per_worker: str = arg("auto", "GPUs of a worker (auto: 1, without GPUs 0)", "N|auto")


PRESETS = {
    "report": GANConfig(),
    "quick": GANConfig(epochs=4, batch_size=64, keep_every=1, eval_every=2),
}
PRESET_SUMMARIES = {
    "report": "200 epochs, the report's Figures 4-7",
    "quick": "4 epochs, minutes on two cores",
}


def validate(config: GANConfig) -> None:
    """Raises UserError for hyperparameters that cannot be run."""
    cli.check_positive(
        config, "epochs", "batch_size", "latent_dim", "lr", "keep_every", "eval_every"
    )
    if config.latent_dim > MAX_LATENT_DIM:
        raise UserError(f"--latent-dim {config.latent_dim}: must be at most {MAX_LATENT_DIM}")
    if config.batch_size < 2:
        raise UserError("--batch-size 1: batch norm needs at least 2 images")
    if not all(0 <= beta < 1 for beta in config.betas):
        raise UserError(f"--betas {format_value(config.betas)}: each must be in [0, 1)")
    try:
        data = image_data.load(config.data)
    except image_data.DataError as error:
        raise UserError(f"--data: {error}") from None
    if len(data.train) < config.batch_size:
        raise UserError(
            f"--batch-size {config.batch_size}: the dataset has {len(data.train)} training images"
        )
    if len(data.test) <= gan_metrics.COVERAGE_K:
        raise UserError(
            f"--data {config.data}: {len(data.test)} test images are too few for an evaluation"
        )


def parse_worker_range(text: str) -> tuple[int, int] | None:
    """Parses --workers into minimum and maximum, None for auto."""
    if text == "auto":
        return None
    first, dash, last = text.partition("-")
    try:
        workers = int(first), int(last if dash else first)
    except ValueError:
        workers = 0, 0
    if not 1 <= workers[0] <= workers[1]:
        raise UserError(f"--workers {text}: must be a number, a range such as 2-8, or auto")
    return workers


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Trains together with the other workers and reports each epoch; runs on every worker.

    The workers resume from the latest valid checkpoint in the run's folder. All random numbers
    come from the seed and the epoch, so a killed and resumed run ends with the numbers of an
    uninterrupted one, and N workers end with those of one.
    """
    hyperparameters: GANConfig = config["hyperparameters"]
    folder = storage.open_dir(config["folder"])
    worker, num_threads = train.get_context(), config["num_threads"]
    rank = worker.get_world_rank()
    storage.check_visible(folder)
    torch.set_num_threads(num_threads)
    machine.set_gpu_precision(hyperparameters.tf32)
    device = get_device()
    if device.type == "cpu":
        distributed.pin_threads_to_cores(
            worker.get_local_rank(), worker.get_local_world_size(), num_threads
        )
    data = image_data.load(hyperparameters.data).to(device)
    seed, latent_dim = hyperparameters.seed, hyperparameters.latent_dim
    model = gan.GAN(latent_dim, seed, hyperparameters.lr, hyperparameters.betas, device=device)
    evaluator = gan_metrics.QualityEvaluator(seed, latent_dim, data.test)

    latest, corrupt = load_checkpoint_on_all_ranks(folder, rank, device)
    history = latest.history if latest else []
    if rank == 0:
        storage.write_rows(folder, history)  # tells the driver that the workers have started
        events = EventFile(folder, asdict(hyperparameters), len(history))
    if latest:
        model.load_state_dict(latest.state)
    else:
        save_and_report(hyperparameters, model, {"epoch": 0}, history, rank)

    fixed_columns = {
        "resumed_from_epoch": len(history),
        "corrupt_checkpoints": " ".join(corrupt),
        "num_workers": distributed.world_size(),
        **machine.hardware_info(device),
    }
    for epoch in range(len(history) + 1, hyperparameters.epochs + 1):
        row = run_epoch(hyperparameters, model, evaluator, data.train, epoch, rank)
        if not is_finite(row):
            # An exception would make Ray restart the workers, with the same losses.
            if rank == 0:
                reason = f"the losses of epoch {epoch} are not finite"
                storage.write_failure(folder, f"{reason}: try a lower --lr, under a new --name")
            return
        history.append(row | fixed_columns)
        if rank == 0:
            storage.write_rows(folder, history)
            events.write_epoch(row, model.generator)
        save_and_report(hyperparameters, model, history[-1], history, rank)


def run_epoch(
    config: GANConfig,
    model: gan.GAN,
    evaluator: gan_metrics.QualityEvaluator,
    train_split: image_data.LabeledImages,
    epoch: int,
    rank: int,
) -> dict[str, Any]:
    """Trains for one epoch and, where it is due, evaluates; returns the epoch's metrics."""
    batch_size = config.batch_size
    epoch_start = time.perf_counter()
    means = gan.train_epoch(model, train_split.images, config.seed, epoch, batch_size)
    loss_d, loss_g, d_real, d_fake = means.tolist()
    train_seconds = time.perf_counter() - epoch_start
    num_images = len(train_split) // batch_size * batch_size
    row = {
        "epoch": epoch,
        "training_iteration": epoch,
        "loss_d": loss_d,
        "loss_g": loss_g,
        "d_real": d_real,
        "d_fake": d_fake,
        "train_seconds": train_seconds,
        "images_per_second": num_images / train_seconds,
    }
    is_due = epoch % config.eval_every == 0 or epoch == config.epochs
    if is_due and is_finite(row):
        row |= evaluator.evaluate(model.generator, rank)
    row["epoch_seconds"] = time.perf_counter() - epoch_start
    return row | {"epoch_end_time": time.time()}  # seconds since 1970


def is_finite(row: dict[str, Any]) -> bool:
    return math.isfinite(row["loss_d"] + row["loss_g"])


def save_and_report(
    config: GANConfig, model: gan.GAN, row: dict[str, Any], history: list[dict], rank: int
) -> None:
    """Reports an epoch, on rank 0 with a checkpoint.

    Ray keeps a fixed number of checkpoints, those with the highest `keep`: the permanent ones and,
    while there are fewer of these, the latest ones.
    """
    epoch = row["epoch"]
    permanent = epoch % config.keep_every == 0
    row = row | {"keep": epoch + (config.epochs + 1 if permanent else 0)}
    if rank > 0:
        train.report(row)
        return
    with tempfile.TemporaryDirectory() as local:
        checkpoint.save(local, model.state_dict(), history)
        train.report(row, checkpoint=train.Checkpoint.from_directory(local))


def make_trainer(
    folder: storage.StorageDir,
    config: GANConfig,
    workers: tuple[int, int],
    resources: dict[str, float],
) -> TorchTrainer:
    """Returns the trainer, with a fixed number of workers or an elastic range."""
    elastic = workers[0] < workers[1]
    controller_failures = 3
    if elastic:  # after a node is lost, Ray first waits for the previous number of workers
        os.environ.setdefault(WORKER_GROUP_START_TIMEOUT, "10")
        controller_failures = 24  # each wait counts as a failure of the controller
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config={
            "hyperparameters": config,
            "folder": folder.uri,
            "num_threads": int(resources["cpu"]),
        },
        torch_config=RayInterfaceTorchConfig(backend="nccl" if resources["gpu"] else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=workers if elastic else workers[1],
            use_gpu=resources["gpu"] > 0,
            resources_per_worker={kind.upper(): n for kind, n in resources.items() if n},
        ),
        run_config=train.RunConfig(
            name=folder.name,
            **folder.parent_for_ray,
            checkpoint_config=train.CheckpointConfig(
                num_to_keep=1 + config.epochs // config.keep_every,
                checkpoint_score_attribute="keep",
            ),
            failure_config=train.FailureConfig(
                max_failures=3, controller_failure_limit=controller_failures
            ),
            logging_config=train.LoggingConfig(log_level="CRITICAL"),
        ),
    )


def parse_args() -> tuple[GANConfig, GANLaunchArgs, tuple[int, int] | None]:
    """Parses the command line into hyperparameters, launch arguments and the range of workers."""
    parser = cli.DataclassParser(__doc__)
    parser.add_presets(PRESET_SUMMARIES, "report")
    parser.add_dataclass("hyperparameters (defaults: preset report)", GANConfig)
    parser.add_dataclass("launch", GANLaunchArgs)
    args = parser.parse_args()
    config = replace(PRESETS[args.preset], **cli.explicit_args(args, GANConfig))
    if config.data and config.data not in image_data.NAMED_DATASETS:
        config = replace(config, data=os.path.abspath(os.path.expanduser(config.data)))
    launch = GANLaunchArgs(**cli.explicit_args(args, GANLaunchArgs))
    launch = replace(launch, name=launch.name or f"gan-{args.preset}")
    workers = parse_worker_range(launch.workers)
    cli.check_positive(launch, "cpus_per_worker")
    parse_gpus("--gpus-per-worker", launch.gpus_per_worker, shared=False)
    validate(config)
    if workers:
        check_batch_covers_workers(workers[1], config)
    return config, launch, workers


def check_batch_covers_workers(workers: int, config: GANConfig) -> None:
    """Raises UserError if the shard of a worker would be empty."""
    if workers > config.batch_size:
        raise UserError(f"--workers {workers}: must be at most --batch-size {config.batch_size}")


def epochs_done(folder: storage.StorageDir, config: GANConfig) -> int:
    """Returns the number of epochs of the latest valid checkpoint, 0 without one.

    Raises:
        UserError: the checkpoint is not of such a GAN.
    """
    latest, _ = storage.load_latest_checkpoint(folder)
    if latest is None:
        return 0
    model = gan.GAN(config.latent_dim, config.seed, config.lr, config.betas)
    try:
        model.load_state_dict(latest.state)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError):
        advice = "not of this GAN: use another --name, or --fresh"
        raise UserError(f"{folder.subdir(latest.name).uri}: {advice}") from None
    return latest.epoch


def check_settings(folder: storage.StorageDir, config: GANConfig) -> None:
    """Raises UserError if the folder holds a run with other hyperparameters."""
    existing = storage.read_settings(folder, "gan")
    # TF32 was not a setting of older versions.
    if existing and (difference := format_difference({"tf32": False} | existing, asdict(config))):
        storage.refuse_settings(folder, difference)


def main() -> int:
    config, launch, workers = parse_args()
    folder = storage.run_dir(launch.storage, launch.name, launch.fresh)
    check_settings(folder, config)
    done, failures = epochs_done(folder, config), []
    if done < config.epochs:
        logs = cluster.connect(launch.address)
        workers, resources = resolve_worker_group(
            workers, launch.cpus_per_worker, launch.gpus_per_worker
        )
        check_batch_covers_workers(workers[1], config)
        cluster.check_storage(folder)
        storage.lock_run_dir(folder)
        check_settings(folder, config)  # again: another command may have started since
        storage.write_settings(folder, "gan", asdict(config))
        storage.clear_failure(folder)
        remove_stale_checkpoint_index(folder)
        first_line = f"{pluralize(config.epochs, 'epoch')}, {done} of them done"
        cli.print_start([first_line, describe_workers(workers, resources)], folder, logs)
        progress = Progress(folder, config.epochs, resources)
        failures = run_training(make_trainer(folder, config, workers, resources), progress)
        try:
            done = epochs_done(folder, config)
        except OSError as error:
            failures.append(f"{folder.uri} cannot be read: {error}")
    return cli.print_summary(done, config.epochs, "epoch", folder, failures, "analysis/gan.py")


if __name__ == "__main__":
    cli.run_main(main)
