import pytest
import torch

from models.palindromes import MIN_SAMPLES, palindromes
from models.sequences import Sequences

LENGTHS = [2, 3, 4, 5, 6, 23, 24, 35, 100]


def with_targets(split: Sequences) -> torch.Tensor:
    """Returns complete palindromes, (num_sequences, length + 1)."""
    return torch.cat([split.inputs, split.targets[:, None].to(torch.uint8)], 1)


@pytest.mark.parametrize("length", LENGTHS)
def test_splits_hold_palindromes_with_balanced_labels(length):
    data = palindromes(seed=3, length=length, num_sequences=1000)
    for split, count in ((data.train, 800), (data.validation, 200)):
        sequences = with_targets(split)
        assert sequences.shape == (count, length + 1)
        assert torch.equal(sequences, sequences.flip(1))
        assert sequences.max() == 9
        assert split.targets.bincount(minlength=10).tolist() == [count // 10] * 10


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("seed", range(5))
def test_splits_share_no_palindrome(length, seed):
    data = palindromes(seed, length, num_sequences=20_000)
    train, validation = (
        set(map(tuple, with_targets(split).tolist())) for split in (data.train, data.validation)
    )
    assert not train & validation
    if length <= 3:  # only 100 palindromes exist: all occur, four fifths of them in training
        assert (len(train), len(validation)) == (80, 20)


def test_digits_after_the_first_are_independent_of_the_target():
    data = palindromes(seed=0, length=20, num_sequences=100_000).train
    for position in (1, 9, 10):
        pairs = data.targets * 10 + data.inputs[:, position]
        counts = pairs.bincount(minlength=100)
        # 800 are expected of each pair; 5.5 standard deviations
        assert (counts - 800).abs().max() < 5.5 * 800**0.5


def test_seed_and_length_determine_the_data():
    first, again = palindromes(5, 12, 500), palindromes(5, 12, 500)
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert torch.equal(first.validation.inputs, again.validation.inputs)
    assert not torch.equal(first.train.inputs, palindromes(6, 12, 500).train.inputs)
    assert not torch.equal(first.train.inputs[:, :6], palindromes(5, 13, 500).train.inputs[:, :6])


@pytest.mark.parametrize(
    ("length", "num_sequences", "message"),
    [
        (1, 1000, "length 1: must be at least 2"),
        (-3, 1000, "length -3: must be at least 2"),
        (5, MIN_SAMPLES - 1, f"num_sequences 49: must be at least {MIN_SAMPLES}"),
    ],
)
def test_lengths_and_sizes_that_cannot_be_split_are_rejected(length, num_sequences, message):
    with pytest.raises(ValueError, match=message):
        palindromes(0, length, num_sequences)


def test_smallest_dataset_has_every_label_in_each_split():
    data = palindromes(0, 5, MIN_SAMPLES)
    for split in (data.train, data.validation):
        assert split.targets.unique().tolist() == list(range(10))
