"""Figures of a sweep by Ray, and of trials that no training made."""

import os
import re
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from fake_experiments import read_progress_csv
from fake_trials import make_trial
from matplotlib.figure import Figure
from PIL import Image
from processes import run_script

from analysis import sweep, sweep_figures

CELLS, LENGTHS, SEEDS, EPOCHS = ("lstm", "rnn"), (3, 5), (0, 1), 2  # of the sweep by Ray
COUNT = 400  # as many as its validation split has
NAMES = ["figure1", "figure2", "comparison"] + [
    f"{kind}_{cell}_uniform" for kind in ("learning", "transfer", "digits") for cell in CELLS
]


@pytest.fixture(scope="module")
def plotted(tiny, tmp_path_factory) -> tuple[list[str], Path]:
    """The printed lines of analysis/sweep.py, and its folder of figures."""
    out = tmp_path_factory.mktemp("figures") / "a folder"
    flags = ["--out", out, "--num-test-samples", COUNT]
    environment = os.environ | {"MPLBACKEND": "module://not_installed"}  # as from a notebook
    done = run_script("analysis/sweep.py", tiny, *flags, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines(), out


def accuracies_at(folder: Path, cell: str, length: int, epoch: int) -> list[float]:
    """Returns the validation accuracy of each seed, as Tune's progress.csv has it."""
    rows = [
        read_progress_csv(folder / f"{cell}-uniform-length{length:03}-seed{seed}") for seed in SEEDS
    ]
    return [float(row[epoch - 1]["val_accuracy"]) for row in rows]


def read_csv(out: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(out / f"{name}.csv")


def test_script_writes_each_figure_with_its_data(plotted):
    lines, out = plotted
    assert lines == [
        "LSTM, uniform initialization: effective length none, sharp drops 0 in 8 epochs",
        "RNN, uniform initialization: effective length none, sharp drops 0 in 8 epochs",
        *(str(out / f"{name}.png") for name in NAMES),
    ]
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}.{suffix}" for name in NAMES for suffix in ("png", "csv")),
        "sharp_drops.csv",
    }
    for name in NAMES:
        with Image.open(out / f"{name}.png") as image:
            assert 200 < image.width < 4000
            assert 150 < image.height < 4000
            assert len(image.text["Description"]) > 50
        assert len(read_csv(out, name)) > 0


def test_figures_show_mean_and_range_of_the_seeds(plotted, tiny):
    _, out = plotted
    expected = []
    for name, cell in (("figure1", "lstm"), ("figure2", "rnn")):
        rows = []
        for length in LENGTHS:
            values = accuracies_at(tiny, cell, length, EPOCHS)
            assert len(set(values)) == 2  # so that a missing seed shows
            mean = pytest.approx(statistics.mean(values), abs=1e-12)
            extremes = [pytest.approx(f(values), abs=1e-12) for f in (min, max)]
            rows.append([cell, "uniform", length, mean, *extremes, 2])
        assert read_csv(out, name).to_numpy().tolist() == rows
        expected += rows
    assert read_csv(out, "comparison").to_numpy().tolist() == expected


@pytest.mark.parametrize("cell", CELLS)
def test_learning_is_the_mean_of_the_seeds_after_each_epoch(plotted, tiny, cell):
    _, out = plotted
    assert read_csv(out, f"learning_{cell}_uniform").to_numpy().tolist() == [
        [length, epoch, pytest.approx(statistics.mean(values), abs=1e-12)]
        for length in LENGTHS
        for epoch in (1, 2)
        for values in [accuracies_at(tiny, cell, length, epoch)]
    ]


@pytest.mark.parametrize("cell", CELLS)
def test_transfer_to_the_trained_length_agrees_with_validation(plotted, tiny, cell):
    _, out = plotted
    table = read_csv(out, f"transfer_{cell}_uniform")
    assert len(table) == len(LENGTHS) * len(SEEDS) * len(LENGTHS)
    own = table[table["length"] == table["tested"]].sort_values(["length", "seed"])
    expected = [a for length in LENGTHS for a in accuracies_at(tiny, cell, length, EPOCHS)]
    assert own["accuracy"].tolist() == pytest.approx(expected, abs=1.5 / COUNT)


def test_unfinished_trials_are_left_out_and_counted(call_main, tiny_copy, tmp_path):
    trial = tiny_copy / "lstm-uniform-length005-seed1"  # undo its last epoch
    result = trial / "result.json"
    result.write_text(result.read_text().splitlines(keepends=True)[0])
    shutil.rmtree(trial / f"checkpoint_{EPOCHS - 1:06}")
    shutil.rmtree(tiny_copy / "rnn-uniform-length003-seed0")  # not started: only Tune lists it
    out = tmp_path / "out"
    done = call_main(sweep.main, tiny_copy, "--out", out, "--num-test-samples", 20)
    assert (done.returncode, done.stderr) == (0, "")
    assert "left out: 2 of 8 trials, which are not finished" in done.stdout.splitlines()
    comparison = read_csv(out, "comparison").set_index(["cell", "length"])
    assert comparison["seeds"].to_dict() == {
        ("lstm", 3): 2, ("lstm", 5): 1, ("rnn", 3): 1, ("rnn", 5): 2
    }  # fmt: skip
    learning = read_csv(out, "learning_lstm_uniform").set_index(["length", "epoch"])["val_accuracy"]
    expected = [accuracies_at(tiny_copy, "lstm", 5, epoch)[0] for epoch in (1, 2)]
    assert learning[5].tolist() == pytest.approx(expected, abs=1e-12)
    for kind in ("transfer", "digits"):
        seeds = read_csv(out, f"{kind}_lstm_uniform").groupby("length")["seed"].unique()
        assert [sorted(values) for values in seeds] == [[0, 1], [0]]


# Trials that no training made


@pytest.fixture
def saved_figures(monkeypatch) -> Iterator[dict[str, Figure]]:
    """The figures by name, instead of files."""
    figures = {}
    monkeypatch.setattr(
        sweep_figures, "save", lambda figure, data, out, name, alt: figures.setdefault(name, figure)
    )
    yield figures
    plt.close("all")


def test_figure_1_ends_at_24_and_figure_3_begins_at_25(tmp_path):
    lengths = (23, 24, 25, 35)
    trials = [make_trial([0.5], cell, length=length) for cell in CELLS for length in lengths]
    paths = sweep_figures.plot_report_figures(trials, trials, tmp_path)
    assert {path.stem: read_csv(tmp_path, path.stem)["length"].tolist() for path in paths} == {
        "figure1": [23, 24],
        "figure2": [23, 24],
        "figure3": [25, 35],
        "comparison": [*lengths, *lengths],
    }


def test_comparison_ends_where_a_cell_has_no_longer_lengths(tmp_path):
    trials = [make_trial([0.5], "lstm", length=length) for length in (3, 5, 30)]
    trials += [make_trial([0.5], "rnn", length=length) for length in (3, 5)]
    sweep_figures.plot_report_figures(trials, trials, tmp_path)
    assert read_csv(tmp_path, "comparison")["length"].tolist() == [3, 5, 3, 5]


def test_report_figures_without_a_trial_are_left_out(tmp_path):
    trials = [make_trial([0.5], "rnn", "uniform", length=30)]
    paths = sweep_figures.plot_report_figures(trials, trials, tmp_path)
    assert [path.stem for path in paths] == ["comparison"]


def test_sweep_without_checkpoints_has_its_other_figures(tmp_path):
    trials = [make_trial([0.5], init="uniform")]
    paths = sweep_figures.plot_sweep(trials, trials, 20, tmp_path)
    assert [path.stem for path in paths] == ["figure1", "comparison", "learning_lstm_uniform"]


def test_lines_and_bands_are_at_the_data(saved_figures, tmp_path):
    last = {(3, 0): 1.0, (3, 1): 0.5, (8, 0): 0.25, (8, 1): 0.75}
    trials = [
        make_trial([0.1] * (3 if (length, seed) == (3, 0) else 19) + [value], "lstm", "uniform",
                   length, seed)
        for (length, seed), value in last.items()
    ]  # fmt: skip
    sweep_figures.plot_report_figures(trials, trials, tmp_path)
    (axes,) = saved_figures["figure1"].axes
    line, chance = axes.get_lines()
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([3, 8], [75, 50])
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in band.tolist()} >= {(3, 50), (3, 100), (8, 25), (8, 75)}
    assert chance.get_ydata() == [10, 10]
    assert axes.get_ylabel() == "validation accuracy (%)"
    assert axes.get_title() == "Figure 1: LSTM after 4 or 20 epochs"
    (text,) = (text.get_text() for text in axes.get_legend().get_texts())
    assert text == "LSTM, uniform initialization, mean and range of 2 seeds"


def test_comparison_distinguishes_groups_and_marks_effective_lengths(saved_figures, tmp_path):
    solved_up_to = {("lstm", "chrono"): 8, ("lstm", "uniform"): 5, ("rnn", "uniform"): 0}
    trials = [
        make_trial([1.0 if length <= longest else 0.2], *group, length, epochs=1)
        for group, longest in solved_up_to.items()
        for length in (3, 5, 8)
    ]
    sweep_figures.plot_report_figures(trials, trials, tmp_path)
    (axes,) = saved_figures["comparison"].axes
    curves = [line for line in axes.get_lines() if len(line.get_xdata()) == 3]
    assert len({(c.get_color(), c.get_linestyle()) for c in curves}) == len(solved_up_to)
    vertical = [line.get_xdata() for line in axes.get_lines() if len({*line.get_xdata()}) == 1]
    assert sorted(x[0] for x in vertical) == [5, 8]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {
        label.split(", mean")[0]: re.search(r"effective length: (\w+)", label)[1]
        for label in labels
    } == {
        "LSTM, chrono initialization": "8",
        "LSTM, uniform initialization": "5",
        "RNN, uniform initialization": "none",
    }


def test_effective_length_counts_failures_at_lengths_that_not_all_cells_have(
    saved_figures, tmp_path
):
    trials = [
        make_trial([0.2 if length == 7 else 1.0], "lstm", length=length, epochs=1)
        for length in (3, 5, 7, 10)
    ]
    trials += [make_trial([1.0], "rnn", length=length, epochs=1) for length in (3, 5, 10)]
    sweep_figures.plot_report_figures(trials, trials, tmp_path)
    (axes,) = saved_figures["comparison"].axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [re.search(r"effective length: (\w+)", label)[1] for label in labels] == ["5", "10"]


def test_seed_that_stopped_early_counts_until_the_last_seed_ends(tmp_path):
    trials = [make_trial([0.5, 1, 1], seed=0), make_trial([0.1, 0.1, 0.1, 0.2], seed=1)]
    trials += [make_trial([1, 1], length=20, seed=seed) for seed in (0, 1)]
    sweep_figures.plot_learning(trials, tmp_path)
    assert read_csv(tmp_path, "learning_lstm_chrono").to_numpy().tolist() == [
        [10, 1, 0.3],
        [10, 2, 0.55],
        [10, 3, 0.55],
        [10, 4, 0.6],
        [20, 1, 1.0],
        [20, 2, 1.0],
    ]


def test_transfer_figures_show_the_mean_of_the_seeds(saved_figures, monkeypatch, tmp_path):
    keys = [("lstm", "uniform", length, seed) for length in LENGTHS for seed in SEEDS]
    columns = ["cell", "init", "length", "seed"]
    by_length = pd.DataFrame(
        [(*key, tested, 0.01 * key[2] + 0.1 * key[3] + tested / 10) for key in keys
         for tested in LENGTHS],
        columns=[*columns, "tested", "accuracy"],
    )  # fmt: skip
    by_digit = pd.DataFrame(
        [(*key, digit, 0.01 * key[2] + 0.1 * key[3] + digit / 100) for key in keys
         for digit in range(10)],
        columns=[*columns, "digit", "accuracy"],
    )  # fmt: skip
    monkeypatch.setattr(sweep_figures, "evaluate_transfer", lambda *_: (by_length, by_digit))
    sweep_figures.plot_transfer([], 20, tmp_path)
    images = {
        name: figure.axes[0].images[0].get_array().tolist()
        for name, figure in saved_figures.items()
    }
    assert images == {
        "transfer_lstm_uniform": [
            pytest.approx([n + 5 + 10 * tested for tested in LENGTHS]) for n in LENGTHS
        ],
        "digits_lstm_uniform": [pytest.approx([n + 5 + d for d in range(10)]) for n in LENGTHS],
    }


def test_description_of_effective_lengths_and_sharp_drops():
    trials = [make_trial([0.1, 1, 0.7, 1], "lstm", "uniform", length) for length in (3, 5)]
    trials += [make_trial([0.1, 1, 1], "rnn", "uniform", length=3)]
    unfinished = make_trial([0.1], "rnn", "uniform", length=5)
    assert sweep_figures.describe_sweep(trials, [*trials, unfinished]) == [
        "LSTM, uniform initialization: effective length 5, sharp drops 2 in 8 epochs",
        "RNN, uniform initialization: effective length unknown, sharp drops 0 in 3 epochs",
    ]
