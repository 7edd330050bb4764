import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray import tune

from jobs import cluster
from jobs.progress import duration
from jobs.tuning import Limit, Progress, TrialList, param_space

CONFIGS = [{"number": n, "letter": letter} for n in (3, 1, 2) for letter in "ba"]


@pytest.fixture(scope="module", autouse=True)
def ray_with_four_slots():
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(num_cpus=4, runtime_env=cluster.runtime_env(), **quiet)
    yield
    ray.shutdown()


class Stop(tune.Callback):
    """Ends the driver's loop, as a crash would, as soon as so many trials have begun."""

    def __init__(self, after: int):
        self.begun, self.after = 0, after

    def on_trial_start(self, iteration, trials, trial, **info):
        self.begun += 1
        if self.begun == self.after:
            raise RuntimeError("crash")


def tuner(place: Path, at_most: int | None, *callbacks: tune.Callback) -> tuple:
    """Returns a Tuner of CONFIGS, and its trainable, which writes down when it ran.

    The first trials wait for each other, as many as may run at a time (two without a limit): so
    the limit is reached, however long a process takes to start.
    """
    times = place / f"limit {at_most}"
    times.mkdir()

    def train(config):
        began = time.time()
        mine = times / f"{config['number']}{config['letter']}"
        mine.write_text(json.dumps([began, None]))
        while len(list(times.iterdir())) < (at_most or 2) and time.time() < began + 60:
            time.sleep(0.05)
        time.sleep(0.3)
        mine.write_text(json.dumps([began, time.time()]))
        tune.report({"epoch": 1})

    made = tune.Tuner(
        train,
        param_space=param_space(CONFIGS),
        tune_config=tune.TuneConfig(
            search_alg=TrialList(CONFIGS, at_most),
            num_samples=len(CONFIGS),
            scheduler=Limit(at_most) if at_most else None,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="run", storage_path=str(place), verbose=0, callbacks=list(callbacks)
        ),
    )
    return made, train


def most_at_a_time(place: Path, at_most: int | None) -> int:
    """Returns how many trials overlapped at the most."""
    spans = [json.loads(file.read_text()) for file in (place / f"limit {at_most}").iterdir()]
    events = [(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans]
    return max(itertools.accumulate(change for _, change in sorted(events)))


def names(configs) -> list[str]:
    return sorted(f"{config['number']}{config['letter']}" for config in configs)


@pytest.mark.parametrize("at_most", [None, 1, 2])
def test_exactly_the_trials_of_the_list_run_and_no_more_at_a_time_than_allowed(tmp_path, at_most):
    results = tuner(tmp_path, at_most)[0].fit()
    assert names(result.config for result in results) == names(CONFIGS)
    most = most_at_a_time(tmp_path, at_most)
    assert most == at_most if at_most else most >= 2


@pytest.mark.parametrize(("first", "second"), [(None, 1), (3, 2), (1, None)])
def test_a_restored_run_obeys_the_new_limit_and_not_the_old_one(tmp_path, first, second):
    with pytest.raises(RuntimeError, match="crash"):
        tuner(tmp_path, first, Stop(after=first or 2))[0].fit()
    _, train = tuner(tmp_path, second)
    results = tune.Tuner.restore(str(tmp_path / "run"), train).fit()
    assert names(result.config for result in results) == names(CONFIGS)
    assert all(result.metrics["epoch"] == 1 for result in results)
    most = most_at_a_time(tmp_path, second)
    assert most == second if second else most >= 2


def progress(finished=()) -> Progress:
    configs = {
        "long": {"cell": "lstm", "length": 20, "epochs": 4},
        "short": {"cell": "lstm", "length": 10, "epochs": 4},
        "other": {"cell": "rnn", "length": 10, "epochs": 2},
    }
    return Progress(configs, lambda config: config["length"], finished)


class Named(SimpleNamespace):
    def __str__(self):
        return self.name


def report(callback: Progress, name: str, epoch: int, seconds: float, **row) -> None:
    row = {"damaged": "", "restored_epoch": 0, **row}
    row |= {"epoch": epoch, "epoch_seconds": seconds, "val_accuracy": 0.5}
    callback.on_trial_result(0, [], Named(name=name), row)


def test_the_time_left_is_the_work_left_at_the_pace_seen():
    callback = progress()
    assert callback._seconds_left(running=2) is None
    report(callback, "long", epoch=1, seconds=10)  # half a second for each digit
    # lstm: 3 epochs of 20 digits and 4 of 10; rnn, of which nothing is known yet, at the same pace
    assert callback._seconds_left(running=2) == (3 * 20 + 4 * 10 + 2 * 10) * 0.5 / 2
    report(callback, "other", epoch=1, seconds=1)  # a tenth of a second for each digit
    assert callback._seconds_left(running=1) == (3 * 20 + 4 * 10) * 0.5 + 10 * 0.1


def test_a_trial_that_ends_before_its_last_epoch_leaves_no_work():
    callback = progress(finished=["short", "other"])
    report(callback, "long", epoch=1, seconds=10)
    assert callback._seconds_left(running=1) == 30
    callback.on_trial_complete(0, [], Named(name="long"))
    assert callback._seconds_left(running=1) == 0
    assert callback._status(running=0).startswith("3/3 done")


def test_the_line_counts_done_running_and_failed(capsys, tmp_path):
    callback = progress(finished=["short"])
    report(callback, "long", epoch=4, seconds=1)
    error_file = tmp_path / "error.txt"
    error_file.write_text(
        "Failure # 1 (at noon)\nan older one\nFailure # 2 (later)\n\nOSError: full\n"
    )
    callback.on_trial_error(0, [], Named(name="other", error_file=str(error_file)))
    assert capsys.readouterr().out == "other: failed for good: OSError: full\n"
    callback.on_step_end(0, [Named(name="other", status="RUNNING")])
    line = capsys.readouterr().out
    assert line.startswith("2/3 done, 1 running, 1 failed")
    assert "long epoch 4 val 50.0%" in line
    assert line.endswith("\n")
    assert "\r" not in line  # no control characters where there is no terminal


def test_a_damaged_checkpoint_is_told_once(capsys):
    callback = progress()
    for epoch in (3, 4):
        report(callback, "long", epoch, 1, damaged="checkpoint_000002", restored_epoch=2)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "long: damaged and passed over: checkpoint_000002; goes on from epoch 2"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (601, "10 min"), (7500, "2 h 05 min")],
)
def test_a_duration_has_two_units(seconds, said):
    assert duration(seconds) == said
