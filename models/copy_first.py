"""The copy-first task: read random numbers, return the first (Vecoven, Ernst & Drion 2021).

    data = copy_first(seed=0, length=100, num_sequences=50_000)
    data.train.inputs   # (45000, 100) float32, standard normal
    data.train.targets  # (45000,) float32, the first number of each sequence

It is benchmark 1 of the paper, doi:10.1371/journal.pone.0252676.
"""

import torch

from models.rng import make_rng
from models.sequences import Sequences, SequenceSplits

MIN_SAMPLES = 10  # enough for the validation split to be a tenth of them, and not more


def num_train(num_sequences: int) -> int:
    """Returns the size of the training split: 90 %, in the paper 45,000 sequences."""
    return num_sequences * 9 // 10


def copy_first(seed: int, length: int, num_sequences: int) -> SequenceSplits:
    """Samples sequences of independent standard normal numbers, 90 % of them for training."""
    train = num_train(num_sequences)
    return SequenceSplits(
        train=sample(seed, "train", length, train),
        validation=sample(seed, "validation", length, num_sequences - train),
    )


def sample(seed: int, split: str, length: int, count: int) -> Sequences:
    """Samples `count` sequences of a split, (count, length); any two splits are independent."""
    rng = make_rng(seed, "copy-first", split, length)
    inputs = torch.randn(count, length, generator=rng)
    return Sequences(inputs, inputs[:, 0].clone())
