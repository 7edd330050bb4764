"""What stands beside a run of Ray Train: its progress, and what mends its list of checkpoints."""

import json
import queue
import threading
import time
from contextlib import suppress
from typing import Any

from ray.train.torch import TorchTrainer

from jobs.progress import StatusLine, duration
from jobs.storage import Folder

SNAPSHOT = "checkpoint_manager_snapshot.json"  # what Ray Train knows of the checkpoints


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
        folder.filesystem.delete_file(f"{folder.path}/{SNAPSHOT}")


class Progress:
    """Says how far a training is, from the rows that its first worker writes into its folder."""

    def __init__(self, folder: Folder, epochs: int):
        self.folder, self.epochs = folder, epochs
        self.line = StatusLine()
        self.began = time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self._read()
        self.earlier = {row["ended_at"] for row in self.rows}  # not of this command
        self.pid = 0  # of the first worker: another one when the workers were started anew

    def show(self) -> None:
        self._read()
        rows = [row for row in self.rows if row["ended_at"] not in self.earlier]
        if rows and rows[-1]["pid"] != self.pid:
            row = rows[-1]
            if self.pid:
                self.line.say(
                    f"the workers were started anew: {row['workers']} of them "
                    f"go on from epoch {row['restored_epoch']}"
                )
            if row["damaged"]:
                self.line.say(f"damaged and passed over: {row['damaged']}")
            self.pid = row["pid"]
        self.line.show(lambda: self._status(rows))

    def _status(self, rows: list[dict[str, Any]]) -> str:
        if not rows:
            waited = duration(time.monotonic() - self.began)
            return f"starting, then the first epoch: {waited} (logs: /tmp/ray/session_latest/logs)"
        row, recent = rows[-1], rows[-10:]
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
            lines = self.folder.read("result.json").splitlines()
            self.rows = [json.loads(line) for line in lines]


def run_training(trainer: TorchTrainer, progress: Progress) -> list[str]:
    """Trains to the end or to Ctrl-C, saying how far it is; returns what went wrong for good.

    Ray Train waits in a thread, so that the first Ctrl-C ends this process, and Ray with it.
    """
    outcome: queue.Queue[list[str]] = queue.Queue()

    def fit() -> None:
        failures: list[str] = []
        try:
            trainer.fit()
        except Exception as error:  # a worker's own, or whatever stopped Ray Train itself
            cause = getattr(error, "controller_failure", error)
            causes = getattr(error, "worker_failures", None) or {0: cause}
            failures = [f"{type(e).__name__}: {e}".splitlines()[0] for e in causes.values()]
        finally:
            outcome.put(failures)

    threading.Thread(target=fit, daemon=True).start()
    failures = None
    try:
        while failures is None:
            with suppress(queue.Empty):
                failures = outcome.get(timeout=1)
            progress.show()
    except KeyboardInterrupt:
        failures = []
    progress.line.clear()
    return failures
