"""Sequences with their targets, and a dataset of them in two splits."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    inputs: Tensor  # (num_sequences, length)
    targets: Tensor  # (num_sequences,)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: slice) -> "Sequences":
        return Sequences(self.inputs[rows], self.targets[rows])

    def to(self, device: torch.device | str) -> "Sequences":
        return Sequences(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class SequenceSplits:
    train: Sequences
    validation: Sequences
