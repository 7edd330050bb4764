import io
import json
import sys

import pandas as pd
from fake_experiments import TRIAL_NAMES

from analysis import trials
from analysis.results import read_trials
from analysis.tables import (
    HIDDEN_COLUMNS,
    default_columns,
    fit_to_width,
    format_table,
    trials_table,
)


def test_metrics_that_tune_adds_are_hidden(tiny):
    trial = tiny / TRIAL_NAMES[0]
    reported = json.loads((trial / "checkpoint_000001" / "checkpoint.json").read_text())["history"]
    written = json.loads((trial / "result.json").read_text().splitlines()[-1])
    assert written.keys() - reported[-1].keys() - {"config"} <= set(HIDDEN_COLUMNS)


def test_default_columns_of_a_real_sweep(tiny):
    columns = default_columns(trials_table(read_trials(str(tiny))))
    assert columns == [
        "trial", "status", "cell", "length", "seed", "epoch", "train_loss", "val_loss",
        "val_accuracy",
    ]  # fmt: skip


def test_a_single_row_shows_all_columns_that_are_not_hidden():
    table = pd.DataFrame([{"experiment": "e", "trial": "t", "lr": 0.1, "loss": 1.0, "pid": 7}])
    assert default_columns(table) == ["trial", "lr", "loss"]
    twice = pd.concat([table, table.assign(loss=2.0)])
    assert default_columns(twice) == ["trial", "loss"]


def test_format_leaves_missing_values_empty():
    table = pd.DataFrame({"a": [1.23456, None], "b": ["x", None]})
    header, first, second = format_table(table).splitlines()
    assert (header.split(), first.split(), second.split()) == (["a", "b"], ["1.235", "x"], [])


def test_fit_to_width_drops_the_last_columns_except_those_always_shown():
    row = {"trial": "t" * 12, "status": "running", "cell": "lstm", "epoch": 3, "val_loss": 2.125}
    table = pd.DataFrame([{**row, "val_accuracy": 0.5}])
    for dropped in ([], ["val_loss"], ["val_loss", "cell"]):
        fitting = table.drop(columns=dropped)
        width = len(format_table(fitting).splitlines()[0])
        assert list(fit_to_width(table, width)) == list(fitting)
    assert list(fit_to_width(table, 1)) == ["trial", "status", "epoch", "val_accuracy"]


def test_terminal_output_names_the_columns_that_do_not_fit(tmp_path, monkeypatch):
    trial = tmp_path / "experiment" / "trial"
    trial.mkdir(parents=True)
    (trial / "params.json").write_text(json.dumps({"first": 1, "second": 2}))
    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.setattr(sys, "argv", ["trials.py", str(trial.parent)])
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    assert trials.main() == 0
    header, _, count, hidden = terminal.getvalue().splitlines()
    assert header.split() == ["trial", "status"]
    assert count == "1 of 1 trials"
    assert (
        hidden
        == "hidden to fit the width (--columns all shows them): first, second, resumes, failure"
    )
