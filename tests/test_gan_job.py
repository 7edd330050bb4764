"""jobs/gan.py, run for real: workers of Ray Train that are killed, or lose their node."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import clusters
import pytest
import torch
from ray import train
from scripts import run, session_without_agents, started, wait_for
from sets import part_of_mnist, write

from analysis.results import read_trials
from jobs import gan as job
from jobs import interrupt, storage, training
from models import checkpoint, digits, gan

EPOCHS, BATCH, BETAS = 5, 128, (0.9, 0.999)  # 50 steps: see BETAS in test_gan.py
FLAGS = ["--epochs", EPOCHS, "--batch-size", BATCH, "--betas", "0.9,0.999"]
FLAGS += ["--keep-every", 2, "--quality-every", 1]  # which makes an epoch last some seconds


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A set with ten batches to train on, and 13 images more."""
    return part_of_mnist(tmp_path_factory.mktemp("data") / "few digits", 10 * BATCH + 13, 200)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, images) -> Path:
    """The folder of a run by two workers that nothing happened to."""
    place = tmp_path_factory.mktemp("undisturbed")
    done = run("jobs/gan.py", *FLAGS, "--data", images, "--workers", 2, "--storage", place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 epochs done" in done.stdout
    return place / "gan-report"


def rows(folder: Path) -> list[dict]:
    """Returns the rows that are written, none before there are some."""
    path = folder / "result.json"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def checkpoints(folder: Path) -> list[checkpoint.Checkpoint]:
    (trial,) = read_trials(str(folder))
    return sorted(trial.checkpoints(), key=lambda c: c.epoch)


def assert_same_end(folder: Path, other: Path) -> None:
    found, expected = checkpoints(folder)[-1], checkpoints(other)[-1]
    assert found.epoch == expected.epoch == EPOCHS
    torch.testing.assert_close(found.state, expected.state, rtol=0, atol=0)
    measured = ("epoch", "loss_d", "loss_g", "d_real", "d_fake", "frechet_distance", "recall")
    for row, same in zip(rows(folder), rows(other), strict=True):
        assert [row[name] for name in measured] == [same[name] for name in measured]


def assert_close_to_one_worker(folder: Path, images: Path) -> None:
    """Holds a run against the same training in this process, without Ray and other workers."""
    torch.set_num_threads(1)
    one = gan.GAN(100, 0, 0.0002, BETAS)
    pictures = digits.load(images).train.images
    z = gan.latents("z", count=64, latent_dim=100)
    for row in rows(folder):
        means = gan.train_epoch(one, pictures, 0, row["epoch"], BATCH)
        found = torch.tensor([row[name] for name in ("loss_d", "loss_g", "d_real", "d_fake")])
        assert (found - means).abs().max() < 1e-2
    generator = gan.Generator(100)
    generator.load_state_dict(checkpoints(folder)[-1].state["generator"])
    assert (gan.draw(generator, z) - gan.draw(one.generator, z)).abs().mean() < 1e-2


def test_two_workers_of_ray_train_what_one_process_does(undisturbed, images):
    assert [row["workers"] for row in rows(undisturbed)] == [2] * EPOCHS
    assert_close_to_one_worker(undisturbed, images)


def test_every_epoch_is_told_once_and_some_checkpoints_stay(undisturbed):
    found = rows(undisturbed)
    assert [row["epoch"] for row in found] == [1, 2, 3, 4, 5]
    assert all(row["images_per_second"] > 0 and row["train_seconds"] > 0 for row in found)
    assert {"frechet_distance", "precision", "coverage", "smallest_share"} <= found[0].keys()
    assert [c.epoch for c in checkpoints(undisturbed)] == [0, 2, 4, 5]  # --keep-every 2, the newest
    assert [c.history for c in checkpoints(undisturbed)] == [found[:n] for n in (0, 2, 4, 5)]


def test_before_training_the_networks_are_as_the_seed_starts_them(undisturbed):
    start = gan.GAN(100, 0, 0.0002, BETAS).state_dict()
    torch.testing.assert_close(checkpoints(undisturbed)[0].state, start, rtol=0, atol=0)


def test_a_finished_run_says_so_and_does_nothing(undisturbed, images):
    def state() -> dict[Path, float]:
        return {path: path.stat().st_mtime for path in undisturbed.glob("**/*")}

    before = state()
    again = ["--data", images, "--workers", 2, "--storage", undisturbed.parent]
    done = run("jobs/gan.py", *FLAGS, *again)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0].startswith("5 of 5 epochs done")
    assert state() == before


def test_a_worker_that_is_killed_makes_no_difference(tmp_path, images, undisturbed):
    """Killed in the midst of an epoch, after the second one's checkpoint."""
    flags = ["--data", images, "--workers", 2, "--storage", tmp_path, "--name", "killed"]
    folder = tmp_path / "killed"
    with started("jobs/gan.py", *FLAGS, *flags) as driver:
        wait_for(lambda: len(rows(folder)) >= 3, driver)  # each is written before its checkpoint
        first = rows(folder)[-1]["pid"]
        os.kill(first, signal.SIGKILL)
        output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output
    assert "2 of them go on from epoch" in output
    assert "(raylet)" not in output  # Ray's own paragraph about it
    found = rows(folder)
    resumed = found[-1]["restored_epoch"]
    assert 2 <= resumed < EPOCHS
    assert [row["pid"] == first for row in found] == [True] * resumed + [False] * (EPOCHS - resumed)
    assert_same_end(folder, undisturbed)


def test_the_same_command_goes_on_after_its_driver_was_killed(tmp_path, images, undisturbed):
    """And passes over checkpoints, and Ray's list of them, that were being written just then."""
    flags = ["--data", images, "--workers", 2, "--storage", tmp_path, "--name", "killed"]
    folder = tmp_path / "killed"
    with started("jobs/gan.py", *FLAGS, *flags) as driver:
        wait_for(lambda: len(rows(folder)) >= 3, driver)
        driver.kill()
        driver.wait()
        wait_for(lambda: not session_without_agents(driver.pid))
    done_before = [c.epoch for c in checkpoints(folder)]
    last = checkpoints(folder)[-1].name
    (folder / last / "state.pt").write_bytes(b"cut off")
    (folder / "checkpoint_without_files").mkdir()
    (folder / "checkpoint_manager_snapshot.json").write_text('{"cut')
    done = run("jobs/gan.py", *FLAGS, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = re.findall("damaged and passed over: (.*)", done.stdout)
    assert {last, "checkpoint_without_files"} <= set(told.split())  # and maybe one really cut off
    assert rows(folder)[-1]["restored_epoch"] == done_before[-2]
    assert_same_end(folder, undisturbed)


def test_a_node_that_leaves_shrinks_the_run(tmp_path, images):
    flags = ["--data", images, "--workers", "1-2", "--storage", tmp_path, "--name", "elastic"]
    folder = tmp_path / "elastic"
    with clusters.started() as cluster, cluster.node() as leave:
        arguments = [*FLAGS, *flags, "--address", cluster.address]
        with started("jobs/gan.py", *arguments, env=cluster.environment) as driver:
            wait_for(lambda: len(rows(folder)) >= 2, driver)  # so the first has its checkpoint
            leave()
            output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output
    found = rows(folder)
    resumed = found[-1]["restored_epoch"]
    assert resumed >= 1
    assert [row["workers"] for row in found] == [2] * resumed + [1] * (EPOCHS - resumed)
    assert_close_to_one_worker(folder, images)


def test_losses_that_are_not_finite_end_the_run_and_say_why(tmp_path, images):
    flags = ["--data", images, "--workers", 1, "--storage", tmp_path, "--lr", "1e30"]
    done = run("jobs/gan.py", *FLAGS, *flags)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed: the losses of epoch 1 are not finite" in done.stdout
    (trial,) = read_trials(str(tmp_path / "gan-report"))
    assert trial.status == "failed"
    assert trial.error.startswith("the losses of epoch 1 are not finite")


def test_a_ctrl_c_ends_soon_and_says_how_to_go_on(tmp_path, images):
    flags = ["--data", images, "--workers", 1, "--storage", tmp_path, "--fresh"]
    flags += ["--epochs", 200]  # so that it is far from its end
    with started("jobs/gan.py", *FLAGS, *flags) as driver:
        wait_for(lambda: rows(tmp_path / "gan-report"), driver)
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to the driver and its children
        output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 130, output
    assert interrupt.ANSWER in output
    wait_for(lambda: not session_without_agents(driver.pid))
    assert "to continue: python" in output
    assert "--fresh" not in output
    assert "Traceback" not in output


class FailingTrainer:
    def __init__(self, error: BaseException):
        self.error = error

    def fit(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "MemoryError: "),
        (
            train.WorkerGroupError("both", {0: ValueError("no\nmore"), 1: OSError()}),
            "ValueError: no",
        ),
    ],
)
def test_whatever_goes_wrong_is_told(tmp_path, error, said):
    """Also an error without a word, and while the rows cannot be read."""
    (tmp_path / "result.json").write_text('{"cut')
    progress = training.Progress(storage.open_folder(str(tmp_path)), epochs=3)
    assert training.run_training(FailingTrainer(error), progress)[0] == said


def test_what_was_passed_over_is_told_however_quickly_training_ends(tmp_path, capsys):
    class QuickTrainer:
        def fit(self) -> None:
            row = {"pid": 1, "ended_at": 1.0, "damaged": "checkpoint_1"}
            (tmp_path / "result.json").write_text(json.dumps(row))

    progress = training.Progress(storage.open_folder(str(tmp_path)), epochs=3)
    assert training.run_training(QuickTrainer(), progress) == []
    assert capsys.readouterr().out.count("damaged and passed over: checkpoint_1") == 1


def test_what_befell_all_workers_is_told_once(tmp_path):
    progress = training.Progress(storage.open_folder(str(tmp_path)), epochs=3)
    error = train.WorkerGroupError("all", {0: OSError("lost"), 1: OSError("lost"), 2: OSError()})
    failures = training.run_training(FailingTrainer(error), progress)
    assert failures == ["OSError: lost", "OSError: "]


def test_a_storage_that_cannot_be_read_any_more_is_told(tmp_path):
    (tmp_path / "run").touch()  # where the folder was
    progress = training.Progress(storage.open_folder(str(tmp_path / "run")), epochs=3)
    (failure,) = training.run_training(FailingTrainer(AssertionError()), progress)
    assert failure.startswith("NotADirectoryError: ")


def test_ray_trains_list_is_removed_if_it_is_damaged_or_names_what_is_gone(tmp_path):
    folder = storage.open_folder(str(tmp_path))
    names = ["checkpoint_1", "checkpoint_2"]
    listed = {"checkpoint_results": [{"checkpoint_dir_name": name} for name in names]}
    for name in names:
        (tmp_path / name).mkdir()
    snapshot = tmp_path / training.SNAPSHOT
    training.mend_snapshot(folder)  # there is none
    snapshot.write_text(json.dumps(listed))
    training.mend_snapshot(folder)
    assert snapshot.exists()
    (tmp_path / "checkpoint_1").rmdir()
    training.mend_snapshot(folder)
    assert not snapshot.exists()
    for content in ('{"cut', "[]", "{}"):
        snapshot.write_text(content)
        training.mend_snapshot(folder)
        assert not snapshot.exists()


def test_no_name_is_the_presets(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gan.py", "--name", "none", "--preset", "quick"])
    _, run_settings, _ = job.settings()
    assert run_settings.name == "gan-quick"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--workers 257", "a batch has 256 images"),
        ("--workers 2-257", "a batch has 256 images"),
        ("--workers 0", "must be a number, a range such as 2-8, or auto"),
        ("--workers 3-2", "must be a number, a range such as 2-8, or auto"),
        ("--workers many", "must be a number, a range such as 2-8, or auto"),
        ("--cpus-per-worker 0", "1 or more"),
        ("--betas 0.9", "not two numbers"),
        ("--betas 0.9,1", "from 0 to less than 1"),
        ("--betas -0.5,0.9", "--betas -0.5,0.9: each is from 0"),
        ("--epochs 0", "more than 0"),
        ("--lr nan", "more than 0"),
        ("--latent-dim 0", "more than 0"),
        ("--latent-dim 1000000000", "10000 at most"),
        ("--keep-every 0", "more than 0"),
        ("--quality-every 0", "more than 0"),
        ("--batch-size 1", "2 images or more"),
        ("--batch-size 60001", "has 60000 images"),
        ("--data /nowhere", "/nowhere/train-images-idx3-ubyte.gz: No such file"),
        ("--name a/b", "a name is made of"),
    ],
)
def test_bad_flags_are_told_in_one_line_and_nothing_is_written(complaint, tmp_path, flags, said):
    place = tmp_path / "results"
    assert said in complaint(job.main, "--storage", place, *flags.split())
    assert not place.exists()


def test_a_set_with_too_few_test_images_is_told(complaint, tmp_path):
    data = part_of_mnist(tmp_path / "set", 300, 5)
    line = complaint(job.main, "--data", data, "--storage", tmp_path / "results")
    assert "5 test images are too few" in line


def test_images_of_another_size_are_told(complaint, tmp_path):
    for part in ("train", "t10k"):
        write(tmp_path, f"{part}-images-idx3-ubyte", [7] * 3 * 1024, 3, 32, 32)
        write(tmp_path, f"{part}-labels-idx1-ubyte", [0, 4, 9], 3)
    line = complaint(job.main, "--data", tmp_path, "--storage", tmp_path / "results")
    assert "images of 32x32 pixels, and not of 28x28" in line


def test_other_settings_under_the_same_name_are_refused(complaint, undisturbed, images):
    flags = [*FLAGS, "--data", images, "--storage", undisturbed.parent]
    line = complaint(job.main, *flags, "--betas", "0.5,0.999")
    assert "betas 0.9,0.999 there, 0.5,0.999 here" in line


def test_a_checkpoint_of_other_shapes_is_told(complaint, undisturbed, images, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "gan-report")
    last = folder / checkpoints(folder)[-1].name
    checkpoint.save(last, gan.GAN(99, 0, 0.1, BETAS).state_dict(), rows(folder))
    line = complaint(job.main, *FLAGS, "--data", images, "--storage", tmp_path)
    assert f"{last.name}: not a checkpoint of this GAN" in line
