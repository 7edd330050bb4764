"""jobs/learner.py: each optimizer and cell trains and resumes."""

import copy
import math

import pytest
import torch

from jobs import sweep
from jobs.grid import GridConfig, trial_configs
from jobs.learner import OPTIMIZERS, Learner, run_epoch
from models.recurrent import CELLS
from models.tasks import TASKS, task_of

CPU = torch.device("cpu")
TIMES = ("train_seconds", "epoch_seconds", "sequences_per_second", "epoch_end_time")


def make_config(**settings: object) -> dict:
    grid = GridConfig(
        lengths=(4,), seeds=(0,), num_sequences=4000, hidden_size=32, num_layers=2,
        lr_schedule="cosine", warmup_steps=10, evals_per_epoch=2, probe=True, **settings,
    )  # fmt: skip
    (config,) = trial_configs(grid)
    return config


def train(learner: Learner, epochs: range) -> list[dict]:
    config = learner.config
    data = task_of(config).sample(config["seed"], config["length"], config["num_sequences"])
    rows = [run_epoch(learner, epoch, data.train, data.validation) for epoch in epochs]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("task", TASKS)
def test_optimizer_trains_and_resumes_bit_identically(task, cell, optimizer):
    config = make_config(task=task, cells=(cell,), optimizer=optimizer, grad_clip=10.0, lr=0.003)
    steps = task_of(config).num_train(config["num_sequences"]) // config["batch_size"]
    learner = Learner(config, steps, CPU)
    global_rng = torch.get_rng_state()
    rows = train(learner, range(1, 3))
    state = copy.deepcopy(learner.state_dict())
    rows += train(learner, range(3, 6))
    assert torch.equal(torch.get_rng_state(), global_rng)  # so the checkpoint need not hold it
    metric = task_of(config).metric
    assert all(row[f"{metric}_within_epoch"][-1] == row[metric] for row in rows)
    assert ("val_accuracy" in rows[0]) == (task == "palindrome")
    assert rows[-1]["train_loss"] < 0.8 * rows[0]["train_loss"]

    resumed = Learner(config, steps, CPU)
    resumed.load_state_dict(state)
    assert train(resumed, range(3, 6)) == rows[2:]


@pytest.mark.parametrize("cell", CELLS)
def test_diverging_training_is_probed_and_stops(cell):
    """Eigenvalues of a matrix that is not finite end the process in LAPACK."""
    config = make_config(cells=(cell,), lr=1e38)
    (row,) = train(Learner(config, 3200 // config["batch_size"], CPU), range(1, 2))
    assert math.isnan(row["train_loss"])
    assert all(map(math.isnan, row["spectral_radii"]))
    assert sweep.is_finished([row], config)
