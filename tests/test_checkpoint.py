import json
import shutil

import pytest
import torch

from models import checkpoint


@pytest.fixture
def run(tmp_path):
    """A run's folder with the checkpoints of epochs 1, 2 and 3."""
    for epoch in (1, 2, 3):
        folder = tmp_path / f"checkpoint_{epoch - 1:06}"
        folder.mkdir()
        history = [{"epoch": e, "val_loss": 1 / e} for e in range(1, epoch + 1)]
        checkpoint.save(folder, {"weight": torch.full((3,), float(epoch))}, history)
    return tmp_path


def newest(run):
    return checkpoint.newest(
        [folder.name for folder in run.iterdir()], lambda name: (run / name).read_bytes()
    )


def test_the_newest_is_found_and_comes_back_as_it_was_saved(run):
    found, damaged = newest(run)
    assert (found.name, found.epoch, damaged) == ("checkpoint_000002", 3, [])
    assert found.history[1] == {"epoch": 2, "val_loss": 0.5}
    assert torch.equal(found.state["weight"], torch.full((3,), 3.0))


@pytest.mark.parametrize(
    "damage", ["cut", "changed", "no state", "no summary", "half a summary", "other summary"]
)
def test_a_damaged_one_is_passed_over_and_named(run, damage):
    state, summary = (run / "checkpoint_000002" / n for n in ("state.pt", "checkpoint.json"))
    content = state.read_bytes()
    if damage == "cut":
        state.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        state.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no state":
        state.unlink()
    elif damage == "no summary":
        summary.unlink()
    elif damage == "other summary":
        summary.write_text("{}")
    else:
        summary.write_text(summary.read_text()[:-5])
    found, damaged = newest(run)
    assert (found.name, found.epoch) == ("checkpoint_000001", 2)
    assert damaged == ["checkpoint_000002"]


def test_the_epoch_counts_and_not_the_folders_number(run):
    (run / "checkpoint_000000").rename(run / "checkpoint_000009")
    assert newest(run)[0].epoch == 3


def test_none_is_found_where_none_is_whole(run):
    for folder in run.iterdir():
        (folder / "state.pt").write_bytes(b"")
    assert newest(run) == (None, ["checkpoint_000002", "checkpoint_000001", "checkpoint_000000"])
    shutil.rmtree(run)
    run.mkdir()
    assert newest(run) == (None, [])


def test_a_summary_is_plain_json(run):
    summary = json.loads((run / "checkpoint_000000" / "checkpoint.json").read_text())
    assert summary["history"] == [{"epoch": 1, "val_loss": 1.0}]
