"""Checkpoints that say of themselves whether they are whole, and the newest whole one of a run.

A checkpoint is a folder of two files: state.pt, which torch loads with weights_only=True, and
checkpoint.json, which holds the epoch, the history (one row of metrics per epoch) and the SHA-256
of state.pt. Whoever copies such a folder may be killed half-way: the checksum shows it.
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


@dataclass(frozen=True)
class Checkpoint:
    name: str
    history: list[Row]  # one row for each epoch that is done
    state: dict[str, Any]

    @property
    def epoch(self) -> int:
        return len(self.history)


def save(folder: str | Path, state: dict[str, Any], history: list[Row]) -> None:
    """Writes a checkpoint's two files into `folder`, which exists."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    Path(folder, "state.pt").write_bytes(buffer.getbuffer())
    summary = {
        "epoch": len(history),
        "sha256": hashlib.sha256(buffer.getbuffer()).hexdigest(),
        "history": history,
    }
    Path(folder, "checkpoint.json").write_text(json.dumps(summary))


def newest(
    names: Iterable[str], read: Callable[[str], bytes], device: torch.device | str = "cpu"
) -> tuple[Checkpoint | None, list[str]]:
    """Returns the whole checkpoint of the latest epoch, and the names of damaged ones passed over.

    Args:
        names: the folders of a run's checkpoints, in any order. A folder's number says nothing of
            its epoch: a run that was restored counts on from the last checkpoint that it knew.
        read: returns the bytes of the file at `name/file`, and raises OSError where there is none.
    """
    summaries, damaged = [], []
    for name in names:
        try:
            summary = json.loads(read(f"{name}/checkpoint.json"))
            summaries.append((len(summary["history"]), summary["sha256"], name, summary))
        except (OSError, ValueError, KeyError, TypeError):
            damaged.append(name)
    for _, sha256, name, summary in sorted(summaries, key=lambda item: item[0], reverse=True):
        try:
            content = read(f"{name}/state.pt")
        except OSError:
            content = b""
        if hashlib.sha256(content).hexdigest() == sha256:
            state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
            return Checkpoint(name, summary["history"], state), damaged
        damaged.append(name)
    return None, damaged
