"""Palindromes of decimal digits: read all but the last digit, predict the last, which is the first.

    data = palindromes(seed=0, length=20, samples=100_000)
    data.train.digits   # (80000, 20), the digits that a network reads
    data.train.targets  # (80000,), the palindrome's last digit

`length` is the number of digits that the network reads (section 1.2 of the report); the palindrome
has one more. To predict its last digit is to remember the first one for `length` steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.randomness import generator

# The checksum of a palindrome's free digits takes ten values, each for a tenth of all palindromes
# of each label; two of the ten are the validation part's.
VALIDATION_CHECKSUMS = 2

FEWEST = 50  # samples with which each label is once in each part


@dataclass(frozen=True)
class Sequences:
    digits: Tensor  # (samples, length) uint8
    targets: Tensor  # (samples,) int64

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, some: slice) -> "Sequences":
        return Sequences(self.digits[some], self.targets[some])

    def to(self, device: torch.device | str) -> "Sequences":
        return Sequences(self.digits.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Palindromes:
    train: Sequences
    validation: Sequences


def training_samples(samples: int) -> int:
    """Returns how many of so many palindromes are for training."""
    return samples * 4 // 5


def palindromes(seed: int, length: int, samples: int) -> Palindromes:
    """Draws `samples` palindromes, 80 % of them for training, with balanced labels.

    No palindrome of the validation part stands in the training part: the sum of the free digits
    (the first half) modulo ten says which part a palindrome belongs to, and the seed says which
    sums are held out. The last free digit is chosen to make the sum, so nothing is drawn twice,
    compared or thrown away. Where fewer different palindromes exist than samples, they repeat, so
    that an epoch has as many steps at every length.

    Raises:
        ValueError: `length` is under 2 (at 1 there is a single palindrome for each label, which
            cannot be in both parts) or there are fewer than FEWEST samples.
    """
    if length < 2:
        raise ValueError(f"length {length}: a palindrome to learn from needs a length of 2 or more")
    train = training_samples(samples)
    if samples < FEWEST:
        raise ValueError(f"{samples} samples: {FEWEST} or more are needed")
    checksums = torch.randperm(10, generator=generator(seed, "split", length)).to(torch.uint8)
    return Palindromes(
        train=_draw(seed, "train", length, train, checksums[VALIDATION_CHECKSUMS:]),
        validation=_draw(
            seed, "validation", length, samples - train, checksums[:VALIDATION_CHECKSUMS]
        ),
    )


def _draw(seed: int, part: str, length: int, samples: int, checksums: Tensor) -> Sequences:
    """Draws `samples` palindromes the sum of whose free digits is, modulo ten, in `checksums`."""
    random = generator(seed, part, length)
    free = length // 2 + 1  # of length + 1 digits, the first half with the middle one
    half = torch.randint(10, (free, samples), generator=random, dtype=torch.uint8)
    half[0] = (torch.randperm(samples, generator=random) % 10).to(torch.uint8)  # balanced labels
    checksum = checksums[torch.randint(len(checksums), (samples,), generator=random)]
    others = half[:-1].sum(0, dtype=torch.int64)
    half[-1] = ((checksum - others) % 10).to(torch.uint8)
    mirrored = half[1 : length + 1 - free].flip(0)
    digits = torch.cat([half, mirrored]).T.contiguous()  # (samples, length): all but the last digit
    return Sequences(digits, half[0].long())
