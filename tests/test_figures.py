"""analysis/sweep.py and analysis/figures.py: the pictures, and that their numbers are right."""

import csv
import hashlib
import io
import json
import math
import os
import pickle
import re
import shutil
import statistics
import struct
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from PIL import Image
from scripts import run

from analysis import figures, sweep
from analysis.results import read_trials, trials_table
from models import recurrent
from models.palindromes import Sequences, palindromes
from models.recurrent import build, evaluate

CELLS, LENGTHS, SEEDS, EPOCHS = ("lstm", "rnn"), (3, 5), (0, 1), 2  # of the sweep
TESTED = 203  # not a multiple of ten: digits are tested unequally often
PICTURES = ["figure1", "figure2", "comparison"] + [
    f"{kind}_{cell}_uniform" for kind in ("learning", "transfer", "digits") for cell in CELLS
]


@pytest.fixture(scope="module")
def drawn(tiny, tmp_path_factory) -> tuple[list[str], Path]:
    """What the script printed, and the folder of what it drew, whose name has a space."""
    out = tmp_path_factory.mktemp("figures") / "all of them"
    done = run("analysis/sweep.py", tiny, "--out", out, "--tested", TESTED)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines(), out


def draw(monkeypatch, capsys, *arguments: object) -> tuple[int, list[str], list[str]]:
    """Runs analysis/sweep.py in this process; returns its exit code and what it printed."""
    monkeypatch.setattr(sys, "argv", ["analysis/sweep.py", *map(str, arguments)])
    capsys.readouterr()
    code = sweep.main()
    output = capsys.readouterr()
    return code, output.out.splitlines(), output.err.splitlines()


def name_of(cell: str, length: int, seed: int) -> str:
    return f"{cell}-uniform-length{length:03}-seed{seed}"


def accuracy(folder: Path, cell: str, length: int, seed: int, epoch: int) -> float:
    """Returns the validation accuracy that Tune's progress.csv has."""
    with (folder / name_of(cell, length, seed) / "progress.csv").open() as file:
        rows = {int(row["epoch"]): row for row in csv.DictReader(file)}
    return float(rows[epoch]["val_accuracy"])


def numbers(out: Path, name: str) -> list[dict[str, Any]]:
    """Returns the rows of a picture's CSV, to the last bit."""

    def value(text: str) -> int | float | str:
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        return text

    with (out / f"{name}.csv").open() as file:
        return [{n: value(text) for n, text in row.items()} for row in csv.DictReader(file)]


def size(picture: Path) -> tuple[int, int]:
    """Returns a PNG's width and height, as its header says."""
    content = picture.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[12:16] == b"IHDR"
    assert content[-8:-4] == b"IEND"
    return struct.unpack(">II", content[16:24])


def made(rows: list[tuple[str, str, int, int, float]]) -> pd.DataFrame:
    """Returns a table of finished trials: cell, start, length, seed, accuracy."""
    columns = ["cell", "start", "length", "seed", "val_accuracy"]
    return pd.DataFrame(rows, columns=columns).assign(epoch=20)


def undo_last_epoch(trial: Path) -> None:
    """Leaves what a trial's folder held before its last epoch."""
    result = trial / "result.json"
    result.write_text("".join(result.read_text().splitlines(keepends=True)[:-1]))
    shutil.rmtree(trial / f"checkpoint_{EPOCHS - 1:06}")


# The pictures


def test_every_picture_is_a_png_with_its_numbers_beside_it_and_is_named(drawn):
    lines, out = drawn
    assert lines[-len(PICTURES) :] == [str(out / f"{name}.png") for name in PICTURES]
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}.{ending}" for name in PICTURES for ending in ("png", "csv")),
        "drops.csv",
    }
    for name in PICTURES:
        width, height = size(out / f"{name}.png")
        assert 200 < width < 4000
        assert 150 < height < 4000
        pixels = plt.imread(out / f"{name}.png")  # (height, width, 4)
        assert pixels.shape[:2] == (height, width)
        assert 0.02 < (pixels[..., :3].mean(2) < 0.9).mean() < 0.95  # neither empty nor filled
        assert len(numbers(out, name)) > 0


def test_there_is_no_figure_3_without_a_length_of_25_or_more(drawn):
    _, out = drawn
    assert not list(out.glob("figure3*"))


def test_the_numbers_of_figures_1_and_2_are_those_of_the_trials(drawn, tiny):
    _, out = drawn
    for name, cell in (("figure1", "lstm"), ("figure2", "rnn")):
        records = numbers(out, name)
        assert [record["length"] for record in records] == list(LENGTHS)
        for record in records:
            found = [accuracy(tiny, cell, record["length"], seed, EPOCHS) for seed in SEEDS]
            assert len(set(found)) == 2  # the seeds differ, so that this test can fail
            assert record["mean"] == pytest.approx(statistics.mean(found), abs=1e-12)
            assert (record["min"], record["max"]) == (min(found), max(found))
            assert (record["cell"], record["start"], record["seeds"]) == (cell, "uniform", 2)


def test_the_comparison_has_the_numbers_of_both_figures(drawn):
    _, out = drawn
    assert numbers(out, "comparison") == numbers(out, "figure1") + numbers(out, "figure2")


@pytest.mark.parametrize("cell", CELLS)
def test_the_learning_map_has_the_mean_of_the_seeds_at_each_length_and_epoch(drawn, tiny, cell):
    _, out = drawn
    records = numbers(out, f"learning_{cell}_uniform")
    assert [(r["length"], r["epoch"]) for r in records] == [(n, e) for n in LENGTHS for e in (1, 2)]
    for r in records:
        found = [accuracy(tiny, cell, r["length"], seed, r["epoch"]) for seed in SEEDS]
        assert r["val_accuracy"] == pytest.approx(statistics.mean(found), abs=1e-12)


def test_figure_1_ends_at_24_where_figure_3_begins_and_only_the_lstm_has_one(tmp_path):
    lengths = (23, 24, 25, 35)
    table = made([(c, "uniform", n, s, 0.5) for c in CELLS for n in lengths for s in (0, 1, 2)])
    pictures = sweep.draw_report_figures(table, tmp_path)
    assert [path.stem for path in pictures] == ["figure1", "figure2", "figure3", "comparison"]

    def drawn_in(name: str) -> set[tuple[str, int]]:
        return {(r["cell"], r["length"]) for r in numbers(tmp_path, name)}

    assert drawn_in("figure1") == {("lstm", 23), ("lstm", 24)}
    assert drawn_in("figure2") == {("rnn", 23), ("rnn", 24)}
    assert drawn_in("figure3") == {("lstm", 25), ("lstm", 35)}
    assert drawn_in("comparison") == {(cell, n) for cell in CELLS for n in lengths}


def test_a_figure_whose_cell_has_no_trial_is_not_drawn(tmp_path):
    pictures = sweep.draw_report_figures(made([("rnn", "uniform", 30, 0, 0.5)]), tmp_path)
    assert [path.stem for path in pictures] == ["comparison"]


@pytest.fixture
def shown_figures(monkeypatch):
    """Keeps what is saved, open, by name, and writes nothing."""
    kept = {}
    monkeypatch.setattr(
        sweep, "save", lambda figure, numbers, out, name, alt: kept.setdefault(name, figure)
    )
    yield kept
    plt.close("all")


def test_lines_and_bands_are_where_the_numbers_are(shown_figures, tmp_path):
    rows = [("lstm", "uniform", 3, 0, 1.0), ("lstm", "uniform", 3, 1, 0.5)]
    rows += [("lstm", "uniform", 8, 0, 0.25), ("lstm", "uniform", 8, 1, 0.75)]
    table = made(rows)
    table.loc[0, "epoch"] = 4  # it has held its accuracy
    sweep.draw_report_figures(table, tmp_path)
    (axes,) = shown_figures["figure1"].axes
    line = axes.get_lines()[0]
    assert line.get_xdata().tolist() == [3, 8]
    assert line.get_ydata().tolist() == [75, 50]
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in band.tolist()} >= {(3, 50), (3, 100), (8, 25), (8, 75)}
    assert [line.get_ydata() for line in axes.get_lines()][1] == [10, 10]  # chance
    assert "%" in axes.get_ylabel()
    assert "after 4 or 20 epochs" in axes.get_title()
    (text,) = (text.get_text() for text in axes.get_legend().get_texts())
    assert text == "LSTM, uniform start, mean and range of 2 seeds"


def test_the_comparison_tells_cells_and_starts_apart_and_marks_effective_lengths(
    shown_figures, tmp_path
):
    settings = [("lstm", "uniform"), ("lstm", "orthogonal"), ("lstm", "chrono"), ("rnn", "uniform")]
    good = {("lstm", "chrono"): 8, ("lstm", "uniform"): 5}
    rows = [(*s, n, 0, 1.0 if n <= good.get(s, 0) else 0.2) for s in settings for n in (3, 5, 8)]
    sweep.draw_report_figures(made(rows), tmp_path)
    (axes,) = shown_figures["comparison"].axes
    curves = [line for line in axes.get_lines() if len(line.get_xdata()) == 3]
    assert len({(c.get_color(), c.get_linestyle()) for c in curves}) == len(settings)
    marked = [line for line in axes.get_lines() if len(set(map(float, line.get_xdata()))) == 1]
    assert sorted(line.get_xdata()[0] for line in marked) == [5, 8]
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    found = {
        text.split(", mean")[0]: re.search(r"effective length: (\w+)", text)[1] for text in said
    }
    assert found == {
        "LSTM, uniform start": "5",
        "LSTM, orthogonal start": "none",
        "LSTM, chrono start": "8",
        "RNN, uniform start": "none",
    }


def test_every_cell_and_start_that_the_networks_have_has_a_look():
    networks = recurrent.CELLS
    assert networks.keys() == figures.LOOKS.keys() == figures.NAMES.keys()
    assert {start for cell in networks.values() for start in cell.starts} == figures.STARTS.keys()
    assert len({look["color"] for look in figures.LOOKS.values()}) == len(figures.LOOKS)
    assert len({look["marker"] for look in figures.LOOKS.values()}) == len(figures.LOOKS)
    assert len(set(figures.STARTS.values())) == len(figures.STARTS)


def test_save_writes_a_picture_and_its_numbers_and_closes_the_figure(tmp_path):
    before = plt.get_fignums()
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    table = pd.DataFrame({"length": [3, 5], "mean": [0.1, 1 / 3]})
    picture = figures.save(figure, table, tmp_path / "new" / "folder", "name", "two points")
    assert picture == tmp_path / "new" / "folder" / "name.png"
    assert size(picture) > (200, 150)
    assert Image.open(picture).text["Description"] == "two points"
    assert numbers(picture.parent, "name") == table.to_dict("records")
    assert plt.get_fignums() == before


def test_a_heat_map_shows_its_table_in_percent_with_the_index_upwards():
    table = pd.DataFrame(
        [[0.0, 0.25, 1.0], [0.5, math.nan, 0.999]], index=[3, 5], columns=[1, 2, 9]
    )
    figure = figures.heat_map(table, "title", "epoch", "length", "accuracy (%)")
    axes, bar = figure.axes
    (image,) = axes.images
    found = image.get_array().filled(math.nan).tolist()
    assert [[found[0][0], found[0][1], found[0][2]], found[1][0]] == [[0, 25, 100], 50]
    assert math.isnan(found[1][1])
    assert image.get_clim() == (0, 100)
    assert image.origin == "lower"
    texts = {tuple(map(int, t.get_position())): t.get_text() for t in axes.texts}
    assert texts == {(0, 0): "0", (1, 0): "25", (2, 0): "100", (0, 1): "50", (2, 1): "100"}
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2", "9"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["3", "5"]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("title", "epoch", "length")
    assert bar.get_ylabel() == "accuracy (%)"
    plt.close(figure)


def test_a_large_heat_map_has_few_ticks_and_no_numbers_and_labels_what_it_shows():
    table = pd.DataFrame(0.5, index=range(3, 36), columns=range(1, 101))
    figure = figures.heat_map(table, "title", "epoch", "length", "accuracy (%)")
    axes = figure.axes[0]
    assert len(axes.texts) == 0
    for ticks, labels, first in (
        (axes.get_xticks(), axes.get_xticklabels(), 1),
        (axes.get_yticks(), axes.get_yticklabels(), 3),
    ):
        assert 10 <= len(ticks) <= 20
        assert [int(label.get_text()) for label in labels] == [first + t for t in ticks]
    plt.close(figure)


# Effective lengths


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ({3: (1.0, 1.0), 5: (0.995, 0.99), 8: (1.0, 0.5)}, 5),
        (
            {3: (1.0, 1.0), 5: (1.0, 0.9899), 8: (0.99, 0.99)},
            3,
        ),  # what lies beyond a gap does not count
        ({3: (1.0, 0.98), 5: (0.98, 1.0)}, 0),  # each is remembered by one seed only
        ({3: (0.2, 0.3)}, 0),
        ({12: (0.99,)}, 12),
        ({12: (0.98999,)}, 0),
    ],
)
def test_the_effective_length_is_that_up_to_which_every_seed_remembers(accuracies, expected):
    rows = [
        ("lstm", "uniform", length, seed, value)
        for length, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    assert sweep.effective_length(sweep.spread(made(rows))) == expected


@pytest.mark.parametrize(
    ("unfinished", "expected"), [([], 5), ([8, 12], 5), ([3], None), ([4], None), ([6, 12], None)]
)
def test_the_effective_length_is_not_known_before_the_lengths_that_decide_it(unfinished, expected):
    rows = [("lstm", "uniform", length, 0, value) for length, value in ((3, 1), (5, 1), (8, 0.5))]
    assert sweep.effective_length(sweep.spread(made(rows)), unfinished) == expected


def test_a_sharp_drop_is_a_fall_of_more_than_20_points_within_a_trial():
    accuracies = {
        ("lstm", 0): [0.1, 0.99, 0.7, 1.0, 0.8],
        ("lstm", 1): [0.3, 0.2],
        ("rnn", 0): [1, 0],
    }
    rows = [
        {"cell": cell, "start": "uniform", "length": 5, "seed": seed, "epoch": epoch + 1}
        | {"val_accuracy": accuracy}
        for (cell, seed), values in accuracies.items()
        for epoch, accuracy in enumerate(values)
    ]
    found = sweep.sharp_drops(pd.DataFrame(rows).sample(frac=1, random_state=0))
    assert [(d.cell, d.seed, d.epoch, d.before) for d in found.itertuples()] == [
        ("lstm", 0, 3, 0.99),  # and not its fall from 100 % to 80 %, nor from one trial to the next
        ("rnn", 0, 2, 1.0),
    ]


def test_the_spread_is_told_for_each_cell_and_start_by_itself():
    rows = [("lstm", "uniform", 3, 0, 1.0), ("lstm", "chrono", 3, 0, 0.5)]
    rows += [("rnn", "uniform", 3, 0, 0.25), ("rnn", "uniform", 3, 1, 0.75)]
    found = sweep.spread(made(rows)).to_dict("records")
    assert [tuple(record.values()) for record in found] == [
        ("lstm", "chrono", 3, 0.5, 0.5, 0.5, 1),
        ("lstm", "uniform", 3, 1.0, 1.0, 1.0, 1),
        ("rnn", "uniform", 3, 0.5, 0.25, 0.75, 2),
    ]


def test_effective_lengths_are_printed(drawn):
    lines, _ = drawn
    assert lines[:2] == [
        "LSTM, uniform start: effective length none, sharp drops 0 in 8 epochs",
        "RNN, uniform start: effective length none, sharp drops 0 in 8 epochs",
    ]
    assert len(lines) == 2 + len(PICTURES)


def test_a_sweep_that_remembers_prints_how_far(copy, tmp_path, monkeypatch, capsys):
    """The accuracies are made up; all else is a real sweep's."""
    for trial in copy.glob("*-seed?"):
        reached = 0.99 if "lstm" in trial.name or "length003" in trial.name else 0.98
        for path in (trial / "result.json", *trial.glob("checkpoint_*/checkpoint.json")):
            text, count = re.subn(
                r'"val_accuracy": [0-9.]+', f'"val_accuracy": {reached}', path.read_text()
            )
            assert count > 0
            path.write_text(text)
    code, lines, errors = draw(monkeypatch, capsys, copy, "--out", tmp_path / "out", "--tested", 20)
    assert (code, errors) == (0, [])
    assert lines[:2] == [
        "LSTM, uniform start: effective length 5, sharp drops 0 in 8 epochs",
        "RNN, uniform start: effective length 3, sharp drops 0 in 8 epochs",
    ]


# Sweeps that are not whole


def test_unfinished_trials_are_left_out_and_counted(copy, tmp_path, monkeypatch, capsys):
    undo_last_epoch(copy / name_of("lstm", 5, 1))
    shutil.rmtree(copy / name_of("rnn", 3, 0))  # never began: only the snapshot knows it
    out = tmp_path / "out"
    code, lines, errors = draw(monkeypatch, capsys, copy, "--out", out, "--tested", 20)
    assert (code, errors) == (0, [])
    assert "left out: 2 of 8 trials, which are not finished" in lines
    alone = {("lstm", 5): 0, ("rnn", 3): 1}  # the seed that is left
    for record in numbers(out, "comparison"):
        seeds = [alone.get((record["cell"], record["length"]), 0), 1][: record["seeds"]]
        found = [accuracy(copy, record["cell"], record["length"], s, EPOCHS) for s in seeds]
        assert record["seeds"] == (1 if (record["cell"], record["length"]) in alone else 2)
        assert record["mean"] == pytest.approx(statistics.mean(found), abs=1e-12)
    for cell in CELLS:
        for kind in ("transfer", "digits"):
            trained = {(r["length"], r["seed"]) for r in numbers(out, f"{kind}_{cell}_uniform")}
            assert len(trained) == 3


def test_unfinished_trials_are_left_out_of_how_it_learns(copy, tmp_path, monkeypatch, capsys):
    undo_last_epoch(copy / name_of("lstm", 5, 1))
    assert draw(monkeypatch, capsys, copy, "--out", tmp_path, "--tested", 20)[0] == 0
    found = {(r["length"], r["epoch"]): r for r in numbers(tmp_path, "learning_lstm_uniform")}
    for epoch in (1, 2):
        expected = accuracy(copy, "lstm", 5, 0, epoch)
        assert found[5, epoch]["val_accuracy"] == pytest.approx(expected, abs=1e-12)


def test_a_finished_sweep_says_nothing_of_unfinished_trials(drawn):
    assert not [line for line in drawn[0] if "left out" in line]


def test_a_trial_whose_last_row_only_its_checkpoint_has_is_finished(copy):
    (copy / name_of("lstm", 5, 1) / "result.json").unlink()
    assert all(sweep.is_finished(trial) for trial in read_trials(str(copy)))


def test_a_trial_without_a_whole_checkpoint_is_in_the_figures_but_not_tested(
    copy, tmp_path, monkeypatch, capsys
):
    for state in (copy / name_of("rnn", 5, 1)).glob("checkpoint_*/state.pt"):
        state.write_bytes(state.read_bytes()[:100])
    assert draw(monkeypatch, capsys, copy, "--out", tmp_path, "--tested", 20)[0] == 0
    assert {r["seeds"] for r in numbers(tmp_path, "figure2")} == {2}
    trained = {(r["length"], r["seed"]) for r in numbers(tmp_path, "transfer_rnn_uniform")}
    assert trained == {(3, 0), (3, 1), (5, 0)}


def test_a_sweep_whose_checkpoints_were_all_deleted_has_its_other_figures(
    copy, tmp_path, monkeypatch, capsys
):
    for checkpoint in copy.glob("*/checkpoint_*"):
        shutil.rmtree(checkpoint)
    code, lines, errors = draw(monkeypatch, capsys, copy, "--out", tmp_path)
    assert (code, errors) == (0, [])
    expected = [name for name in PICTURES if not name.startswith(("transfer", "digits"))]
    assert [Path(line).stem for line in lines if line.endswith(".png")] == expected


def test_two_folders_are_drawn_as_one_sweep(tiny, copy, tmp_path, monkeypatch, capsys):
    """The second one has other seeds: seeds 2 and 3, whose networks are those of 0 and 1."""
    for path in copy.glob("*/params.json"):
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "seed": config["seed"] + 2}))
    out = tmp_path / "out"
    assert draw(monkeypatch, capsys, tiny, copy, "--out", out, "--tested", 20)[0] == 0
    for record in numbers(out, "comparison"):
        found = [accuracy(tiny, record["cell"], record["length"], seed, EPOCHS) for seed in SEEDS]
        assert record["seeds"] == 4
        assert record["mean"] == pytest.approx(statistics.mean(found), abs=1e-12)
    assert {r["seed"] for r in numbers(out, "transfer_rnn_uniform")} == {0, 1, 2, 3}


def test_the_same_folder_twice_is_no_more_seeds(tiny, tmp_path, monkeypatch, capsys):
    assert draw(monkeypatch, capsys, tiny, tiny, "--out", tmp_path, "--tested", 20)[0] == 0
    assert {record["seeds"] for record in numbers(tmp_path, "comparison")} == {2}


# Trouble


def refused(answer: tuple[int, list[str], list[str]], said: object) -> None:
    code, output, errors = answer
    assert (code, output) == (2, [])
    (line,) = errors
    assert line.startswith("analysis/sweep.py: ")
    assert str(said) in line


def test_places_without_a_finished_trial_are_told_in_one_line_and_nothing_is_written(
    copy, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    for place in (tmp_path / "missing", tmp_path):
        refused(draw(monkeypatch, capsys, place, "--out", out), place)
        refused(draw(monkeypatch, capsys, copy, place, "--out", out), place)
    for trial in copy.glob("*-seed?"):
        undo_last_epoch(trial)
    refused(draw(monkeypatch, capsys, copy, "--out", out), "no trial is finished yet")
    assert not out.exists()


def test_an_experiment_that_is_no_sweep_of_ours_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    trial = tmp_path / "experiment" / "trial_0"
    trial.mkdir(parents=True)
    (trial / "params.json").write_text('{"lr": 0.1}')
    (trial / "result.json").write_text('{"loss": 1.0, "training_iteration": 1}\n')
    answer = draw(monkeypatch, capsys, trial.parent, "--out", tmp_path / "out")
    refused(answer, trial.parent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tested", [0, -5, 9])
def test_too_few_palindromes_to_test_with_are_told_in_one_line(
    tiny, tmp_path, monkeypatch, capsys, tested
):
    answer = draw(monkeypatch, capsys, tiny, "--out", tmp_path / "out", "--tested", tested)
    refused(answer, f"--tested {tested}")
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_a_folder_is_told_in_one_line(tiny, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    answer = draw(monkeypatch, capsys, tiny, "--out", tmp_path / "file", "--tested", 20)
    refused(answer, tmp_path / "file")


# The checkpoints


@pytest.fixture(scope="module")
def examined(tiny) -> tuple[pd.DataFrame, pd.DataFrame]:
    return sweep.examine(read_trials(str(tiny)), TESTED)


def saved_network(tiny: Path, cell: str, length: int, seed: int) -> torch.nn.Module:
    """Returns the network of a trial's last checkpoint, read without the suite's reader."""
    path = tiny / name_of(cell, length, seed) / f"checkpoint_{EPOCHS - 1:06}" / "state.pt"
    network = build(cell, hidden=128, start="uniform", seed=99, length=length)
    network.load_state_dict(torch.load(path, weights_only=True)["network"])
    return network


def whole(part: Sequences) -> set[tuple[int, ...]]:
    """Returns the palindromes of a part, with their last digit."""
    return set(map(tuple, torch.cat([part.digits, part.targets[:, None]], 1).tolist()))


def test_every_network_is_tested_at_every_length_of_its_cell_and_by_every_digit(examined):
    by_length, by_digit = examined
    expected = {(c, n, s, t) for c in CELLS for n in LENGTHS for s in SEEDS for t in LENGTHS}
    found = list(by_length[["cell", "length", "seed", "tested"]].itertuples(index=False, name=None))
    assert (set(found), len(found)) == (expected, len(expected))
    assert by_digit.groupby(["cell", "length", "seed"])["digit"].apply(list).tolist() == [
        list(range(10))
    ] * (len(CELLS) * len(LENGTHS) * len(SEEDS))


def test_the_transfer_table_is_what_the_saved_networks_do(examined, tiny):
    """Tested with the network written out as its equations; a tie may fall the other way."""
    for record in examined[0].to_dict("records"):
        network = saved_network(tiny, record["cell"], record["length"], record["seed"])
        data = sweep.test_sequences(record["seed"], record["tested"], TESTED)
        assert data.digits.shape == (TESTED, record["tested"])
        assert evaluate(network, data)[1] == record["accuracy"]
        with torch.inference_mode():
            guessed = network(data.digits, written_out=True).argmax(1)
        right = (guessed == data.targets).sum().item()
        assert abs(right / TESTED - record["accuracy"]) < 1.5 / TESTED
    assert examined[0]["accuracy"].nunique() > 8  # so that this test can fail


def test_on_the_diagonal_it_agrees_with_what_training_measured(tiny):
    """Tested with as many palindromes as were the validation part's: they are the same ones."""
    by_length, _ = sweep.examine(read_trials(str(tiny)), 400)
    diagonal = by_length[by_length["length"] == by_length["tested"]]
    assert len(diagonal) == 8
    for r in diagonal.to_dict("records"):
        measured = accuracy(tiny, r["cell"], r["length"], r["seed"], EPOCHS)
        assert r["accuracy"] == pytest.approx(measured, abs=1.5 / 400)


def test_accuracies_by_digit_add_up_to_the_accuracy_of_all(examined):
    by_length, by_digit = examined
    diagonal = by_length[by_length["length"] == by_length["tested"]]
    for r in diagonal.to_dict("records"):
        mine = by_digit[(by_digit["cell"] == r["cell"]) & (by_digit["seed"] == r["seed"])]
        mine = mine[mine["length"] == r["length"]].set_index("digit")["accuracy"]
        data = sweep.test_sequences(r["seed"], r["length"], TESTED)
        often = data.targets.bincount(minlength=10)
        assert sorted(set(often.tolist())) == [20, 21]
        total = sum(often[digit].item() * mine[digit] for digit in range(10))
        assert total / TESTED == pytest.approx(r["accuracy"], abs=1e-9)
    assert by_digit["accuracy"].between(0, 1).all()


def test_the_pictures_numbers_are_the_examinations(drawn, examined):
    _, out = drawn
    for table, kind in zip(examined, ("transfer", "digits"), strict=True):
        for cell in CELLS:
            expected = table[table["cell"] == cell].to_dict("records")
            assert numbers(out, f"{kind}_{cell}_uniform") == expected


def test_the_pictures_show_the_mean_of_the_seeds(shown_figures, examined, tiny, tmp_path):
    sweep.draw_examination(read_trials(str(tiny)), TESTED, tmp_path)
    for table, kind, axis in zip(
        examined, ("transfer", "digits"), ("tested", "digit"), strict=True
    ):
        for cell in CELLS:
            pixels = shown_figures[f"{kind}_{cell}_uniform"].axes[0].images[0].get_array()
            values = LENGTHS if axis == "tested" else range(10)
            assert pixels.shape == (len(LENGTHS), len(values))
            for y, length in enumerate(LENGTHS):
                for x, value in enumerate(values):
                    cells = table[(table["cell"] == cell) & (table["length"] == length)]
                    seeds = cells[cells[axis] == value]["accuracy"].tolist()
                    assert len(seeds) == 2
                    assert pixels[y, x] == pytest.approx(100 * sum(seeds) / 2, abs=1e-9)


@pytest.mark.parametrize("length", [2, 3, 5, 12, 35])
@pytest.mark.parametrize("seed", range(3))
def test_no_palindrome_tested_at_the_trained_length_was_trained_on(seed, length):
    tested = whole(sweep.test_sequences(seed, length, 1000))
    assert len(tested) == 20 if length <= 3 else len(tested) > 150
    for samples in (2_000, 100_000):
        trained = whole(palindromes(seed, length, samples).train)
        assert len(trained) >= 80
        assert not tested & trained


@pytest.mark.parametrize("count", [10, 203, 1000])
def test_as_many_palindromes_are_tested_as_asked_for(count):
    data = sweep.test_sequences(0, 7, count)
    assert data.digits.shape == (count, 7)
    assert data.targets.bincount(minlength=10).min() >= count // 10


def test_the_network_that_is_loaded_is_the_newest(copy):
    trial = copy / name_of("rnn", 3, 0)
    (trial / "checkpoint_000000").rename(trial / "checkpoint_000007")  # a number is no epoch
    (found,) = (t for t in read_trials(str(copy)) if t.name == trial.name)
    expected = saved_network(copy, "rnn", 3, 0).state_dict()
    loaded = sweep.load_network(found).state_dict()
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(loaded[name], value)
    assert not torch.equal(
        torch.load(trial / "checkpoint_000007" / "state.pt", weights_only=True)["network"][
            "prediction.weight"
        ],
        expected["prediction.weight"],
    )


class Bomb:
    """Whoever unpickles it makes a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_a_checkpoint_that_would_run_code_is_not_run(copy, tmp_path, monkeypatch, capsys):
    mark = tmp_path / "went-off"
    buffer = io.BytesIO()
    torch.save({"network": Bomb(mark)}, buffer)
    folder = copy / name_of("lstm", 3, 0) / "checkpoint_000001"
    (folder / "state.pt").write_bytes(buffer.getvalue())
    summary = json.loads((folder / "checkpoint.json").read_text())
    summary["sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(summary))
    with pytest.raises(pickle.UnpicklingError):
        draw(monkeypatch, capsys, copy, "--out", tmp_path / "out", "--tested", 20)
    assert not mark.exists()
    torch.load(folder / "state.pt", weights_only=False)
    assert mark.exists()  # it was live


def test_the_same_sweep_is_drawn_with_the_same_numbers_again(drawn, tiny, tmp_path):
    _, out = drawn
    again = sweep.draw_report_figures(trials_table(read_trials(str(tiny))), tmp_path)
    for picture in again:
        assert (
            picture.with_suffix(".csv").read_bytes() == (out / f"{picture.stem}.csv").read_bytes()
        )
