"""What jobs/sweep.py derives from checkpoints and Tune's events, without Ray."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from jobs import interrupt, storage, sweep
from jobs.grid import LSTM_RECIPE, trial_configs
from jobs.tuning import Progress
from models import checkpoint


def test_failed_trials_are_reported_unless_the_sweep_is_interrupted(monkeypatch, tmp_path):
    class FakeTuner:
        def fit(self) -> list[SimpleNamespace]:
            return [
                SimpleNamespace(error=ValueError("first\nbad"), path=str(tmp_path / "failed")),
                SimpleNamespace(error=None, path=str(tmp_path / "finished")),
            ]

    assert sweep.run_trials(FakeTuner()) == [f"bad ({tmp_path}/failed/error.txt)"]
    monkeypatch.setattr(interrupt.interrupted, "is_set", lambda: True)
    assert sweep.run_trials(FakeTuner()) == []


# Finished trials


@pytest.mark.parametrize(
    ("solved_epochs", "accuracies", "finished"),
    [
        (2, (0.9995, 0.5, 0.9995), False),
        (2, (0.9995, 0.5, 0.9995, 0.9995), True),
        (None, (0.9995, 0.9995, 0.9995, 0.9995), False),
        (None, (0.5,) * 5, True),
    ],
)
def test_trial_is_finished_by_early_stopping_or_its_last_epoch(
    tmp_path, solved_epochs, accuracies, finished
):
    grid = replace(LSTM_RECIPE, lengths=(5,), seeds=(0,), epochs=5)
    (config,) = trial_configs(replace(grid, stop_after_solved_epochs=solved_epochs))
    path = tmp_path / "trial" / "checkpoint_000000"
    path.mkdir(parents=True)
    checkpoint.save(path, {}, [{"val_accuracy": accuracy} for accuracy in accuracies])
    folder = storage.open_dir(str(tmp_path))
    assert sweep.finished_trials(folder, {"trial": config}) == ({"trial"} if finished else set())


def test_trial_with_a_corrupt_last_checkpoint_is_not_finished(tmp_path):
    (config,) = trial_configs(replace(LSTM_RECIPE, lengths=(5,), seeds=(0,), epochs=2))
    for epochs in (1, 2):
        path = tmp_path / "trial" / f"checkpoint_{epochs:06}"
        path.mkdir(parents=True)
        checkpoint.save(path, {}, [{"val_accuracy": 0.5}] * epochs)
    folder = storage.open_dir(str(tmp_path))
    assert sweep.finished_trials(folder, {"trial": config}) == {"trial"}
    (path / "state.pt").unlink()
    assert sweep.finished_trials(folder, {"trial": config}) == set()


# Progress

CONFIGS = {
    "long": {"cell": "lstm", "length": 20, "epochs": 4},
    "short": {"cell": "lstm", "length": 10, "epochs": 4},
    "other": {"cell": "rnn", "length": 10, "epochs": 2},
}


def make_progress(finished: tuple[str, ...] = ()) -> Progress:
    """Returns the progress of CONFIGS; the work of an epoch is the sequence length."""
    return Progress(CONFIGS, lambda config: config["length"], finished)


class FakeTrial(SimpleNamespace):
    def __str__(self):
        return self.name


def report(progress: Progress, name: str, epoch: int, seconds: float, **row: object) -> None:
    row = {"corrupt_checkpoints": "", "resumed_from_epoch": 0, **row}
    row |= {"epoch": epoch, "epoch_seconds": seconds, "val_accuracy": 0.5}
    progress.on_trial_result(0, [], FakeTrial(name=name), row)


def test_time_left_is_the_remaining_work_at_the_pace_of_each_cell():
    progress = make_progress()
    assert progress._seconds_left(running=2) is None
    report(progress, "long", epoch=1, seconds=10)  # 0.5 s per digit
    # lstm: 3 epochs of 20 digits and 4 of 10. rnn: 2 of 10, at the pace of the lstm for now.
    assert progress._seconds_left(running=2) == (3 * 20 + 4 * 10 + 2 * 10) * 0.5 / 2
    report(progress, "other", epoch=1, seconds=1)  # 0.1 s per digit
    assert progress._seconds_left(running=1) == (3 * 20 + 4 * 10) * 0.5 + 10 * 0.1


def test_trial_stopped_early_leaves_no_work():
    progress = make_progress(finished=("short", "other"))
    report(progress, "long", epoch=1, seconds=10)
    assert progress._seconds_left(running=1) == 30
    progress.on_trial_complete(0, [], FakeTrial(name="long"))
    assert progress._seconds_left(running=1) == 0
    assert progress._status(running=0).startswith("3/3 done")


def test_progress_line_counts_done_running_and_failed_trials(capsys, tmp_path):
    progress = make_progress(finished=("short",))
    report(progress, "long", epoch=4, seconds=1)
    error_file = tmp_path / "error.txt"
    error_file.write_text("Failure # 1 (at noon)\nbad\nFailure # 2 (later)\n\nOSError: full\n")
    progress.on_trial_error(0, [], FakeTrial(name="other", error_file=str(error_file)))
    assert capsys.readouterr().out == "other: failed permanently: OSError: full\n"
    progress.on_step_end(0, [FakeTrial(name="other", status="RUNNING")])
    line = capsys.readouterr().out
    assert line.startswith("2/3 done, 1 running, 1 failed")
    assert "long epoch 4 val 50.0%" in line
    assert line.endswith("\n")
    assert "\r" not in line  # no control characters without a terminal


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ray.exceptions.OutOfMemoryError: Task was killed\nadvice", "the node ran out of memory"),
        ("ray.exceptions.ActorDiedError: The actor died because\nadvice", "its process died"),
        ("Traceback\nValueError: bad", "ValueError: bad"),
    ],
)
def test_failure_of_a_trial_is_reported_in_one_line(capsys, tmp_path, text, message):
    error_file = tmp_path / "error.txt"
    error_file.write_text(f"Failure # 1 (at noon)\n{text}\n")
    make_progress().on_trial_recover(0, [], FakeTrial(name="long", error_file=str(error_file)))
    (line,) = capsys.readouterr().out.splitlines()
    assert message in line
    assert "advice" not in line


def test_corrupt_checkpoints_are_reported_once(capsys):
    progress = make_progress()
    for epoch in (3, 4):
        row = {"corrupt_checkpoints": "checkpoint_000002", "resumed_from_epoch": 2}
        report(progress, "long", epoch, 1, **row)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "long: skipped corrupt checkpoints: checkpoint_000002; resuming from epoch 2"
