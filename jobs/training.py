"""A run of Ray Train: the checkpoint that it resumes from, its progress, its failures."""

import json
import threading
import time
from contextlib import suppress
from typing import Any

import torch
from ray.train import ControllerError, WorkerGroupError
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer

from jobs.formatting import format_duration
from jobs.progress import StatusLine
from jobs.resources import describe_start
from jobs.storage import FAILURE, StorageDir, has_started, load_latest_checkpoint
from models import checkpoint


def load_checkpoint_on_all_ranks(
    folder: StorageDir, rank: int, device: torch.device
) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """Loads the latest valid checkpoint that rank 0 sees; also returns the corrupt ones' names.

    Raises:
        OSError: the checkpoint is missing or corrupt on another rank.
    """
    latest, corrupt = load_latest_checkpoint(folder, device) if rank == 0 else (None, [])
    name = broadcast_from_rank_zero(latest.name if latest else "")
    if rank > 0 and name:
        latest, _ = checkpoint.load_latest([name], folder.read, device)
        if latest is None:
            raise OSError(
                f"{folder.subdir(name).uri} is missing or corrupt here: "
                "do all nodes share the storage?"
            )
    return latest, corrupt


class Progress:
    """Shows the progress of a run, from the rows that rank 0 writes into its folder."""

    def __init__(self, folder: StorageDir, epochs: int, resources: dict[str, float]):
        self.folder, self.epochs, self.resources = folder, epochs, resources
        self.line = StatusLine()
        self.start = time.monotonic()
        self.rows: list[dict[str, Any]] = []  # of this command
        self.earlier: set[float] = set()  # end times of the epochs of previous commands
        self._read()
        self.earlier, self.rows = {row["epoch_end_time"] for row in self.rows}, []
        self.pid = 0  # of rank 0, which changes when the workers restart

    def report_events(self) -> None:
        """Prints restarts of the workers and corrupt checkpoints."""
        self._read()
        if self.rows and self.rows[-1]["pid"] != self.pid:
            row = self.rows[-1]
            if self.pid:
                self.line.print_line(
                    f"workers restarted ({row['num_workers']}), "
                    f"resuming from epoch {row['resumed_from_epoch']}"
                )
            if row["corrupt_checkpoints"]:
                self.line.print_line(f"skipped corrupt checkpoints: {row['corrupt_checkpoints']}")
            self.pid = row["pid"]

    def update(self) -> None:
        self.report_events()
        self.line.update(self._status)

    def _status(self) -> str:
        if not self.rows:
            seconds = time.monotonic() - self.start
            if has_started(self.folder):
                return f"first epoch: {format_duration(seconds)} since the start"
            return describe_start(seconds, self.resources, "worker")
        row, recent = self.rows[-1], self.rows[-10:]
        pace = sum(r["epoch_seconds"] for r in recent) / len(recent)
        return (
            f"epoch {row['epoch']}/{self.epochs}, "
            f"{format_duration(pace * (self.epochs - row['epoch']))} left | "
            f"L_D {row['loss_d']:.2f}, L_G {row['loss_g']:.2f}, D(x) {row['d_real']:.2f}, "
            f"D(G(z)) {row['d_fake']:.2f}, {row['images_per_second']:,.0f} images/s"
        )

    def _read(self) -> None:
        # The file may be missing or truncated; the next epoch rewrites it.
        with suppress(OSError, ValueError):
            rows = map(json.loads, self.folder.read("result.json").splitlines())
            self.rows = [row for row in rows if row["epoch_end_time"] not in self.earlier]


def run_training(trainer: TorchTrainer, progress: Progress) -> list[str]:
    """Trains to the end or to Ctrl-C, showing progress; returns the reasons of a failure.

    Ray Train runs in this thread, the main one: Ctrl-C reaches no other, and no other thread may
    be in a call of Ray when the process ends.
    """
    ended, folder = threading.Event(), progress.folder

    def show() -> None:
        while not ended.wait(1):
            progress.update()

    display = threading.Thread(target=show, daemon=True)
    display.start()
    try:
        trainer.fit()
        return [folder.read(FAILURE).decode()] if FAILURE in folder.names() else []
    except (KeyboardInterrupt, SystemExit):  # Ray's own handler turns the first into the second
        return []
    except WorkerGroupError as error:
        # Identical errors of several workers are reported once.
        return list(dict.fromkeys(map(_one_line, error.worker_failures.values())))
    except Exception as error:  # raised by Ray Train or by the storage
        cause = error.controller_failure if isinstance(error, ControllerError) else error
        return [_one_line(cause)]
    finally:
        ended.set()
        display.join()
        progress.report_events()  # of workers that took less than a second
        progress.line.clear()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
