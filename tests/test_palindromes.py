import pytest
import torch

from models.palindromes import FEWEST, Sequences, palindromes

LENGTHS = [2, 3, 4, 5, 6, 23, 24, 35, 100]


def whole(part: Sequences) -> torch.Tensor:
    return torch.cat([part.digits, part.targets[:, None].to(torch.uint8)], 1)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_sequence_with_its_target_is_a_palindrome(length):
    data = palindromes(seed=3, length=length, samples=1000)
    for part, count in ((data.train, 800), (data.validation, 200)):
        sequence = whole(part)
        assert sequence.shape == (count, length + 1)
        assert torch.equal(sequence, sequence.flip(1))
        assert sequence.max() == 9


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("seed", range(5))
def test_no_palindrome_of_the_validation_part_stands_in_the_training_part(length, seed):
    data = palindromes(seed, length, samples=20_000)
    train, validation = (set(map(tuple, whole(p).tolist())) for p in (data.train, data.validation))
    assert not train & validation
    if length <= 3:  # only 100 different ones exist: all of them are drawn, four fifths to train
        assert (len(train), len(validation)) == (80, 20)


@pytest.mark.parametrize("length", LENGTHS)
def test_labels_are_balanced_in_both_parts(length):
    data = palindromes(seed=1, length=length, samples=1000)
    assert data.train.targets.bincount(minlength=10).tolist() == [80] * 10
    assert data.validation.targets.bincount(minlength=10).tolist() == [20] * 10


def test_digits_after_the_first_tell_nothing_of_the_target():
    data = palindromes(seed=0, length=20, samples=100_000).train
    for position in (1, 9, 10):
        joint = torch.zeros(10, 10)
        joint.index_put_(
            (data.targets, data.digits[:, position].long()), torch.tensor(1.0), accumulate=True
        )
        # 800 expected in each of the 100 cells; 5.5 standard deviations
        assert (joint - 800).abs().max() < 5.5 * 800**0.5


def test_the_seed_and_the_length_decide_the_data():
    first, again = palindromes(5, 12, 500), palindromes(5, 12, 500)
    assert torch.equal(first.train.digits, again.train.digits)
    assert torch.equal(first.validation.digits, again.validation.digits)
    assert not torch.equal(first.train.digits, palindromes(6, 12, 500).train.digits)
    assert not torch.equal(first.train.digits[:, :6], palindromes(5, 13, 500).train.digits[:, :6])


@pytest.mark.parametrize(("length", "samples"), [(1, 1000), (0, 1000), (-3, 1000), (5, FEWEST - 1)])
def test_what_cannot_be_split_is_refused(length, samples):
    with pytest.raises(ValueError, match=r"length|samples"):
        palindromes(0, length, samples)
