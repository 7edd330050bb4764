"""Fixtures of several test files: a small sweep by Ray, a run of the GAN, an S3 server, mains."""

import os

# Read when torch is loaded, here and in scripts: several processes share the cores in tests, and
# threads that spin at a barrier keep the thread that they wait for from a core.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"

import atexit
import json
import logging
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from fake_experiments import make_row, write_trial
from filelock import FileLock
from mnist_files import mnist_subset
from processes import run_script

import analysis.cli
import jobs.cli
import jobs.interrupt
from models import checkpoint, gan, gan_metrics, image_data
from models.classifier import load_classifier

if "PYTEST_XDIST_WORKER" in os.environ:  # jobs find a Ray of this process, not of the other one
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short, for sockets
    atexit.register(shutil.rmtree, os.environ["RAY_TMPDIR"], ignore_errors=True)

# A shell starts background processes with Ctrl-C ignored, which is inherited: by tests, and by the
# jobs that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# They run first, the longest at the start, so that none of them runs alone at the end.
LONGEST = ["sweep", "gan_job", "ray_up", "s3", "faults", "slurm", "tour", "ray_internals"]
LONGEST += ["gan_figures", "autoscaling"]


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"tiny", "trained"} & {*getattr(item, "fixturenames", ())}:  # fixtures that run jobs
            item.add_marker(pytest.mark.ray)
    names = [f"test_{name}" for name in LONGEST]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else 99)


GRID = ["--cells", "lstm,rnn", "--lengths", "3,5", "--seeds", "0,1"]
GRID += ["--epochs", 2, "--num-sequences", 2000]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The folder of a sweep of eight trials of two epochs, shared by all pytest processes.

    The second process finds it finished: the same command then returns immediately.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    storage = base / "sweeps"
    with FileLock(base / "sweeps.lock"):
        done = run_script("jobs/sweep.py", *GRID, "--storage", storage, "--name", "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    return storage / "tiny"


@pytest.fixture(scope="session")
def gan_run(tmp_path_factory) -> Path:
    """The folder of a GAN of two epochs, as jobs/gan.py writes it, made without Ray.

    The second epoch is evaluated, with fewer samples than by the job.
    """
    folder = tmp_path_factory.mktemp("gan") / "small-gan"
    data = mnist_subset(folder.parent / "dataset", 1280, 200)
    config = {"epochs": 2, "batch_size": 64, "latent_dim": 100, "seed": 0, "data": str(data)}
    classifier, test = load_classifier(), image_data.normalize(image_data.load(data).test.images)
    model = gan.GAN(100, seed=0, lr=0.0002, betas=(0.5, 0.999))
    history = []
    for epoch in range(3):
        if epoch:
            means = gan.train_epoch(model, image_data.load(data).train.images, 0, epoch, 64)
            names = ("loss_d", "loss_g", "d_real", "d_fake")
            metrics = dict(zip(names, means.tolist(), strict=True))
            history.append({"epoch": epoch, "training_iteration": epoch, **metrics})
        if epoch == 2:
            samples = gan.generate(model.generator, gan.eval_latents(0, 100)[:200])
            output = gan_metrics.classify(samples, classifier)
            reference = gan_metrics.ReferenceStats.from_images(test, classifier)
            history[-1] |= gan_metrics.measure(output, reference)
        path = folder / f"checkpoint_{epoch}"
        path.mkdir(parents=True)
        checkpoint.save(path, model.state_dict(), history)
    (folder / "settings.json").write_text(json.dumps({"gan": config}))
    return folder


@pytest.fixture(scope="module")
def moto_server():
    """HOST:PORT of a server on loopback that is AWS to this process and its children."""
    from moto.server import ThreadedMotoServer  # slow, and needed by two test files only

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
def tiny_copy(tiny, tmp_path) -> Path:
    """A copy of the sweep, which a test may damage."""
    return shutil.copytree(tiny, tmp_path / "tiny")


@pytest.fixture
def third_party_experiment(tmp_path) -> Path:
    """An experiment of another project, as Tune names and writes it: nested, with NaN."""
    folder = tmp_path / "trainable_2026-01-02"
    for number, lr in enumerate((0.1, 0.01)):
        config = {"optimizer": {"name": "sgd", "lr": lr, "betas": [0.9, 0.99]}, "layers": [1, 2]}
        rows = [
            make_row(i, info={"gpu": {"load": 0.5}, "step": i * 10}, score=float("nan"), done=False)
            for i in (1, 2, 3)
        ]
        name = f"trainable_94957_0000{number}_{number}_lr={lr},layers=[1,2]_2026-01-02_12-00-00"
        trial = write_trial(folder, name, config, rows)
        (trial / "events.out.tfevents.1.vm").write_bytes(b"\0\1")
        (trial / "checkpoint_000000").mkdir()
        (trial / "checkpoint_000000" / "model.bin").write_bytes(b"\0\1")
    return folder


@pytest.fixture
def call_main(monkeypatch, capsys) -> Callable[..., CompletedProcess[str]]:
    """Runs an analysis script's `main` in this process: a new one takes seconds to import torch."""

    def call(main: Callable[[], int], *arguments: object) -> CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            analysis.cli.run_main(main)
        output = capsys.readouterr()
        return CompletedProcess(arguments, exit.value.code or 0, output.out, output.err)

    return call


@pytest.fixture
def user_error_of(monkeypatch, capsys) -> Callable[..., str]:
    """Runs a job's `main` in this process; returns the one line with which it refuses to run."""

    monkeypatch.setattr(jobs.interrupt, "handle_signals", lambda: None)  # those of pytest

    def refuse(main: Callable[[], int], *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["job.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            jobs.cli.run_main(main)
        output = capsys.readouterr()
        assert (exit.value.code, output.out) == (2, "")
        (line,) = output.err.splitlines()
        return line

    return refuse
