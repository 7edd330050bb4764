"""The event files of the GAN: `tensorboard --logdir FOLDER` shows them while it trains."""

import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from jobs.formatting import format_value
from jobs.storage import StorageDir
from models import gan, image_data

GRID = 8  # rows and columns of the grid of samples
HPARAMS_METRICS = ("loss_d", "loss_g", "frechet_distance", "precision", "recall")
NOT_PLOTTED = {"epoch", "training_iteration", "epoch_end_time"}  # they are the axes


class EventFile:
    """The event file of one start of the workers, which rank 0 writes.

    It begins with the start of a session: TensorBoard then discards what earlier files say about
    the epochs that are trained again. tensorboardX's SummaryWriter is not used, because its thread
    may write an epoch after its checkpoint, or never if the worker is killed.
    """

    def __init__(self, folder: StorageDir, config: dict[str, Any], epochs_done: int):
        self.folder, self.config = folder, config
        self.latents = gan.make_latents(  # those of the figures
            config["seed"], "grid", count=GRID**2, latent_dim=config["latent_dim"]
        )
        self.name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        # Behind a URI nothing can be appended to a file: the local one is copied there.
        self.temporary = None if folder.is_local else tempfile.TemporaryDirectory()
        directory = self.temporary.name if self.temporary else folder.path
        self.records = RecordWriter(f"{directory}/{self.name}")
        settings = {
            name: value if isinstance(value, int | float) else format_value(value)
            for name, value in config.items()
        }
        metrics = dict.fromkeys(HPARAMS_METRICS)
        experiment, session_start, self.session_end = summary.hparams(settings, metrics)
        restart = SessionLog(status=SessionLog.START)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=epochs_done + 1, session_log=restart))
        self._write(Event(summary=experiment), Event(summary=session_start))

    def write_epoch(self, row: dict[str, Any], generator: gan.Generator) -> None:
        """Writes an epoch's metrics and, if it was evaluated, a grid of samples."""
        metrics = {name: value for name, value in row.items() if name not in NOT_PLOTTED}
        summaries = [summary.scalar(name, value) for name, value in metrics.items()]
        if "frechet_distance" in row:
            summaries.append(summary.image("samples", self._samples(generator), dataformats="NCHW"))
        if row["epoch"] == self.config["epochs"]:
            summaries.append(self.session_end)
        values = [value for each in summaries for value in each.value]
        self._write(
            Event(wall_time=row["epoch_end_time"], step=row["epoch"], summary=Summary(value=values))
        )

    def _samples(self, generator: gan.Generator) -> Any:
        """Returns (64, 1, 28, 28) images as uint8."""
        images = gan.generate(generator, self.latents)  # (64, 784)
        pixels = ((images + 1) * 127.5).round().byte()
        return pixels.view(-1, 1, image_data.IMAGE_SIZE, image_data.IMAGE_SIZE).cpu().numpy()

    def _write(self, *events: Event) -> None:
        for event in events:
            event.wall_time = event.wall_time or time.time()
            self.records.write(event.SerializeToString())
        self.records.flush()
        if self.temporary:
            self.folder.write(self.name, Path(self.records.path).read_bytes())
