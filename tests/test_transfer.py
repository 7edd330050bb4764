from dataclasses import replace

import pandas as pd
import pytest
import torch
from fake_trials import make_trial, write_trials

from analysis.cli import ArgumentParser
from analysis.results import Trial, read_trials
from analysis.transfer import add_num_test_samples, evaluate_transfer
from models import checkpoint
from models.palindromes import palindromes
from models.recurrent import CELLS, RecurrentNetwork, build
from models.recurrent_training import evaluate
from models.sequences import Sequences
from models.tasks import TASKS

TASK = TASKS["palindrome"]
LENGTHS, SEEDS = (3, 5), (0, 1)
ENCODING = "one-hot"
COUNT = 203  # not a multiple of ten: digits are tested unequally often


def network_of(trial: Trial) -> RecurrentNetwork:
    """Returns the network in the latest checkpoint of a trial.

    Its parameters are large, so that its predictions depend on the input without training.
    """
    config = trial.config
    network = build(config["cell"], 128, "uniform", config["seed"], config["length"], ENCODING)
    for parameter in network.parameters():
        parameter.data *= 10
    return network


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> list[Trial]:
    """Trials with a checkpoint of each of two epochs."""
    fakes = [
        make_trial([0.1, 0.1], cell, "uniform", length, seed)
        for cell in sorted(CELLS)
        for length in LENGTHS
        for seed in SEEDS
    ]
    for fake in fakes:
        fake.config["input_encoding"] = ENCODING
    folder = write_trials(tmp_path_factory.mktemp("transfer"), *fakes)
    for fake in fakes:
        initial = build(fake.config["cell"], 128, "uniform", 99, 3, ENCODING)
        for number, network in enumerate((initial, network_of(fake))):
            path = folder / fake.name / f"checkpoint_{number:06}"
            path.mkdir()
            checkpoint.save(path, {"network": network.state_dict()}, fake.rows[: number + 1])
    return read_trials(str(folder))


@pytest.fixture(scope="module")
def tables(trials) -> tuple[pd.DataFrame, pd.DataFrame]:
    return evaluate_transfer(trials, COUNT)


def test_each_network_is_tested_at_all_lengths_of_its_cell_and_by_digit(tables):
    by_length, by_digit = tables
    keys = [(c, n, s) for c in sorted(CELLS) for n in LENGTHS for s in SEEDS]
    columns = ["cell", "length", "seed", "tested"]
    assert [*by_length[columns].itertuples(index=False, name=None)] == [
        (*key, tested) for key in keys for tested in LENGTHS
    ]
    columns = ["cell", "length", "seed", "digit"]
    assert [*by_digit[columns].itertuples(index=False, name=None)] == [
        (*key, digit) for key in keys for digit in range(10)
    ]


def test_accuracies_are_those_of_the_latest_checkpoint(tables, trials):
    by_length, _ = tables
    expected = [
        evaluate(network_of(trial), TASK, TASK.sample_unseen(trial.config["seed"], tested, COUNT))[
            "accuracy"
        ]
        for trial in trials
        for tested in LENGTHS
    ]
    assert by_length["accuracy"].tolist() == expected
    assert len(set(expected)) > 8  # so that a swapped network shows


def test_accuracies_by_digit_average_to_the_accuracy_of_all(tables):
    by_length, by_digit = tables
    keys = ["cell", "length", "seed"]
    overall = by_length[by_length["length"] == by_length["tested"]].set_index(keys)["accuracy"]
    for (cell, length, seed), part in by_digit.groupby(keys):
        counts = TASK.sample_unseen(seed, length, COUNT).targets.bincount(minlength=10)
        assert set(counts.tolist()) == {20, 21}
        correct = (part["accuracy"].to_numpy() * counts.numpy()).sum()
        assert correct / COUNT == pytest.approx(overall[cell, length, seed], abs=1e-9)


def test_trials_without_a_valid_checkpoint_are_skipped(trials):
    first, second = trials[:2]
    gone = replace(first, folder=first.folder.subdir("no such folder"))
    by_length, by_digit = evaluate_transfer([gone, second], COUNT)
    assert set(by_length["seed"]) == set(by_digit["seed"]) == {second.config["seed"]}
    assert all(table.empty for table in evaluate_transfer([gone], COUNT))


def distinct(data: Sequences) -> set[tuple[int, ...]]:
    """Returns the palindromes of a split, with their last digit."""
    return set(map(tuple, torch.cat([data.inputs, data.targets[:, None]], 1).tolist()))


@pytest.mark.parametrize("length", [2, 3, 12, 35])
@pytest.mark.parametrize("seed", range(2))
def test_tested_palindromes_were_not_trained_on(seed, length):
    tested = distinct(TASK.sample_unseen(seed, length, 1000))
    assert len(tested) == 20 if length <= 3 else len(tested) > 150
    for num_sequences in (2_000, 100_000):
        trained = distinct(palindromes(seed, length, num_sequences).train)
        assert len(trained) >= 80
        assert not tested & trained


@pytest.mark.parametrize("count", [10, 203, 1000])
def test_unseen_sequences_are_as_many_as_requested(count):
    data = TASK.sample_unseen(0, 7, count)
    assert data.inputs.shape == (count, 7)
    assert data.targets.bincount(minlength=10).min() >= count // 10


def test_num_test_samples_allows_one_palindrome_of_each_digit(capsys):
    parser = ArgumentParser(None)
    add_num_test_samples(parser)
    assert parser.parse_args(["--num-test-samples", "10"]).num_test_samples == 10
    for text in ("9", "0", "-5", "ten"):
        with pytest.raises(SystemExit):
            parser.parse_args([f"--num-test-samples={text}"])
        assert f"{text}: must be an integer from 10 on" in capsys.readouterr().err
