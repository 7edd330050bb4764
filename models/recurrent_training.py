"""Training of a recurrent network: its schedule, one epoch, its evaluation, when it ends.

optimizer = torch.optim.Adam(network.parameters(), lr=0.001, fused=True)
loss = train_epoch(network, optimizer, task, data.train, perm, batch_size=128)
metrics = evaluate(network, task, data.validation)  # of one of the tasks in models/tasks.py
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.recurrent import RecurrentNetwork
from models.sequences import Sequences
from models.tasks import Task


def lr_multiplier(step: int, total_steps: int, warmup_steps: int, lr_schedule: str) -> float:
    """Returns the factor of the learning rate at a step, counted from 0.

    Args:
        total_steps: number of training steps.
        warmup_steps: steps of linear warmup from 0.
        lr_schedule: cosine, half a wave from 1 to 0 (Loshchilov & Hutter 2017), or constant.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if lr_schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * step / total_steps))
    return warmup


def should_stop(
    history: list[dict[str, Any]], epochs: int, solved_epochs: int | None, task: Task
) -> bool:
    """Returns whether training is over: after `epochs`, by early stopping, or because it diverged.

    Args:
        history: one row of metrics for each completed epoch.
        solved_epochs: stop after this many solved epochs in a row, or None: never.
        task: which says what a solved epoch is.
    """
    if len(history) >= epochs or (history and has_diverged(history[-1])):
        return True
    if solved_epochs is None or len(history) < solved_epochs:
        return False
    return all(map(task.is_solved, history[-solved_epochs:]))


def has_diverged(row: dict[str, Any]) -> bool:
    """Returns whether a loss of an epoch is not finite: further training would not change that."""
    return not math.isfinite(row.get("train_loss", 0) + row.get("val_loss", 0))


def train_epoch(
    network: RecurrentNetwork,
    optimizer: torch.optim.Optimizer,
    task: Task,
    data: Sequences,
    perm: Tensor,
    batch_size: int,
    grad_clip: float | None = None,
    after_step: Callable[[int], None] = lambda step: None,
) -> float:
    """Trains for one epoch and returns its mean loss.

    Args:
        perm: (num_sequences,) the order of the sequences; an incomplete last batch is dropped.
        grad_clip: maximum norm of the gradient, or None.
        after_step: called after each step with the number of steps of this epoch so far.
    """
    network.train()
    steps = len(perm) // batch_size
    total = torch.zeros((), device=perm.device)
    for step, batch in enumerate(perm[: steps * batch_size].view(steps, batch_size), start=1):
        loss = task.loss(network(data.inputs[batch]), data.targets[batch])
        optimizer.zero_grad()
        loss.backward()
        if grad_clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
        optimizer.step()
        total += loss.detach()  # read once an epoch: reading a GPU's number waits for the GPU
        after_step(step)
    return (total / steps).item()


@torch.inference_mode()
def predict(network: RecurrentNetwork, data: Sequences, batch_size: int = 500) -> Tensor:
    """Returns the prediction for every sequence, (num_sequences, num_outputs).

    Restores the training mode: in evaluation mode, cuDNN computes no gradients afterwards.
    """
    training = network.training
    network.eval()
    outputs = torch.cat([network(inputs) for inputs in data.inputs.split(batch_size)])
    network.train(training)
    return outputs


def evaluate(network: RecurrentNetwork, task: Task, data: Sequences) -> dict[str, float]:
    """Returns the metrics of the network's predictions on `data`."""
    return task.metrics(predict(network, data), data.targets)
