"""What several test files look at: a small sweep by Ray, and an experiment that is none of ours."""

import atexit
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from experiments import row, write_trial
from filelock import FileLock
from scripts import run
from sets import part_of_mnist

from jobs.flags import one_line
from models import checkpoint, digits, gan

if "PYTEST_XDIST_WORKER" in os.environ:  # a job finds the Ray that was started here, not beside it
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short, for sockets
    atexit.register(shutil.rmtree, os.environ["RAY_TMPDIR"], ignore_errors=True)

# A shell starts what runs in its background with Ctrl-C ignored, and that is handed down: to tests,
# and to the jobs that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# They begin first, so that none is left to run alone at the end.
LONGEST = ["sweep", "gan_job", "ray_up", "s3", "faults", "gan_figures"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [f"test_{name}" for name in LONGEST]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else 99)


GRID = ["--cells", "lstm,rnn", "--lengths", "3,5", "--seeds", "0,1"]
GRID += ["--epochs", 2, "--samples", 2000]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The folder of a sweep of eight trials of two epochs, made once for all of pytest's processes.

    The one that comes second finds it done, and the command that would make it says so at once.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    place = base / "swept"
    with FileLock(base / "swept.lock"):
        done = run("jobs/sweep.py", *GRID, "--storage", place, "--name", "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "tiny"


@pytest.fixture(scope="session")
def gan_run(tmp_path_factory) -> Path:
    """A GAN's run of two epochs as jobs/gan.py leaves it: made without Ray, which is not needed."""
    folder = tmp_path_factory.mktemp("gan") / "small-gan"
    data = part_of_mnist(folder.parent / "set", 1280, 200)
    config = {"epochs": 2, "batch_size": 64, "latent_dim": 100, "seed": 0, "data": str(data)}
    trained = gan.GAN(100, seed=0, lr=0.0002, betas=(0.5, 0.999))
    history = []
    for epoch in range(3):
        if epoch:
            means = gan.train_epoch(trained, digits.load(data).train.images, 0, epoch, 64)
            names = ("loss_d", "loss_g", "d_real", "d_fake")
            measured = dict(zip(names, means.tolist(), strict=True))
            history.append({"epoch": epoch, "training_iteration": epoch, **measured})
        place = folder / f"checkpoint_{epoch}"
        place.mkdir(parents=True)
        checkpoint.save(place, trained.state_dict(), history)
    for name, content in {"params.json": config, "settings.json": [config]}.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def amazon():
    """HOST:PORT of a server on loopback that is AWS to this process and its children."""
    from moto.server import ThreadedMotoServer  # seconds, for two files of tests

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
        environment.setenv("AWS_ACCESS_KEY_ID", "someone")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        address = "{}:{}".format(*server.get_host_and_port())
        environment.setenv("AWS_ENDPOINT_URL", f"http://{address}")
        yield address
        server.stop()


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
def called(monkeypatch, capsys) -> Callable[..., CompletedProcess[str]]:
    """Runs a script's `main` in this process: one of its own takes seconds to import torch."""

    def call(main: Callable[[], int], *arguments: object) -> CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            code = main()
        except SystemExit as exit:
            code = exit.code
        output = capsys.readouterr()
        return CompletedProcess(arguments, code, output.out, output.err)

    return call


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
