"""A run of Ray Train: the checkpoint that it resumes from, its progress, its failures."""

import json
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import ray
import torch
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer

from jobs.formatting import format_duration
from jobs.progress import LOGS, StatusLine
from jobs.storage import StorageDir, load_latest_checkpoint
from models import checkpoint

CHECKPOINT_INDEX = "checkpoint_manager_snapshot.json"  # Ray Train's list of checkpoints
ERROR = "error.txt"  # why a run failed permanently; Tune uses this name, too


def remove_stale_checkpoint_index(folder: StorageDir) -> None:
    """Removes Ray Train's list of checkpoints if it is truncated or names a missing checkpoint.

    Ray would not start with such a list. The workers read the folder itself; Ray then never
    deletes the checkpoints of the removed list.
    """
    if CHECKPOINT_INDEX not in folder.names():
        return
    try:
        results = json.loads(folder.read(CHECKPOINT_INDEX))["checkpoint_results"]
        names = {result["checkpoint_dir_name"] for result in results}
        stale = not names <= set(folder.names())
    except (ValueError, KeyError, TypeError):
        stale = True
    if stale:
        folder.delete(CHECKPOINT_INDEX)


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

    def __init__(self, folder: StorageDir, epochs: int):
        self.folder, self.epochs = folder, epochs
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
            elapsed = format_duration(time.monotonic() - self.start)
            return f"starting, then the first epoch: {elapsed} (logs: {LOGS})"
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


class Trainer(TorchTrainer):
    """A TorchTrainer that does not wait long for its workers at Ctrl-C.

    If they are just starting, Ray's own handler takes ten seconds and more to stop them. They end
    with this process in any case.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        def stop(*_: Any) -> None:
            with suppress(ray.exceptions.RayError):  # the controller is gone, or does not respond
                ray.get(controller.abort.remote(), timeout=2)
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, stop)


def run_training(trainer: TorchTrainer, progress: Progress) -> list[str]:
    """Trains to the end or to Ctrl-C, showing progress; returns the reasons of a failure.

    Ray Train runs in this thread, the main one: Ctrl-C reaches no other, and no other thread may
    be in a call of Ray when the process ends.
    """
    ended, folder = threading.Event(), progress.folder

    def show() -> None:
        with suppress(BrokenPipeError):  # stdout is closed: no reason to stop training
            while not ended.wait(1):
                progress.update()

    display = threading.Thread(target=show, daemon=True)
    display.start()
    try:
        if ERROR in folder.names():
            folder.delete(ERROR)
        trainer.fit()
        return [folder.read(ERROR).decode()] if ERROR in folder.names() else []
    except (KeyboardInterrupt, SystemExit):  # Ray's own handler turns the first into the second
        return []
    except Exception as error:  # raised by a worker, by Ray Train or by the storage
        cause = getattr(error, "controller_failure", error)
        causes = getattr(error, "worker_failures", None) or {0: cause}
        reasons = [f"{type(e).__name__}: {e}".splitlines()[0] for e in causes.values()]
        return list(dict.fromkeys(reasons))  # identical worker errors are reported once
    finally:
        ended.set()
        display.join()
        with suppress(BrokenPipeError):
            progress.report_events()  # of workers that took less than a second
        progress.line.clear()
