"""analysis/compare.py, on trials that no training made."""

from dataclasses import replace

import pandas as pd
import pytest
from fake_trials import make_trial, write_trials
from PIL import Image

from analysis import compare
from analysis.trial_metrics import wilson_interval

ADAM = [[0.1, 0.5, 1.0, 1.0], [0.1, 1.0, 0.5, 1.0], [0.1, 0.1, 0.1, 0.1]]
RMSPROP = [[0.1, 1.0, 0.7, 0.5], [1.0, 1.0, 1.0, 1.0], [0.1, 0.3, 0.6, 0.9]]


def sweep(histories: list[list[float]], **settings: object) -> list:
    trials = [
        make_trial(history, cell=cell, init="uniform", length=length, seed=seed)
        for cell in ("lstm", "rnn")
        for length in (3, 5)
        for seed, history in enumerate(histories)
    ]
    return [replace(trial, config=trial.config | settings) for trial in trials]


@pytest.fixture
def runs(tmp_path):
    """Two sweeps; the second has a cell and a length more."""
    more = [make_trial([1.0] * 4, cell="gru", init="uniform", length=n) for n in (3, 9)]
    return [
        write_trials(tmp_path / "adam", *sweep(ADAM, optimizer="adam")),
        write_trials(tmp_path / "rmsprop", *sweep(RMSPROP, optimizer="rmsprop"), *more),
    ]


def test_outcomes_are_counted_for_what_all_sweeps_have(runs, call_main, tmp_path):
    done = call_main(compare.main, *runs, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    table = pd.read_csv(tmp_path / "out" / "outcomes.csv", keep_default_na=False)
    expected = {"adam": (4, 0, 0, 2, 2), "rmsprop": (2, 2, 2, 0, 2)}  # of 2 lengths, 3 seeds
    columns = ["solved", "collapsed", "partial", "at_chance", "sharp_drops"]
    assert len(table) == 4
    for row in table.to_dict("records"):
        assert row["cell"] in ("LSTM", "RNN")
        assert tuple(row[name] for name in columns) == expected[row["run"]]
        assert (row["trials"], row["epochs"], row["effective_length"]) == (6, 24, "none")
        assert row["lengths"] == "3-5"

    side_by_side = pd.read_csv(tmp_path / "out" / "side_by_side.csv")
    assert {*side_by_side["cell"]} == {"lstm", "rnn"}
    assert {*side_by_side["length"]} == {3, 5}
    means = side_by_side.groupby("run")["mean"].unique()
    assert means["adam"].item() == pytest.approx((1 + 1 + 0.1) / 3)
    assert means["rmsprop"].item() == pytest.approx((0.5 + 1 + 0.9) / 3)
    with Image.open(tmp_path / "out" / "side_by_side.png") as image:
        assert "adam: optimizer adam. " in image.text["Description"]
        assert "rmsprop: optimizer rmsprop. " in image.text["Description"]


def test_sweeps_without_common_trials_are_refused(runs, call_main, tmp_path):
    other = write_trials(tmp_path / "other", make_trial([1.0] * 4, length=7))
    for arguments, message in (
        ([*runs, other], "adam: no finished trial of a cell, initialization and length"),
        ([runs[0], f"{runs[0]}/"], "two runs are called adam: rename a folder"),
    ):
        done = call_main(compare.main, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("successes", "count", "expected"),
    [(10, 10, (0.7225, 1)), (0, 10, (0, 0.2775)), (5, 10, (0.2366, 0.7634))],
)
def test_wilson_interval(successes, count, expected):
    """Known values, and its definition: the proportions whose normal test does not reject."""
    interval = wilson_interval(successes, count)
    assert interval == pytest.approx(expected, abs=1e-4)
    for p in interval:
        if 0 < p < 1:
            z = (successes / count - p) / (p * (1 - p) / count) ** 0.5
            assert abs(z) == pytest.approx(1.959964)


def test_sweeps_of_an_older_version_have_no_variant(call_main, tmp_path):
    trials = sweep(ADAM)
    for trial in trials:
        del trial.config["variant"]
    older = write_trials(tmp_path / "older", *trials)
    newer = write_trials(tmp_path / "newer", *sweep(ADAM))
    done = call_main(compare.main, older, newer, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    table = pd.read_csv(tmp_path / "out" / "outcomes.csv", keep_default_na=False)
    first, second = (part.drop(columns="run") for _, part in table.groupby("run"))
    assert first.values.tolist() == second.values.tolist()
