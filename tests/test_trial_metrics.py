import math

import pandas as pd
import pytest
from fake_trials import BATCH_SIZE, STEPS, make_trial

from analysis import trial_metrics


@pytest.mark.parametrize(
    ("accuracies", "outcome"),
    [
        ([0.1, 0.1, 0.11, 0.09], "at_chance"),
        ([0.1, 0.5, 0.6, 0.98], "partial"),
        ([0.1, 0.99, 0.3, 0.4], "collapsed"),
        ([0.1, 0.99, 0.3, 0.99], "solved"),
    ],
)
def test_outcome(accuracies, outcome):
    assert trial_metrics.outcome(accuracies) == outcome


def test_accuracy_drop_is_larger_than_its_threshold():
    accuracies = [0.1, 0.99, 0.7, 1.0, 0.8]
    assert trial_metrics.accuracy_drops(accuracies, 0.2) == [2]
    assert trial_metrics.accuracy_drops(accuracies, 0.05) == [2, 4]
    assert trial_metrics.accuracy_drops([0.5, 0.25], 0.25) == []


def test_sharp_drops_are_within_a_trial():
    trials = [
        make_trial([1, 0], cell="rnn"),
        make_trial([0.1, 0.99, 0.7, 1.0, 0.8]),
        make_trial([0.3, 0.2], seed=1),
    ]
    table = trial_metrics.sharp_drops_table(trials)
    columns = ["cell", "seed", "epoch", "previous_val_accuracy", "val_accuracy"]
    assert table[columns].to_numpy().tolist() == [
        ["lstm", 0, 3, 0.99, 0.7],
        ["rnn", 0, 2, 1.0, 0.0],
    ]


def test_outcomes_table_counts_drops_and_those_after_99_percent():
    table = trial_metrics.outcomes_table([make_trial([0.5, 0.44, 0.99, 0.93])])
    (row,) = table.itertuples()
    assert (row.outcome, row.epochs, row.sequences_seen) == ("collapsed", 4, 4 * STEPS * BATCH_SIZE)
    assert (row.best_val_accuracy, row.val_accuracy) == (0.99, 0.93)
    assert (row.accuracy_drops, row.accuracy_drops_after_99, row.epochs_after_99) == (2, 1, 1)


def test_drops_table_sums_each_group():
    trials = [
        make_trial([0.1, 0.99, 0.3, 0.99], seed=0),
        make_trial([0.1, 0.2, 0.1, 0.3], seed=1),
        make_trial([0.1, 0.1], cell="rnn", init="uniform"),
    ]
    lstm, rnn = trial_metrics.drops_table(trial_metrics.outcomes_table(trials)).itertuples()
    assert (lstm.solved, lstm.collapsed, lstm.partial, lstm.at_chance) == (1, 0, 1, 0)
    assert (lstm.epochs, lstm.accuracy_drops, lstm.accuracy_drops_per_100) == (8, 2, 25)
    assert (lstm.epochs_after_99, lstm.accuracy_drops_after_99) == (2, 1)
    assert (rnn.at_chance, rnn.epochs, rnn.accuracy_drops_per_100) == (1, 2, 0)


def test_sequences_to_99_percent_are_counted_within_an_epoch():
    within = [[0.1] * 4, [0.1, 0.98, 0.99, 0.9995]] * 2
    trials = [
        make_trial([0.1, 0.9995, 1, 1], seed=0, val_accuracy_within_epoch=within),
        make_trial([0.1, 0.995, 1, 1], seed=1),  # evaluated at the end of each epoch only
        make_trial([0.1, 0.5, 0.6, 0.7], seed=2),
    ]
    found = trial_metrics.outcomes_table(trials).set_index("seed")["sequences_to_99"]
    assert found[0] == (STEPS + STEPS * 3 // 4) * BATCH_SIZE
    assert found[1] == 2 * STEPS * BATCH_SIZE
    assert pd.isna(found[2])


def test_summary_of_seeds_by_cell_init_and_length():
    table = pd.DataFrame(
        [
            ("lstm", "uniform", 3, 0, 1.0),
            ("lstm", "chrono", 3, 0, 0.5),
            ("rnn", "uniform", 3, 0, 0.25),
            ("rnn", "uniform", 3, 1, 0.75),
        ],
        columns=["cell", "init", "length", "seed", "val_accuracy"],
    )
    summary = trial_metrics.summarize_seeds(table)
    assert [*summary] == ["cell", "init", "length", "mean", "min", "max", "seeds"]
    assert summary.to_numpy().tolist() == [
        ["lstm", "chrono", 3, 0.5, 0.5, 0.5, 1],
        ["lstm", "uniform", 3, 1.0, 1.0, 1.0, 1],
        ["rnn", "uniform", 3, 0.5, 0.25, 0.75, 2],
    ]


@pytest.mark.parametrize(
    ("accuracies", "unfinished", "expected"),
    [
        ({3: 1.0, 5: 0.99, 8: 0.5}, [], 5),
        ({3: 1.0, 5: 0.9899, 8: 0.99}, [], 3),  # lengths beyond a failed one do not count
        ({3: 0.2, 5: 1.0}, [], 0),
        ({12: 0.99}, [], 12),
        ({3: 1.0, 5: 1.0, 8: 0.5}, [8, 12], 5),  # length 8 has failed already
        ({3: 1.0, 5: 1.0, 8: 0.5}, [4], None),
        ({3: 1.0, 5: 1.0, 8: 0.5}, [6, 12], None),
        ({3: 1.0, 5: 1.0}, [8], None),
    ],
)
def test_effective_length(accuracies, unfinished, expected):
    assert trial_metrics.effective_length(pd.Series(accuracies), unfinished) == expected


def test_effective_length_of_a_group_is_that_of_its_worst_seed():
    finished = [
        make_trial([0.1, *([accuracy] * 3)], length=length, seed=seed)
        for length, accuracies in {3: (1.0, 1.0), 5: (0.98, 1.0), 8: (1.0, 0.98)}.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    finished.append(make_trial([1.0, 1.0], init="uniform", length=3))
    assert trial_metrics.effective_lengths(finished, finished) == {
        ("lstm", "chrono"): 3,
        ("lstm", "uniform"): 3,
    }
    unfinished = make_trial([0.1, 1.0], init="uniform", length=5)
    assert trial_metrics.effective_lengths(finished, [*finished, unfinished]) == {
        ("lstm", "chrono"): 3,
        ("lstm", "uniform"): None,
    }


def test_effective_length_of_each_seed_leaves_out_unknown_ones():
    last = {0: {5: 1, 10: 0.99, 20: 0.5, 30: 1}, 1: {5: 1, 10: 1}, 2: {5: 0.1}, 3: {10: 1}}
    finished = [
        make_trial([0.1, 1, 1, accuracy], length=length, seed=seed)
        for seed, accuracies in last.items()
        for length, accuracy in accuracies.items()
    ]
    trials = [*finished, make_trial([0.1, 1], length=5, seed=3)]  # unfinished
    table = trial_metrics.outcomes_table(finished)
    lengths = trial_metrics.effective_length_per_seed(table, trials)
    assert lengths.set_index("seed")["effective_length"].to_dict() == {0: 10, 1: 10, 2: 0}


def test_gradients_are_taken_at_the_longest_length_of_all_groups():
    h, c = [[1.0, 0.1], [2.0, 0.2], [3.0, 0.3]], [[4.0, 0.4], [5.0, 0.5], [6.0, 0.6]]
    trials = [
        make_trial([0.1] * 3, length=length, grad_norm_h=h, grad_norm_c=c) for length in (10, 100)
    ]
    trials += [
        make_trial([0.1] * 3, cell="rnn", init="uniform", length=length, grad_norm_h=h)
        for length in (10, 100, 200)
    ]
    trials.append(make_trial([0.1] * 3, init="uniform", length=10))  # without probe
    table = trial_metrics.gradients_table(trials)
    assert set(table["length"]) == {100}
    columns = ["cell", "epoch_label", "steps_back", "grad_norm_h", "grad_norm_c"]
    rows = table[columns].astype(object).where(table[columns].notna(), None)
    assert rows.to_numpy().tolist() == [
        ["lstm", "first epoch", 0, 1.0, 4.0],
        ["lstm", "first epoch", 1, 0.1, 0.4],
        ["lstm", "last epoch", 0, 3.0, 6.0],
        ["lstm", "last epoch", 1, 0.3, 0.6],
        ["rnn", "first epoch", 0, 1.0, None],
        ["rnn", "first epoch", 1, 0.1, None],
        ["rnn", "last epoch", 0, 3.0, None],
        ["rnn", "last epoch", 1, 0.3, None],
    ]
    assert trial_metrics.gradients_table(trials[-1:]).empty


def test_diverged_trials_are_an_outcome():
    trials = [make_trial([0.1], train_loss=[math.nan]), make_trial([0.1] * 4, seed=1)]
    assert trials[0].is_finished()
    table = trial_metrics.outcomes_table(trials)
    assert list(table["outcome"]) == ["diverged", "at_chance"]
    assert list(trial_metrics.drops_table(table)["diverged"]) == [1]
    assert "diverged" not in trial_metrics.drops_table(table[1:])


@pytest.mark.parametrize("count", [7, 9, 15])
def test_median_interval_is_that_of_all_resamples(count):
    """Of an odd number of values, a resample's median has a known distribution.

    It is at most the k-th value if more than half of the resample is among the k smallest.
    """

    def at_most(k):
        p, half = k / count, count // 2
        terms = range(half + 1, count + 1)
        return sum(math.comb(count, n) * p**n * (1 - p) ** (count - n) for n in terms)

    values = [10.0 * k for k in range(1, count + 1)]
    expected = [
        values[next(k for k in range(1, count + 1) if at_most(k) >= q) - 1] for q in (0.025, 0.975)
    ]
    assert trial_metrics.median_interval(values[::-1]) == tuple(expected)


def test_trials_that_never_reach_99_percent_count_as_infinitely_slow():
    trials = [make_trial([0.1, 1, 1], seed=seed) for seed in range(5)]
    trials += [make_trial([0.1, 0.2, 0.3], seed=seed) for seed in (5, 6, 7)]
    trials += [make_trial([0.1, 0.2], length=35, seed=seed) for seed in range(6)]
    table = trial_metrics.by_length_table(trial_metrics.outcomes_table(trials))
    reached = 2 * STEPS * BATCH_SIZE
    median = [name for name in table if name.startswith("median")]
    assert table[["trials", "solved"]].to_numpy().tolist() == [[8, 5], [6, 0]]
    assert table[median].to_numpy().tolist() == [[reached, reached, math.inf], [math.inf] * 3]
    # 5 of 8 and 0 of 6, as tables of Wilson's interval have it.
    assert table["solved_low"].tolist() == pytest.approx([0.3057, 0], abs=1e-4)
    assert table["solved_high"].tolist() == pytest.approx([0.8632, 0.3903], abs=1e-4)


def test_median_of_few_trials_has_no_interval():
    assert all(map(math.isnan, trial_metrics.median_interval([1.0] * 5)))
    assert trial_metrics.median_interval([1.0] * 6) == (1.0, 1.0)
