"""jobs/sweep.py on Ray: trials, kills and resumes, failures, the processes of trials.

All runs share one cluster, except those about the Ray that a job starts itself.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import clusters
import pytest
from fake_experiments import read_progress_csv
from processes import (
    FORWARDED_MESSAGE,
    REPO,
    run_script,
    running_script,
    script_command,
    session_without_agents,
    wait_for,
)
from ray.tune import ExperimentAnalysis

from analysis.results import Trial, read_trials
from jobs import interrupt, storage
from jobs.cluster import WORKER_ENVIRONMENT
from jobs.learner import EVAL_SUBSET_SIZE
from models.gradient_flow import gradient_norms
from models.palindromes import palindromes
from models.recurrent import build
from models.recurrent_training import evaluate

pytestmark = pytest.mark.ray

EPOCHS = 6
LSTM, RNN = (f"{cell}-uniform-length020-seed0" for cell in ("lstm", "rnn"))
GRID = ["--cells", "lstm,rnn", "--lengths", 20, "--seeds", 0, "--epochs", EPOCHS, "--probe"]
GRID += ["--num-sequences", 8000, "--warmup-steps", 20, "--lr-schedule", "cosine"]
GRID += ["--evals-per-epoch", 3, "--name", "sweep"]
ONE_TRIAL = ["--cells", "rnn", "--lengths", 3, "--seeds", 0, "--num-sequences", 2000]
ONE_TRIAL += ["--name", "sweep"]
# Of the metrics, those that do not depend on time.
METRICS = ("epoch", "train_loss", "val_loss", "val_accuracy", "val_accuracy_within_epoch")
METRICS += ("grad_norm_h", "update_rms_over_lr")


def trials_by_name(folder: Path) -> dict[str, Trial]:
    return {trial.name: trial for trial in read_trials(str(folder))}


def metrics(folder: Path) -> dict[str, list[tuple]]:
    """Returns the metrics of each trial, epoch by epoch."""
    return {
        name: [tuple(row.get(metric) for metric in METRICS) for row in trial.rows]
        for name, trial in trials_by_name(folder).items()
    }


def history(trial: Path) -> list[dict]:
    """Returns the rows of a trial's latest valid checkpoint; empty without one."""
    latest, _ = storage.load_latest_checkpoint(storage.open_dir(str(trial)))
    return latest.history if latest else []


def assert_each_epoch_is_written_once(folder: Path) -> None:
    for trial in (LSTM, RNN):
        lines = (folder / trial / "result.json").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
        rows = read_progress_csv(folder / trial)
        assert [int(row["epoch"]) for row in rows] == list(range(1, EPOCHS + 1))


def latest_checkpoint(trial: Path) -> Path:
    """Returns the folder of a trial's latest valid checkpoint."""
    latest, _ = storage.load_latest_checkpoint(storage.open_dir(str(trial)))
    return trial / latest.name


@pytest.fixture(scope="module")
def cluster() -> Iterator[clusters.Cluster]:
    with clusters.started("--num-cpus=2") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def reference_run(cluster, tmp_path_factory) -> Path:
    """An uninterrupted sweep of two trials, in a folder whose name has a space."""
    path = tmp_path_factory.mktemp("reference run")
    done = cluster.run("jobs/sweep.py", *GRID, "--storage", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 trials done" in done.stdout
    assert "2 concurrent trials; each with 1 CPU and 0 GPUs\n" in done.stdout
    assert f"next: python {REPO}/analysis/sweep.py '{path}/sweep'" in done.stdout
    assert done.stderr == ""
    return path / "sweep"


def test_each_trial_reports_every_epoch_and_keeps_three_checkpoints(reference_run):
    trials = trials_by_name(reference_run)
    assert sorted(trials) == [LSTM, RNN]
    for name, trial in trials.items():
        assert trial.status == "finished"
        assert [row["epoch"] for row in trial.rows] == list(range(1, EPOCHS + 1))
        for row in trial.rows:
            assert row["training_iteration"] == row["epoch"]
            assert row["resumed_from_epoch"] == 0
            assert 0 < row["train_seconds"] < row["epoch_seconds"]
            assert row["sequences_per_second"] == pytest.approx(6400 / row["train_seconds"])
        kept = sorted(path.name for path in (reference_run / name).glob("checkpoint_*"))
        assert kept == [f"checkpoint_{number:06}" for number in (3, 4, 5)]


def test_last_checkpoint_holds_the_network_that_was_evaluated(reference_run):
    for trial in read_trials(str(reference_run)):
        config, latest = trial.config, trial.latest_checkpoint()
        network = build(config["cell"], config["hidden_size"], "uniform", seed=99, length=20)
        network.load_state_dict(latest.state["network"])
        data = palindromes(config["seed"], config["length"], config["num_sequences"])
        metrics = evaluate(network, trial.task, data.validation)
        assert latest.epoch == EPOCHS
        assert metrics["accuracy"] == trial.rows[-1]["val_accuracy"]
        assert metrics["loss"] == pytest.approx(trial.rows[-1]["val_loss"], rel=1e-5)


def test_copy_first_is_trained(cluster, tmp_path):
    flags = ["--preset", "copy-first", "--cells", "gru", "--lengths", 3, "--inits", "keras,chrono"]
    flags += ["--hidden-size", 16, "--num-sequences", 2000, "--epochs", 2, "--name", "sweep"]
    done = cluster.run("jobs/sweep.py", *flags, "--probe", "--storage", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"next: python {REPO}/analysis/sweep.py {tmp_path}/sweep" in done.stdout
    trials = trials_by_name(tmp_path / "sweep")
    for trial in trials.values():
        assert trial.status == "finished"
        assert trial.rows[-1]["val_loss"] < trial.rows[0]["val_loss"]
        assert "val_accuracy" not in trial.rows[0]


def test_finished_sweep_connects_to_no_cluster_and_writes_nothing(reference_run):
    before = {path: path.stat().st_mtime_ns for path in reference_run.rglob("*")}
    arguments = ["--storage", reference_run.parent, "--address", "127.0.0.1:1"]
    done = run_script("jobs/sweep.py", *GRID, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 trials done" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in reference_run.rglob("*")} == before


def test_resume_after_killed_trial_is_bit_identical(cluster, reference_run, tmp_path):
    folder = tmp_path / "sweep"
    with cluster.running("jobs/sweep.py", *GRID, "--storage", tmp_path) as driver:
        rows = wait_for(lambda: len(rows := history(folder / LSTM)) >= 2 and rows, driver)
        os.kill(rows[-1]["pid"], signal.SIGKILL)
        output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output
    assert f"{LSTM}: its process died; resuming from its latest checkpoint" in output
    assert not FORWARDED_MESSAGE.search(output)
    assert metrics(folder) == metrics(reference_run)
    assert_each_epoch_is_written_once(folder)
    rows = trials_by_name(folder)[LSTM].rows
    resumed_from = rows[-1]["resumed_from_epoch"]
    assert 2 <= resumed_from < EPOCHS
    pids = [row["pid"] for row in rows]
    assert pids == [pids[0]] * resumed_from + [pids[-1]] * (EPOCHS - resumed_from)
    assert pids[0] != pids[-1]


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory) -> Path:
    """A sweep whose driver was killed, and with it the Ray that it had started."""
    path = tmp_path_factory.mktemp("killed")
    trials = [path / "sweep" / name for name in (LSTM, RNN)]
    with running_script("jobs/sweep.py", *GRID, "--storage", path) as driver:
        wait_for(lambda: all(history(trial) for trial in trials), driver)
        driver.kill()
        driver.wait()
        wait_for(lambda: not session_without_agents(driver.pid))
    return path / "sweep"


@pytest.fixture
def killed(killed_once, tmp_path) -> Path:
    """A copy of that sweep in another folder."""
    return shutil.copytree(killed_once, tmp_path / "sweep")


def test_resume_after_killed_driver_is_bit_identical(cluster, reference_run, killed):
    epochs_before = {name: len(history(killed / name)) for name in (LSTM, RNN)}
    done = cluster.run("jobs/sweep.py", *GRID, "--storage", killed.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(killed) == metrics(reference_run)
    trials = trials_by_name(killed)
    for name, epochs in epochs_before.items():
        if epochs < EPOCHS:
            assert trials[name].rows[-1]["resumed_from_epoch"] == epochs
    assert_each_epoch_is_written_once(killed)


def test_resume_from_corrupt_files_is_bit_identical(cluster, reference_run, killed):
    """A kill may truncate a checkpoint or Tune's snapshot; each trial reads its own folder."""
    trial = killed / LSTM
    corrupt = latest_checkpoint(trial)
    os.truncate(corrupt / "state.pt", 1000)
    for snapshot in killed.glob("experiment_state-*.json"):
        os.truncate(snapshot, 100)
    done = cluster.run("jobs/sweep.py", *GRID, "--storage", killed.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    (skipped,) = re.findall(f"{LSTM}: skipped corrupt checkpoints: (.*);", done.stdout)
    assert corrupt.name in skipped.split()  # the kill may have truncated another one
    assert metrics(killed) == metrics(reference_run)
    assert_each_epoch_is_written_once(killed)

    # A finished trial without its last checkpoint repeats its last epoch. The corrupt checkpoints
    # in its earlier rows are not reported again.
    last = latest_checkpoint(trial)
    (last / "state.pt").unlink()
    done = cluster.run("jobs/sweep.py", *GRID, "--storage", killed.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 trials, 1 of them done" in done.stdout
    (skipped,) = re.findall(f"{LSTM}: skipped corrupt checkpoints: (.*);", done.stdout)
    assert last.name in skipped.split()
    assert metrics(killed) == metrics(reference_run)
    assert history(trial)[-1]["resumed_from_epoch"] == EPOCHS - 1
    assert sorted(path.name for path in killed.iterdir() if path.is_dir()) == [LSTM, RNN]


def test_resume_on_the_same_cluster_keeps_folders_and_obeys_the_new_limit(cluster, tmp_path):
    """Tune's own snapshot, which lacks the trials that started after it, is not used."""
    flags = [*ONE_TRIAL, "--lengths", "3,5", "--epochs", 150, "--storage", tmp_path]
    folder = tmp_path / "sweep"
    trials = [folder / f"rnn-uniform-length{length:03}-seed0" for length in (3, 5)]
    rare_snapshots = cluster.environment | {"TUNE_GLOBAL_CHECKPOINT_S": "3600"}
    slow = replace(cluster, environment=rare_snapshots)
    with slow.running("jobs/sweep.py", *flags) as driver:
        wait_for(lambda: all(history(trial) for trial in trials), driver)
        driver.kill()
    done = cluster.run("jobs/sweep.py", *flags, "--max-concurrent", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(folder.glob("rnn-*")) == trials
    spans = []
    for trial in read_trials(str(folder)):
        assert [row["epoch"] for row in trial.rows] == list(range(1, 151))
        resumed_from = trial.rows[-1]["resumed_from_epoch"]
        assert 0 < resumed_from < 150
        resumed = trial.rows[resumed_from:]
        start = resumed[0]["epoch_end_time"] - resumed[0]["epoch_seconds"]
        spans.append((start, resumed[-1]["epoch_end_time"]))
        # Tune numbers checkpoints from 0 again; the one that a trial resumed from is kept.
        kept = folder / trial.name / storage.KEPT_CHECKPOINT / "checkpoint.json"
        assert json.loads(kept.read_text())["epoch"] == resumed_from
    (_, first_end), (second_start, _) = sorted(spans)
    assert first_end < second_start


def test_kill_during_the_first_save_of_a_resumed_trial_loses_no_epoch(
    cluster, reference_run, killed
):
    """Tune writes checkpoint 0 over one that is there, and a kill may truncate it."""
    trial = killed / LSTM
    epochs = len(history(trial))
    with cluster.running("jobs/sweep.py", *GRID, "--storage", killed.parent) as driver:
        wait_for(lambda: len(history(trial)) > epochs, driver)
        driver.kill()
    # All that Tune wrote after the resume is lost; so may be what it wrote before.
    for checkpoint in trial.glob("checkpoint_0*"):
        os.truncate(checkpoint / "state.pt", 1000)
    assert len(history(trial)) == epochs
    done = cluster.run("jobs/sweep.py", *GRID, "--storage", killed.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(killed) == metrics(reference_run)


def test_grown_sweep_is_bit_identical_to_one_that_had_all_trials(cluster, tmp_path):
    small = [*ONE_TRIAL, "--epochs", 2]
    large = [*ONE_TRIAL, "--epochs", 4, "--seeds", "0,1", "--lengths", "3,5", "--cells", "rnn,lstm"]
    folders = [tmp_path / name / "sweep" for name in ("grown", "direct")]
    for flags, folder in ((small, folders[0]), (large, folders[0]), (large, folders[1])):
        done = cluster.run("jobs/sweep.py", *flags, "--storage", folder.parent)
        assert done.returncode == 0, done.stdout + done.stderr
    grown, direct = folders
    assert len(metrics(grown)) == 8
    assert metrics(grown) == metrics(direct)
    first = trials_by_name(grown)["rnn-uniform-length003-seed0"]
    assert [row["resumed_from_epoch"] for row in first.rows] == [0, 0, 2, 2]
    assert json.loads((grown / first.name / "params.json").read_text())["epochs"] == 4

    # A command trains its own trials only; Tune still lists the finished ones. So it is with the
    # settings of an older version, which lacks one of today's.
    settings = json.loads((grown / "settings.json").read_text())
    for config in (*settings["sweep"]["recipes"], *settings["sweep"]["trials"].values()):
        del config["tf32"]
    (grown / "settings.json").write_text(json.dumps(settings))
    more = [*ONE_TRIAL, "--epochs", 4, "--seeds", 2]
    done = cluster.run("jobs/sweep.py", *more, "--storage", grown.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 trial done" in done.stdout
    assert len(ExperimentAnalysis(str(grown)).dataframe()) == 9
    assert len({path.parent for path in grown.glob("*/events.out.tfevents.*")}) == 9
    assert {trial.status for trial in read_trials(str(grown))} == {"finished"}


def test_sweep_says_what_it_waits_for(cluster, tmp_path):
    occupy = "ray.get(ray.remote(num_cpus=2)(lambda: 0).remote())\n"
    occupy += "ray.remote(num_cpus=2)(lambda: time.sleep(600)).remote()\n"
    connect = f"import ray, time; ray.init({cluster.address!r}, logging_level='ERROR')\n"
    wait = "while ray.available_resources().get('CPU'): time.sleep(0.1)\n"
    code = connect + occupy + wait + "print('occupied', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", code]
    flags = [*ONE_TRIAL, "--epochs", 1, "--storage", tmp_path]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=cluster.environment, stdout=pipe, text=True) as other_job:
        assert other_job.stdout.readline() == "occupied\n"
        with cluster.running("jobs/sweep.py", *flags) as driver:
            waiting = next(line for line in driver.stdout if "reserved" in line)
            other_job.kill()
            output, _ = driver.communicate(timeout=300)
    assert waiting.startswith("starting for ")
    assert "each trial needs 1 CPU and 0 GPUs; reserved, by this job or others: 2 of 2" in waiting
    assert "1 of 1 trial done" in output


def test_diverged_trial_is_reported_and_not_retried(cluster, tmp_path):
    flags = [*ONE_TRIAL, "--epochs", 5, "--lr", "1e38", "--probe", "--storage", tmp_path]
    name = "rnn-uniform-length003-seed0"
    for summary in (f"{name}: diverged in epoch 1\n", "1 of 1 trial done"):  # the second is done
        done = cluster.run("jobs/sweep.py", *flags)
        assert done.returncode == 0, done.stdout + done.stderr
        assert summary in done.stdout
        assert f"diverged: {name}: try a lower --lr" in done.stdout
    (trial,) = read_trials(str(tmp_path / "sweep"))
    assert (trial.status, len(trial.rows)) == ("finished", 1)


def test_permanent_failure_is_reported_and_the_other_trials_finish(cluster, tmp_path):
    flags = [*ONE_TRIAL, "--cells", "lstm,rnn", "--epochs", 1, "--storage", tmp_path]
    folder = tmp_path / "sweep"
    failing = folder / "rnn-uniform-length003-seed0"
    failing.mkdir(parents=True)
    blocker = failing / "checkpoint_000000"  # a file where Tune creates a folder
    blocker.touch()
    done = cluster.run("jobs/sweep.py", *flags)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 of 2 trials done" in done.stdout
    (failure,) = (line for line in done.stdout.splitlines() if line.startswith("failed:"))
    assert "Error" in failure
    assert f"({failing}/error.txt)" in failure
    lstm, rnn = read_trials(str(folder))
    assert (lstm.status, rnn.status) == ("finished", "failed")
    assert rnn.failure in failure
    attempts = (failing / "error.txt").read_text().count("Failure #")
    assert attempts == 4  # the first one and three retries

    blocker.unlink()
    done = cluster.run("jobs/sweep.py", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {trial.status for trial in read_trials(str(folder))} == {"finished"}
    assert not (folder / lstm.name / storage.KEPT_CHECKPOINT).exists()  # it had nothing to resume


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
    subprocess.run(mount, check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_full_disk_is_reported_and_the_sweep_resumes_with_more_space(cluster, tmp_path):
    flags = [*ONE_TRIAL, "--epochs", 3, "--storage", tmp_path]
    with small_disk(tmp_path, "400k"):  # two checkpoints of 150 kB fit, the third does not
        done = cluster.run("jobs/sweep.py", *flags)
        assert done.returncode == 1, done.stdout + done.stderr
        assert done.stderr == ""
        assert "No space left" in done.stdout or "the sweep stopped" in done.stdout
        assert "to resume: python" in done.stdout
        subprocess.run(["mount", "-o", "remount,size=50m", str(tmp_path)], check=True)
        done = cluster.run("jobs/sweep.py", *flags)
        assert done.returncode == 0, done.stdout + done.stderr
        (trial,) = read_trials(str(tmp_path / "sweep"))
        assert [row["epoch"] for row in trial.rows] == [1, 2, 3]


@pytest.fixture(scope="module")
def serial_run(cluster, tmp_path_factory) -> tuple[list[Trial], list[str]]:
    """The trials of a sweep that runs one at a time, and their process's environment."""
    path = tmp_path_factory.mktemp("serial")
    flags = ["--cells", "rnn", "--lengths", "3-6,200", "--seeds", 0, "--epochs", 1, "--probe"]
    flags += ["--hidden-size", 16, "--num-sequences", 2000, "--name", "sweep"]
    flags += ["--max-concurrent", 1, "--cpus-per-trial", 2, "--storage", path]
    with cluster.running("jobs/sweep.py", *flags) as driver:
        first = path / "sweep" / "rnn-uniform-length200-seed0"
        pid = wait_for(lambda: history(first), driver)[0]["pid"]
        environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
        output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output
    assert "1 concurrent trial, at most 1; each with 2 CPUs and 0 GPUs\n" in output
    return read_trials(str(path / "sweep")), environment


def test_trials_share_a_process_with_its_threads_and_allocator_settings(serial_run):
    trials, environment = serial_run
    rows = [row for trial in trials for row in trial.rows]
    assert len(rows) == 5
    assert {row["pid"] for row in rows} == {rows[0]["pid"]}
    assert {(row["num_threads"], row["device"]) for row in rows} == {(2, "cpu")}
    assert {f"{name}={value}" for name, value in WORKER_ENVIRONMENT.items()} <= {*environment}


def test_subnormal_gradients_are_flushed_to_zero(serial_run):
    (trial,) = (trial for trial in serial_run[0] if trial.config["length"] == 200)
    network = build("rnn", hidden_size=16, init="uniform", seed=0, length=200)
    network.load_state_dict(trial.latest_checkpoint().state["network"])
    val_subset = palindromes(0, 200, 2000).validation[:EVAL_SUBSET_SIZE]
    expected = gradient_norms(network, trial.task, val_subset)["h"].tolist()
    reported = trial.rows[-1]["grad_norm_h"]
    # Where the mean norm is below 1e-41, none of the 400 sequences has a normal number, 1e-38.
    subnormal = [steps for steps, norm in enumerate(expected) if 0 < norm < 1e-41]
    assert subnormal
    assert [reported[steps] for steps in subnormal] == [0] * len(subnormal)
    normal = slice(subnormal[0] // 2)
    assert reported[normal] == pytest.approx(expected[normal], rel=1e-4)


def test_trials_run_with_any_python_path_and_working_directory(tmp_path):
    venv = "R&D, it's my $venv"
    (tmp_path / venv).symlink_to(sys.prefix)
    python = str(tmp_path / venv / "bin" / "python")
    flags = [*ONE_TRIAL, "--epochs", 1, "--storage", tmp_path]
    command = [python, *script_command("jobs/sweep.py", *flags)[1:]]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise ImportError('not the suite')")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 trial done" in done.stdout


@pytest.mark.parametrize(("number", "code"), interrupt.EXIT_CODES.items())
def test_signal_ends_the_job_and_its_ray(tmp_path, number, code):
    flags = [*ONE_TRIAL, "--epochs", 2000, "--storage", tmp_path]
    with running_script("jobs/sweep.py", *flags) as driver:
        wait_for(lambda: history(tmp_path / "sweep" / "rnn-uniform-length003-seed0"), driver)
        if number == signal.SIGINT:  # as a terminal does: to the driver and its children
            os.killpg(driver.pid, number)
        else:
            driver.send_signal(number)
        output, _ = driver.communicate(timeout=300)
        wait_for(lambda: not session_without_agents(driver.pid))
    assert driver.returncode == code, output
    assert interrupt.INTERRUPT_MESSAGE in output
    assert "to resume: python" in output
    assert "Traceback" not in output
