import math
from collections.abc import Iterator

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from fake_trials import make_trial, write_trials
from matplotlib.figure import Figure
from PIL import Image

from analysis import horizon, horizon_figures
from analysis.horizon_figures import describe_horizon, plot_horizon
from analysis.trial_metrics import outcomes_table

NORMS = {"grad_norm_h": [[1.0, 0.1, 0.01]] * 4}
FINISHED = [
    make_trial(accuracies, cell, init, length, seed, **NORMS)
    for cell, init, accuracies in (
        ("lstm", "chrono", [0.1, 0.5, 1, 1]),
        ("rnn", "uniform", [0.1] * 4),
    )
    for length in (10, 100)
    for seed in (0, 1)
]
FINISHED.append(make_trial([0.1, 0.99, 0.2, 0.2], variant="no-clip"))


def test_script_plots_finished_trials_with_data_and_alt_text(call_main, tmp_path):
    unfinished = make_trial([0.1, 0.5], length=200)
    results = write_trials(tmp_path / "results", *FINISHED, unfinished)
    out = tmp_path / "new folder" / "figures"
    done = call_main(horizon.main, results, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    names = [
        "accuracy_lstm", "accuracy_rnn", "effective_length", "sequences_to_99",
        "accuracy_drops", "gradients",
    ]  # fmt: skip
    assert done.stdout.splitlines() == [
        "LSTM, chrono: effective length 100 (unknown for 1 of 2 seeds); "
        "4 solved, 0 collapsed, 0 partial, 0 at chance; "
        "accuracy drops: 0 in 16 epochs",
        "LSTM, chrono, no-clip: effective length 0; 0 solved, 1 collapsed, 0 partial, "
        "0 at chance; accuracy drops: 1 in 4 epochs",
        "RNN, uniform: effective length 0; 0 solved, 0 collapsed, 0 partial, 4 at chance; "
        "accuracy drops: 0 in 16 epochs",
        "left out: 1 of 10 trials, which are not finished",
        *(str(out / f"{name}.png") for name in names),
    ]
    for name in names:
        with Image.open(out / f"{name}.png") as image:
            assert len(image.text["Description"]) > 50
        assert len(pd.read_csv(out / f"{name}.csv")) > 0
    trials = pd.read_csv(out / "trials.csv")
    assert trials.groupby("variant").size().to_dict() == {"full": 8, "no-clip": 1}
    accuracy = pd.read_csv(out / "accuracy_lstm.csv")
    assert accuracy.values.tolist() == [
        ["chrono", "full", 10, 1], ["chrono", "full", 100, 1], ["chrono", "no-clip", 10, 0.2],
    ]  # fmt: skip
    by_length = pd.read_csv(out / "by_length.csv")
    assert by_length["trials"].sum() == len(FINISHED)
    assert by_length["solved"].tolist() == [2, 2, 0, 0, 0]


def test_median_counts_a_trial_that_never_gets_there_as_slower_than_any_other(tmp_path):
    """As in by_length.csv: with two of three seeds at chance there is no median to plot."""
    trials = [make_trial([0.1, 1], length=10, seed=seed) for seed in range(3)]
    trials += [make_trial([0.1, seed // 2], length=20, seed=seed) for seed in range(3)]
    plot_horizon(trials, trials, tmp_path)
    with Image.open(tmp_path / "sequences_to_99.png") as image:
        description = image.text["Description"]
    at_10, at_20 = pd.read_csv(tmp_path / "by_length.csv")["median_sequences_to_99"]
    assert f"{at_10:,.0f} at 10" in description
    assert at_20 == float("inf")
    assert "at 20" not in description
    assert "2 of 6 trials never" in description


@pytest.fixture
def figures(monkeypatch) -> Iterator[dict[str, Figure]]:
    """The figures that are saved, by name."""
    found: dict[str, Figure] = {}
    monkeypatch.setattr(
        horizon_figures, "save", lambda figure, data, out, name, alt: found.update({name: figure})
    )
    yield found
    for figure in found.values():
        plt.close(figure)


def test_median_of_a_single_length_is_visible(figures, tmp_path):
    table = outcomes_table([make_trial([0.1, 1], length=10, seed=seed) for seed in range(3)])
    horizon_figures.plot_sequences(table, tmp_path)
    (axes,) = figures["sequences_to_99"].axes
    (median,) = [line for line in axes.lines if line.get_label() == "chrono"]
    assert len(median.get_xdata()) == 1
    assert median.get_marker() != "None"


@pytest.mark.parametrize(("groups", "shape"), [(1, (1, 1)), (4, (1, 4)), (5, (2, 3)), (9, (3, 3))])
def test_panels_of_gradients_fill_their_rows(figures, tmp_path, groups, shape):
    rows = [
        {"cell": "gru", "init": f"init {n}", "variant": "full", "length": 3, "seed": 0,
         "epoch_label": epoch, "steps_back": back, "grad_norm_h": 1.0}
        for n in range(groups) for epoch in ("first epoch", "last epoch") for back in range(4)
    ]  # fmt: skip
    horizon_figures.plot_gradients(pd.DataFrame(rows), tmp_path)
    axes = figures["gradients"].axes
    grid = axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == shape
    assert sum(panel.get_visible() for panel in axes) == groups


def test_plots_trials_of_which_none_gets_there(tmp_path):
    trials = [make_trial([0.1, 0.1], seed=seed) for seed in (0, 1)]
    plot_horizon(trials, trials, tmp_path)
    with Image.open(tmp_path / "sequences_to_99.png") as image:
        assert "2 of 2 trials never" in image.text["Description"]


def test_gradients_are_not_plotted_without_probe(tmp_path):
    trials = [make_trial([0.1, 1, 1])]
    assert "gradients" not in [path.stem for path in plot_horizon(trials, trials, tmp_path)]
    assert not (tmp_path / "gradients.csv").exists()


def test_gradient_that_is_zero_in_float32_counts_as_its_smallest_number(tmp_path):
    trials = [make_trial([0.1, 0.1], "rnn", grad_norm_h=[[1.0, 0.0]] * 2)]
    plot_horizon(trials, trials, tmp_path)
    with Image.open(tmp_path / "gradients.png") as image:
        assert "1.0e+00 at the end, 1.4e-45 at the beginning" in image.text["Description"]


def test_description_gives_the_range_of_effective_lengths_where_known():
    trials = [make_trial([0.1, 1, 1], length=10, seed=seed) for seed in (0, 1)]
    trials.append(make_trial([0.1] * 4, length=20, seed=0))
    trials.append(make_trial([1, 1], length=20, seed=1))
    (line,) = describe_horizon(trials, trials)
    assert line.startswith("LSTM, chrono: effective length 10 to 20; 3 solved, ")
    unfinished = [make_trial([0.1, 1], length=5, seed=seed) for seed in (0, 1)]
    (line,) = describe_horizon(trials, [*trials, *unfinished])
    assert line.startswith("LSTM, chrono: effective length unknown; ")


def test_description_counts_diverged_trials_and_seeds_without_a_finished_trial():
    trials = [make_trial([0.1, 1, 1], seed=0), make_trial([0.1], seed=1, val_loss=[math.nan])]
    unfinished = [make_trial([0.1], seed=seed) for seed in (2, 3)]
    (line,) = describe_horizon(trials, [*trials, *unfinished])
    assert line == (
        "LSTM, chrono: effective length 0 to 10 (unknown for 2 of 4 seeds); 1 solved, 0 collapsed, "
        "0 partial, 0 at chance, 1 diverged; accuracy drops: 0 in 4 epochs"
    )
