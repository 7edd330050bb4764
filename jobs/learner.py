"""What a trial trains: a network with its optimizer and schedule, epoch by epoch. Without Ray.

learner = Learner(config, steps, device)     # a trial's settings, see jobs/grid.py
row = run_epoch(learner, 1, train_split, val_split)
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from models import gradient_flow, recurrent
from models.recurrent_training import evaluate, lr_multiplier, train_epoch
from models.rng import make_rng
from models.sequences import Sequences
from models.tasks import task_of

EVAL_SUBSET_SIZE = 500  # sequences of the validation split that are evaluated within an epoch

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "rmsprop": torch.optim.RMSprop,
}


class Learner:
    """The network of a trial, with its optimizer and learning rate schedule."""

    def __init__(self, config: dict[str, Any], steps: int, device: torch.device):
        self.config, self.steps = config, steps  # steps per epoch
        self.task = task_of(config)
        self.network = recurrent.build(
            config["cell"], config["hidden_size"], config["init"], config["seed"],
            config["length"], config["input_encoding"], config["num_layers"],
            self.task.num_outputs,
        ).to(device)  # fmt: skip
        self.optimizer = OPTIMIZERS[config["optimizer"]](self.network.parameters(), lr=config["lr"])
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: lr_multiplier(
                step, steps * config["epochs"], config["warmup_steps"], config["lr_schedule"]
            ),
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def run_epoch(
    learner: Learner, epoch: int, train_split: Sequences, val_split: Sequences
) -> dict[str, Any]:
    """Trains for one epoch and evaluates; returns the epoch's metrics."""
    config, network, steps = learner.config, learner.network, learner.steps
    task = learner.task
    evals, val_subset = config["evals_per_epoch"], val_split[:EVAL_SUBSET_SIZE]
    eval_steps = {steps * number // evals for number in range(1, evals)}
    within_epoch: list[float] = []
    updates = gradient_flow.UpdateTracker(network) if config["probe"] else None

    def after_step(step: int) -> None:
        if updates:
            updates.record(float(learner.schedule.get_last_lr()[0]))
        learner.schedule.step()
        if step in eval_steps:
            metrics = evaluate(network, task, val_subset)
            within_epoch.append(metrics[task.metric.removeprefix("val_")])

    epoch_start = time.perf_counter()
    perm = torch.randperm(len(train_split), generator=make_rng(config["seed"], "order", epoch))
    perm = perm.to(train_split.targets.device)
    train_loss = train_epoch(
        network, learner.optimizer, task, train_split, perm, config["batch_size"],
        config["grad_clip"], after_step,
    )  # fmt: skip
    train_end = time.perf_counter()
    metrics = {f"val_{name}": v for name, v in evaluate(network, task, val_split).items()}
    row: dict[str, Any] = {
        "epoch": epoch,
        "training_iteration": epoch,
        "train_loss": train_loss,
        **metrics,
        "train_seconds": train_end - epoch_start,
        "epoch_seconds": time.perf_counter() - epoch_start,
        "sequences_per_second": steps * config["batch_size"] / (train_end - epoch_start),
        "epoch_end_time": time.time(),  # seconds since 1970
    }
    if eval_steps:  # the last evaluation of an epoch uses the full validation split
        row[f"{task.metric}_within_epoch"] = [*within_epoch, metrics[task.metric]]
    if updates:
        row |= gradient_flow.probe(network, task, val_subset) | updates.pop_means()
    return row
