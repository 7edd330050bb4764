"""analysis/results.py, on a sweep by Ray and on folders made by hand."""

import hashlib
import io
import itertools
import json
import os
import pickle
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import ray
import torch
from fake_experiments import (
    MEASURED,
    TRIAL_NAMES,
    make_row,
    read_progress_csv,
    set_age,
    write_settings,
    write_trial,
)
from fake_trials import make_trial, write_trials
from ray.tune import ExperimentAnalysis, ResultGrid

from analysis.results import (
    CONFIG_COLUMNS,
    SILENCE_SECONDS,
    ResultsDir,
    ResultsError,
    Trial,
    read_finished,
    read_sweeps,
    read_trials,
)
from analysis.run_figures import is_sweep
from analysis.tables import epochs_table, trials_table
from models import checkpoint
from models.recurrent import CELLS, INIT_NAMES
from models.tasks import TASKS

FIRST = TRIAL_NAMES[0]


def read(folder: Path) -> dict[str, Trial]:
    return {trial.name: trial for trial in read_trials(str(folder))}


def state_of(folder: Path) -> Path:
    (path,) = folder.glob("experiment_state-*.json")
    return path


def truncate(path: Path, fraction: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])


# A sweep by Ray


def test_trials_table_has_settings_and_last_metrics(tiny):
    table = trials_table(read_trials(str(tiny)))
    assert list(table["trial"]) == TRIAL_NAMES
    assert set(table["experiment"]) == {"tiny"}
    assert set(table["status"]) == {"finished"}
    assert (set(table["resumes"]), set(table["failure"])) == ({0}, {""})
    assert table.columns.is_unique
    for record in table.to_dict("records"):
        last = read_progress_csv(tiny / record["trial"])[-1]
        assert [record[name] for name in MEASURED] == [float(last[name]) for name in MEASURED]
        config = json.loads((tiny / record["trial"] / "params.json").read_text())
        assert config.keys() <= record.keys()
        config = {name: value for name, value in config.items() if value is not None}
        assert {name: record[name] for name in config} == config


def test_epochs_table_has_settings_and_metrics_of_each_epoch(tiny):
    table = epochs_table(read_trials(str(tiny)))
    expected = [(name, row) for name in TRIAL_NAMES for row in read_progress_csv(tiny / name)]
    assert len(expected) == 2 * len(TRIAL_NAMES)
    for record, (name, row) in zip(table.to_dict("records"), expected, strict=True):
        assert (record["trial"], record["status"]) == (name, "finished")
        assert record["cell"] == name.split("-")[0]
        assert [record[metric] for metric in MEASURED] == [float(row[m]) for m in MEASURED]


def test_rays_own_readers_find_the_same(tiny):
    analysis = ExperimentAnalysis(str(tiny))
    theirs = analysis.dataframe().sort_values("trial_id")
    ours = trials_table(read_trials(str(tiny))).sort_values("trial_id")
    for name in ("trial_id", *MEASURED):
        assert list(theirs[name]) == list(ours[name])
    for name in ("cell", "length", "seed", "init", "epochs", "num_sequences", "lr", "hidden_size"):
        assert list(theirs[f"config/{name}"]) == list(ours[name])
    rows = {
        os.path.basename(result.path): list(result.metrics_dataframe["val_accuracy"])
        for result in ResultGrid(analysis)
    }
    assert rows == {t.name: [r["val_accuracy"] for r in t.rows] for t in read(tiny).values()}
    assert not ray.is_initialized()


@pytest.mark.parametrize("lines_left", [0, 1, None])
def test_checkpoints_have_rows_that_result_json_lacks(tiny, tiny_copy, lines_left):
    result = tiny_copy / FIRST / "result.json"
    lines = result.read_text().splitlines(keepends=True)
    result.unlink() if lines_left is None else result.write_text("".join(lines[:lines_left]))
    trial, complete = read(tiny_copy)[FIRST], read(tiny)[FIRST]
    for metric in (*MEASURED, "sequences_per_second"):
        assert [r[metric] for r in trial.rows] == [r[metric] for r in complete.rows]
    assert trial.is_finished()


class Bomb:
    """Unpickling it creates a folder."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def test_nothing_is_unpickled(tiny_copy, tmp_path):
    marker = tmp_path / "unpickled"
    bomb = pickle.dumps(Bomb(marker))
    pickled = [tiny_copy / f"{name}.pkl" for name in ("tuner", "trainable", "search_gen_state")]
    for name in TRIAL_NAMES:
        pickled += [tiny_copy / name / "params.pkl", tiny_copy / name / "error.pkl"]
    for path in pickled:
        path.write_bytes(bomb)
    state = state_of(tiny_copy)  # it contains pickles in hexadecimal digits
    content = json.loads(state.read_text())
    for pair in content["trial_data"]:
        trial = json.loads(pair[0])
        assert trial["storage"]["_type"] == "CLOUDPICKLE_FALLBACK"
        trial["storage"]["value"] = trial["placement_group_factory"] = bomb.hex()
        trial["config"]["extra"] = {"_type": "CLOUDPICKLE_FALLBACK", "value": bomb.hex()}
        pair[0] = json.dumps(trial)
    state.write_text(json.dumps(content))
    assert {trial.latest_checkpoint().epoch for trial in read_trials(str(tiny_copy))} == {2}
    assert len(trials_table(read_trials(str(tiny_copy)))) == len(TRIAL_NAMES)
    assert not marker.exists()
    with pytest.raises(Exception):  # noqa: B017, PT011 - Ray's reader does unpickle
        ExperimentAnalysis(str(tiny_copy))
    assert marker.exists()


@pytest.mark.parametrize("save", [torch.save, partial(pickle.dump, protocol=2)])
def test_checkpoint_that_is_not_only_weights_is_refused(tmp_path, save):
    marker = tmp_path / "unpickled"
    buffer = io.BytesIO()
    save({"network": Bomb(marker)}, buffer)
    folder = write_trial(tmp_path, "a", {}, [make_row(1)]) / "checkpoint_000000"
    folder.mkdir()
    (folder / "state.pt").write_bytes(buffer.getvalue())
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    summary = {"epoch": 1, "sha256": sha256, "history": [make_row(1)]}
    (folder / "checkpoint.json").write_text(json.dumps(summary))
    with pytest.raises(pickle.UnpicklingError):
        read(tmp_path)["a"].latest_checkpoint()
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()  # so that this test can fail


# Interrupted and corrupt trials


def test_rows_repeated_after_a_resume_count_once_and_the_last_one_counts(tmp_path):
    rows = [
        *(make_row(1), make_row(2, loss=9.0), make_row(3, loss=9.0)),
        *(make_row(2), make_row(3), make_row(4)),
    ]
    write_trial(tmp_path, "a", {}, rows)
    assert read(tmp_path)["a"].rows == [make_row(n) for n in (1, 2, 3, 4)]


def test_last_line_truncated_anywhere_is_no_row(tmp_path):
    rows = [make_row(1), make_row(2), make_row(3)]
    result = write_trial(tmp_path, "a", {"lr": 0.1}, rows) / "result.json"
    complete = result.read_bytes()
    begin, end = complete.rindex(b"\n", 0, -1) + 1, len(complete) - 1
    for length in range(begin, end):
        result.write_bytes(complete[:length])
        assert read(tmp_path)["a"].rows == rows[:2], complete[begin:length]
    result.write_bytes(complete[:end])  # only the newline is missing
    assert read(tmp_path)["a"].rows == rows


DAMAGES = [b'{"loss": 0.5, "trai', b"\xff\n", b"3\n", b"null\n", b"{}\n", b"[1, 2]\n"]
DAMAGES += [b'{"training_iteration": null}\n', b'{"training_iteration": "1"}\n']


@pytest.mark.parametrize("damage", DAMAGES)
def test_corrupt_line_harms_no_other_line_that_ends_before_it(tmp_path, damage):
    result = write_trial(tmp_path, "a", {}, [make_row(1), make_row(2)]) / "result.json"
    first, second = result.read_bytes().splitlines(keepends=True)
    result.write_bytes(first + damage + second)  # Tune appends to a line that was truncated
    written = [1] if not damage.endswith(b"\n") else [1, 2]
    assert [row["training_iteration"] for row in read(tmp_path)["a"].rows] == written


UNREADABLE = ["", '{"epo', "{}", '{"epoch": 3}', "[1, 2]", "null", "7"]
UNREADABLE += ['{"history": [{"epoch": 3}]}', '{"history": [7]}', '{"history": 7}']


@pytest.mark.parametrize("content", UNREADABLE)
def test_unreadable_checkpoint_summary_harms_no_row(third_party_experiment, content):
    for path in third_party_experiment.glob("*/checkpoint_000000"):
        (path / "checkpoint.json").write_text(content)
    trials = read_trials(str(third_party_experiment))
    assert [[row["info/step"] for row in trial.rows] for trial in trials] == [[10, 20, 30]] * 2


def test_settings_of_a_trial_are_those_of_its_sweep(tmp_path):
    config = {"epochs": 2, "lr": 0.1}
    truncate(write_trial(tmp_path, "a", config, [make_row(1)]) / "params.json", 0.5)
    assert read(tmp_path)["a"].config == {}
    write_settings(tmp_path, {"a": config})
    assert read(tmp_path)["a"].config == config


def test_trials_that_have_not_reported_are_rows_without_metrics(tmp_path):
    write_trial(tmp_path, "b", {"lr": 0.2}, None)
    assert len(trials_table(read_trials(str(tmp_path)))) == 1
    assert epochs_table(read_trials(str(tmp_path))).empty
    write_settings(tmp_path, {name: {"epochs": 2, "lr": 0.5} for name in ("a", "b", "c")})
    write_trial(tmp_path, "a", {}, [make_row(1)])
    table = trials_table(read_trials(str(tmp_path)))
    assert list(table["lr"]) == [0.5] * 3
    assert list(table["loss"].notna()) == [True, False, False]
    assert list(epochs_table(read_trials(str(tmp_path)))["trial"]) == ["a"]


@pytest.mark.parametrize(
    ("age", "started", "not_started"),
    [
        (0, "running", "pending"),
        (SILENCE_SECONDS - 20, "running", "pending"),
        (SILENCE_SECONDS + 20, "interrupted", "interrupted"),
    ],
)
def test_status_of_a_trial_follows_from_its_rows_and_files(tmp_path, age, started, not_started):
    config = {"epochs": 2, "stop_after_solved_epochs": None}
    names = ("finished", "failed", "started", "waits for its turn to resume", "never started")
    for name in names[:4]:
        write_trial(
            tmp_path, name, config, [make_row(n) for n in ((1, 2) if name == names[0] else (1,))]
        )
    (tmp_path / "failed" / "failure.txt").write_text("its process died")
    write_settings(tmp_path, dict.fromkeys(names, config))
    set_age(tmp_path, age)
    set_age(tmp_path / names[3], age + 3600)  # before this command wrote the settings
    trials = read(tmp_path)
    assert [trials[name].status for name in names] == [
        "finished", "failed", started, not_started, "pending",
    ]  # fmt: skip
    assert [trials[name].failure for name in names] == ["", "its process died", "", "", ""]


def test_run_with_long_epochs_is_silent_for_longer(tmp_path):
    rows = [make_row(1, epoch_seconds=3600.0)]
    write_trial(tmp_path, "a", {"epochs": 2}, rows)
    write_settings(tmp_path, {"a": {"epochs": 2}})
    for age, status in ((3 * 3600 - 60, "running"), (3 * 3600 + 60, "interrupted")):
        set_age(tmp_path, age)
        assert read(tmp_path)["a"].status == status


def test_resumes_are_counted(tmp_path):
    rows = [make_row(n, resumed_from_epoch=e) for n, e in ((1, 0), (2, 0), (3, 2), (4, 3))]
    write_trial(tmp_path, "a", {}, rows)
    (record,) = trials_table(read_trials(str(tmp_path))).to_dict("records")
    assert record["resumes"] == 2


TUNE_ERROR = b"""Failure # %d (occurred at 2026-01-01_12-00-00)
\x1b[36mray::ImplicitFunc.train()\x1b[39m (pid=1, ip=127.0.0.1)
  File "train.py", line 7, in train
RuntimeError: %s
"""


@pytest.mark.parametrize(
    ("content", "status", "error"),
    [
        (TUNE_ERROR % (1, b"a") + TUNE_ERROR % (2, b"b"), "failed", "RuntimeError: b"),
        (None, "running", ""),
        (b"\n", "failed", ""),
        (b"caf\xe9", "failed", "caf\ufffd"),
    ],
)
def test_failed_trial_of_another_project_has_an_error(tmp_path, content, status, error):
    trial = write_trial(tmp_path, "a", {}, [make_row(1)])
    if content is not None:
        (trial / "error.txt").write_bytes(content)
    (record,) = trials_table(read_trials(str(tmp_path))).to_dict("records")
    assert (record["status"], record["failure"], record["loss"]) == (status, error, 1.0)


# Other experiments, and runs of Ray Train


def test_experiment_of_another_project_is_read(third_party_experiment):
    set_age(third_party_experiment, SILENCE_SECONDS + 20)
    table = trials_table(read_trials(str(third_party_experiment)))
    assert set(table["status"]) == {"ended"}  # whether it is finished is unknown
    assert list(table["loss"]) == [1 / 3, 1 / 3]
    assert table["score"].isna().all()
    assert list(table["optimizer/lr"]) == [0.1, 0.01]
    assert list(table["optimizer/betas"]) == [[0.9, 0.99]] * 2
    assert list(table["info/gpu/load"]) == [0.5, 0.5]
    assert not {"config", "optimizer", "info", "info/gpu"} & set(table)
    assert len(epochs_table(read_trials(str(third_party_experiment)))) == 6


def test_metric_named_like_a_column_keeps_its_values(tmp_path):
    rows = [make_row(1, error=0.25, status="ok", lr=0.01)]
    write_trial(tmp_path, "a", {"lr": 0.1}, rows)
    (record,) = trials_table(read_trials(str(tmp_path))).to_dict("records")
    assert (record["error"], record["reported/status"], record["status"]) == (0.25, "ok", "running")
    assert (record["lr"], record["reported/lr"]) == (0.1, 0.01)


def test_clock_of_the_storage_matters_only_for_unfinished_trials(tmp_path):
    config = {"epochs": 1}
    write_trial(tmp_path, "a", config, [make_row(1)])
    write_settings(tmp_path, {"a": config})
    for seconds in (-86400, 86400):  # a day ahead, a day behind
        set_age(tmp_path, seconds)
        assert read(tmp_path)["a"].status == "finished"


def test_gan_run_is_read_as_one_trial(gan_run, tmp_path):
    (trial,) = read_trials(str(gan_run))
    assert (trial.name, trial.status, trial.config["latent_dim"]) == ("small-gan", "finished", 100)
    assert [row["epoch"] for row in trial.rows] == [1, 2]
    run = shutil.copytree(gan_run, tmp_path / "run")
    shutil.rmtree(run / "checkpoint_2")
    set_age(run, 0)  # the fixture may be minutes old
    assert read_trials(str(run))[0].status == "running"
    set_age(run, SILENCE_SECONDS + 20)
    assert read_trials(str(run))[0].status == "interrupted"
    (run / "failure.txt").write_text("the losses of epoch 2 are not finite")
    (trial,) = read_trials(str(run))
    assert (trial.status, trial.failure) == ("failed", "the losses of epoch 2 are not finite")


CORRUPT = ["{", "", "[]", '{"sweep": {}}', '{"gan": 1}', '{"gan": {"seed": 0}}']
CORRUPT += ['{"sweep": {"trials": {"a": ' + c + "}}}" for c in ("1", "[]", '{"seed": 0}')]


@pytest.mark.parametrize("content", CORRUPT)
def test_corrupt_settings_are_an_error(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ResultsError, match=r"settings\.json is corrupt"):
        read_trials(str(tmp_path))


@pytest.mark.parametrize(
    "path", ["settings.json", "a/params.json", "checkpoint_000000/checkpoint.json"]
)
def test_file_that_cannot_be_read_for_a_moment_is_an_error(tmp_path, monkeypatch, path):
    """A trial without its settings or rows would look as if it had just started."""
    if path == "settings.json":
        write_settings(tmp_path, {})
    write_trial(tmp_path, "a", {}, [make_row(1)])
    (tmp_path / "a" / "checkpoint_000000").mkdir()
    (tmp_path / "a" / "checkpoint_000000" / "checkpoint.json").write_text('{"history": []}')
    read = ResultsDir.read

    def fail(folder: ResultsDir, name: str) -> bytes:
        if f"{folder.path}/{name}".endswith(path):
            raise OSError("timeout")
        return read(folder, name)

    monkeypatch.setattr(ResultsDir, "read", fail)
    with pytest.raises(OSError, match="timeout"):
        read_trials(str(tmp_path))


# Paths


@pytest.mark.parametrize("name", ["a folder", "50%20of", "a#b", "what?", "lr=0.1,x=[1]", "größe"])
def test_path_may_contain_any_character(tmp_path, name):
    write_trial(tmp_path / name, name, {}, [make_row(1)])
    (trial,) = read_trials(str(tmp_path / name))
    assert (trial.experiment, trial.name, trial.rows) == (name, name, [make_row(1)])


def test_path_may_be_relative_or_below_home_or_a_uri(tmp_path, monkeypatch):
    write_trial(tmp_path / "runs" / "tune", "a", {}, [make_row(1)])
    monkeypatch.chdir(tmp_path / "runs")
    monkeypatch.setenv("HOME", str(tmp_path))
    uri = f"file://{tmp_path}/runs/tune"
    for path in ("tune", "tune/", "./tune", "../runs/tune", "~/runs/tune", uri, f"{uri}/"):
        assert [trial.experiment for trial in read_trials(path)] == ["tune"]
    monkeypatch.chdir(tmp_path / "runs" / "tune")
    assert [trial.experiment for trial in read_trials(".")] == ["tune"]


def test_path_without_an_experiment_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("{}")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").touch()
    trial = write_trial(tmp_path / "tune", "a", {}, [make_row(1)])
    for path, message in (
        (tmp_path / "missing", "no such folder, or it is empty"),
        (tmp_path / "empty", "no such folder, or it is empty"),
        (tmp_path / "file", "file"),
        (tmp_path / "notes", "neither a Ray Tune experiment nor a run of jobs/gan.py"),
        (trial, "neither a Ray Tune experiment nor a run of jobs/gan.py"),
        ("ftp://nowhere/x", "ftp://nowhere/x: "),
        ("://", "://: "),
    ):
        with pytest.raises(ResultsError, match=message) as raised:
            read_trials(str(path))
        assert str(path) in str(raised.value)


def test_folder_of_runs_is_an_error_that_lists_them(tmp_path):
    for number in range(10):
        name = f"sweep-{number}"
        write_trial(tmp_path / name, "a", {}, [make_row(1)])
        (tmp_path / name / "experiment_state-2026-01-02_00-00-00.json").touch()
    write_trials(tmp_path / "a sweep", make_trial([0.5]))
    with pytest.raises(ResultsError) as raised:
        read_trials(str(tmp_path))
    names = ", ".join(["a sweep", *(f"sweep-{number}" for number in range(7))])
    assert str(raised.value) == (
        f"{tmp_path}: a folder of 11 runs, choose from: {names} and 3 more"
    )


# Several sweeps as one


def test_sweeps_are_joined_and_a_trial_counts_once(tmp_path):
    both = [make_trial([0.1, 0.2], seed=0), make_trial([0.1] * 4, seed=1)]
    first = str(write_trials(tmp_path / "first", *both))
    longer = make_trial([0.1, 0.2, 0.3, 0.4], seed=0)
    second = str(write_trials(tmp_path / "second", longer, make_trial([0.5] * 4, seed=2)))
    for folders in itertools.permutations([first, second, first]):
        trials = read_sweeps(list(folders))
        assert {t.config["seed"]: len(t.rows) for t in trials} == {0: 4, 1: 4, 2: 4}
        assert len(trials) == 3


def test_sweeps_of_different_settings_are_not_joined(tmp_path):
    first = str(write_trials(tmp_path / "first", make_trial([0.1])))
    second = str(write_trials(tmp_path / "second", make_trial([0.1], seed=1, epochs=5)))
    for folders in ([first, second], [second, first]):
        with pytest.raises(ResultsError, match="differ in epochs: plot them separately"):
            read_sweeps(folders)


def test_variants_are_joined_only_where_they_are_a_column(tmp_path):
    trials = [make_trial([0.1], variant=variant) for variant in ("full", "no-clip")]
    folder = str(write_trials(tmp_path / "ablation", *trials))
    with pytest.raises(ResultsError, match=r"differ in variant: use analysis/horizon\.py"):
        read_sweeps([folder])
    assert len(read_sweeps([folder], [*CONFIG_COLUMNS, "variant"])) == 2


@pytest.mark.parametrize("setting", ["task", "cell", "init"])
def test_setting_of_another_version_is_an_error_that_names_the_known_ones(tmp_path, setting):
    trial = make_trial([0.1])
    trial.config[setting] = "unheard-of"
    folder = str(write_trials(tmp_path / "newer", trial))
    known = {"task": TASKS, "cell": CELLS, "init": INIT_NAMES}[setting]
    message = f"{setting} 'unheard-of' is unknown to this version ({', '.join(known)})"
    expected = re.escape(f"{folder}: {trial.name}: {message}")
    with pytest.raises(ResultsError, match=expected):
        read_sweeps([folder], tasks=("palindrome", "unheard-of"))
    if setting == "task":  # which says when a trial is finished
        with pytest.raises(ResultsError, match=expected):
            read_trials(folder)
    else:
        assert not is_sweep(read_trials(folder))  # tables show it, no figure does
    (tmp_path / "newer" / "settings.json").unlink()
    with pytest.raises(ResultsError, match=expected):
        read_sweeps([folder], tasks=("palindrome", "unheard-of"))
    assert not is_sweep(read_trials(folder))


def test_trials_without_a_seed_are_no_sweep(tmp_path):
    trial = make_trial([0.1])
    del trial.config["seed"]
    folder = str(write_trials(tmp_path / "other", trial))
    with pytest.raises(ResultsError, match=r"is not a trial of jobs/sweep\.py"):
        read_sweeps([folder])
    assert not is_sweep(read_trials(folder))


def test_experiment_of_another_project_is_no_sweep(third_party_experiment):
    with pytest.raises(ResultsError, match=r"is not a trial of jobs/sweep\.py"):
        read_sweeps([str(third_party_experiment)])


def test_finished_trials_have_all_epochs_or_stopped_early(tmp_path):
    finished = [make_trial([0.1] * 4, seed=0), make_trial([0.1, 1, 1], seed=1)]
    unfinished = [make_trial([0.1] * 3, seed=2), make_trial([0.1, 1], seed=3)]
    folder = write_trials(tmp_path / "both", *finished, *unfinished)
    found, trials = read_finished([str(folder)])
    assert [trial.config["seed"] for trial in found] == [0, 1]
    assert [trial.config["seed"] for trial in trials] == [0, 1, 2, 3]
    folder = write_trials(tmp_path / "unfinished", *unfinished)
    with pytest.raises(ResultsError, match=f"{folder}: no finished trial yet"):
        read_finished([str(folder)])


@pytest.mark.parametrize(("epochs_saved", "status"), [(2, "finished"), (1, "failed")])
def test_trial_that_failed_after_its_last_checkpoint_is_finished(tmp_path, epochs_saved, status):
    config, rows = {"epochs": 2}, [make_row(1), make_row(2)]
    trial = write_trial(tmp_path, "a", config, rows)
    write_settings(tmp_path, {"a": config})
    (trial / "failure.txt").write_text("its process died")
    (trial / "checkpoint_000000").mkdir()
    checkpoint.save(trial / "checkpoint_000000", {}, rows[:epochs_saved])
    assert read(tmp_path)["a"].status == status
