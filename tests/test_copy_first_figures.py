"""Figures and tables of a copy-first sweep, of networks that are trained here for an epoch."""

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from fake_trials import make_trial, write_trials
from PIL import Image

from analysis import compare, copy_first_figures, horizon, report, sweep, trials
from analysis.horizon_figures import FLOAT32_MIN
from analysis.results import read_trials
from analysis.tables import default_columns, fit_to_width, trials_table
from jobs import machine
from jobs.grid import GridConfig, trial_configs, trial_name
from jobs.learner import Learner, run_epoch
from models import checkpoint
from models.gradient_flow import gradient_norms
from models.recurrent_training import evaluate
from models.tasks import TASKS

TASK, SAMPLES = TASKS["copy-first"], 200


@pytest.fixture(autouse=True)
def short_lengths(monkeypatch):
    monkeypatch.setattr(copy_first_figures, "PAPER_LENGTHS", (3, 20))  # not 600: it takes seconds


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two cells, two initializations, lengths 3 and 9, seeds 0 and 1; the network by trial name."""
    grid = GridConfig(
        task="copy-first", cells=("lstm", "gru"), lengths=(3, 9), seeds=(0, 1), epochs=2,
        inits=("keras", "chrono"), num_sequences=500, batch_size=50, hidden_size=8, num_layers=2,
        evals_per_epoch=2, probe=True,
    )  # fmt: skip
    folder, networks, fakes = tmp_path_factory.mktemp("copy first") / "run", {}, []
    hardware = machine.hardware_info(torch.device("cpu"))
    for config in trial_configs(grid):
        data = TASK.sample(config["seed"], config["length"], config["num_sequences"])
        learner = Learner(config, 9, torch.device("cpu"))
        rows = [
            run_epoch(learner, epoch, data.train, data.validation) | hardware for epoch in (1, 2)
        ]
        networks[trial_name(config)] = learner.network
        fake = make_trial([], config["cell"], config["init"], config["length"], config["seed"])
        fake.config, fake.rows = config, rows
        fakes.append(fake)
    write_trials(folder, *fakes)
    for fake in fakes:
        path = folder / fake.name / "checkpoint_000000"
        path.mkdir()
        checkpoint.save(path, {"network": networks[fake.name].state_dict()}, fake.rows)
    return folder, networks


def test_script_plots_the_error_of_each_network_on_unseen_sequences(run, call_main, tmp_path):
    folder, networks = run
    done = call_main(sweep.main, folder, "--out", tmp_path, "--num-test-samples", SAMPLES)
    assert (done.returncode, done.stderr) == (0, "")
    names = ["test_mse", "learning", "first_gradient", "untrained_gradient", "gradients"]
    assert done.stdout.splitlines()[-5:] == [str(tmp_path / f"{name}.png") for name in names]
    assert done.stdout.startswith("GRU, chrono initialization, length 3: 0 of 2 solved; test MSE ")
    for name in names:
        with Image.open(tmp_path / f"{name}.png") as image:
            assert len(image.text["Description"]) > 50
    table = pd.read_csv(tmp_path / "test_mse.csv")
    assert len(table) == len(networks) == 16
    for row in table.to_dict("records"):
        network = networks[trial_name({**row, "variant": "full"})]
        data = TASK.sample_unseen(row["seed"], row["length"], SAMPLES)
        expected = evaluate(network, TASK, data)["loss"]
        assert row["test_mse"] == pytest.approx(expected, rel=1e-5)
    learning = pd.read_csv(tmp_path / "learning.csv")
    assert sorted(learning["step"].unique()) == [9, 18]
    gradients = pd.read_csv(tmp_path / "gradients.csv").query("epoch_label == 'last epoch'")
    first_input = gradients[gradients["steps_back"] == gradients["length"] - 1]
    keys = ["cell", "init", "length", "seed"]
    over_steps = pd.read_csv(tmp_path / "first_gradient.csv").query("step == 18")
    merged = first_input.merge(over_steps, on=keys, validate="1:1")
    assert len(merged) == 8
    assert (merged["grad_norm_first_input"] == merged["grad_norm_h"]).all()


def test_the_gradient_before_training_is_that_of_the_networks_that_are_trained(run):
    folder, _ = run
    found = read_trials(str(folder))
    table = copy_first_figures.untrained_gradients_table(found)
    assert len(table) == 2 * 2 * 2 * 2  # cells, initializations, lengths, seeds
    for row in table.to_dict("records"):
        labels = {name: row[name] for name in ("cell", "init", "seed", "length")}
        learner = Learner({**found[0].config, **labels}, 9, torch.device("cpu"))
        data = TASK.sample_unseen(row["seed"], row["length"], 20)
        expected = gradient_norms(learner.network, TASK, data)["h"][-2].item()
        assert row["grad_norm_first_input"] == pytest.approx(expected, rel=1e-4)


def test_tables_and_page_show_the_error_instead_of_an_accuracy(run, call_main, tmp_path):
    folder, _ = run
    shown = call_main(trials.main, folder)
    columns = shown.stdout.splitlines()[0].split()
    assert "val_loss" in columns
    assert not {"val_accuracy", "val_loss_within_epoch"} & {*columns}
    table = trials_table(read_trials(str(folder)))
    assert "val_loss" in fit_to_width(table[default_columns(table)], width=60)
    assert shown.stdout.splitlines()[-1] == "16 of 16 trials"
    page = tmp_path / "new" / "report.html"
    done = call_main(report.main, folder, "--out", page, "--num-test-samples", SAMPLES)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Test mean squared error." in page.read_text()
    assert "val_accuracy" not in page.read_text().partition("<script")[0]


def test_diverged_trials_and_those_without_checkpoints_are_plotted(run, call_main, tmp_path):
    folder, _ = run
    trial = read_trials(str(folder))[0]
    trial.rows[-1] |= {"train_loss": math.nan, "val_loss": math.nan}
    alone = write_trials(tmp_path / "alone", trial)
    done = call_main(sweep.main, alone, "--out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(tmp_path / "learning.png") as image:
        assert "seed 0: nan after 18 steps." in image.text["Description"]
    for row in trial.rows:
        row["grad_norm_h"] = [math.nan] * len(row["grad_norm_h"])
    gone = write_trials(tmp_path / "gone", trial)
    done = call_main(sweep.main, gone, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "out" / "first_gradient.png").exists()


def test_network_that_has_diverged_is_worse_than_any_other_in_the_median():
    seeds = {"cell": "lstm", "init": "keras", "length": 5, "test_mse": [0.001, math.nan, math.nan]}
    _, (axes,) = copy_first_figures._plot_over_length(pd.DataFrame(seeds), "test_mse", "")
    plt.close()
    assert axes.lines[1].get_ydata().tolist() == [math.inf]


def test_line_of_two_seeds_goes_through_one_of_them():
    seeds = {"cell": "lstm", "init": "keras", "length": 5, "test_mse": [0.001, 1.0]}
    _, (axes,) = copy_first_figures._plot_over_length(pd.DataFrame(seeds), "test_mse", "")
    plt.close()
    assert axes.lines[1].get_ydata().tolist() == [1.0]


@pytest.mark.parametrize(("norm", "labels"), [(1e-60, 1), (1e-40, 0)])
def test_gradients_that_are_zero_in_float32_are_below_a_line(norm, labels, tmp_path, monkeypatch):
    seeds = {"cell": "gru", "init": "keras", "length": 5, "seed": 0, "grad_norm_first_input": norm}
    figures = []
    monkeypatch.setattr(copy_first_figures, "save", lambda figure, *_: figures.append(figure))
    copy_first_figures.plot_untrained_gradient(pd.DataFrame([seeds]), tmp_path)
    (axes,) = figures[0].axes
    plt.close()
    assert len(axes.texts) == labels
    assert axes.get_ylim()[0] < norm


@pytest.mark.parametrize(("norm", "labels"), [(0.0, ["0 in\nfloat32"]), (1e-30, [])])
def test_gradient_that_is_zero_in_float32_is_on_a_line(norm, labels, tmp_path, monkeypatch):
    trial = {"cell": "lstm", "init": "keras", "length": 300, "seed": 0, "val_mse": 1.0}
    table = pd.DataFrame([trial | {"step": n, "grad_norm_first_input": norm} for n in (9, 18)])
    close = plt.close
    monkeypatch.setattr(plt, "close", lambda figure: figures.append(figure))
    figures: list = []
    copy_first_figures.plot_first_gradient(table, tmp_path)
    (axes,) = figures[0].axes
    close()
    curve, *lines = axes.lines
    assert curve.get_ydata().tolist() == [max(norm, FLOAT32_MIN)] * 2
    assert [line.get_ydata() for line in lines] == [[FLOAT32_MIN] * 2] * len(labels)
    assert [text.get_text() for text in axes.texts] == labels
    written = pd.read_csv(tmp_path / "first_gradient.csv")["grad_norm_first_input"]
    assert written.tolist() == [norm] * 2


@pytest.mark.parametrize("num_seeds", [1, 2, 9])
def test_curves_over_steps_have_the_color_of_their_initialization_and_the_style_of_their_seed(
    num_seeds,
):
    rows = [
        {"cell": "gru", "init": init, "length": length, "seed": seed, "step": step, "val_mse": 1.0}
        for init in ("chrono", "keras")
        for length in (5, 50)
        for seed in range(num_seeds)
        for step in (450, 900)
    ]
    figure, panels = copy_first_figures._plot_over_steps(pd.DataFrame(rows), "val_mse", "")
    for axes in panels:
        copy_first_figures._plot_thresholds(axes, {"chance": 1.0})
    plt.close(figure)
    colors = copy_first_figures.INIT_COLORS
    for axes in panels:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        *curves, _ = axes.lines
        assert [c.get_color() for c in curves] == [
            colors[init] for init in ("chrono", "keras") for _ in range(num_seeds)
        ]
        styles = [c.get_linestyle() for c in curves]
        assert styles[:num_seeds] == styles[num_seeds:]
        assert len({*styles}) == (2 if num_seeds == 2 else 1)  # nine are more than there are styles
    assert [len(axes.texts) for axes in panels] == [0, 1]  # at the right
    titles = [legend.get_title().get_text() for legend in figure.legends]
    assert titles == ["initialization", "seed"][: 2 if num_seeds == 2 else 1]


def test_runs_of_other_numbers_of_layers_are_not_pooled(run, call_main, tmp_path):
    folder, _ = run
    trial = read_trials(str(folder))[0]
    trial.config["seed"], trial.name = 7, trial.name.replace("seed0", "seed7")
    del trial.config["num_layers"]  # a trial of an older version has one
    older = write_trials(tmp_path / "older", trial)
    done = call_main(sweep.main, folder, older, "--out", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "differ in num_layers: plot them separately" in done.stderr


def test_scripts_that_need_accuracies_refuse_it_in_one_line(run, call_main, tmp_path):
    folder, _ = run
    other = write_trials(tmp_path / "palindromes", make_trial([0.1, 1, 1, 1]))
    for script, arguments, message in (
        (horizon, [folder], "of task copy-first: use analysis/sweep.py"),
        (compare, [folder, other], "of task copy-first: use analysis/sweep.py"),
        (sweep, [folder, other], "tasks copy-first and palindrome: plot them separately"),
    ):
        done = call_main(script.main, *arguments, "--out", tmp_path / "none")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert message in done.stderr
