"""Checkpoints that carry their own checksum, and the latest valid one of a run.

A checkpoint is a folder of two files: state.pt, which torch loads with weights_only=True, and
checkpoint.json, which holds the epoch, the history (one row of metrics per epoch) and the SHA-256
of state.pt. If a copy of the folder is interrupted, the checksum reveals it.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]

STATE, SUMMARY = FILES = "state.pt", "checkpoint.json"  # in this order: the second validates

# What reading a missing file raises. Other errors, as of a network, say nothing about a checkpoint.
MISSING = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True)
class Checkpoint:
    name: str
    history: list[Row]  # one row of metrics for each completed epoch
    state: dict[str, Any]

    @property
    def epoch(self) -> int:
        return len(self.history)


def save(folder: str | Path, state: dict[str, Any], history: list[Row]) -> None:
    """Writes the two files of a checkpoint into `folder`, which exists."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    Path(folder, STATE).write_bytes(buffer.getbuffer())
    summary = {
        "epoch": len(history),
        "sha256": hashlib.sha256(buffer.getbuffer()).hexdigest(),
        "history": history,
    }
    Path(folder, SUMMARY).write_text(json.dumps(summary))


def load_latest(
    names: Iterable[str], read: Callable[[str], bytes], device: torch.device | str = "cpu"
) -> tuple[Checkpoint | None, list[str]]:
    """Loads the valid checkpoint with the most epochs.

    Args:
        names: the checkpoint folders of a run, in any order. A folder's number says nothing about
            its epoch: a resumed run may number its checkpoints from any number.
        read: returns the bytes of the file at `name/file`; raises one of MISSING if there is none.

    Returns:
        The checkpoint, None if there is no valid one; and the names of corrupt checkpoints.

    Raises:
        OSError: the storage cannot be read. To train from an older checkpoint, or from none,
            would lose epochs.
    """
    summaries, corrupt = [], []
    for name in names:
        try:
            summary = json.loads(read(f"{name}/{SUMMARY}"))
            summaries.append((len(summary["history"]), summary["sha256"], name, summary))
        except (*MISSING, ValueError, KeyError, TypeError):
            corrupt.append(name)
    for _, sha256, name, summary in sorted(summaries, key=lambda item: item[0], reverse=True):
        try:
            content = read(f"{name}/{STATE}")
        except MISSING:
            content = b""
        if hashlib.sha256(content).hexdigest() == sha256:
            state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
            return Checkpoint(name, summary["history"], state), corrupt
        corrupt.append(name)
    return None, corrupt
