"""jobs/gan.py: training by workers of Ray Train, faults, and errors of usage."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import clusters
import pytest
import torch
from mnist_files import mnist_subset
from processes import FORWARDED_MESSAGE, running_script, session_without_agents, wait_for
from ray import train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from analysis.results import read_trials
from jobs import cluster, interrupt, ray_internals, storage, training
from jobs import gan as job
from models import checkpoint, gan, image_data

EPOCHS, BATCH_SIZE, BETAS = 5, 128, (0.9, 0.999)  # 50 steps: see BETAS in test_gan.py
FLAGS = ["--epochs", EPOCHS, "--batch-size", BATCH_SIZE, "--betas", "0.9,0.999"]
# Evaluations make some epochs last seconds: enough for a fault in the middle of the run.
FLAGS += ["--keep-every", 2, "--eval-every", 2]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A dataset with ten training batches and 13 more images."""
    return mnist_subset(tmp_path_factory.mktemp("data") / "few digits", 10 * BATCH_SIZE + 13, 200)


@pytest.fixture(scope="module")
def ray_cluster():
    """A cluster with two CPUs, shared by the tests."""
    with clusters.started("--num-cpus=2") as started:
        yield started


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory, data, ray_cluster) -> Path:
    """The folder of an undisturbed run with two workers."""
    storage = tmp_path_factory.mktemp("reference")
    flags = [*FLAGS, "--data", data, "--workers", 2, "--storage", storage, "--name", "run"]
    done = ray_cluster.run("jobs/gan.py", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{EPOCHS} of {EPOCHS} epochs done" in done.stdout
    return storage / "run"


def read_rows(folder: Path) -> list[dict]:
    """Returns the rows of a run that may not have started yet."""
    path = folder / "result.json"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_rows(folder: Path, count: int, driver: subprocess.Popen) -> list[dict]:
    """Waits for `count` epochs; each but the last has its checkpoint, written after its row."""
    wait_for(lambda: len(read_rows(folder)) >= count, driver)
    return read_rows(folder)


def read_checkpoints(folder: Path) -> list[checkpoint.Checkpoint]:
    (run,) = read_trials(str(folder))
    return sorted(run.checkpoints(), key=lambda c: c.epoch)


def assert_identical(folder: Path, reference: Path) -> None:
    found, expected = read_checkpoints(folder)[-1], read_checkpoints(reference)[-1]
    assert found.epoch == expected.epoch == EPOCHS
    torch.testing.assert_close(found.state, expected.state, rtol=0, atol=0)
    measured = ("epoch", "loss_d", "loss_g", "d_real", "d_fake", "frechet_distance", "recall")
    for row, same in zip(read_rows(folder), read_rows(reference), strict=True):
        assert [row.get(name) for name in measured] == [same.get(name) for name in measured]
    for run in (folder, reference):
        events = EventAccumulator(str(run)).Reload()
        assert [event.step for event in events.Scalars("loss_d")] == [1, 2, 3, 4, 5]
        assert [event.step for event in events.Images("samples")] == [2, 4, 5]


def assert_close_to_single_worker(folder: Path, data: Path) -> None:
    """Compares a run with the same training in this process, without Ray."""
    torch.set_num_threads(1)
    model = gan.GAN(100, 0, 0.0002, BETAS)
    images = image_data.load(data).train.images
    for row in read_rows(folder):
        means = gan.train_epoch(model, images, 0, row["epoch"], BATCH_SIZE)
        found = torch.tensor([row[name] for name in ("loss_d", "loss_g", "d_real", "d_fake")])
        assert (found - means).abs().max() < 1e-2
    generator = gan.Generator(100)
    generator.load_state_dict(read_checkpoints(folder)[-1].state["generator"])
    z = gan.make_latents("z", count=64, latent_dim=100)
    difference = gan.generate(generator, z) - gan.generate(model.generator, z)
    assert difference.abs().mean() < 1e-2


@pytest.mark.ray
def test_multi_worker_matches_single_worker(reference_run, data):
    assert [row["num_workers"] for row in read_rows(reference_run)] == [2] * EPOCHS
    assert_close_to_single_worker(reference_run, data)


@pytest.mark.ray
def test_each_epoch_has_one_row(reference_run):
    rows = read_rows(reference_run)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["images_per_second"] > 0 and row["train_seconds"] > 0 for row in rows)
    metrics = {"frechet_distance", "precision", "coverage", "rarest_class_fraction"}
    evaluated = [row["epoch"] for row in rows if metrics <= row.keys()]
    assert evaluated == [2, 4, 5]  # --eval-every 2, and the last one


@pytest.mark.ray
def test_permanent_and_latest_checkpoints_are_kept(reference_run):
    checkpoints, rows = read_checkpoints(reference_run), read_rows(reference_run)
    assert [c.epoch for c in checkpoints] == [0, 2, 4, 5]  # --keep-every 2, and the latest
    assert [c.history for c in checkpoints] == [rows[:n] for n in (0, 2, 4, 5)]


@pytest.mark.ray
def test_first_checkpoint_is_the_initialization_of_the_seed(reference_run):
    initial = gan.GAN(100, 0, 0.0002, BETAS).state_dict()
    torch.testing.assert_close(read_checkpoints(reference_run)[0].state, initial, rtol=0, atol=0)


@pytest.mark.ray
def test_finished_run_is_reported_without_ray_and_left_unchanged(
    reference_run, data, monkeypatch, capsys
):
    def modification_times() -> dict[Path, float]:
        return {path: path.stat().st_mtime for path in reference_run.glob("**/*")}

    before = modification_times()
    flags = [*FLAGS, "--data", data, "--storage", reference_run.parent, "--name", "run"]
    monkeypatch.setattr(sys, "argv", ["gan.py", *map(str, flags)])
    monkeypatch.setattr(cluster, "connect", None)  # calling it fails
    assert job.main() == 0
    assert capsys.readouterr().out.startswith(f"5 of 5 epochs done: {reference_run}\n")
    assert modification_times() == before


@pytest.mark.ray
def test_resume_after_sigkill_of_a_worker_is_bit_identical(
    tmp_path, data, reference_run, ray_cluster
):
    flags = [*FLAGS, "--data", data, "--workers", 2, "--storage", tmp_path, "--name", "run"]
    folder = tmp_path / "run"
    with ray_cluster.running("jobs/gan.py", *flags) as driver:
        killed = wait_for_rows(folder, 3, driver)[-1]["pid"]
        os.kill(killed, signal.SIGKILL)
        output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output
    assert not FORWARDED_MESSAGE.search(output)
    rows = read_rows(folder)
    resumed = rows[-1]["resumed_from_epoch"]
    assert f"workers restarted (2), resuming from epoch {resumed}" in output
    assert 2 <= resumed < EPOCHS
    assert [row["pid"] == killed for row in rows] == [row["epoch"] <= resumed for row in rows]
    assert_identical(folder, reference_run)


@pytest.mark.ray
def test_resume_after_sigkill_of_the_driver_skips_corrupt_checkpoints(
    tmp_path, data, reference_run, ray_cluster
):
    """The kill may truncate a checkpoint, or Ray's list of them, that is just being written."""
    flags = [*FLAGS, "--data", data, "--workers", 2, "--storage", tmp_path, "--name", "run"]
    folder = tmp_path / "run"
    with ray_cluster.running("jobs/gan.py", *flags) as driver:
        rank_0 = wait_for_rows(folder, 3, driver)[-1]["pid"]
        driver.kill()
        driver.wait()
        wait_for(lambda: not Path(f"/proc/{rank_0}").exists())  # Ray ends the workers
    *_, previous, last = read_checkpoints(folder)
    (folder / last.name / "state.pt").write_bytes(b"truncated")
    (folder / "checkpoint_without_files").mkdir()
    (folder / ray_internals.CHECKPOINT_INDEX).write_text('{"truncated')
    done = ray_cluster.run("jobs/gan.py", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    (names,) = re.findall("skipped corrupt checkpoints: (.*)", done.stdout)
    assert {last.name, "checkpoint_without_files"} <= set(names.split())
    assert read_rows(folder)[-1]["resumed_from_epoch"] == previous.epoch
    assert_identical(folder, reference_run)


@pytest.mark.ray
def test_run_shrinks_when_a_node_is_lost(tmp_path, data):
    """On its own cluster: for an elastic run, Ray counts the free CPUs of a used one with a delay.

    It learns of a new node late, and keeps the CPUs of a killed driver reserved for 180 s.
    """
    flags = [*FLAGS, "--data", data, "--workers", "1-2", "--storage", tmp_path, "--name", "run"]
    folder = tmp_path / "run"
    with (
        clusters.started() as own_cluster,
        own_cluster.node() as kill_node,
        own_cluster.running("jobs/gan.py", *flags) as driver,
    ):
        wait_for_rows(folder, 2, driver)
        kill_node()
        output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output
    rows = read_rows(folder)
    resumed = rows[-1]["resumed_from_epoch"]
    assert resumed >= 1
    assert [row["num_workers"] for row in rows] == [2] * resumed + [1] * (EPOCHS - resumed)
    assert_close_to_single_worker(folder, data)


@pytest.mark.ray
def test_non_finite_losses_end_the_run_with_a_reason(tmp_path, data, ray_cluster):
    flags = ["--data", data, "--workers", 1, "--storage", tmp_path, "--lr", "1e30"]
    done = ray_cluster.run("jobs/gan.py", *FLAGS, *flags)
    assert done.returncode == 1, done.stdout + done.stderr
    reason = "the losses of epoch 1 are not finite"
    assert f"failed: {reason}" in done.stdout
    (run,) = read_trials(str(tmp_path / "gan-report"))
    assert run.status == "failed"
    assert run.failure.startswith(reason)


@pytest.mark.ray
@pytest.mark.parametrize(("number", "code"), interrupt.EXIT_CODES.items())
def test_signal_ends_the_job_and_its_ray(tmp_path, data, number, code):
    flags = [*FLAGS, "--data", data, "--storage", tmp_path, "--epochs", 200]
    with running_script("jobs/gan.py", *flags) as driver:
        wait_for_rows(tmp_path / "gan-report", 1, driver)
        if number == signal.SIGINT:  # as a terminal does: to the driver and its children
            os.killpg(driver.pid, number)
        else:
            driver.send_signal(number)
        output, _ = driver.communicate(timeout=300)
        assert driver.returncode == code, output
        wait_for(lambda: not session_without_agents(driver.pid))
    assert interrupt.INTERRUPT_MESSAGE in output
    assert "to resume: python" in output
    assert "Traceback" not in output


RESOURCES = {"cpu": 1.0, "gpu": 0.0}


class FakeTrainer:
    """Raises an error, or writes a row, instead of training."""

    def __init__(self, error: Exception | None = None, result: Path | None = None):
        self.error, self.result = error, result

    def fit(self) -> None:
        if self.error:
            raise self.error
        row = {"pid": 1, "epoch_end_time": 1.0, "corrupt_checkpoints": "checkpoint_1"}
        self.result.write_text(json.dumps(row))


@pytest.mark.parametrize(
    ("error", "reasons"),
    [
        (MemoryError(), ["MemoryError: "]),
        (
            train.WorkerGroupError("", {0: ValueError("a\nb"), 1: OSError("c"), 2: OSError("c")}),
            ["ValueError: a", "OSError: c"],
        ),
    ],
)
def test_each_distinct_error_is_reported_once_in_one_line(tmp_path, error, reasons):
    (tmp_path / "result.json").write_text('{"truncated')
    progress = training.Progress(storage.open_dir(str(tmp_path)), epochs=3, resources=RESOURCES)
    assert training.run_training(FakeTrainer(error), progress) == reasons


def test_unreadable_storage_is_reported_as_a_failure(tmp_path):
    (tmp_path / "run").touch()  # a file instead of a folder
    progress = training.Progress(
        storage.open_dir(str(tmp_path / "run")), epochs=3, resources=RESOURCES
    )
    trainer = FakeTrainer(result=tmp_path / "result.json")
    (reason,) = training.run_training(trainer, progress)
    assert reason.startswith("NotADirectoryError: ")


def test_corrupt_checkpoints_are_reported_once_even_if_training_is_short(tmp_path, capsys):
    progress = training.Progress(storage.open_dir(str(tmp_path)), epochs=3, resources=RESOURCES)
    trainer = FakeTrainer(result=tmp_path / "result.json")
    assert training.run_training(trainer, progress) == []
    assert capsys.readouterr().out.count("skipped corrupt checkpoints: checkpoint_1") == 1


@pytest.mark.parametrize(
    ("index", "is_kept"),
    [
        (None, False),
        ({"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1"}]}, True),
        ({"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_2"}]}, False),
        ('{"truncated', False),
        ([], False),
        ({}, False),
    ],
)
def test_stale_checkpoint_index_is_removed(tmp_path, index, is_kept):
    """Ray Train does not start if its list of checkpoints is corrupt or names a missing one."""
    (tmp_path / "checkpoint_1").mkdir()
    path = tmp_path / ray_internals.CHECKPOINT_INDEX
    if index is not None:
        path.write_text(index if isinstance(index, str) else json.dumps(index))
    ray_internals.remove_stale_checkpoint_index(storage.open_dir(str(tmp_path)))
    assert path.exists() == is_kept


def test_default_name_is_that_of_the_preset(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gan.py", "--preset", "quick"])
    _, launch, _ = job.parse_args()
    assert launch.name == "gan-quick"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--workers 2-257", "--workers 257: must be at most --batch-size 256"),
        ("--workers 0", "must be a number, a range such as 2-8, or auto"),
        ("--workers 3-2", "must be a number, a range such as 2-8, or auto"),
        ("--workers many", "must be a number, a range such as 2-8, or auto"),
        ("--cpus-per-worker 0", "--cpus-per-worker 0: must be positive"),
        ("--gpus-per-worker 0.5", "workers of one run cannot share a GPU"),
        ("--betas 0.9", "not two numbers"),
        ("--betas 0.9,1", "--betas 0.9,1.0: each must be in [0, 1)"),
        ("--betas -0.5,0.9", "--betas -0.5,0.9: each must be in [0, 1)"),
        ("--epochs 0", "must be positive"),
        ("--lr nan", "must be positive and finite"),
        ("--latent-dim 0", "must be positive"),
        ("--latent-dim 1000000000", "must be at most 10000"),
        ("--keep-every 0", "must be positive"),
        ("--eval-every 0", "must be positive"),
        ("--batch-size 1", "at least 2 images"),
        ("--batch-size 60001", "has 60000 training images"),
        ("--data=", "argument --data: is empty"),
        ("--data /nowhere", "/nowhere/train-images-idx3-ubyte.gz: No such file"),
    ],
)
def test_invalid_flags_are_refused_and_nothing_is_written(user_error_of, tmp_path, flags, message):
    path = tmp_path / "results"
    assert message in user_error_of(job.main, "--storage", path, *flags.split())
    assert not path.exists()


def test_too_few_test_images_are_refused(user_error_of, tmp_path):
    data = mnist_subset(tmp_path / "dataset", 300, 5)
    line = user_error_of(job.main, "--data", data, "--storage", tmp_path / "results")
    assert "5 test images are too few" in line


@pytest.fixture
def other_run(tmp_path) -> storage.StorageDir:
    """The folder of a run with --betas 0.9,0.999; its only checkpoint has another latent_dim."""
    folder = storage.run_dir(str(tmp_path), "run", fresh=False)
    storage.lock_run_dir(folder)
    storage.write_settings(folder, "gan", asdict(job.GANConfig(betas=BETAS)))
    path = Path(folder.path, "checkpoint_1")
    path.mkdir()
    checkpoint.save(path, gan.GAN(99, 0, 0.1, BETAS).state_dict(), [{"epoch": 1}])
    return folder


def test_run_with_other_settings_is_refused(user_error_of, other_run):
    line = user_error_of(job.main, "--storage", other_run.parent, "--name", "run")
    assert "(betas: 0.9,0.999 there, 0.5,0.999 here)" in line


def test_checkpoint_with_other_shapes_is_refused(user_error_of, other_run):
    flags = ["--storage", other_run.parent, "--name", "run", "--betas", "0.9,0.999"]
    line = user_error_of(job.main, *flags)
    assert f"{other_run.uri}/checkpoint_1: not of this GAN: use another --name" in line


def test_status_tells_waiting_from_training(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "describe_start", lambda *_: "waiting")
    folder = storage.open_dir(str(tmp_path))
    storage.write_rows(folder, [{"epoch": 1, "epoch_end_time": 1.0}])  # of an earlier command
    os.utime(tmp_path / "result.json", (0, 0))
    storage.lock_run_dir(folder)
    storage.write_settings(folder, "gan", {})
    progress = training.Progress(folder, epochs=3, resources=RESOURCES)
    assert progress._status() == "waiting"
    storage.write_rows(folder, [{"epoch": 1, "epoch_end_time": 1.0}])  # by rank 0, as it starts
    assert progress._status().startswith("first epoch: 0 s")
