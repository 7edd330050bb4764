"""Trains the GAN of the report, section 2, on images of digits, by Ray Train.

  python jobs/gan.py                        200 epochs, the report's Figures 4-7
  python jobs/gan.py --preset quick         a few epochs, minutes on 2 cores
  python jobs/gan.py --workers 2-8 --data ~/fashion --name fashion

On a cluster:
  ray submit cluster.yaml jobs/gan.py -- --workers 4 --storage s3://BUCKET/gan

The same command again continues, from the last epoch that was done.
"""

from jobs import interrupt

if __name__ == "__main__":
    interrupt.end_quietly()  # for as long as the imports take

import json
import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from ray import train
from ray.train.torch import get_device

from jobs import cluster, flags, machine, storage
from jobs.backend import Backend
from jobs.flags import Trouble, setting
from jobs.judge import Judge
from jobs.progress import plural, tell_end
from jobs.training import ERROR, Progress, Trainer, agreed_checkpoint, mend_snapshot, run_training
from models import checkpoint, digits, gan, parallel, quality

LARGEST_LATENT_DIM = 10_000  # an epoch's latent vectors are in memory together


@dataclass(frozen=True)
class Training:
    """What is trained, and how. It is what a run is: other values need another name."""

    epochs: int = setting(200, "times that the training images are seen")
    batch_size: int = setting(256, "images of one training step, of all workers together")
    latent_dim: int = setting(100, "size of the latent vectors")
    lr: float = setting(0.0002, "Adam's learning rate, for both networks")
    betas: tuple[float, float] = setting((0.5, 0.999), "Adam's betas, for both networks")
    seed: int = setting(0, "of the start, the order and the latent vectors")
    data: str | None = setting(
        None, "folder of a set in MNIST's format, on every node, or none for MNIST itself"
    )
    keep_every: int = setting(10, "epochs between the checkpoints that are kept for good")
    quality_every: int = setting(10, "epochs between measurements of quality")


@dataclass(frozen=True)
class Run(flags.Run):
    workers: str = setting(
        "auto", "a number, a range for as many as there are (2-8), or auto: one per GPU, else one"
    )
    cpus_per_worker: int | None = setting(
        None, "CPUs that each reserves, and its threads, or none for its share of those here"
    )
    gpus_per_worker: str = setting("auto", "GPUs that each reserves, or auto: 1 where there are")


PRESETS = {
    "report": Training(),
    "quick": Training(epochs=4, batch_size=64, keep_every=1, quality_every=2),
}


def check(training: Training) -> None:
    """Raises Trouble for settings that cannot be run."""
    for name in ("epochs", "batch_size", "latent_dim", "lr", "keep_every", "quality_every"):
        value = getattr(training, name)
        if not 0 < value < math.inf:
            raise Trouble(f"--{name.replace('_', '-')} {value}: must be more than 0, and finite")
    if training.latent_dim > LARGEST_LATENT_DIM:
        raise Trouble(f"--latent-dim {training.latent_dim}: {LARGEST_LATENT_DIM} at most")
    if training.batch_size < 2:
        raise Trouble("--batch-size 1: batch norm needs 2 images or more")
    if not all(0 <= beta < 1 for beta in training.betas):
        raise Trouble(f"--betas {flags.shown(training.betas)}: each is from 0 to less than 1")
    try:
        data = digits.load(training.data)
    except digits.DataError as error:
        raise Trouble(f"--data: {error}") from None
    if len(data.train) < training.batch_size:
        raise Trouble(
            f"--batch-size {training.batch_size}: the set has {len(data.train)} images to train on"
        )
    if len(data.test) <= quality.COVERAGE_K:
        raise Trouble(
            f"--data {training.data}: {len(data.test)} test images are too few to compare"
        )


def worker_range(text: str) -> tuple[int, int] | None:
    """Reads --workers: at least and at most how many, None for auto."""
    if text == "auto":
        return None
    least, dash, most = text.partition("-")
    try:
        found = int(least), int(most if dash else least)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise Trouble(f"--workers {text}: must be a number, a range such as 2-8, or auto")
    return found


def train_worker(config: dict[str, Any]) -> None:
    """Trains with the other workers and reports each epoch; Ray Train runs this on each of them.

    They go on from the newest whole checkpoint in the run's folder. All draws come from the seed
    and the epoch, so a training that was killed ends with the numbers of one which was not, and N
    workers end with those of one.
    """
    training: Training = config["training"]
    folder = storage.open_folder(config["folder"])
    worker, threads = train.get_context(), config["threads"]
    rank = worker.get_world_rank()
    storage.check_seen(folder)
    torch.set_num_threads(threads)
    device = get_device()
    if device.type == "cpu":
        parallel.settle_on_cores(worker.get_local_rank(), worker.get_local_world_size(), threads)
    data = digits.load(training.data).to(device)
    trained = gan.GAN(
        training.latent_dim, training.seed, training.lr, training.betas, device=device
    )
    judge = Judge(training.seed, training.latent_dim, data.test)

    last, damaged = agreed_checkpoint(folder, rank, device)
    history = last.history if last else []
    if last:
        trained.load_state_dict(last.state)
    else:
        report(training, trained, {"epoch": 0}, history, rank)

    restored_epoch, where = len(history), machine.described(device)
    for epoch in range(restored_epoch + 1, training.epochs + 1):
        began = time.perf_counter()
        means = gan.train_epoch(
            trained, data.train.images, training.seed, epoch, training.batch_size
        )
        loss_d, loss_g, d_real, d_fake = means.tolist()
        if not math.isfinite(loss_d + loss_g):
            # To raise it would have Ray start the workers anew, for the same losses.
            if rank == 0:
                reason = f"the losses of epoch {epoch} are not finite"
                folder.write(ERROR, f"{reason}: try a lower --lr, under a new --name".encode())
            return
        seconds = time.perf_counter() - began
        images = len(data.train) // training.batch_size * training.batch_size
        row = {
            "epoch": epoch,
            "training_iteration": epoch,
            "loss_d": loss_d,
            "loss_g": loss_g,
            "d_real": d_real,
            "d_fake": d_fake,
            "train_seconds": seconds,
            "images_per_second": images / seconds,
        }
        if epoch % training.quality_every == 0 or epoch == training.epochs:
            row |= judge.measure(trained.generator, rank)
        row |= {
            "epoch_seconds": time.perf_counter() - began,
            "restored_epoch": restored_epoch,
            "ended_at": time.time(),  # seconds since 1970
            "workers": parallel.world_size(),
            "damaged": " ".join(damaged),
            **where,
        }
        history.append(row)
        if rank == 0:  # whole at each epoch: after a restart no epoch is in it twice
            folder.write("result.json", "".join(json.dumps(r) + "\n" for r in history).encode())
        report(training, trained, row, history, rank)


def report(
    training: Training, trained: gan.GAN, row: dict[str, Any], history: list[dict], rank: int
) -> None:
    """Reports an epoch, with a checkpoint by the first worker.

    Ray keeps as many checkpoints as are to stay for good, those with the highest `keep`: these, and
    until there are all of them, the newest ones.
    """
    epoch = row["epoch"]
    stays = epoch % training.keep_every == 0
    row = row | {"keep": epoch + (training.epochs + 1 if stays else 0)}
    if rank > 0:
        train.report(row)
        return
    with tempfile.TemporaryDirectory() as local:
        checkpoint.save(local, trained.state_dict(), history)
        train.report(row, checkpoint=train.Checkpoint.from_directory(local))


def trainer(
    folder: storage.Folder,
    training: Training,
    workers: tuple[int, int],
    resources: dict[str, float],
) -> Trainer:
    """Returns what trains with as many workers as there are, from the least to the most."""
    least, most = workers
    attempts = 3
    if least < most:  # after a node is lost, Ray first waits for as many workers as there were
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
        attempts = 24  # each wait counts as a failure of the controller
    return Trainer(
        train_worker,
        train_loop_config={
            "training": training,
            "folder": folder.uri,
            "threads": int(resources["cpu"]),
        },
        torch_config=Backend(backend="nccl" if resources["gpu"] else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=workers if least < most else most,
            use_gpu=resources["gpu"] > 0,
            resources_per_worker={kind.upper(): n for kind, n in resources.items() if n},
        ),
        run_config=train.RunConfig(
            name=folder.name,
            storage_path=folder.parent,
            checkpoint_config=train.CheckpointConfig(
                num_to_keep=1 + training.epochs // training.keep_every,
                checkpoint_score_attribute="keep",
            ),
            failure_config=train.FailureConfig(max_failures=3, controller_failure_limit=attempts),
            logging_config=train.LoggingConfig(log_level="CRITICAL"),
        ),
    )


def settings() -> tuple[Training, Run, tuple[int, int] | None]:
    """Returns what the command line asks for: the training, and where and how to run it."""
    parser = flags.Parser(__doc__)
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="report",
        help="; ".join(f"{name}: {preset.epochs} epochs" for name, preset in PRESETS.items())
        + ". Flags below override it (report)",
    )
    parser.add_settings("the experiment", Training)
    parser.add_settings("the run", Run)
    typed = parser.parse_args()
    training = replace(PRESETS[typed.preset], **flags.given(typed, Training))
    if training.data:
        training = replace(training, data=os.path.abspath(os.path.expanduser(training.data)))
    run = Run(**flags.given(typed, Run))
    run = replace(run, name=run.name or f"gan-{typed.preset}")
    workers = worker_range(run.workers)
    if run.cpus_per_worker is not None and run.cpus_per_worker < 1:
        raise Trouble(f"--cpus-per-worker {run.cpus_per_worker}: must be 1 or more")
    check(training)
    if workers:
        check_share(workers[1], training)
    return training, run, workers


def check_share(workers: int, training: Training) -> None:
    """Raises Trouble where a worker would have no image of a batch."""
    if workers > training.batch_size:
        raise Trouble(
            f"--workers {workers}: a batch has {training.batch_size} images, not one for each"
        )


def epochs_done(folder: storage.Folder, training: Training) -> int:
    """Returns how many epochs the newest whole checkpoint has behind it, 0 without one.

    Raises:
        Trouble: it is not of such a GAN.
    """
    last, _ = storage.newest_checkpoint(folder)
    if last is None:
        return 0
    try:
        gan.GAN(training.latent_dim, training.seed, training.lr, training.betas).load_state_dict(
            last.state
        )
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError):
        raise Trouble(f"{folder.child(last.name).uri}: not a checkpoint of this GAN") from None
    return last.epoch


def main() -> int:
    training, run, workers = settings()
    folder = storage.run_folder(run.storage, run.name, run.fresh)
    storage.compare(folder, [asdict(training)])
    done, failures = epochs_done(folder, training), []
    if done < training.epochs:
        cluster.connect(run.address)
        workers, resources = cluster.worker_group(workers, run.cpus_per_worker, run.gpus_per_worker)
        check_share(workers[1], training)
        cluster.check_storage(folder)
        storage.claim(folder, [asdict(training)])
        folder.write("params.json", json.dumps(asdict(training), indent=2).encode())
        mend_snapshot(folder)
        print(f"{plural(training.epochs, 'epoch')}, {done} of them done")
        print(cluster.group_plan(workers, resources))
        print(f"results: {folder.uri}", flush=True)
        progress = Progress(folder, training.epochs)
        failures = run_training(trainer(folder, training, workers, resources), progress)
        try:
            done = epochs_done(folder, training)
        except OSError as error:
            failures.append(f"{folder.uri} cannot be read: {error}")
    return tell_end(done, training.epochs, "epoch", folder, failures, "analysis/gan.py")


if __name__ == "__main__":
    flags.one_line(main)
