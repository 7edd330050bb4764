"""The folder of a run, on a disk or behind a URI: its name, lock, settings and checkpoints."""

import csv
import fcntl
import io
import json
import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
from pyarrow import fs

from jobs.errors import UserError
from jobs.progress import print_lines
from models import checkpoint

SETTINGS = "settings.json"
FAILURE = "failure.txt"  # why a trial or run failed permanently
SHARED_STORAGE_HINT = (
    "give --storage a folder that all nodes share, or a URI such as s3://BUCKET/runs"
)


@dataclass(frozen=True)
class StorageDir:
    """A folder on a filesystem of pyarrow, through which Ray reaches storage, too."""

    uri: str  # an absolute path or a URI, for Ray and for people
    filesystem: fs.FileSystem
    path: str  # for the filesystem

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_file(f"{self.path}/{name}") as file:
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Writes a file atomically."""
        target = f"{self.path}/{name}"
        with self.filesystem.open_output_stream(f"{target}.tmp") as file:
            file.write(content)
        self.filesystem.move(f"{target}.tmp", target)

    def delete(self, name: str) -> None:
        self.filesystem.delete_file(f"{self.path}/{name}")

    def names(self) -> list[str]:
        """Returns the names of the folder's entries; empty if the folder does not exist."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return sorted(entry.base_name for entry in self.filesystem.get_file_info(selector))

    @property
    def name(self) -> str:
        return self._base_uri.rpartition("/")[2]

    @property
    def parent(self) -> str:
        return (self._base_uri.rpartition("/")[0] or "/") + self.options

    @property
    def parent_for_ray(self) -> dict[str, Any]:
        """The parent folder, as settings of a run of Ray."""
        parent = self.path.rpartition("/")[0] or "/"
        return {"storage_path": parent, "storage_filesystem": self.filesystem}

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def subdir(self, name: str) -> "StorageDir":
        uri = f"{self._base_uri.rstrip('/')}/{name}{self.options}"
        return StorageDir(uri, self.filesystem, f"{self.path}/{name}")

    @property
    def _base_uri(self) -> str:
        return self.uri.removesuffix(self.options)

    @property
    def options(self) -> str:
        """The query of a URI, such as ?endpoint_override=… for a server that is not AWS."""
        _, mark, options = self.uri.partition("?")
        return "" if self.is_local else mark + options


def open_dir(storage: str) -> StorageDir:
    """Opens a local path (`~` and relative ones too) or a URI such as s3://bucket/x.

    Raises:
        UserError: the URI is invalid or its storage cannot be reached.
    """
    if "://" not in storage:
        expanded = os.path.expanduser(storage)
        if expanded.startswith("~"):
            raise UserError(f"--storage {storage}: there is no such home directory")
        storage = os.path.abspath(expanded)
    try:
        filesystem, path = fs.FileSystem.from_uri(storage)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise UserError(f"--storage {storage}: {error}") from None
    if filesystem.type_name == "s3":  # keys may have no permission to create parent folders
        _, (options,) = filesystem.__reduce__()
        options["check_directory_existence_before_creation"] = True
        filesystem = fs.S3FileSystem(**options)
    return StorageDir(storage, filesystem, path.rstrip("/"))


def run_dir(storage: str, name: str, fresh: bool) -> StorageDir:
    """Returns the folder of the run `name`; with `fresh`, a new one beside existing ones.

    Writes nothing.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise UserError(
            f"--name {name!r}: a name consists of letters, digits, dots, dashes and underscores"
        )
    parent = open_dir(storage)
    folder, count = parent.subdir(name), 1
    try:
        if storage.startswith(("gs://", "gcs://")) and not parent.options:
            open_dir(f"{storage}?retry_limit_seconds=5").names()  # 15 min without credentials
        while folder.names() and fresh:
            count += 1
            folder = parent.subdir(f"{name}-{count}")
    except (OSError, ValueError) as error:
        raise UserError(f"--storage {storage}: {error}") from None
    return folder


def read_settings(folder: StorageDir, job: str) -> dict[str, Any]:
    """Returns the settings of the run in a folder, empty without one.

    Raises:
        UserError: they are corrupt, or of another job.
        OSError: they cannot be read.
    """
    if SETTINGS not in folder.names():
        return {}
    try:
        settings = json.loads(folder.read(SETTINGS))
        ((kind, values),) = settings.items()
    except (ValueError, AttributeError) as error:
        refuse_corrupt_settings(folder, error)
    if kind != job:
        raise UserError(f"{folder.uri} holds a run of jobs/{kind}.py: use another --name")
    if not isinstance(values, dict):
        refuse_corrupt_settings(folder, TypeError(f"no settings of a {job}"))
    return values


def refuse_corrupt_settings(folder: StorageDir, error: Exception) -> NoReturn:
    """Raises UserError: the settings of the run in a folder cannot be used."""
    raise UserError(
        f"{folder.subdir(SETTINGS).uri} is corrupt ({type(error).__name__}: {error}): "
        "use another --name, or --fresh"
    ) from None


def refuse_settings(folder: StorageDir, difference: str) -> NoReturn:
    """Raises UserError: the folder holds a run with other settings."""
    raise UserError(
        f"{folder.uri} holds a run with other settings ({difference}): "
        "use another --name, or --fresh"
    )


def lock_run_dir(folder: StorageDir) -> None:
    """Creates the folder of a run on a disk, and locks it until this process ends.

    Raises:
        UserError: the folder is not writable, or another process holds the lock.
    """
    if not folder.is_local:  # a store of objects has no folders, and no locks
        return
    try:
        _create_dir(folder)
        _lock(folder)
    except OSError as error:
        raise UserError(f"--storage: {folder.uri} is not writable: {error}") from None


def write_settings(folder: StorageDir, job: str, settings: dict[str, Any]) -> None:
    """Writes the settings of a run, which also shows to its workers that they see its folder.

    Raises:
        UserError: the folder is not writable.
    """
    try:
        folder.write(SETTINGS, json.dumps({job: settings}, indent=2).encode())
    except OSError as error:
        raise UserError(f"--storage: {folder.uri} is not writable: {error}") from None


@contextmanager
def marker_file(folder: StorageDir) -> Iterator[tuple[str, bytes]]:
    """Writes a file beside a run's folder on a local disk; yields its path and content.

    After the block, the file and the folders that were created for it are removed.

    Raises:
        UserError: the folder is not writable.
    """
    parent = Path(folder.path).parent
    created = [path for path in (parent, *parent.parents) if not path.exists()]
    marker, content = parent / f".marker-{uuid.uuid4().hex}", uuid.uuid4().bytes
    try:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            marker.write_bytes(content)
        except OSError as error:
            raise UserError(f"--storage: {parent} is not writable: {error}") from None
        yield str(marker), content
    finally:
        with suppress(OSError):  # the storage is gone, or the folders have other content by now
            marker.unlink(missing_ok=True)
            for path in created:
                path.rmdir()


def check_visible(run: StorageDir) -> None:
    """Raises OSError if this node does not see the run's folder as the driver does."""
    if SETTINGS not in run.names():
        raise OSError(
            f"{run.uri} is not visible from node {socket.gethostname()}: {SHARED_STORAGE_HINT}"
        )


def load_latest_checkpoint(
    folder: StorageDir, device: torch.device | str = "cpu"
) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """Loads the latest valid checkpoint of a trial or run; also returns the corrupt ones' names."""
    entries = [name for name in folder.names() if name.startswith("checkpoint_")]
    names = [name for name in entries if not name.endswith(".json")]  # Ray Train's index
    return checkpoint.load_latest(names, folder.read, device)


def start_trial(folder: StorageDir, config: dict[str, Any]) -> None:
    """Creates the folder of a trial with its settings, as Tune's readers expect them."""
    _create_dir(folder)
    folder.write("params.json", json.dumps(config, indent=2).encode())
    clear_failure(folder)


def _create_dir(folder: StorageDir) -> None:
    if folder.is_local:
        folder.filesystem.create_dir(folder.path)


def write_failure(folder: StorageDir, reason: str) -> None:
    """Writes why a trial or run failed permanently, even if it failed before it started."""
    _create_dir(folder)
    folder.write(FAILURE, reason.encode())


def clear_failure(folder: StorageDir) -> None:
    """Removes the reason of a permanent failure: the trial or run is tried again."""
    if FAILURE in folder.names():
        folder.delete(FAILURE)


def write_rows(folder: StorageDir, history: list[dict[str, Any]]) -> None:
    """Writes the rows of all epochs: after a restart, no epoch is there twice."""
    lines = "".join(json.dumps(row) + "\n" for row in history)
    folder.write("result.json", lines.encode())
    if not history:
        return
    table = io.StringIO()
    writer = csv.DictWriter(table, {name: None for row in history for name in row})
    writer.writeheader()
    writer.writerows(history)
    folder.write("progress.csv", table.getvalue().encode())


def has_started(folder: StorageDir) -> bool:
    """Returns whether a run's workers have written its rows since this command's settings."""
    paths = [f"{folder.path}/{name}" for name in (SETTINGS, "result.json")]
    try:
        settings, rows = folder.filesystem.get_file_info(paths)
    except OSError:  # a network that fails for a moment
        return False
    return rows.mtime is not None and rows.mtime >= settings.mtime


KEPT_CHECKPOINT = "checkpoint_resumed"


def keep_checkpoint(folder: StorageDir, name: str) -> None:
    """Copies a checkpoint to a name that Ray never writes: Ray may overwrite the original.

    While the copy is incomplete, it is not valid, and the original is.
    """
    if name == KEPT_CHECKPOINT:
        return
    kept = folder.subdir(KEPT_CHECKPOINT)
    _create_dir(kept)
    for file in checkpoint.FILES:
        kept.write(file, folder.read(f"{name}/{file}"))


# Open files: the kernel releases a lock when its process ends, however it ends.
_locks: list[IO[str]] = []


def _lock(folder: StorageDir) -> None:
    file = Path(folder.path, ".lock").open("w")  # noqa: SIM115 - it stays open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{folder.uri}: already running in another process") from None
    except OSError as error:  # Lustre without flock, NFS without a lock server
        print_lines(
            f"no locks on this file system ({error.strerror}): start no run twice at a time"
        )
    _locks.append(file)
