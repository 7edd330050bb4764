"""analysis/results.py, on a sweep by Ray and on folders made by hand."""

import hashlib
import io
import json
import os
import pickle
from pathlib import Path

import pandas as pd
import pytest
import ray
import torch
from experiments import FIRST, MEASURED, NAMES, logged, row, write_state, write_trial
from ray.tune import ExperimentAnalysis, ResultGrid

from analysis.results import (
    SILENCE_SECONDS,
    TUNE_COLUMNS,
    Trial,
    epochs_table,
    read_trials,
    trials_table,
)


def read(folder: Path) -> dict[str, Trial]:
    return {trial.name: trial for trial in read_trials(str(folder))}


def state_of(folder: Path) -> Path:
    (path,) = folder.glob("experiment_state-*.json")
    return path


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


# What the tables hold


def test_the_table_has_a_row_for_each_trial_with_settings_and_last_metrics(tiny):
    table = trials_table(read_trials(str(tiny)))
    assert list(table["trial"]) == NAMES
    assert set(table["experiment"]) == {"tiny"}
    assert set(table["status"]) == {"finished"}
    assert (set(table["failures"]), set(table["error"])) == ({0}, {""})
    for record in table.to_dict("records"):
        last = logged(tiny / record["trial"])[-1]
        for name in MEASURED:
            assert record[name] == float(last[name])
        config = json.loads((tiny / record["trial"] / "params.json").read_text())
        assert len(config) == 18
        none = {name for name, value in config.items() if value is None}
        assert none == {"clip", "hold"}
        assert {name: record[name] for name in config.keys() - none} == {
            name: config[name] for name in config.keys() - none
        }
        assert record["trial"] == "{cell}-{start}-length{length:03}-seed{seed}".format(**record)


def test_the_table_of_epochs_has_a_row_for_each_epoch_of_each_trial(tiny):
    table = epochs_table(read_trials(str(tiny)))
    assert [tuple(pair) for pair in table[["trial", "epoch"]].to_numpy()] == [
        (name, epoch) for name in NAMES for epoch in (1, 2)
    ]
    records = iter(table.to_dict("records"))
    for name in NAMES:
        for line in logged(tiny / name):
            record = next(records)
            assert [record[n] for n in MEASURED] == [float(line[n]) for n in MEASURED]
            assert (record["cell"], record["status"]) == (name.split("-")[0], "finished")


def test_no_column_is_there_twice_and_none_is_nested(tiny):
    for table in (f(read_trials(str(tiny))) for f in (trials_table, epochs_table)):
        assert table.columns.is_unique
        assert not [name for name in table if name == "config" or "/" in name]
        assert not table.map(lambda value: isinstance(value, dict)).any(axis=None)


def test_the_columns_known_as_tunes_are_those_that_tune_adds(tiny):
    lines = (tiny / FIRST / "result.json").read_text().splitlines()
    (summary,) = (tiny / FIRST).glob("checkpoint_000001/checkpoint.json")
    reported = json.loads(summary.read_text())["history"][-1].keys()
    added = json.loads(lines[-1]).keys() - reported - {"config"}
    assert added <= set(TUNE_COLUMNS)
    assert set(TUNE_COLUMNS) - added <= {
        # reported by us, too, so that they are right after a restore; written by other readers
        "training_iteration", "pid", "node_ip", "experiment_tag",
    }  # fmt: skip


def test_rays_own_reader_finds_the_same_last_metrics_and_settings(tiny):
    theirs = ExperimentAnalysis(str(tiny)).dataframe().sort_values("trial_id")
    ours = trials_table(read_trials(str(tiny))).sort_values("trial_id")
    assert len(theirs) == len(NAMES)
    assert list(theirs["trial_id"]) == list(ours["trial_id"])
    for name in MEASURED:
        assert list(theirs[name]) == list(ours[name])
    for name in ("cell", "length", "seed", "start", "epochs", "samples", "lr", "hidden"):
        assert list(theirs[f"config/{name}"]) == list(ours[name])
    assert not ray.is_initialized()


def test_rays_own_reader_finds_the_same_epochs(tiny):
    ours = read(tiny)
    results = list(ResultGrid(ExperimentAnalysis(str(tiny))))
    assert sorted(os.path.basename(result.path) for result in results) == NAMES
    for result in results:
        rows = ours[os.path.basename(result.path)].rows
        assert list(result.metrics_dataframe["val_accuracy"]) == [r["val_accuracy"] for r in rows]
    assert not ray.is_initialized()


def test_a_copy_elsewhere_reads_the_same(tiny, copy):
    pd.testing.assert_frame_equal(
        epochs_table(read_trials(str(tiny))), epochs_table(read_trials(str(copy)))
    )


# What a kill leaves


def test_rows_that_a_resumed_trial_repeats_count_once_and_the_later_ones_count(tmp_path):
    rows = [row(1), row(2, loss=9.0), row(3, loss=9.0), row(2), row(3), row(4)]
    write_trial(tmp_path, "a", {}, rows)
    assert read(tmp_path)["a"].rows == [row(1), row(2), row(3), row(4)]


def test_repeated_rows_of_a_real_sweep_change_nothing(tiny, copy):
    result = copy / FIRST / "result.json"
    lines = result.read_text().splitlines(keepends=True)
    result.write_text("".join([*lines, *lines, lines[0]]))
    assert read(copy)[FIRST].rows == read(tiny)[FIRST].rows
    assert len(epochs_table(read_trials(str(copy)))) == 16


@pytest.mark.parametrize("left", [0, 1, None])
def test_rows_that_only_the_checkpoints_have_are_there(tiny, copy, left):
    """`left` lines of result.json reached the storage, or not even the file did."""
    result = copy / FIRST / "result.json"
    lines = result.read_text().splitlines(keepends=True)
    result.unlink() if left is None else result.write_text("".join(lines[:left]))
    found, expected = read(copy)[FIRST].rows, read(tiny)[FIRST].rows
    assert [[r[name] for name in MEASURED] for r in found] == [
        [r[name] for name in MEASURED] for r in expected
    ]
    assert [r["sequences_per_second"] for r in found] == [
        r["sequences_per_second"] for r in expected
    ]
    assert ["date" in r for r in found] == [epoch <= (left or 0) for epoch in (1, 2)]
    assert read(copy)[FIRST].status == "finished"


def test_a_last_line_cut_anywhere_is_no_row_and_harms_none(tmp_path):
    result = write_trial(tmp_path, "a", {"lr": 0.1}, [row(1), row(2), row(3)]) / "result.json"
    whole = result.read_bytes()
    begin, end = whole.rindex(b"{", 0, whole.rindex(b'"config"') - 1), len(whole) - 1
    assert json.loads(whole[begin:end])["training_iteration"] == 3
    for length in range(begin, end):
        result.write_bytes(whole[:length])
        assert read(tmp_path)["a"].rows == [row(1), row(2)], whole[begin:length]
    result.write_bytes(whole[:end])  # only the newline is missing
    assert read(tmp_path)["a"].rows == [row(1), row(2), row(3)]


def test_a_line_that_was_cut_and_then_written_on_harms_no_other(copy, tiny):
    """Tune appends: where a line was cut, the next one begins in the middle of it."""
    result = copy / FIRST / "result.json"
    first, second = result.read_text().splitlines(keepends=True)
    result.write_text(first + first[:100] + second)
    found = read(copy)[FIRST].rows
    assert [r["val_accuracy"] for r in found] == [r["val_accuracy"] for r in read(tiny)[FIRST].rows]


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.9999])
def test_a_snapshot_that_was_cut_gives_way_to_the_one_before(tmp_path, share):
    for name in ("a", "b"):
        write_trial(tmp_path, name, {}, [row(1)])
    write_state(tmp_path, {"a": "TERMINATED", "b": "ERROR"}, stamp="2026-01-01_23-59-59")
    newest = write_state(tmp_path, {"a": "TERMINATED", "b": "TERMINATED"})
    assert [trial.status for trial in read_trials(str(tmp_path))] == ["finished", "finished"]
    cut(newest, int(len(newest.read_bytes()) * share))
    assert [trial.status for trial in read_trials(str(tmp_path))] == ["finished", "failed"]


def test_without_a_whole_snapshot_the_status_is_unknown_and_the_rows_are_there(tiny, copy):
    cut(state_of(copy), 5000)
    table = trials_table(read_trials(str(copy)))
    assert set(table["status"]) == {"unknown"}
    expected = trials_table(read_trials(str(tiny)))
    pd.testing.assert_frame_equal(table.drop(columns="status"), expected.drop(columns="status"))


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_checkpoints_summary_that_was_cut_harms_no_row(tiny, copy, share):
    summary = copy / FIRST / "checkpoint_000001" / "checkpoint.json"
    cut(summary, int(len(summary.read_bytes()) * share))
    trial = read(copy)[FIRST]
    assert trial.rows == read(tiny)[FIRST].rows
    assert trial.newest_checkpoint().epoch == 1  # the whole one before
    (copy / FIRST / "result.json").unlink()
    assert [r["epoch"] for r in read(copy)[FIRST].rows] == [1]


def test_settings_that_were_cut_are_those_of_the_snapshot(copy, tiny):
    cut(copy / FIRST / "params.json", 20)
    assert read(copy)[FIRST].config == read(tiny)[FIRST].config


def test_a_trial_that_never_reported_is_a_pending_row(tmp_path):
    write_trial(tmp_path, "a", {"lr": 0.1}, [row(1)])
    write_trial(tmp_path, "b", {"lr": 0.2}, None)
    write_state(tmp_path, {"a": "RUNNING", "b": "PENDING", "c": "PENDING"})
    table = trials_table(read_trials(str(tmp_path)))
    assert list(table["status"]) == ["running", "pending", "pending"]
    assert list(table["lr"]) == [0.1, 0.2, 0.5]  # the last one's has no folder yet
    assert list(table["loss"].notna()) == [True, False, False]
    assert list(epochs_table(read_trials(str(tmp_path)))["trial"]) == ["a"]


def test_before_the_first_report_the_table_of_epochs_is_empty(tmp_path):
    write_trial(tmp_path, "a", {"lr": 0.1}, None)
    assert len(epochs_table(read_trials(str(tmp_path)))) == 0
    assert len(trials_table(read_trials(str(tmp_path)))) == 1


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (0, "running"),
        (SILENCE_SECONDS - 20, "running"),
        (SILENCE_SECONDS + 20, "interrupted"),
        (1e6, "interrupted"),
    ],
)
def test_a_running_trial_of_a_silent_driver_was_interrupted(tmp_path, age, expected):
    states = {"a": "RUNNING", "b": "TERMINATED", "c": "ERROR", "d": "PENDING", "e": "PAUSED"}
    write_state(tmp_path, states, age=age)
    assert {trial.name: trial.status for trial in read_trials(str(tmp_path))} == {
        "a": expected,
        "b": "finished",
        "c": "failed",
        "d": "pending",
        "e": "pending",
    }


def test_a_real_snapshot_of_a_running_sweep_reads_as_running_and_when_old_as_interrupted(copy):
    state = state_of(copy)
    content = json.loads(state.read_text())
    for pair in content["trial_data"]:
        trial = json.loads(pair[0])
        assert trial["status"] == "TERMINATED"
        trial["status"] = "RUNNING" if trial["relative_logdir"] == FIRST else "TERMINATED"
        pair[0] = json.dumps(trial)
    state.write_text(json.dumps(content))
    assert [t.status for t in read_trials(str(copy))] == ["running"] + ["finished"] * 7
    os.utime(state, (0, 0))
    assert [t.status for t in read_trials(str(copy))] == ["interrupted"] + ["finished"] * 7


# What goes wrong inside of a trial

FAILURE = """Failure # {} (occurred at 2026-01-01_12-00-00)
\x1b[36mray::ImplicitFunc.train()\x1b[39m (pid=1, ip=127.0.0.1)
  File "train.py", line 7, in train
RuntimeError: {}
"""


def test_a_failed_trial_shows_the_last_line_of_its_last_failure(tmp_path):
    trial = write_trial(tmp_path, "a", {}, [row(1)])
    (trial / "error.txt").write_text(
        FAILURE.format(1, "the first wheel came off") + FAILURE.format(2, "the second one, too")
    )
    write_state(tmp_path, {"a": "ERROR"})
    (record,) = trials_table(read_trials(str(tmp_path))).to_dict("records")
    assert record["status"] == "failed"
    assert record["error"] == "RuntimeError: the second one, too"
    assert record["failures"] == 3
    assert record["loss"] == 1.0


def test_a_trial_that_failed_and_then_finished_shows_no_error(tmp_path):
    trial = write_trial(tmp_path, "a", {}, [row(1)])
    (trial / "error.txt").write_text(FAILURE.format(1, "the first wheel came off"))
    write_state(tmp_path, {"a": "TERMINATED"})
    assert (read(tmp_path)["a"].status, read(tmp_path)["a"].error) == ("finished", "")


@pytest.mark.parametrize("content", [None, b"", b"\n", b"caf\xe9"])
def test_a_failed_trial_with_an_odd_error_file_is_a_row_all_the_same(tmp_path, content):
    trial = write_trial(tmp_path, "a", {}, [row(1)])
    if content is not None:
        (trial / "error.txt").write_bytes(content)
    write_state(tmp_path, {"a": "ERROR"})
    assert read(tmp_path)["a"].status == "failed"
    assert read(tmp_path)["a"].error == ("caf\ufffd" if content == b"caf\xe9" else "")


# Any experiment of Tune's


def test_any_tune_experiment_is_read(foreign):
    table = trials_table(read_trials(str(foreign)))
    assert len(table) == 2
    assert set(table["status"]) == {"unknown"}  # a folder without a snapshot
    assert list(table["loss"]) == [1 / 3, 1 / 3]
    assert table["score"].isna().all()
    assert len(epochs_table(read_trials(str(foreign)))) == 6


def test_nested_settings_and_metrics_become_columns(foreign):
    table = trials_table(read_trials(str(foreign)))
    assert list(table["optimizer/lr"]) == [0.1, 0.01]
    assert list(table["optimizer/name"]) == ["sgd", "sgd"]
    assert list(table["optimizer/betas"]) == [[0.9, 0.99]] * 2
    assert list(table["info/gpu/share"]) == [0.5, 0.5]
    assert list(table["info/step"]) == [30, 30]
    assert not {"config", "optimizer", "info", "info/gpu"} & set(table)


@pytest.mark.parametrize("content", ["{}", '{"epoch": 3}', "[1, 2]", "null", "7"])
def test_a_checkpoint_of_another_make_harms_nothing(foreign, content):
    for path in foreign.glob("*/checkpoint_000000"):
        (path / "checkpoint.json").write_text(content)
    assert len(epochs_table(read_trials(str(foreign)))) == 6


# What must not run


class Bomb:
    """Whoever unpickles it makes a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path) -> Path:
    """What a bomb makes; the bomb is seen to go off first."""
    place = tmp_path / "went-off"
    pickle.loads(pickle.dumps(Bomb(place)))
    assert place.exists()
    place.rmdir()
    return place


def test_nothing_is_unpickled(copy, mark):
    bomb = pickle.dumps(Bomb(mark))
    pickled = [copy / name for name in ("tuner.pkl", "trainable.pkl", "search_gen_state.pkl")]
    for name in NAMES:
        pickled += [copy / name / "params.pkl", copy / name / "error.pkl"]
    for path in pickled:
        path.write_bytes(bomb)
    state = state_of(copy)  # Tune's own file holds pickled parts, too, in hexadecimal digits
    content = json.loads(state.read_text())
    for pair in content["trial_data"]:
        trial = json.loads(pair[0])
        assert trial["storage"]["_type"] == "CLOUDPICKLE_FALLBACK"
        trial["storage"]["value"] = trial["placement_group_factory"] = bomb.hex()
        trial["config"]["extra"] = {"_type": "CLOUDPICKLE_FALLBACK", "value": bomb.hex()}
        pair[0] = json.dumps(trial)
    state.write_text(json.dumps(content))
    assert {trial.newest_checkpoint().epoch for trial in read_trials(str(copy))} == {2}
    assert len(trials_table(read_trials(str(copy)))) == len(NAMES)
    assert not mark.exists()
    with pytest.raises(Exception):  # noqa: B017, PT011 - Ray's reader does, so the bomb is live
        ExperimentAnalysis(str(copy))
    assert mark.exists()


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_checkpoint_that_is_not_only_weights_is_refused_and_not_run(copy, mark, form):
    buffer = io.BytesIO()
    if form == "torch":
        torch.save({"network": Bomb(mark)}, buffer)
    else:
        pickle.dump({"network": Bomb(mark)}, buffer, protocol=2)  # torch's own
    content = buffer.getvalue()
    folder = copy / FIRST / "checkpoint_000001"
    (folder / "state.pt").write_bytes(content)
    summary = json.loads((folder / "checkpoint.json").read_text())
    summary["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(summary))
    trial = read(copy)[FIRST]
    with pytest.raises(pickle.UnpicklingError):
        trial.newest_checkpoint()
    assert not mark.exists()
    try:
        torch.load(folder / "state.pt", weights_only=False)
    except Exception:
        assert form == "pickle"  # what comes back is no checkpoint of torch's: it ran nonetheless
    assert mark.exists()
