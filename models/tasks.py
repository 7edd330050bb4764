"""The tasks of a sweep: what networks read and predict, their loss and metrics.

    task = TASKS["palindrome"]
    data = task.sample(seed=0, length=20, num_sequences=100_000)
    task.metrics(network(data.train.inputs), data.train.targets)  # {"loss": …, "accuracy": …}

A new task is a class like those below, and an entry of TASKS, with its name in TaskName.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from models import copy_first, palindromes
from models.recurrent import INPUT_ENCODINGS, NUM_CLASSES
from models.sequences import Sequences, SequenceSplits


class Task(ABC):
    num_outputs: ClassVar[int]  # size of a prediction
    min_length: ClassVar[int]
    min_sequences: ClassVar[int]
    input_encodings: ClassVar[tuple[str, ...]]  # the valid ones
    metric: ClassVar[str]  # column of the metric by which networks are compared
    chance: ClassVar[float]  # its value for a network that ignores its inputs

    @abstractmethod
    def sample(self, seed: int, length: int, num_sequences: int) -> SequenceSplits:
        """Samples the sequences of a trial."""

    @abstractmethod
    def sample_unseen(self, seed: int, length: int, count: int) -> Sequences:
        """Samples sequences that no trial of that seed and length is trained on."""

    @abstractmethod
    def num_train(self, num_sequences: int) -> int:
        """Returns the size of the training split."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Returns the loss of predictions: a scalar, or (batch,) with reduction `none`.

        Args:
            outputs: (batch, num_outputs)
            targets: (batch,)
        """

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Returns the metrics of predictions; on the validation split, `val_` precedes their names.

        Args:
            outputs: (num_sequences, num_outputs)
            targets: (num_sequences,)
        """
        return {"loss": self.loss(outputs, targets).item()}

    @abstractmethod
    def is_solved(self, row: dict[str, Any]) -> bool:
        """Returns whether an epoch counts as solved, for early stopping."""

    @abstractmethod
    def describe(self, row: dict[str, Any]) -> str:
        """Describes an epoch's metric in a word or two."""


class Palindrome(Task):
    """Predict the last digit of a palindrome, i.e. remember the first (the report, section 1)."""

    num_outputs = NUM_CLASSES
    min_length, min_sequences = palindromes.MIN_LENGTH, palindromes.MIN_SAMPLES
    input_encodings = INPUT_ENCODINGS
    metric, chance = "val_accuracy", 1 / NUM_CLASSES
    solved_accuracy = 0.999

    def sample(self, seed: int, length: int, num_sequences: int) -> SequenceSplits:
        return palindromes.palindromes(seed, length, num_sequences)

    def sample_unseen(self, seed: int, length: int, count: int) -> Sequences:
        return palindromes.palindromes(seed, length, 5 * count).validation  # a fifth of them

    def num_train(self, num_sequences: int) -> int:
        return palindromes.num_train(num_sequences)

    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Returns the cross entropy (nats)."""
        return F.cross_entropy(outputs, targets, reduction=reduction)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        accuracy = (outputs.argmax(1) == targets).double().mean().item()
        return {**super().metrics(outputs, targets), "accuracy": accuracy}

    def is_solved(self, row: dict[str, Any]) -> bool:
        return row["val_accuracy"] >= self.solved_accuracy

    def describe(self, row: dict[str, Any]) -> str:
        return f"val {row['val_accuracy']:.1%}"


class CopyFirst(Task):
    """Return the first of a sequence of standard normal numbers (Vecoven et al. 2021)."""

    num_outputs = 1
    min_length, min_sequences = 1, copy_first.MIN_SAMPLES
    input_encodings = ("raw",)
    metric, chance = "val_loss", 1.0  # the variance of the targets
    solved_mse = 0.01

    def sample(self, seed: int, length: int, num_sequences: int) -> SequenceSplits:
        return copy_first.copy_first(seed, length, num_sequences)

    def sample_unseen(self, seed: int, length: int, count: int) -> Sequences:
        return copy_first.sample(seed, "test", length, count)

    def num_train(self, num_sequences: int) -> int:
        return copy_first.num_train(num_sequences)

    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Returns the squared error."""
        return F.mse_loss(outputs.squeeze(1), targets, reduction=reduction)

    def is_solved(self, row: dict[str, Any]) -> bool:
        return row["val_loss"] < self.solved_mse

    def describe(self, row: dict[str, Any]) -> str:
        return f"val MSE {row['val_loss']:.4f}"


TaskName = Literal["palindrome", "copy-first"]
TASKS: dict[TaskName, Task] = {"palindrome": Palindrome(), "copy-first": CopyFirst()}

# Settings that trials of older versions lack, with the values that they had.
LATER_SETTINGS: dict[str, Any] = {"tf32": False, "task": "palindrome", "num_layers": 1}


def task_of(config: dict[str, Any]) -> Task:
    """Returns the task of a trial, also of an older version."""
    return TASKS[(LATER_SETTINGS | config)["task"]]
