"""What jobs/sweep.py derives from checkpoints and Tune's events, without Ray."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import OutOfMemoryError

from jobs import interrupt, storage, sweep
from jobs.grid import trial_configs
from jobs.presets import LSTM_RECIPE
from jobs.ray_internals import describe_error
from jobs.tuning import Progress
from models import checkpoint

LOW = "1 worker(s) were killed due to the node running low on memory.\nadvice"
OUT_OF_MEMORY = RuntimeError("Caught unexpected exception")
OUT_OF_MEMORY.__cause__ = OutOfMemoryError(LOW)


@pytest.mark.parametrize(
    ("outcome", "failures"),
    [
        (KeyboardInterrupt(), []),
        (OSError("no\nspace"), ["the sweep stopped: OSError: no"]),
        (OUT_OF_MEMORY, [f"the sweep stopped: a trial was {describe_error(LOW)}"]),
        (
            [
                SimpleNamespace(error=ValueError("first\nbad"), path="/failed"),
                SimpleNamespace(error=None, path="/finished"),
            ],
            ["bad (/failed/error.txt)"],
        ),
    ],
)
def test_permanent_failures_are_reported_in_one_line_each(outcome, failures):
    class FakeTuner:
        def fit(self) -> list[SimpleNamespace]:
            if isinstance(outcome, list):
                return outcome
            raise outcome

    assert sweep.run_trials(FakeTuner()) == failures


TRACEBACK = """Traceback (most recent call last):
  File "/x.py", line 3, in train
    loss.backward()
    ^^^^^^^^^^^^^^^
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{TRACEBACK}ValueError: bad", "ValueError: bad"),
        (f"{TRACEBACK}CudaError: out of memory\nCompile with it.", "CudaError: out of memory"),
        (f"{TRACEBACK}KeyError: 1\n\nDuring it:\n\n{TRACEBACK}OSError: 2\nx", "OSError: 2"),
        ('  File "x", line 1\n\nIOError: y', "IOError: y"),
        ("first\nbad", "bad"),
        ("", "unknown error"),
    ],
)
def test_error_of_a_trial_is_the_first_line_of_its_message(text, reason):
    assert describe_error(text) == reason


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
    assert ("trial" in sweep.finished_trials(folder, {"trial": config})) == finished


def test_trial_with_a_corrupt_last_checkpoint_is_not_finished(tmp_path):
    (config,) = trial_configs(replace(LSTM_RECIPE, lengths=(5,), seeds=(0,), epochs=2))
    for epochs in (1, 2):
        path = tmp_path / "trial" / f"checkpoint_{epochs:06}"
        path.mkdir(parents=True)
        checkpoint.save(path, {}, [{"val_accuracy": 0.5}] * epochs)
    folder = storage.open_dir(str(tmp_path))
    assert sweep.finished_trials(folder, {"trial": config}) == {"trial": {"val_accuracy": 0.5}}
    (path / "state.pt").unlink()
    assert sweep.finished_trials(folder, {"trial": config}) == {}


# Progress

CONFIGS = {
    "long": {"cell": "lstm", "length": 20, "epochs": 4, "num_sequences": 1},
    "short": {"cell": "lstm", "length": 10, "epochs": 4, "num_sequences": 1},
    "other": {"cell": "rnn", "length": 10, "epochs": 2, "num_sequences": 1},
}


def make_progress(path: Path, finished: tuple[str, ...] = (), gpu: float = 0) -> Progress:
    """Returns the progress of CONFIGS; the work of an epoch is the sequence length."""
    return Progress(storage.open_dir(str(path)), CONFIGS, finished, {"cpu": 1.0, "gpu": gpu})


class FakeTrial(SimpleNamespace):
    def __str__(self):
        return self.name


def report(progress: Progress, name: str, epoch: int, seconds: float, **row: object) -> None:
    row = {"corrupt_checkpoints": "", "resumed_from_epoch": 0, "device": "cpu", **row}
    row |= {"epoch": epoch, "time_this_iter_s": seconds, "val_accuracy": 0.5}
    progress.on_trial_result(0, [], FakeTrial(name=name), row)


def test_time_left_is_the_remaining_work_at_the_pace_of_each_cell(tmp_path):
    progress = make_progress(tmp_path)
    assert progress._seconds_left(running=2) is None
    report(progress, "long", epoch=1, seconds=10)  # 0.5 s per digit
    # lstm: 3 epochs of 20 digits and 4 of 10. rnn: 2 of 10, at the pace of the lstm for now.
    assert progress._seconds_left(running=2) == (3 * 20 + 4 * 10 + 2 * 10) * 0.5 / 2
    report(progress, "other", epoch=1, seconds=1)  # 0.1 s per digit
    assert progress._seconds_left(running=1) == (3 * 20 + 4 * 10) * 0.5 + 10 * 0.1


def test_trial_stopped_early_leaves_no_work(tmp_path):
    progress = make_progress(tmp_path, finished=("short", "other"))
    report(progress, "long", epoch=1, seconds=10)
    assert progress._seconds_left(running=1) == 30
    progress.on_trial_complete(0, [], FakeTrial(name="long"))
    assert progress._seconds_left(running=1) == 0
    assert progress._status(running=0).startswith("3/3 done")


def test_progress_line_counts_done_running_and_failed_trials(capsys, tmp_path):
    progress = make_progress(tmp_path, finished=("short",))
    report(progress, "long", epoch=4, seconds=1)
    error_file = tmp_path / "error.txt"
    error_file.write_text("Failure # 1 (at noon)\nbad\nFailure # 2 (later)\n\nOSError: full\n")
    (tmp_path / "other").mkdir()
    progress.on_trial_error(0, [], FakeTrial(name="other", error_file=str(error_file)))
    assert (tmp_path / "other" / storage.FAILURE).read_text() == "OSError: full"
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
        ("Task was killed due to the node running low on memory.\nadvice", "ran out of memory"),
        ("ray.exceptions.ActorDiedError: The actor died because\nadvice", "its process died"),
        ("Traceback\nValueError: bad", "ValueError: bad"),
    ],
)
def test_failure_of_a_trial_is_reported_in_one_line(capsys, tmp_path, text, message):
    error_file = tmp_path / "error.txt"
    error_file.write_text(f"Failure # 1 (at noon)\n{text}\n")
    make_progress(tmp_path).on_trial_recover(
        0, [], FakeTrial(name="long", error_file=str(error_file))
    )
    (line,) = capsys.readouterr().out.splitlines()
    assert message in line
    assert "advice" not in line


def test_corrupt_checkpoints_are_reported_once(capsys, tmp_path):
    progress = make_progress(tmp_path)
    for epoch in (3, 4):
        row = {"corrupt_checkpoints": "checkpoint_000002", "resumed_from_epoch": 2}
        report(progress, "long", epoch, 1, **row)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "long: skipped corrupt checkpoints: checkpoint_000002; resuming from epoch 2"


@pytest.mark.parametrize(
    ("gpu", "device", "lines"), [(0.25, "cpu", 1), (0.25, "cuda", 0), (0, "cpu", 0)]
)
def test_gpus_that_torch_cannot_use_are_reported_once(capsys, tmp_path, gpu, device, lines):
    progress = make_progress(tmp_path, gpu=gpu)
    for epoch in (1, 2):
        report(progress, "long", epoch, 1, device=device)
    assert capsys.readouterr().out.splitlines() == lines * [
        "trials reserve GPUs, but train on CPUs: torch finds no GPU there"
    ]


def test_trials_that_the_command_does_not_ask_for_are_not_counted(tmp_path, capsys):
    progress = make_progress(tmp_path, finished=("long",))
    for name in ("long", "of an earlier command"):
        report(progress, name, epoch=4, seconds=1)
        progress.on_trial_complete(0, [], FakeTrial(name=name))
    progress.latest = "-"
    assert progress._status(running=1).startswith("1/3 done")
    assert capsys.readouterr().out == ""


def test_interrupted_sweep_ends_although_ray_swallowed_the_interrupt(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupt.interrupted, "is_set", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        make_progress(tmp_path).on_step_end(0, [])
