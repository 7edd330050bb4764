"""models/tasks.py: what the tasks of a sweep have in common, and copy-first."""

import pytest
import torch

from models.copy_first import copy_first
from models.recurrent import CELLS, build
from models.recurrent_training import evaluate, should_stop, train_epoch
from models.rng import make_rng
from models.tasks import TASKS, task_of

TASK = TASKS["copy-first"]


@pytest.mark.parametrize("name", TASKS)
def test_splits_have_the_stated_sizes_and_predictions_a_loss(name):
    task = TASKS[name]
    data = task.sample(seed=0, length=5, num_sequences=700)
    assert len(data.train) == task.num_train(700)
    assert len(data.train) + len(data.validation) == 700
    assert len(task.sample_unseen(0, 5, 130)) == 130
    network = build("gru", 16, "uniform", 0, 5, num_outputs=task.num_outputs)
    metrics = evaluate(network, task, data.validation)
    assert task.metric.removeprefix("val_") in metrics
    outputs = network(data.validation.inputs)
    by_sequence = task.loss(outputs, data.validation.targets, reduction="none")
    assert by_sequence.shape == data.validation.targets.shape
    assert metrics["loss"] == pytest.approx(by_sequence.mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_chance_is_the_metric_of_a_constant_prediction(name):
    task = TASKS[name]
    targets = task.sample(0, 4, 100_000).train.targets
    metrics = task.metrics(torch.zeros(len(targets), task.num_outputs), targets)
    assert metrics[task.metric.removeprefix("val_")] == pytest.approx(task.chance, rel=0.02)


def test_trial_of_an_older_version_learns_palindromes():
    assert task_of({"cell": "lstm"}) is TASKS["palindrome"]
    assert task_of({"task": "copy-first"}) is TASK


def test_copy_first_has_independent_normal_numbers_and_the_first_as_target():
    data = copy_first(seed=1, length=7, num_sequences=50_000)
    for split, size in ((data.train, 45_000), (data.validation, 5_000)):
        assert split.inputs.shape == (size, 7)
        assert torch.equal(split.targets, split.inputs[:, 0])
    correlation = data.train.inputs.T.cov()  # the identity; a standard error is about 0.005
    torch.testing.assert_close(correlation, torch.eye(7), rtol=0, atol=0.03)
    assert data.train.inputs.mean().abs() < 0.01


def test_progress_shows_the_metric_of_the_task():
    row = {"val_loss": 0.01234, "val_accuracy": 0.5}
    assert [task.describe(row) for task in TASKS.values()] == ["val 50.0%", "val MSE 0.0123"]


def test_copy_first_depends_on_seed_length_and_split():
    first, again = (copy_first(0, 5, 100) for _ in range(2))
    assert torch.equal(first.train.inputs, again.train.inputs)
    samples = [first.train, first.validation, TASK.sample_unseen(0, 5, 90)]
    samples += [copy_first(1, 5, 100).train, copy_first(0, 6, 100).train]
    assert len({sample.inputs[0, 0].item() for sample in samples}) == len(samples)


def test_copy_first_stops_early_below_its_error_only():
    def history(*errors: float) -> list[dict]:
        return [{"train_loss": error, "val_loss": error} for error in errors]

    assert should_stop(history(0.5, 0.009, 0.0099), 9, 2, TASK)
    assert not should_stop(history(0.009, 0.01), 9, 2, TASK)
    assert should_stop(history(float("nan")), 9, 2, TASK)


@pytest.mark.parametrize("cell", CELLS)
def test_two_layers_solve_copy_first_at_a_short_length(cell):
    data = TASK.sample(0, 3, 5000)
    network = build(cell, 32, "keras", 0, 3, num_layers=2, num_outputs=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    for epoch in range(12):
        perm = torch.randperm(len(data.train), generator=make_rng("perm", epoch))
        train_epoch(network, optimizer, TASK, data.train, perm, batch_size=50)
    assert evaluate(network, TASK, TASK.sample_unseen(0, 3, 1000))["loss"] < TASK.solved_mse
