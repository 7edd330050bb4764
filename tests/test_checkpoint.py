import errno
import json
import os
import pickle
import shutil

import pytest
import torch

from models import checkpoint


@pytest.fixture
def run(tmp_path):
    """The folder of a run with the checkpoints of epochs 1, 2 and 3."""
    folder = tmp_path / "run"
    for epoch in (1, 2, 3):
        path = folder / f"checkpoint_{epoch - 1:06}"
        path.mkdir(parents=True)
        history = [{"epoch": e, "val_loss": 1 / e} for e in range(1, epoch + 1)]
        checkpoint.save(path, {"weight": torch.full((3,), float(epoch))}, history)
    return folder


def load_latest(run):
    names = [path.name for path in run.iterdir()]
    return checkpoint.load_latest(names, lambda name: (run / name).read_bytes())


def test_latest_checkpoint_is_loaded_as_saved(run):
    latest, corrupt = load_latest(run)
    assert (latest.name, latest.epoch, corrupt) == ("checkpoint_000002", 3, [])
    assert latest.history[1] == {"epoch": 2, "val_loss": 0.5}
    assert torch.equal(latest.state["weight"], torch.full((3,), 3.0))


def test_history_is_plain_json(run):
    summary = json.loads((run / "checkpoint_000000" / "checkpoint.json").read_text())
    assert (summary["epoch"], summary["history"]) == (1, [{"epoch": 1, "val_loss": 1.0}])


@pytest.mark.parametrize(
    ("file", "corrupted"),
    [
        pytest.param("state.pt", lambda content: content[: len(content) // 2], id="truncated"),
        pytest.param("state.pt", lambda content: content[:-1] + b"x", id="changed"),
        pytest.param("state.pt", None, id="no state"),
        pytest.param("checkpoint.json", None, id="no summary"),
        pytest.param("checkpoint.json", lambda content: content[:-5], id="truncated summary"),
        pytest.param("checkpoint.json", lambda content: b"{}", id="empty summary"),
        pytest.param("checkpoint.json", lambda content: b"[]", id="summary of another type"),
    ],
)
def test_corrupt_checkpoint_is_skipped_and_reported(run, file, corrupted):
    path = run / "checkpoint_000002" / file
    content = path.read_bytes()
    path.unlink()
    if corrupted:
        path.write_bytes(corrupted(content))
    latest, corrupt = load_latest(run)
    assert (latest.name, latest.epoch) == ("checkpoint_000001", 2)
    assert corrupt == ["checkpoint_000002"]


def test_latest_is_decided_by_epoch_not_by_folder_number(run):
    (run / "checkpoint_000000").rename(run / "checkpoint_000009")
    assert load_latest(run)[0].epoch == 3


def test_nothing_is_loaded_if_every_checkpoint_is_corrupt_or_none_exists(run):
    for path in run.iterdir():
        (path / "state.pt").write_bytes(b"")
    assert load_latest(run) == (
        None,
        ["checkpoint_000002", "checkpoint_000001", "checkpoint_000000"],
    )
    shutil.rmtree(run)
    run.mkdir()
    assert load_latest(run) == (None, [])


@pytest.mark.parametrize("file", ["state.pt", "checkpoint.json"])
def test_storage_that_cannot_be_read_is_no_corrupt_checkpoint(run, file):
    def read(name: str) -> bytes:
        if name == f"checkpoint_000002/{file}":
            raise OSError(errno.EIO, "AWS Error NETWORK_CONNECTION")
        return (run / name).read_bytes()

    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        checkpoint.load_latest([path.name for path in run.iterdir()], read)


class MakesFolder:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_loading_executes_no_pickled_code(run, tmp_path):
    marker = tmp_path / "executed"
    checkpoint.save(run / "checkpoint_000002", {"weight": MakesFolder(str(marker))}, [{}] * 9)
    with pytest.raises(pickle.UnpicklingError):
        load_latest(run)
    assert not marker.exists()
    torch.load(run / "checkpoint_000002" / "state.pt", weights_only=False)
    assert marker.exists()  # so the file was dangerous
