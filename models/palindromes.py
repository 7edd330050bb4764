"""The palindrome task: read all but the last digit, predict the last, which equals the first.

    data = palindromes(seed=0, length=20, num_sequences=100_000)
    data.train.inputs   # (80000, 20) uint8, the digits that a network reads
    data.train.targets  # (80000,) int64, the last digit of each palindrome

`length` is the number of digits that the network reads (the report, section 1.2); the palindrome
has one more. To predict its last digit, the network must remember the first one for `length` steps.
"""

import torch
from torch import Tensor

from models.rng import make_rng
from models.sequences import Sequences, SequenceSplits

# The free digits of a palindrome (its first half) have a sum modulo 10, its checksum. Each of the
# ten checksums occurs in a tenth of the palindromes of each label; two of them are for validation.
VALIDATION_CHECKSUMS = 2

MIN_LENGTH = 2  # at 1 there is one palindrome for each label, which cannot be in both splits
MIN_SAMPLES = 50  # enough that each label occurs in each split


def num_train(num_sequences: int) -> int:
    """Returns the size of the training split: 80 % of the sequences."""
    return num_sequences * 4 // 5


def palindromes(seed: int, length: int, num_sequences: int) -> SequenceSplits:
    """Samples palindromes with balanced labels, 80 % of them for training.

    The splits share no palindrome: the checksum of a palindrome's free digits decides its split,
    and the seed decides which checksums are held out. The last free digit is chosen to give the
    checksum, so nothing is sampled twice, compared or rejected. Where fewer palindromes exist than
    are requested, they repeat, so that an epoch has the same number of steps at every length.

    Raises:
        ValueError: `length` is below MIN_LENGTH, or there are fewer than MIN_SAMPLES sequences.
    """
    if length < MIN_LENGTH:
        raise ValueError(f"length {length}: must be at least {MIN_LENGTH}")
    if num_sequences < MIN_SAMPLES:
        raise ValueError(f"num_sequences {num_sequences}: must be at least {MIN_SAMPLES}")
    train = num_train(num_sequences)
    checksums = torch.randperm(10, generator=make_rng(seed, "split", length)).to(torch.uint8)
    return SequenceSplits(
        train=_sample(seed, "train", length, train, checksums[VALIDATION_CHECKSUMS:]),
        validation=_sample(
            seed, "validation", length, num_sequences - train, checksums[:VALIDATION_CHECKSUMS]
        ),
    )


def _sample(seed: int, split: str, length: int, count: int, checksums: Tensor) -> Sequences:
    """Samples `count` palindromes whose checksum is one of `checksums`."""
    rng = make_rng(seed, split, length)
    free = length // 2 + 1  # of length + 1 digits, the first half including the middle one
    half = torch.randint(10, (free, count), generator=rng, dtype=torch.uint8)
    half[0] = (torch.randperm(count, generator=rng) % 10).to(torch.uint8)  # balanced labels
    checksum = checksums[torch.randint(len(checksums), (count,), generator=rng)]
    others = half[:-1].sum(0, dtype=torch.int64)
    half[-1] = ((checksum - others) % 10).to(torch.uint8)
    mirrored = half[1 : length + 1 - free].flip(0)
    digits = torch.cat([half, mirrored]).T.contiguous()  # (count, length): all but the last digit
    return Sequences(digits, half[0].long())
