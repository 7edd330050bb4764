"""What stands beside a run of Ray Train: where it goes on from, and how far it is."""

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

from jobs.progress import LOGS, StatusLine, duration
from jobs.storage import Folder, newest_checkpoint
from models import checkpoint

SNAPSHOT = "checkpoint_manager_snapshot.json"  # what Ray Train knows of the checkpoints
ERROR = "error.txt"  # why a run ended that would end again in the same way, as Tune names it


def mend_snapshot(folder: Folder) -> None:
    """Removes Ray Train's list of checkpoints if it is cut off or names one that is gone.

    Ray would not start with such a list. The workers look into the folder itself; the checkpoints
    that the list named are never deleted then.
    """
    if SNAPSHOT not in folder.names():
        return
    try:
        results = json.loads(folder.read(SNAPSHOT))["checkpoint_results"]
        gone = {result["checkpoint_dir_name"] for result in results} - set(folder.names())
    except (ValueError, KeyError, TypeError):
        gone = True
    if gone:
        folder.delete(SNAPSHOT)


def agreed_checkpoint(
    folder: Folder, rank: int, device: torch.device
) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """Returns the newest whole checkpoint that the first worker sees, and the damaged ones' names.

    Raises:
        OSError: another worker does not see it whole.
    """
    last, damaged = newest_checkpoint(folder, device) if rank == 0 else (None, [])
    name = broadcast_from_rank_zero(last.name if last else "")
    if rank > 0 and name:
        last, _ = checkpoint.newest([name], folder.read, device)
        if last is None:
            raise OSError(
                f"{folder.child(name).uri} is not whole here: does every node see the storage?"
            )
    return last, damaged


class Progress:
    """Says how far a training is, from the rows that its first worker writes into its folder."""

    def __init__(self, folder: Folder, epochs: int):
        self.folder, self.epochs = folder, epochs
        self.line = StatusLine()
        self.began = time.monotonic()
        self.rows: list[dict[str, Any]] = []  # of this command
        self.earlier: set[float] = set()  # when the epochs of those before it ended
        self._read()
        self.earlier, self.rows = {row["ended_at"] for row in self.rows}, []
        self.pid = 0  # of the first worker: another one when the workers were started anew

    def tell(self) -> None:
        """Prints what is to stay: that the workers were started anew, what was passed over."""
        self._read()
        if self.rows and self.rows[-1]["pid"] != self.pid:
            row = self.rows[-1]
            if self.pid:
                self.line.say(
                    f"the workers were started anew: {row['workers']} of them "
                    f"go on from epoch {row['restored_epoch']}"
                )
            if row["damaged"]:
                self.line.say(f"damaged and passed over: {row['damaged']}")
            self.pid = row["pid"]

    def show(self) -> None:
        self.tell()
        self.line.show(self._status)

    def _status(self) -> str:
        if not self.rows:
            waited = duration(time.monotonic() - self.began)
            return f"starting, then the first epoch: {waited} (logs: {LOGS})"
        row, recent = self.rows[-1], self.rows[-10:]
        pace = sum(r["epoch_seconds"] for r in recent) / len(recent)
        return (
            f"epoch {row['epoch']}/{self.epochs}, "
            f"{duration(pace * (self.epochs - row['epoch']))} left | "
            f"L_D {row['loss_d']:.2f}, L_G {row['loss_g']:.2f}, D(x) {row['d_real']:.2f}, "
            f"D(G(z)) {row['d_fake']:.2f}, {row['images_per_second']:,.0f} images/s"
        )

    def _read(self) -> None:
        # It may not be there yet, or be damaged: the next epoch writes it whole.
        with suppress(OSError, ValueError):
            rows = map(json.loads, self.folder.read("result.json").splitlines())
            self.rows = [row for row in rows if row["ended_at"] not in self.earlier]


class Trainer(TorchTrainer):
    """Ray Train's own, but for Ctrl-C: it does not wait long for the workers to be stopped.

    If they are just starting, Ray's own handler takes ten seconds and more to stop them. They end
    with this process in any case.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        def stop(*_: Any) -> None:
            with suppress(ray.exceptions.RayError):  # the controller is gone then, or it takes long
                ray.get(controller.abort.remote(), timeout=2)
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, stop)


def run_training(trainer: TorchTrainer, progress: Progress) -> list[str]:
    """Trains to the end or to Ctrl-C, saying how far it is; returns what went wrong for good.

    Ray Train has this thread: it is the one that Ctrl-C reaches, and no other may be in a call of
    Ray's when the process ends.
    """
    ended, folder = threading.Event(), progress.folder

    def show() -> None:
        with suppress(BrokenPipeError):  # nobody reads on: no reason to stop training
            while not ended.wait(1):
                progress.show()

    showing = threading.Thread(target=show, daemon=True)
    showing.start()
    try:
        if ERROR in folder.names():
            folder.delete(ERROR)
        trainer.fit()
        return [folder.read(ERROR).decode()] if ERROR in folder.names() else []
    except (KeyboardInterrupt, SystemExit):  # the handler of Ray's own turns the one into the other
        return []
    except Exception as error:  # a worker's own, or what stopped Ray Train or took the storage
        cause = getattr(error, "controller_failure", error)
        causes = getattr(error, "worker_failures", None) or {0: cause}
        told = [f"{type(e).__name__}: {e}".splitlines()[0] for e in causes.values()]
        return list(dict.fromkeys(told))  # what befell all workers, once
    finally:
        ended.set()
        showing.join()
        with suppress(BrokenPipeError):
            progress.tell()  # of workers that were done within a second
        progress.line.clear()
