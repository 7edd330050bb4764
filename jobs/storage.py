"""The folder of one run, on a disk or behind a URI: its name, its lock, its settings."""

import fcntl
import json
import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pyarrow import fs

from jobs.flags import Trouble, shown
from models import checkpoint

SETTINGS = "settings.json"
WAYS_OUT = "give --storage a folder that all nodes share, or a URI such as s3://BUCKET/runs"


@dataclass(frozen=True)
class Folder:
    """A folder on a filesystem of pyarrow's, which is how Ray reaches storage, too."""

    uri: str  # what Ray and people are given: an absolute path or a URI
    filesystem: fs.FileSystem
    path: str  # what the filesystem is given

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_file(f"{self.path}/{name}") as file:
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Writes a file whole or not at all."""
        target = f"{self.path}/{name}"
        with self.filesystem.open_output_stream(f"{target}.tmp") as file:
            file.write(content)
        self.filesystem.move(f"{target}.tmp", target)

    def delete(self, name: str) -> None:
        self.filesystem.delete_file(f"{self.path}/{name}")

    def names(self) -> list[str]:
        """Returns the names of what lies in the folder, none where there is no folder."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return sorted(entry.base_name for entry in self.filesystem.get_file_info(selector))

    @property
    def name(self) -> str:
        return self._place.rpartition("/")[2]

    @property
    def parent(self) -> str:
        return (self._place.rpartition("/")[0] or "/") + self._options

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def child(self, name: str) -> "Folder":
        uri = f"{self._place.rstrip('/')}/{name}{self._options}"
        return Folder(uri, self.filesystem, f"{self.path}/{name}")

    @property
    def _place(self) -> str:
        return self.uri.removesuffix(self._options)

    @property
    def _options(self) -> str:
        """What stands behind a URI, such as ?endpoint_override=… for a server that is not AWS."""
        _, mark, options = self.uri.partition("?")
        return "" if self.is_local else mark + options


def open_folder(storage: str) -> Folder:
    """Returns the folder at a local path (`~` and relative ones too) or a URI such as s3://bucket/x."""
    if "://" not in storage:
        storage = os.path.abspath(os.path.expanduser(storage))
    try:
        filesystem, path = fs.FileSystem.from_uri(storage)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise Trouble(f"--storage {storage}: {error}") from None
    return Folder(storage, filesystem, path.rstrip("/"))


def run_folder(storage: str, name: str, fresh: bool) -> Folder:
    """Returns the folder of the run `name`; with `fresh`, a new one beside those that are there.

    Nothing is written.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise Trouble(
            f"--name {name!r}: a name is made of letters, digits, dots, dashes, underscores"
        )
    parent = open_folder(storage)
    folder, count = parent.child(name), 1
    try:
        while folder.names() and fresh:
            count += 1
            folder = parent.child(f"{name}-{count}")
    except (OSError, ValueError) as error:
        raise Trouble(f"--storage {storage}: {error}") from None
    return folder


def compare(folder: Folder, settings: list[dict[str, Any]]) -> None:
    """Raises Trouble where the folder holds a run that was made with other settings."""
    if SETTINGS not in folder.names():
        return
    try:
        made_with = json.loads(folder.read(SETTINGS))
        difference = _difference(made_with, json.loads(json.dumps(settings)))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Trouble(
            f"{folder.child(SETTINGS).uri} is damaged ({error}): give --name or --fresh"
        ) from None
    if difference:
        raise Trouble(
            f"{folder.uri} holds a run with other settings ({difference}): "
            "give this one another --name, or --fresh"
        )


def claim(folder: Folder, settings: list[dict[str, Any]]) -> None:
    """Writes the settings into the folder, and keeps other processes out of it until this one ends.

    Raises:
        Trouble: it cannot be written, or another process is at work in it.
    """
    try:
        folder.filesystem.create_dir(folder.path)
        if folder.is_local:
            _lock(folder)
        folder.write(SETTINGS, json.dumps(settings, indent=2).encode())
    except OSError as error:
        raise Trouble(f"--storage: {folder.uri} cannot be written: {error}") from None


@contextmanager
def token(folder: Folder) -> Iterator[tuple[str, bytes]]:
    """Puts a file beside a run's folder on a local disk; yields its path and what is in it.

    It is gone after the block, and so are the folders that it needed.

    Raises:
        Trouble: it cannot be written.
    """
    parent = Path(folder.path).parent
    made = [place for place in (parent, *parent.parents) if not place.exists()]
    path, content = parent / f".token-{uuid.uuid4().hex}", uuid.uuid4().bytes
    try:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise Trouble(f"--storage: {parent} cannot be written: {error}") from None
        yield str(path), content
    finally:
        with suppress(OSError):  # the storage is gone, or something else is in the folders now
            path.unlink(missing_ok=True)
            for place in made:
                place.rmdir()


def check_seen(run: Folder) -> None:
    """Raises OSError where this node does not see a run's folder as the driver does."""
    if SETTINGS not in run.names():
        raise OSError(f"{run.uri} is not seen from node {socket.gethostname()}: {WAYS_OUT}")


def newest_checkpoint(
    folder: Folder, device: torch.device | str = "cpu"
) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """Returns a trial's or a run's newest whole checkpoint, and the names of the damaged ones."""
    found = [name for name in folder.names() if name.startswith("checkpoint_")]
    names = [name for name in found if not name.endswith(".json")]  # Ray Train's list of them
    return checkpoint.newest(names, folder.read, device)


_locks = []  # open files: the kernel frees a lock when its process ends, however it ends


def _lock(folder: Folder) -> None:
    file = Path(folder.path, ".lock").open("w")  # noqa: SIM115 - it stays open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Trouble(f"{folder.uri}: another process is running this, wait for it") from None
    _locks.append(file)


def _difference(there: list[dict[str, Any]], here: list[dict[str, Any]]) -> str:
    """Says in what two lists of settings differ, part by part; nothing where they do not."""
    if len(there) != len(here):
        return f"{len(there)} grids there, {len(here)} here"
    return ", ".join(
        dict.fromkeys(
            f"{name} {_typed(old, name)} there, {_typed(new, name)} here"
            for old, new in zip(there, here, strict=True)
            for name in {**old, **new}
            if name not in old or name not in new or old[name] != new[name]
        )
    )


def _typed(settings: dict[str, Any], name: str) -> str:
    if name not in settings:
        return "not known"
    value = settings[name]
    return shown(tuple(value) if isinstance(value, list) else value)
