"""What several test files look at: a small sweep by Ray, and an experiment that is none of ours."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from experiments import row, write_trial
from scripts import run

from jobs.flags import one_line

if "PYTEST_XDIST_WORKER" in os.environ:  # a job finds the Ray that was started here, not beside it
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short, for sockets
    atexit.register(shutil.rmtree, os.environ["RAY_TMPDIR"], ignore_errors=True)

# They begin first, so that none is left to run alone at the end.
LONGEST = ["sweep", "gan_job", "ray_up", "s3", "faults", "gan_figures"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [f"test_{name}" for name in LONGEST]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else 99)


GRID = ["--cells", "lstm,rnn", "--lengths", "3,5", "--seeds", "0,1"]
GRID += ["--epochs", 2, "--samples", 2000]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The folder of a sweep of eight trials of two epochs."""
    place = tmp_path_factory.mktemp("swept")
    done = run("jobs/sweep.py", *GRID, "--storage", place, "--name", "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "tiny"


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    """A copy of the sweep, for a test to damage."""
    return shutil.copytree(tiny, tmp_path / "tiny")


@pytest.fixture
def foreign(tmp_path) -> Path:
    """An experiment that is none of ours, as Tune names and writes it: nested, with NaN."""
    folder = tmp_path / "trainable_2026-01-02"
    for number, lr in enumerate((0.1, 0.01)):
        config = {"optimizer": {"name": "sgd", "lr": lr, "betas": [0.9, 0.99]}, "layers": [1, 2]}
        rows = [
            row(i, info={"gpu": {"share": 0.5}, "step": i * 10}, score=float("nan"), done=False)
            for i in (1, 2, 3)
        ]
        name = f"trainable_94957_0000{number}_{number}_lr={lr},layers=[1,2]_2026-01-02_12-00-00"
        trial = write_trial(folder, name, config, rows)
        (trial / "events.out.tfevents.1.vm").write_bytes(b"\0\1")
        (trial / "checkpoint_000000").mkdir()
        (trial / "checkpoint_000000" / "model.bin").write_bytes(b"\0\1")
    return folder


@pytest.fixture
def complaint(monkeypatch, capsys) -> Callable[..., str]:
    """Runs a job in this process; returns the one line with which it refuses its arguments."""

    def refused_with(main: Callable[[], int], *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["job.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as refused:
            one_line(main)
        output = capsys.readouterr()
        assert (refused.value.code, output.out) == (2, "")
        (line,) = output.err.splitlines()
        return line

    return refused_with
