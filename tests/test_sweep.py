"""jobs/sweep.py, run for real: one that needs Ray has a driver process that starts its own."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import scripts
import torch
from scripts import run, session_without_agents, started, wait_for

from analysis.results import read_trials
from jobs import gan, grid, interrupt, storage, sweep, tuning
from jobs.cluster import WORKER_ENVIRONMENT
from jobs.flags import again, command
from models import checkpoint
from models.memory import gradient_norms
from models.palindromes import palindromes
from models.recurrent import build, evaluate

EPOCHS = 6
GRID = ["--cells", "lstm,rnn", "--lengths", "20", "--seeds", "0", "--epochs", EPOCHS]
GRID += ["--samples", 8000, "--warmup", 20, "--decay", "cosine", "--checks", 3, "--probe"]
MEASURED = ("epoch", "train_loss", "val_loss", "val_accuracy", "checked", "gradient_h", "step_size")


def measurements(folder: Path) -> dict[str, list[tuple]]:
    """Returns what each trial measured, epoch by epoch, to the last bit."""
    return {
        trial.name: [tuple(row[name] for name in MEASURED) for row in trial.rows]
        for trial in read_trials(str(folder))
    }


def folder_at(place: Path) -> storage.Folder:
    return storage.Folder(str(place), storage.fs.LocalFileSystem(), str(place))


def history(trial: Path) -> list[dict]:
    """Returns the rows of the newest whole checkpoint of a trial, while it runs."""
    last, _ = storage.newest_checkpoint(folder_at(trial))
    return last.history if last else []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A sweep of two trials that nothing happened to, in a folder whose name has a space."""
    place = tmp_path_factory.mktemp("un disturbed")
    done = run("jobs/sweep.py", *GRID, "--storage", place, "--name", "sweep")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 trials done" in done.stdout
    assert re.search(r"^\d+ at a time; each with 1 CPU", done.stdout, re.M)
    assert f"next: python analysis/sweep.py '{place}/sweep'" in done.stdout
    assert done.stderr == ""
    return place / "sweep"


def test_a_sweep_runs_every_trial_once_and_reports_every_epoch(undisturbed):
    trials = {trial.name: trial for trial in read_trials(str(undisturbed))}
    assert sorted(trials) == ["lstm-uniform-length020-seed0", "rnn-uniform-length020-seed0"]
    for trial in trials.values():
        assert trial.status == "finished"
        assert [row["epoch"] for row in trial.rows] == list(range(1, EPOCHS + 1))
        for row in trial.rows:
            assert row["training_iteration"] == row["epoch"]
            assert row["restored_epoch"] == 0
            assert 0 < row["train_seconds"] < row["epoch_seconds"]
            assert row["sequences_per_second"] == pytest.approx(6400 / row["train_seconds"])
        kept = sorted(path.name for path in (undisturbed / trial.name).glob("checkpoint_*"))
        assert kept == [f"checkpoint_{epoch:06}" for epoch in (3, 4, 5)]


def test_what_is_finished_is_not_done_again_and_starts_no_ray(undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    storage_flags = ["--storage", undisturbed.parent, "--name", "sweep"]
    again = run("jobs/sweep.py", *GRID, *storage_flags, "--address", "127.0.0.1:1")
    assert again.returncode == 0
    assert "2 of 2 trials done" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before


def test_a_killed_trial_goes_on_in_a_new_process_and_ends_with_the_same_numbers(
    undisturbed, tmp_path
):
    with started("jobs/sweep.py", *GRID, "--storage", tmp_path, "--name", "sweep") as driver:
        trial = tmp_path / "sweep" / "lstm-uniform-length020-seed0"
        rows = wait_for(lambda: len(history(trial)) >= 2 and history(trial), driver)
        os.kill(rows[-1]["pid"], signal.SIGKILL)
        output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output
    assert "its process ended; it goes on from its newest checkpoint" in output
    assert "(raylet)" not in output  # Ray's own paragraph about it
    assert measurements(tmp_path / "sweep") == measurements(undisturbed)
    rows = {trial.name: trial for trial in read_trials(str(tmp_path / "sweep"))}[trial.name].rows
    first, last = rows[0], rows[-1]
    assert last["pid"] != first["pid"]
    assert last["restored_epoch"] >= 2
    assert [row["pid"] == first["pid"] for row in rows] == [
        row["epoch"] <= last["restored_epoch"] for row in rows
    ]


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory) -> Path:
    """A sweep whose driver was killed, and Ray with it, when both trials were past an epoch."""
    place = tmp_path_factory.mktemp("killed")
    folder = place / "sweep"
    with started("jobs/sweep.py", *GRID, "--storage", place, "--name", "sweep") as driver:

        def begun() -> bool:
            trials = list(folder.glob("*-seed0"))
            return len(trials) == 2 and all(len(history(trial)) >= 2 for trial in trials)

        wait_for(begun, driver)
        driver.kill()
        driver.wait()
        wait_for(lambda: not session_without_agents(driver.pid))
    return folder


@pytest.fixture
def killed(killed_once, tmp_path) -> Path:
    return shutil.copytree(killed_once, tmp_path / "sweep")


def test_a_killed_driver_goes_on_with_every_trial_exactly_once(undisturbed, killed):
    done_before = {trial.name: len(history(trial)) for trial in killed.glob("*-seed0")}
    again = run("jobs/sweep.py", *GRID, "--storage", killed.parent, "--name", "sweep")
    assert again.returncode == 0, again.stdout + again.stderr
    assert measurements(killed) == measurements(undisturbed)
    assert sorted(p.name for p in killed.iterdir() if p.is_dir()) == sorted(done_before)
    for trial in read_trials(str(killed)):
        if done_before[trial.name] < EPOCHS:
            assert trial.rows[-1]["restored_epoch"] == done_before[trial.name]
    # Tune's own file has every epoch, too, although the driver died before it wrote some.
    for name in done_before:
        lines = (killed / name / "result.json").read_text().splitlines()
        assert {json.loads(line)["epoch"] for line in lines} == set(range(1, EPOCHS + 1))


def test_a_damaged_checkpoint_is_passed_over_and_no_snapshot_of_tunes_is_needed(
    undisturbed, killed
):
    """The driver may be killed while it writes either. A trial is found by its folder's name."""
    trial = killed / "lstm-uniform-length020-seed0"
    newest = max(trial.glob("checkpoint_*"), key=epoch_of)
    state = newest / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    for snapshot in killed.glob("experiment_state-*.json"):
        snapshot.write_text(snapshot.read_text()[:100])
    again = run("jobs/sweep.py", *GRID, "--storage", killed.parent, "--name", "sweep")
    assert again.returncode == 0, again.stdout + again.stderr
    (told,) = re.findall(f"{trial.name}: damaged and passed over: (.*);", again.stdout)
    assert newest.name in told.split()  # and maybe one that the kill cut off
    assert measurements(killed) == measurements(undisturbed)
    assert len([path for path in killed.iterdir() if path.is_dir()]) == 2
    # Its rows still say so, and go to Tune again where a trial goes on: that is no news.
    # Nor does it matter that Tune's snapshot names a checkpoint that is gone.
    shutil.rmtree(max(trial.glob("checkpoint_*"), key=epoch_of))
    assert not tuning.can_go_on(folder_at(killed), tuning.snapshot(folder_at(killed)))
    later = run("jobs/sweep.py", *GRID, "--storage", killed.parent, "--name", "sweep")
    assert later.returncode == 0, later.stdout + later.stderr
    assert "passed over" not in later.stdout
    assert measurements(killed) == measurements(undisturbed)


def test_of_tunes_snapshot_both_files_must_be_whole(undisturbed, tmp_path):
    place = shutil.copytree(undisturbed, tmp_path / "sweep")
    folder = folder_at(place)
    ended = tuning.Known("TERMINATED", f"checkpoint_{EPOCHS - 1:06}")
    names = [trial.name for trial in read_trials(str(place))]
    assert tuning.snapshot(folder) == dict.fromkeys(names, ended)
    (trial_list,) = place.glob("basic-variant-state-*")
    trial_list.write_bytes(trial_list.read_bytes()[:-1])
    assert tuning.snapshot(folder) is None
    trial_list.unlink()
    assert tuning.snapshot(folder) is None


def test_a_damaged_checkpoint_that_a_row_names_is_not_what_tune_goes_on_from(undisturbed, tmp_path):
    place = shutil.copytree(undisturbed, tmp_path / "sweep")
    (snapshot,) = place.glob("experiment_state-*.json")
    state = json.loads(snapshot.read_text())
    for pair in state["trial_data"]:
        metadata = json.loads(pair[1])
        texts = [f"{place}/trial/checkpoint_000002", "damaged", "checkpoint_000009"]
        metadata["checkpoint_manager"]["value"] = pickle.dumps(texts).hex()
        pair[1] = json.dumps(metadata)
    snapshot.write_text(json.dumps(state))
    found = tuning.snapshot(folder_at(place))
    assert {trial.checkpoint for trial in found.values()} == {"checkpoint_000002"}


def test_a_trial_that_goes_on_after_an_error_is_none_that_failed_for_good(undisturbed, tmp_path):
    place = shutil.copytree(undisturbed, tmp_path / "sweep")
    lstm, rnn = (place / f"{cell}-uniform-length020-seed0" for cell in ("lstm", "rnn"))
    (snapshot,) = place.glob("experiment_state-*.json")
    state = json.loads(snapshot.read_text())
    for pair in state["trial_data"]:  # each a pair of JSON texts
        trial = json.loads(pair[0])
        trial["status"] = "ERROR" if trial["config"]["cell"] == "lstm" else "PENDING"
        pair[0] = json.dumps(trial)
    snapshot.write_text(json.dumps(state))

    class InterruptedTuner:
        num_errors = 1

        def fit(self) -> "InterruptedTuner":
            return self

        def __iter__(self) -> Iterator[SimpleNamespace]:
            yield SimpleNamespace(error=ValueError("bad"), path=str(lstm))
            yield SimpleNamespace(error=OSError("lost once"), path=str(rnn))

    folder = folder_at(place)
    assert sweep.run_trials(InterruptedTuner(), folder) == [f"bad ({lstm}/error.txt)"]


def test_a_finished_trial_whose_last_checkpoint_is_lost_does_its_last_epoch_again(
    undisturbed, tmp_path
):
    folder = shutil.copytree(undisturbed, tmp_path / "sweep")
    trial = folder / "lstm-uniform-length020-seed0"
    (trial / "checkpoint_000005" / "state.pt").unlink()
    again = run("jobs/sweep.py", *GRID, "--storage", tmp_path, "--name", "sweep")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 trials, 1 of them done" in again.stdout
    assert measurements(folder) == measurements(undisturbed)
    assert [row["restored_epoch"] for row in history(trial)] == [0] * (EPOCHS - 1) + [EPOCHS - 1]


def epoch_of(folder: Path) -> int:
    """Returns the epoch of a checkpoint, 0 for one that was being written when its run ended."""
    if not (folder / "state.pt").exists():
        return 0
    try:
        return json.loads((folder / "checkpoint.json").read_text())["epoch"]
    except (OSError, ValueError):
        return 0


def test_a_trial_that_fails_for_good_is_named_and_the_others_finish(tmp_path):
    """A file stands where a checkpoint's folder should be made; afterwards it is gone."""
    flags = ["--cells", "lstm,rnn", "--lengths", 3, "--seeds", 0, "--epochs", 2, "--samples", 2000]
    flags += ["--storage", tmp_path, "--name", "sweep"]
    stone = tmp_path / "sweep" / "rnn-uniform-length003-seed0" / "checkpoint_000000"
    stone.parent.mkdir(parents=True)
    stone.touch()
    failing = run("jobs/sweep.py", *flags)
    assert failing.returncode == 1, failing.stdout + failing.stderr
    assert "1 of 2 trials done" in failing.stdout
    (told,) = (line for line in failing.stdout.splitlines() if line.startswith("failed:"))
    assert "Error" in told
    assert f"{stone.parent}/error.txt" in told
    assert (stone.parent / "error.txt").exists()
    found = {trial.config["cell"]: trial for trial in read_trials(str(tmp_path / "sweep"))}
    assert (found["lstm"].status, found["rnn"].status) == ("finished", "failed")
    assert found["rnn"].failures == 4  # the first try and three more
    assert found["rnn"].error in told

    stone.unlink()
    again = run("jobs/sweep.py", *flags)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {t.status for t in read_trials(str(tmp_path / "sweep"))} == {"finished"}


def test_trials_share_a_process_that_has_its_threads_and_its_allocator(tmp_path):
    cpus = min(os.cpu_count(), 2)
    flags = ["--cells", "rnn", "--lengths", "3-8", "--seeds", 0, "--epochs", 2, "--samples", 20000]
    flags += ["--cpus-per-trial", cpus, "--max-concurrent", 1]
    with started("jobs/sweep.py", *flags, "--storage", tmp_path, "--name", "sweep") as driver:
        first = tmp_path / "sweep" / "rnn-uniform-length008-seed0"
        pid = wait_for(lambda: history(first), driver)[0]["pid"]
        environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
        for name, value in WORKER_ENVIRONMENT.items():
            assert f"{name}={value}" in environment
        output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output
    rows = [row for trial in read_trials(str(tmp_path / "sweep")) for row in trial.rows]
    assert {(row["pid"], row["threads"], row["device"]) for row in rows} == {(pid, cpus, "cpu")}
    assert len(rows) == 12


def test_numbers_too_small_to_compute_with_fast_are_zero_in_a_trial(tmp_path):
    flags = ["--cells", "rnn", "--lengths", 200, "--seeds", 0, "--epochs", 1, "--samples", 2000]
    done = run("jobs/sweep.py", *flags, "--hidden", 16, "--probe", "--storage", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = read_trials(str(tmp_path / "figures"))
    network = build("rnn", hidden=16, start="uniform", seed=0, length=200)
    network.load_state_dict(trial.newest_checkpoint().state["network"])
    few = palindromes(0, 200, 2000).validation[: sweep.CHECKED]
    seen, here = trial.rows[-1]["gradient_h"], gradient_norms(network, few)["h"].tolist()
    # Where the mean norm is below 1e-41, no sequence of the 400 has a normal number, 1e-38.
    subnormal = [steps for steps, norm in enumerate(here) if 0 < norm < 1e-41]
    assert subnormal
    assert [seen[steps] for steps in subnormal] == [0] * len(subnormal)
    assert seen[: subnormal[0] // 2] == pytest.approx(here[: subnormal[0] // 2], rel=1e-4)


def test_an_environment_whose_path_has_a_space_runs_trials(tmp_path):
    (tmp_path / "my venv").symlink_to(sys.prefix)
    flags = ["--cells", "rnn", "--lengths", 3, "--seeds", 0, "--epochs", 1, "--samples", 2000]
    flags += ["--storage", tmp_path / "my results"]
    python = str(tmp_path / "my venv" / "bin" / "python")
    command = [python, *scripts.command("jobs/sweep.py", *flags)[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 trial done" in done.stdout


def test_ctrl_c_ends_soon_and_says_how_to_go_on(tmp_path):
    flags = [*GRID, "--epochs", 200]  # so that it is far from its end
    with started("jobs/sweep.py", *flags, "--storage", tmp_path, "--name", "sweep") as driver:
        trial = tmp_path / "sweep" / "lstm-uniform-length020-seed0"
        wait_for(lambda: history(trial), driver)
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to the driver and its children
        output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 130, output
    assert interrupt.ANSWER in output
    wait_for(lambda: not session_without_agents(driver.pid))
    assert "to continue: python" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--lengths 9-3", "the range 9-3 is empty"),
        ("--lengths ,", "not a list of numbers"),
        ("--lengths -3,5", "'-3,5' is not a list of numbers"),
        ("--lengths 1", "2 digits or more"),
        ("--lengths 0-5", "2 digits or more"),
        ("--start chrono", "the rnn has no start 'chrono'"),
        ("--cells lstm --start zero", "the lstm has no start 'zero'"),
        ("--cells gru", "'gru' is unknown"),
        ("--samples 40", "50 or more"),
        ("--samples 159", "do not fill one batch"),
        ("--preset best", "invalid choice: 'best'"),
        ("--name a/b", "a name is made of"),
        ("--name ..", "a name is made of"),
        ("--epochs 0", "more than 0"),
        ("--lr -1", "more than 0"),
        ("--lr nan", "more than 0"),
        ("--lr inf", "finite"),
        ("--storage s3://", "--storage s3://"),
        ("--clip 0", "more than 0"),
        ("--batch-size x", "invalid int value"),
        ("--optimizer sgd", "invalid choice"),
        ("--cpus-per-trial 0", "1 or more"),
        ("--max-concurrent 0", "1 or more"),
        ("--seed 3", "unrecognized"),
        ("--variants no-luck", "--variants no-luck: it is one of plain, clip, no-clip"),
        ("--warmup -1", "0 or more"),
        ("--samples 1000 --epochs 2 --warmup 13", "--warmup 13: there are 12 steps in all"),
        ("--variants no-clip", "--variants no-clip: that is what plain is here"),
        ("--hold 0", "more than 0"),
        ("--checks 0", "more than 0"),
        ("--samples 1000 --checks 7", "--checks 7: an epoch has 6 steps"),
        ("--inputs two-hot", "invalid choice"),
        ("--ablate", "--ablate: only of --preset horizon"),
    ],
)
def test_bad_flags_are_told_in_one_line_and_nothing_is_written(complaint, tmp_path, flags, said):
    place = tmp_path / "results"
    assert said in complaint(sweep.main, "--storage", place, *flags.split())
    assert not place.exists()


def test_what_no_node_has_is_told_at_once_and_nothing_is_written(tmp_path):
    flags = ["--storage", tmp_path / "results", "--cpus-per-trial", 4096]
    done = run("jobs/sweep.py", *GRID, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "no node has room for 4096 CPUs and 0 GPUs" in line
    assert not (tmp_path / "results").exists()


def test_an_address_where_no_cluster_is_is_told(tmp_path):
    done = run("jobs/sweep.py", *GRID, "--storage", tmp_path / "results", "--address", "nowhere")
    assert done.returncode == 2
    assert "--address nowhere" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "results").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a read-only file system")
def test_a_storage_that_cannot_be_written_is_told(tmp_path):
    place = tmp_path / "read-only"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", str(place)]
    subprocess.run(mount, check=True)
    try:
        done = run("jobs/sweep.py", *GRID, "--storage", place)
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert done.returncode == 2
    assert f"--storage: {place}/figures cannot be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def made(place: Path, name: str = "sweep") -> storage.Folder:
    """Returns the folder of a run with the settings of the preset `quick`, as the job makes it."""
    folder = storage.run_folder(str(place), name, fresh=False)
    folder.filesystem.create_dir(folder.path)
    settings = [asdict(part) for part in grid.PRESETS["quick"]]
    folder.write(storage.SETTINGS, json.dumps(settings).encode())
    return folder


def test_other_settings_under_the_same_name_are_refused_and_named(complaint, tmp_path):
    made(tmp_path)
    flags = ["--preset", "quick", "--storage", tmp_path, "--name", "sweep"]
    line = complaint(sweep.main, *flags, "--epochs", 9, "--seeds", "0-3,7")
    assert "seeds 0-1 there, 0-3,7 here" in line
    assert "epochs 10 there, 9 here" in line
    assert "samples" not in line
    line = complaint(sweep.main, "--storage", tmp_path, "--name", "sweep")
    assert "1 grids there, 2 here" in line
    # A run of a version that had fewer settings.
    file = tmp_path / "sweep" / storage.SETTINGS
    file.write_text(file.read_text().replace('"warmup": 0', '"other": 0'))
    line = complaint(sweep.main, *flags)
    assert "other 0 there, not known here, warmup not known there, 0 here" in line


@pytest.mark.parametrize("name", ["../../x", "a/b", "*", "~", ".", "..", "-x", ""])
@pytest.mark.parametrize("job", [sweep, gan])
def test_a_name_cannot_leave_the_storage_folder(complaint, tmp_path, job, name):
    if name:  # an empty one is none
        line = complaint(job.main, "--storage", tmp_path, f"--name={name}")
        assert "a name is made of letters" in line
    with pytest.raises(storage.Trouble):
        storage.run_folder(str(tmp_path), name, fresh=False)


def test_damaged_settings_are_told(complaint, tmp_path):
    folder = made(tmp_path)
    folder.write(storage.SETTINGS, b"[{")
    flags = ["--preset", "quick", "--storage", tmp_path, "--name", "sweep"]
    assert "settings.json is damaged" in complaint(sweep.main, *flags)


def test_the_order_in_which_a_list_is_typed_is_no_other_setting(monkeypatch, capsys):
    for flags in ("--lengths 3,9,4 --cells rnn,lstm", "--lengths 9,3-4 --cells lstm,rnn,lstm"):
        monkeypatch.setattr(sys, "argv", ["sweep.py", *flags.split()])
        (part,), _ = sweep.settings()
        assert (part.lengths, part.cells) == ((3, 4, 9), ("lstm", "rnn"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_stops_the_sweep_in_one_line_and_with_room_it_goes_on(undisturbed, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)]
    subprocess.run(mount, check=True)
    try:
        done = run("jobs/sweep.py", *GRID, "--storage", place, "--name", "sweep")
        assert done.returncode == 1, done.stdout + done.stderr
        assert done.stderr == ""
        assert "No space left" in done.stdout or "the sweep stopped" in done.stdout
        assert "to continue: python" in done.stdout
        subprocess.run(["mount", "-o", "remount,size=50m", str(place)], check=True)
        again = run("jobs/sweep.py", *GRID, "--storage", place, "--name", "sweep")
        assert again.returncode == 0, again.stdout + again.stderr
        assert measurements(place / "sweep") == measurements(undisturbed)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_run_takes_its_folder_for_itself(tmp_path):
    folder = storage.run_folder(str(tmp_path), "sweep", fresh=False)
    storage.claim(folder, [{"epochs": 1}])
    with pytest.raises(storage.Trouble, match="another process is running this"):
        storage.claim(folder, [{"epochs": 1}])


def test_fresh_means_a_new_folder_and_deletes_nothing(tmp_path):
    made(tmp_path)
    assert storage.run_folder(str(tmp_path), "sweep", fresh=True).name == "sweep-2"
    made(tmp_path, "sweep-2")
    folder = storage.run_folder(str(tmp_path), "sweep", fresh=True)
    assert folder.name == "sweep-3"
    assert storage.run_folder(str(tmp_path), "sweep", fresh=False).name == "sweep"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_command_to_go_on_names_the_fresh_folder(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jobs/sweep.py", "--fresh", "--storage", "a b"])
    assert again("new") == "python jobs/sweep.py --storage 'a b' --name new"


def test_on_a_cluster_the_commands_to_type_are_those_of_its_users_terminal(monkeypatch):
    """`ray submit` copies the script to the head's home, and runs it by the head's shell."""
    place = "s3://bucket/x?endpoint_override=host:1&scheme=http"
    script = str(Path.home() / "sweep.py")
    monkeypatch.setattr(sys, "argv", [script, "--lengths", "3-5,9", "--storage", place])
    begin = "ray submit cluster.yaml jobs/sweep.py -- --lengths 3-5,9"
    assert again("new") == f"{begin} --storage \"'{place}'\""
    assert command("analysis/sweep.py", [place]) == (
        f"ray submit cluster.yaml analysis/sweep.py -- \"'{place}'\""
    )


def test_the_default_preset_is_the_reports_three_figures(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweep.py"])
    parts, run_settings = sweep.settings()
    configs = grid.trial_configs(*parts)
    assert run_settings.name == "figures"
    expected = {("lstm", n, 20) for n in range(3, 25)} | {("rnn", n, 20) for n in range(3, 25)}
    expected |= {("lstm", n, 5) for n in range(25, 36)}
    assert {(c["cell"], c["length"], c["epochs"]) for c in configs} == expected
    assert len(configs) == 3 * len(expected)
    assert len({grid.trial_name(c) for c in configs}) == len(configs)
    same = {"samples": 100_000, "batch_size": 128, "lr": 0.001, "hidden": 128}
    same |= {"optimizer": "adam", "clip": None, "start": "uniform"}
    for config in configs:
        assert same.items() <= config.items()


def asked_for(monkeypatch, *flags: object) -> tuple[grid.Sweep, ...]:
    monkeypatch.setattr(sys, "argv", ["sweep.py", *map(str, flags)])
    return sweep.settings()[0]


def test_flags_change_every_grid_of_a_preset_and_no_trial_is_in_two(monkeypatch):
    parts = asked_for(monkeypatch, "--seeds", 4, "--clip", 10)
    assert [(part.seeds, part.clip, part.epochs) for part in parts] == [
        ((4,), 10, 20),
        ((4,), 10, 5),
    ]
    (part,) = asked_for(monkeypatch, "--lengths", "3-5,30")
    assert part == replace(grid.Sweep(), lengths=(3, 4, 5, 30))
    (part,) = asked_for(monkeypatch, "--cells", "rnn")
    assert part == replace(grid.Sweep(), cells=("rnn",))
    lstm, rnn = asked_for(monkeypatch, "--preset", "horizon", "--lengths", 35)
    assert (lstm.cells, rnn.cells) == (("lstm",), ("rnn",))
    assert lstm.lengths == rnn.lengths == (35,)
    assert (lstm.lr, rnn.lr) == (0.005, 0.001)
    lstm, rnn = asked_for(monkeypatch, "--preset", "recipe")
    assert [(part.lr, part.clip) for part in (lstm, rnn)] == [(0.005, 1.0), (0.0003, None)]


def test_a_sweep_of_two_grids_does_all_of_one_seed_before_the_next(monkeypatch):
    configs = grid.trial_configs(*asked_for(monkeypatch, "--preset", "horizon"))
    order = [(config["seed"], -config["length"]) for config in configs]
    assert order == sorted(order)
    assert {config["cell"] for config in configs[:7]} == {"lstm", "rnn"}


def test_a_variant_changes_one_setting_of_the_recipe_and_has_a_name_of_its_own(monkeypatch):
    parts = asked_for(monkeypatch, "--preset", "horizon", "--ablate")
    configs = grid.trial_configs(*parts)
    assert len({grid.trial_name(config) for config in configs}) == len(configs)
    assert {(c["cell"], c["length"]) for c in configs} == {
        (cell, length) for cell in ("lstm", "rnn") for length in (35, 100)
    }
    for cell, own in (("lstm", "clip"), ("rnn", "no-clip")):  # what that cell's recipe has
        variants = {c["variant"] for c in configs if c["cell"] == cell}
        assert variants == grid.VARIANTS.keys() - {own}
    plain = {(c["cell"], c["length"], c["seed"]): c for c in configs if c["variant"] == "plain"}
    for config in configs:
        whole = plain[(config["cell"], config["length"], config["seed"])]
        differ = {name for name in config if config[name] != whole[name]} - {"variant"}
        assert differ == set(grid.VARIANTS[config["variant"]])
        assert len(differ) == (config["variant"] != "plain")


def test_the_ablation_is_that_of_the_settings_as_they_are_given(monkeypatch):
    ablate = ["--preset", "horizon", "--ablate"]
    lstm, rnn = asked_for(monkeypatch, *ablate, "--clip", 10, "--warmup", 0)
    assert {"clip", "no-clip"} < set(lstm.variants)
    assert lstm.variants == rnn.variants
    assert "no-warmup" not in lstm.variants
    lstm, rnn = asked_for(monkeypatch, *ablate, "--variants", "plain,one-hot")
    assert set(lstm.variants) == set(rnn.variants) == {"plain", "one-hot"}


def test_a_trial_that_has_held_its_accuracy_is_finished_before_its_last_epoch(tmp_path):
    (part,) = grid.changed((grid.LSTM,), {"lengths": (5,), "seeds": (0,), "hold": 2})
    (config,) = grid.trial_configs(part)
    folder = storage.Folder(str(tmp_path), storage.fs.LocalFileSystem(), str(tmp_path))
    rows = [{"val_accuracy": accuracy} for accuracy in (0.9995, 0.5, 0.9995, 0.9995)]
    for epochs, expected in ((3, set()), (4, {"trial"})):
        place = tmp_path / "trial" / f"checkpoint_{epochs}"
        place.mkdir(parents=True)
        checkpoint.save(place, {}, rows[:epochs])
        assert sweep.finished_trials(folder, {"trial": config}) == expected
    assert sweep.finished_trials(folder, {"trial": config | {"hold": None}}) == set()


def test_the_folder_of_a_finished_trial_holds_the_network_that_was_measured(undisturbed):
    for trial in read_trials(str(undisturbed)):
        config = trial.config
        found = trial.newest_checkpoint()
        network = build(config["cell"], config["hidden"], "uniform", seed=99, length=20)
        network.load_state_dict(found.state["network"])
        data = palindromes(config["seed"], config["length"], config["samples"])
        loss, accuracy = evaluate(network, data.validation)
        assert accuracy == trial.rows[-1]["val_accuracy"]
        assert loss == pytest.approx(trial.rows[-1]["val_loss"], rel=1e-5)
        assert isinstance(found, checkpoint.Checkpoint)
        assert found.epoch == EPOCHS


def test_disk_is_not_needed_for_the_reader(undisturbed, tmp_path):
    """A copy of the folder elsewhere reads the same: nothing in it names a place."""
    copy = shutil.copytree(undisturbed, tmp_path / "copy")
    assert measurements(copy) == measurements(undisturbed)
    assert torch.get_num_threads() >= 1
