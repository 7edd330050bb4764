"""analysis/outcomes.py on trials written by hand, and what analysis/horizon.py draws of them."""

import json
from pathlib import Path

import pandas as pd
import pytest
from experiments import write_trial
from PIL import Image

from analysis import horizon, outcomes, sweep
from analysis.results import read_trials
from jobs import grid

BATCH, STEPS = 128, 10  # of an epoch
SAMPLES = BATCH * STEPS * 5 // 4
EPOCHS = 4


def trial(
    place: Path,
    accuracies: list[float],
    cell: str = "lstm",
    start: str = "chrono",
    length: int = 10,
    seed: int = 0,
    variant: str = "plain",
    **more: list,
) -> None:
    """Writes a trial of those accuracies; `more` are further columns, a value for each epoch."""
    config = {"cell": cell, "start": start, "length": length, "seed": seed, "variant": variant}
    name = grid.trial_name(config)
    config |= {"epochs": EPOCHS, "samples": SAMPLES, "batch_size": BATCH, "hold": 2}
    rows = [
        {"epoch": n + 1, "training_iteration": n + 1, "val_accuracy": accuracy}
        | {column: values[n] for column, values in more.items()}
        for n, accuracy in enumerate(accuracies)
    ]
    write_trial(place, name, config, rows)


def described(place: Path) -> pd.DataFrame:
    return outcomes.outcomes_table(read_trials(str(place)))


@pytest.mark.parametrize(
    ("accuracies", "outcome"),
    [
        ([0.1, 0.1, 0.11, 0.09], "plateau"),
        ([0.1, 0.5, 0.6, 0.98], "partly"),
        ([0.1, 0.99, 0.3, 0.4], "fell"),
        ([0.1, 0.99, 0.3, 0.99], "solved"),
    ],
)
def test_a_plateau_is_no_fall(accuracies, outcome):
    assert outcomes.outcome(accuracies) == outcome


def test_falls_are_counted_and_those_after_99_percent_apart(tmp_path):
    trial(tmp_path, [0.5, 0.44, 0.99, 0.93])
    (row,) = described(tmp_path).itertuples()
    assert (row.falls, row.falls_after_99, row.epochs_after_99) == (2, 1, 1)
    assert (row.best, row.val_accuracy, row.epochs) == (0.99, 0.93, 4)
    table = outcomes.falls_table(described(tmp_path))
    assert table["falls_per_100"].tolist() == [50]


def test_sequences_to_99_percent_are_seen_within_an_epoch(tmp_path):
    trial(tmp_path, [0.1, 0.9995, 1, 1], seed=0, checked=[[0.1] * 4, [0.1, 0.98, 0.99, 0.9995]] * 2)
    trial(tmp_path, [0.1, 0.995, 1, 1], seed=1)  # without looks within: at the epoch's end
    trial(tmp_path, [0.1, 0.5, 0.6, 0.7], seed=2)
    found = described(tmp_path).set_index("seed")["to_99"]
    assert found[0] == (STEPS + STEPS * 3 // 4) * BATCH
    assert found[1] == 2 * STEPS * BATCH
    assert pd.isna(found[2])


def test_the_reach_of_a_seed_ends_at_its_first_length_that_is_not_solved(tmp_path):
    for length, least in ((5, 1), (10, 0.99), (20, 0.5), (30, 1)):
        trial(tmp_path, [1, 1, 1, least], length=length, seed=0)
        trial(tmp_path, [1, 1, 1, 1], length=length, seed=1)
    trial(tmp_path, [0.1] * 4, length=5, seed=2)
    reach = outcomes.reach_of_seeds(described(tmp_path), list(read_trials(str(tmp_path))))
    assert reach.set_index("seed")["reach"].to_dict() == {0: 10, 1: 30, 2: 0}


def test_the_reach_of_a_seed_is_not_known_before_its_shorter_lengths_are_done(tmp_path):
    trial(tmp_path, [0.1, 1], length=5)  # under way
    trial(tmp_path, [1, 1, 1, 1], length=10)
    trials = list(read_trials(str(tmp_path)))
    done = [trial for trial in trials if len(trial.rows) == EPOCHS]
    assert outcomes.reach_of_seeds(outcomes.outcomes_table(done), trials).empty
    for findings in (horizon.findings, sweep.findings):
        assert "effective length not known yet" in findings(done, trials)[0]


def test_a_seed_that_ended_early_counts_until_the_last_one_ends(tmp_path):
    trial(tmp_path, [0.5, 1, 1], seed=0)
    trial(tmp_path, [0.1, 0.1, 0.1, 0.2], seed=1)
    for seed in (0, 1):
        trial(tmp_path, [1, 1], length=20, seed=seed)
    sweep.draw_learning(read_trials(str(tmp_path)), tmp_path)
    drawn = pd.read_csv(tmp_path / "learning_lstm_chrono.csv")
    found = {(row.length, row.epoch): row.val_accuracy for row in drawn.itertuples()}
    at_10 = {1: 0.3, 2: 0.55, 3: 0.55, 4: 0.6}
    expected = {(10, epoch): mean for epoch, mean in at_10.items()} | {(20, 1): 1, (20, 2): 1}
    assert found == pytest.approx(expected)


def test_all_is_drawn_with_its_numbers_and_words(called, tmp_path):
    results, out = tmp_path / "horizon", tmp_path / "drawn here"
    norms = {"gradient_h": [[1.0, 0.1, 0.01]] * EPOCHS}
    for seed in (0, 1):
        for length in (10, 100):
            trial(results, [0.1, 0.5, 1, 1], length=length, seed=seed, **norms)
            trial(results, [0.1] * 4, "rnn", "uniform", length, seed, **norms)
    trial(results, [0.1, 0.99, 0.2, 0.2], variant="no-clip")
    trial(results, [0.1, 0.5], length=50)  # under way
    done = called(horizon.main, results, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    *told, left_out = [line for line in done.stdout.splitlines() if ".png" not in line]
    assert left_out == "left out: 1 of 10 trials, which are not finished"
    assert "LSTM, chrono: effective length 100; 4 solved, 0 fell" in told[1]
    assert "LSTM, chrono, no-clip: effective length 0; 0 solved, 1 fell" in told[0]
    assert "RNN, uniform: effective length 0; 0 solved" in told[2]
    pictures = sorted(path.stem for path in out.glob("*.png"))
    assert pictures == [
        "accuracy_lstm", "accuracy_rnn", "effective_length", "falls", "gradients",
        "sequences_to_99",
    ]  # fmt: skip
    for name in pictures:
        with Image.open(out / f"{name}.png") as picture:
            assert len(picture.text["Description"]) > 50
        assert len(pd.read_csv(out / f"{name}.csv")) > 0
    gradients = pd.read_csv(out / "gradients.csv")
    assert set(gradients["length"]) == {100}  # the longest that both kinds have
    assert len(gradients) == 2 * 2 * 2 * 3  # kinds, seeds, epochs, steps back
    trials = pd.read_csv(out / "trials.csv")
    assert len(trials) == 9


def test_runs_of_other_recipes_are_not_mixed_whichever_comes_first(called, tmp_path):
    """Also where the one was made before there was a setting, which it then had as by default."""
    for name, more in {
        "old": {},
        "new": {"inputs": "standard"},
        "same": {"inputs": "digit"},
    }.items():
        trial(tmp_path / name, [0.1] * 4)
        (params,) = (tmp_path / name).glob("*/params.json")
        config = json.loads(params.read_text()) | more
        if name == "old":
            del config["variant"]
        params.write_text(json.dumps(config))
    for order in (("old", "new"), ("new", "old")):
        done = called(horizon.main, *(tmp_path / name for name in order), "--out", tmp_path / "out")
        assert (done.returncode, done.stdout) == (2, "")
        assert "differ in inputs: draw them apart" in done.stderr
    done = called(
        horizon.main, tmp_path / "old", tmp_path / "same", "--out", tmp_path / "new folders" / "out"
    )
    assert "0 solved, 0 fell, 0 partly, 1 at chance; 0 falls in 4 epochs" in done.stdout


def test_what_cannot_be_drawn_is_told_in_one_line(called, tmp_path):
    trial(tmp_path / "begun", [0.1])
    done = called(horizon.main, tmp_path / "begun", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no trial is finished yet" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = called(horizon.main, tmp_path / "nothing", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
