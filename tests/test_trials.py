"""analysis/trials.py, the command."""

import csv
import gzip
import io
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from experiments import FIRST, MEASURED, NAMES, logged, row, write_state, write_trial
from scripts import command, run

from analysis import trials as browser
from analysis.results import NoResults, epochs_table, read_trials, trials_table


def browse(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """Runs analysis/trials.py in this process; returns its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["analysis/trials.py", *map(str, arguments)])
    capsys.readouterr()
    code = browser.main()
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.fixture
def shown(monkeypatch, capsys):
    """Runs the command, which must succeed without a word on stderr; returns its lines."""

    def command(*arguments: object) -> list[str]:
        code, output, errors = browse(monkeypatch, capsys, *arguments)
        assert (code, errors) == (0, "")
        return output.splitlines()

    return command


def test_the_command_prints_a_line_for_each_trial_and_only_columns_that_tell_something(tiny, shown):
    header, *lines, count = shown(tiny)
    assert [line.split()[0] for line in lines] == NAMES
    assert count == "8 of 8 trials"
    columns = header.split()
    assert {"trial", "status", "cell", "length", "seed", "epoch", "val_accuracy"} <= set(columns)
    # the same in every row, or details, or Tune's
    assert not {"experiment", "samples", "lr", "pid", "date", "sequences_per_second"} & set(columns)
    accuracy = columns.index("val_accuracy")
    for name, line in zip(NAMES, lines, strict=True):
        last = float(logged(tiny / name)[-1]["val_accuracy"])
        assert float(line.split()[accuracy]) == pytest.approx(last, rel=1e-3)


@pytest.mark.parametrize(("width", "left"), [(200, 9), (80, 7), (10, 4)])
def test_on_a_terminal_a_line_is_no_longer_than_that_is_wide(tiny, monkeypatch, width, left):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "argv", ["analysis/trials.py", str(tiny)])
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    assert browser.main() == 0
    header, *lines = terminal.getvalue().splitlines()
    assert len(header.split()) == left
    assert width == 10 or len(header) <= width
    assert {"trial", "status", "epoch", "val_accuracy"} <= set(header.split())
    assert (lines[-1].startswith("left out for width")) == (left < 9)


def test_all_columns_can_be_shown(tiny, shown):
    header = shown(tiny, "--columns", "all")[0].split()
    assert header == list(trials_table(read_trials(str(tiny))))


def test_epochs_prints_a_line_for_each_epoch(tiny, shown):
    *lines, count = shown(tiny, "--epochs", "--columns", "trial,epoch")
    assert [tuple(line.split()) for line in lines[1:]] == [
        (name, epoch) for name in NAMES for epoch in ("1", "2")
    ]
    assert count == "16 rows"


def test_where_chooses_rows(tiny, shown):
    where = "cell == 'lstm' and length >= 5"
    header, *lines, count = shown(tiny, "--where", where, "--columns", "trial")
    assert header.split() == ["trial"]
    assert [line.strip() for line in lines] == [f"lstm-uniform-length005-seed{n}" for n in (0, 1)]
    assert count == "2 of 8 trials"
    assert shown(tiny, "--where", "length > 5")[-1] == "0 of 8 trials"


def test_where_reaches_nested_columns_by_backticks(foreign, shown):
    assert shown(foreign, "--where", "`optimizer/lr` < 0.05")[-1] == "1 of 2 trials"


def test_where_that_leaves_one_row_still_shows_what_it_reported(tiny, shown):
    header, line, count = shown(tiny, "--where", f"trial == '{FIRST}'")
    assert count == "1 of 8 trials"
    assert line.split()[0] == FIRST
    assert "val_accuracy" in header.split()


def test_sort_orders_and_reverse_turns_the_order_round(tiny, shown):
    def sorted_by(column: str, *flags: str) -> list[tuple[str, str]]:
        lines = shown(tiny, "--sort", column, "--columns", f"trial,{column}", *flags)[1:-1]
        return [tuple(line.split()) for line in lines]

    accuracies = {n: float(logged(tiny / n)[-1]["val_accuracy"]) for n in NAMES}
    rising = sorted(NAMES, key=accuracies.get)  # stable, as the command's order
    assert [name for name, _ in sorted_by("val_accuracy")] == rising
    falling = sorted(NAMES, key=accuracies.get, reverse=True)
    assert [name for name, _ in sorted_by("val_accuracy", "--reverse")] == falling
    assert [int(length) for _, length in sorted_by("length", "--reverse")] == [5] * 4 + [3] * 4
    assert [cell for _, cell in sorted_by("cell")] == ["lstm"] * 4 + ["rnn"] * 4


def test_columns_are_printed_in_the_order_asked_for(tiny, shown):
    header, *lines, _ = shown(tiny, "--columns", "seed,cell,trial")
    assert header.split() == ["seed", "cell", "trial"]
    assert [line.split() for line in lines] == [[n[-1], n.split("-")[0], n] for n in NAMES]


@pytest.mark.parametrize(("flags", "table"), [([], trials_table), (["--epochs"], epochs_table)])
def test_csv_has_every_row_and_column_to_the_last_digit(tiny, shown, tmp_path, flags, table):
    file = tmp_path / "table of trials.csv"
    assert shown(tiny, *flags, "--csv", file) == []
    expected = table(read_trials(str(tiny)))
    with file.open() as lines:
        header, *found = csv.reader(lines)
    assert header == list(expected)
    assert len(found) == len(expected)
    for name in MEASURED:
        assert [float(line[header.index(name)]) for line in found] == list(expected[name])
    assert "\n".join(shown(tiny, *flags, "--csv", "-")) + "\n" == file.read_text()


def test_packed_csv_is_the_same_table_and_the_same_file_each_time(tiny, shown, tmp_path):
    file = tmp_path / "epochs.csv.gz"
    shown(tiny, "--epochs", "--csv", file)
    packed = file.read_bytes()
    assert gzip.decompress(packed).decode().splitlines() == shown(tiny, "--epochs", "--csv", "-")
    assert packed[4:8] == bytes(4)  # RFC 1952: when it was made


def test_csv_obeys_the_other_flags(tiny, shown):
    flags = ["--where", "cell == 'rnn'", "--sort", "seed", "--columns", "seed,length"]
    assert shown(tiny, *flags, "--csv", "-") == ["seed,length", "0,3", "0,5", "1,3", "1,5"]


def test_two_experiments_stand_in_one_table(tiny, foreign, shown):
    lines = shown(tiny, foreign, "--csv", "-", "--columns", "experiment,trial,val_accuracy,loss")
    table = pd.read_csv(io.StringIO("\n".join(lines)))
    assert list(table["experiment"]) == ["tiny"] * 8 + [foreign.name] * 2
    assert list(table["val_accuracy"].notna()) == [True] * 8 + [False] * 2
    assert list(table["loss"].notna()) == [False] * 8 + [True] * 2


def test_a_sweep_that_has_begun_is_shown_with_gaps(tmp_path, shown):
    write_trial(tmp_path, "a", {"lr": 0.1}, [row(1)])
    write_state(tmp_path, {"a": "RUNNING", "b": "PENDING"})
    header, first, second, count = shown(tmp_path)
    assert first.split()[:2] == ["a", "running"]
    assert second.split()[:2] == ["b", "pending"]
    assert "nan" not in (first + second).lower()
    assert "loss" in header.split()
    assert count == "2 of 2 trials"


@pytest.mark.parametrize("name", ["a folder", "50%20of", "a#b", "what?", "lr=0.1,x=[1]", "größe"])
def test_a_path_may_have_any_character(tiny, tmp_path, shown, name):
    (tmp_path / name).symlink_to(tiny)
    copied = shutil.copytree(tiny / FIRST, tmp_path / "real" / name / FIRST)
    assert shown(tmp_path / name)[-1] == "8 of 8 trials"
    assert shown(copied.parent)[-1] == "1 of 1 trials"


def test_a_relative_path_is_one_from_the_working_folder(copy, shown, monkeypatch):
    monkeypatch.chdir(copy.parent)
    expected = shown(copy, "--csv", "-")
    for path in ("tiny", "tiny/", "./tiny", f"../{copy.parent.name}/tiny"):
        assert shown(path, "--csv", "-") == expected
    monkeypatch.chdir(copy)
    assert shown(".", "--csv", "-") == expected


def test_a_path_from_home_and_a_uri_are_read_the_same(copy, shown, monkeypatch):
    monkeypatch.setenv("HOME", str(copy.parent))
    expected = shown(copy, "--csv", "-")
    for path in ("~/tiny", f"file://{copy}", f"file://{copy}/"):
        assert shown(path, "--csv", "-") == expected


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sort", "accuracy"], "there is no column 'accuracy'"),
        (["--reverse"], "--reverse: goes with --sort"),
        (["--columns", "trial,acuracy"], "there is no column 'acuracy'"),
        (["--columns", "trial,"], "there is no column ''"),
        (["--where", "accuracy > 0.5"], "'accuracy' is not defined"),
        (["--where", "length ="], "--where 'length ='"),
        (["--where", "length > 'a'"], "--where \"length > 'a'\""),
        (["--where", "@elsewhere"], "--where '@elsewhere'"),
        (["--where", "length > 1\nand"], "--where 'length > 1\\nand'"),
        (["--where", "trial"], "--where 'trial'"),
        (["--where", "length"], "--where 'length'"),  # numbers, not yes or no
        (["--where", "length - 3"], "--where 'length - 3'"),
        (["--csv", "/nowhere/table.csv"], "/nowhere"),
    ],
)
def test_flags_that_ask_for_what_is_not_there_are_told_in_one_line(
    tiny, monkeypatch, capsys, flags, said
):
    told_in_one_line(browse(monkeypatch, capsys, tiny, *flags), said)


def told_in_one_line(answer: tuple[int, str, str], said: str) -> None:
    code, output, errors = answer
    assert (code, output) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith("analysis/trials.py: ")
    assert said in line


def test_places_without_an_experiment_are_told_in_one_line(tiny, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("{}")
    places = [tmp_path / "missing", tmp_path / "empty", tmp_path / "file", tmp_path / "a b c"]
    places += [tiny.parent, tiny / FIRST, "ftp://nowhere/x", "://"]
    for place in places:
        told_in_one_line(browse(monkeypatch, capsys, place), str(place))
        told_in_one_line(browse(monkeypatch, capsys, tiny, place), str(place))  # none half done
        with pytest.raises(NoResults):
            read_trials(str(place))


def test_a_folder_of_runs_is_told_with_their_names(tiny, gan_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "a sweep").symlink_to(tiny)
    (tmp_path / "a-gan").symlink_to(gan_run)
    said = f"{tmp_path}: a folder of 2 runs, give one or some: a sweep, a-gan"
    told_in_one_line(browse(monkeypatch, capsys, tmp_path), said)


def test_the_script_runs_from_any_folder_and_gives_its_exit_code(tiny):
    done = run("analysis/trials.py", tiny, "--columns", "trial")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.strip() for line in done.stdout.splitlines()[1:-1]] == NAMES
    missing = run("analysis/trials.py", tiny / "missing")
    assert (missing.returncode, missing.stdout, len(missing.stderr.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(
    "words", ["trials.py {tiny}", "trials.py {tiny} --csv -", "horizon.py {tiny} --out {out}"]
)
def test_whoever_reads_may_have_seen_enough(tiny, tmp_path, words):
    script, *arguments = [word.format(tiny=tiny, out=tmp_path) for word in words.split()]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as closed:
        done = subprocess.run(
            command(f"analysis/{script}", *arguments),
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(list(tmp_path.glob("*.png"))) == (script == "horizon.py")
