"""analysis/trials.py on a sweep of eight trials that no training made."""

import csv
import gzip
import io
import itertools
import sys
from pathlib import Path

import pandas as pd
import pytest
from fake_experiments import make_row, write_settings, write_trial
from fake_trials import make_trial, write_trials

from analysis import trials
from analysis.results import read_trials
from analysis.tables import epochs_table, trials_table

# The accuracies after the last epoch: in another order than the names.
ACCURACIES = (0.9, 0.3, 0.5, 0.5, 0.1, 0.7, 0.2, 0.5)
FAKES = [
    make_trial([0.1, accuracy], *group, epochs=2, device=["cpu"] * 2, loss=[2.5, 1 / 3])
    for group, accuracy in zip(
        itertools.product(("lstm", "rnn"), ("uniform",), (3, 5), (0, 1)), ACCURACIES, strict=True
    )
]
NAMES = [trial.name for trial in FAKES]


@pytest.fixture
def results(tmp_path) -> Path:
    return write_trials(tmp_path / "results", *FAKES)


@pytest.fixture
def lines_of(call_main):
    """Runs the script, which must print no error; returns the lines of its output."""

    def run(*arguments: object) -> list[str]:
        done = call_main(trials.main, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return run


def test_table_has_a_line_per_trial_and_columns_that_vary(results, lines_of):
    header, *lines, count = lines_of(results)
    assert header.split() == ["trial", "status", "cell", "length", "seed", "epoch", "val_accuracy"]
    assert [line.split() for line in lines] == [
        [t.name, "finished", t.config["cell"], str(t.config["length"]), str(t.config["seed"]), "2",
         str(accuracy)]
        for t, accuracy in zip(FAKES, ACCURACIES, strict=True)
    ]  # fmt: skip
    assert count == "8 of 8 trials"


def test_columns_all_shows_every_column(results, lines_of):
    header = lines_of(results, "--columns", "all")[0].split()
    assert header == list(trials_table(read_trials(str(results))))


def test_columns_are_shown_in_the_order_given(results, lines_of):
    header, *lines, _ = lines_of(results, "--columns", "seed,cell,trial")
    assert header.split() == ["seed", "cell", "trial"]
    assert [line.split() for line in lines] == [[n[-1], n.split("-")[0], n] for n in NAMES]


def test_epochs_has_a_line_per_epoch(results, lines_of):
    *lines, count = lines_of(results, "--epochs", "--columns", "trial,epoch")
    assert [tuple(line.split()) for line in lines[1:]] == [
        (name, epoch) for name in NAMES for epoch in ("1", "2")
    ]
    assert count == "16 rows"


def test_query_selects_rows(results, lines_of):
    query = "cell == 'lstm' and length >= 5"
    _, *lines, count = lines_of(results, "--query", query, "--columns", "trial")
    assert [line.strip() for line in lines] == NAMES[2:4]
    assert count == "2 of 8 trials"
    assert lines_of(results, "--query", "length > 5")[-1] == "0 of 8 trials"


def test_query_reaches_nested_columns_by_backticks(third_party_experiment, lines_of):
    lines = lines_of(third_party_experiment, "--query", "`optimizer/lr` < 0.05")
    assert lines[-1] == "1 of 2 trials"


def test_query_does_not_change_the_columns(results, lines_of):
    header, line, _ = lines_of(results, "--query", f"trial == '{NAMES[0]}'")
    assert header.split() == lines_of(results)[0].split()
    assert line.split()[0] == NAMES[0]


@pytest.mark.parametrize(
    ("flags", "order"),
    [
        (["--sort", "val_accuracy"], [4, 6, 1, 2, 3, 7, 5, 0]),
        (["--sort", "val_accuracy", "--descending"], [0, 5, 2, 3, 7, 1, 6, 4]),
        (["--sort", "length", "--descending"], [2, 3, 6, 7, 0, 1, 4, 5]),
        (["--sort", "seed"], [0, 2, 4, 6, 1, 3, 5, 7]),
    ],
)
def test_sort_is_stable_in_both_directions(results, lines_of, flags, order):
    _, *lines, _ = lines_of(results, *flags, "--columns", "trial")
    assert [line.strip() for line in lines] == [NAMES[index] for index in order]


def test_values_without_an_order_are_an_error(call_main, tmp_path):
    for name, lr in (("a", 0.1), ("b", "auto")):
        write_trial(tmp_path / name, name, {"lr": lr}, [make_row(1)])
    done = call_main(trials.main, tmp_path / "a", tmp_path / "b", "--sort", "lr")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "script.py: --sort lr: values of different types cannot be sorted\n"


def test_epochs_table_before_the_first_epoch_has_the_settings(lines_of, tmp_path):
    write_trials(tmp_path / "started", make_trial([]))
    flags = ["--epochs", "--query", "cell == 'lstm'", "--columns", "cell,length"]
    assert lines_of(tmp_path / "started", *flags) == ["0 rows"]
    assert lines_of(tmp_path / "started", *flags, "--csv", "-") == ["cell,length"]


@pytest.mark.parametrize(("flags", "table"), [([], trials_table), (["--epochs"], epochs_table)])
def test_csv_has_all_rows_and_columns_in_full_precision(results, lines_of, tmp_path, flags, table):
    file = tmp_path / "table of trials.csv"
    assert lines_of(results, *flags, "--csv", file) == []
    expected = table(read_trials(str(results)))
    with file.open() as opened:
        header, *rows = csv.reader(opened)
    assert header == list(expected)
    for name in ("epoch", "val_accuracy", "loss"):
        assert [float(row[header.index(name)]) for row in rows] == list(expected[name])
    assert "\n".join(lines_of(results, *flags, "--csv", "-")) + "\n" == file.read_text()


def test_gzip_csv_is_the_same_file_each_time(results, lines_of, tmp_path):
    file = tmp_path / "epochs.csv.gz"
    lines_of(results, "--epochs", "--csv", file)
    content = file.read_bytes()
    assert gzip.decompress(content).decode().splitlines() == lines_of(
        results, "--epochs", "--csv", "-"
    )
    assert content[4:8] == bytes(4)  # the time stamp (RFC 1952)


def test_csv_obeys_the_other_flags(results, lines_of):
    flags = ["--query", "cell == 'rnn'", "--sort", "seed", "--columns", "seed,length"]
    assert lines_of(results, *flags, "--csv", "-") == ["seed,length", "0,3", "0,5", "1,3", "1,5"]


@pytest.mark.parametrize("suffix", ["gz", "zip", "bz2", "xz", "tar.gz"])
def test_csv_may_be_compressed(results, lines_of, tmp_path, suffix):
    file = tmp_path / f"epochs.csv.{suffix}"
    lines_of(results, "--epochs", "--csv", file)
    assert len(pd.read_csv(file)) == 16


def test_compression_that_needs_another_package_is_refused(
    results, call_main, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression", None)
    done = call_main(trials.main, results, "--csv", tmp_path / "epochs.csv.zst")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_experiments_are_joined_in_one_table(results, third_party_experiment, lines_of):
    columns = "experiment,trial,val_accuracy,score,info/step"
    lines = lines_of(results, third_party_experiment, "--csv", "-", "--columns", columns)
    table = pd.read_csv(io.StringIO("\n".join(lines)))
    assert list(table["experiment"]) == ["results"] * 8 + [third_party_experiment.name] * 2
    assert list(table["val_accuracy"].notna()) == [True] * 8 + [False] * 2
    assert list(table["info/step"].notna()) == [False] * 8 + [True] * 2


def test_trials_without_metrics_are_shown_with_empty_cells(tmp_path, lines_of):
    configs = {name: {"epochs": 2, "lr": lr} for name, lr in (("a", 0.1), ("b", 0.5))}
    write_settings(tmp_path, configs)
    write_trial(tmp_path, "a", configs["a"], [make_row(1)])
    header, first, second, count = lines_of(tmp_path)
    assert header.split() == ["trial", "status", "lr", "loss"]
    assert first.split() == ["a", "running", "0.1", "1"]
    assert second.split() == ["b", "pending", "0.5"]
    assert count == "2 of 2 trials"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sort", "accuracy"], "no column 'accuracy': choose from experiment, trial, "),
        (["--columns", "trial,acuracy"], "no column 'acuracy'"),
        (["--columns", "trial,"], "no column ''"),
        (["--query", "accuracy > 0.5"], "'accuracy' is not defined"),
        (["--query", "length ="], "--query 'length ='"),
        (["--query", "length > 'a'"], "--query \"length > 'a'\""),
        (["--query", "length > 1\nand"], "--query 'length > 1\\nand'"),
        (["--query", "length"], "--query 'length': must be true or false for each row"),
        (["--csv", "/nowhere/table.csv"], "/nowhere"),
        (["--descending"], "--descending requires --sort"),
        *(
            (([f"--{name}="]), f"argument --{name}: is empty")
            for name in ("query", "sort", "columns", "csv")
        ),
    ],
)
def test_impossible_flags_are_refused_in_one_line(results, call_main, flags, message):
    done = call_main(trials.main, results, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("script.py: ")
    assert message in line
