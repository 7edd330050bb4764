import math

import pytest
import torch
from prdc import compute_prdc
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from models import classifier, digits, quality
from models.randomness import generator

COUNT = 2000


@pytest.fixture(scope="module")
def eye():
    return classifier.load()


@pytest.fixture(scope="module")
def mnist():
    return digits.load()


@pytest.fixture(scope="module")
def real(mnist):
    return digits.scaled(mnist.test.images[:COUNT])


@pytest.fixture(scope="module")
def fake(mnist):
    """Digits that are somewhat wrong: faint ones, with noise, and none of them a 7."""
    kept = mnist.train.images[mnist.train.labels != 7][: COUNT - 300]
    images = digits.scaled(kept)
    noise = torch.empty_like(images).normal_(generator=generator("fake"))
    return (0.9 * images + 0.1 * noise).clamp(-1, 1)


@pytest.fixture(scope="module")
def reference(real, eye):
    return quality.Reference.of(real, eye)


def cloud(name, *shape):
    return torch.empty(*shape, dtype=torch.float64).normal_(generator=generator(name))


class Double(nn.Module):
    """The eye as torchmetrics takes a network: it keeps the type that the features have."""

    num_features = classifier.FEATURES

    def __init__(self, eye):
        super().__init__()
        self.eye = eye

    def forward(self, images):
        return self.eye.features(images).double()


def test_the_frechet_distance_is_that_of_torchmetrics(real, fake, eye, reference):
    theirs = FrechetInceptionDistance(feature=Double(eye), normalize=True)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = quality.measure(quality.look(fake, eye), reference)["frechet_distance"]
    assert ours > 10
    # Features that are never active make their eigenvalues roundings, whose roots are not so small.
    assert ours == pytest.approx(theirs.compute().item(), rel=1e-6)

    a, b = cloud("a", 500, 16), 2 * cloud("b", 400, 16) + 1
    theirs = FrechetInceptionDistance(feature=Identity(16))
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert quality.frechet_distance(a, b) == pytest.approx(theirs.compute().item(), rel=1e-10)


class Identity(nn.Identity):
    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features


@pytest.mark.parametrize("k", [3, 5])
def test_the_neighbourhoods_are_those_of_prdc(real, fake, eye, reference, k, monkeypatch):
    seen, _ = quality.look(fake, eye)
    theirs = compute_prdc(reference.features.numpy(), seen.numpy(), k)
    monkeypatch.setattr(quality, "BLOCK", 300 * len(fake))  # the last block is a smaller one
    precision, recall = quality.precision_recall(reference.features, seen, k)
    density, coverage = quality.density_coverage(reference.features, seen, k)
    ours = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert all(0.1 < value < 0.95 for value in ours.values())  # so they could be wrong

    # What is known of the real ones is used, whatever k it was made for.
    known = {"near": reference.near}
    assert quality.precision_recall(reference.features, seen, k, **known) == (precision, recall)
    assert quality.density_coverage(reference.features, seen, k, **known) == (density, coverage)


def test_a_set_against_itself_is_perfect(real, eye, reference):
    measured = quality.measure(quality.look(real, eye), reference)
    assert measured["frechet_distance"] == pytest.approx(0, abs=1e-9)
    for name in ("precision", "recall", "coverage"):
        assert measured[name] == 1, name
    assert measured["density"] == pytest.approx(1, abs=1e-3)


def test_two_sets_far_apart_share_nothing():
    a, b = cloud("a", 300, 8), cloud("b", 200, 8) + 100
    assert quality.precision_recall(a, b) == (0, 0)
    assert quality.density_coverage(a, b) == (0, 0)


def test_one_image_repeated_is_precise_and_covers_nothing(real, eye, reference):
    measured = quality.measure(quality.look(real[:1].expand(100, -1), eye), reference)
    assert measured["precision"] == 1
    assert measured["recall"] < 0.01
    assert measured["coverage"] < 0.01
    assert measured["kl_to_uniform"] == pytest.approx(math.log(10))
    assert measured["smallest_share"] == 0


def test_neighbours_are_the_nearest_others():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    expected = [[1, 9, 49], [1, 4, 36], [4, 9, 16], [16, 36, 49]]
    assert quality.neighbours(line, 3).tolist() == expected


def test_the_frechet_distance_of_two_gaussians_is_the_closed_form():
    white = cloud("white", 1000, 4)
    white -= white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(white.T.cov())).T
    a = white * torch.tensor([1.0, 2.0, 3.0, 0.0])
    b = white * torch.tensor([2.0, 2.0, 1.0, 0.0]) + torch.tensor([0.0, 3.0, 0.0, 4.0])
    # |0 - mean|^2 = 25, and (1 - 2)^2 + (2 - 2)^2 + (3 - 1)^2 = 5 of the deviations.
    assert quality.frechet_distance(a, b) == pytest.approx(30, rel=1e-12)
    # A far mean takes no digits off the spread.
    assert quality.frechet_distance(a + 1000, b + 1000) == pytest.approx(30, rel=1e-9)


def test_the_histogram_of_digits_is_held_against_uniform():
    logits = torch.eye(10)[[0, 0, 3, 9]]
    assert quality.digit_counts(logits).tolist() == [2, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert quality.kl_to_uniform(torch.full((10,), 7)) == pytest.approx(0, abs=1e-12)
    assert quality.kl_to_uniform(torch.eye(10)[4]) == pytest.approx(math.log(10))
    halves = torch.tensor([5, 5, 0, 0, 0, 0, 0, 0, 0, 0])
    assert quality.kl_to_uniform(halves) == pytest.approx(math.log(5))


def test_what_is_named_is_what_was_drawn(mnist, real, eye, reference):
    measured = quality.measure(quality.look(real, eye), reference)
    counts = mnist.test.labels[:COUNT].bincount()
    assert measured["smallest_share"] == pytest.approx(counts.min().item() / COUNT, abs=0.003)
    assert measured["kl_to_uniform"] == pytest.approx(quality.kl_to_uniform(counts), abs=1e-3)
    logits = eye(real)
    assert measured["confidence"] == pytest.approx(logits.softmax(1).amax(1).mean().item())
    assert 0.98 < measured["confidence"] < 1


def test_worse_digits_measure_worse(real, fake, eye, reference):
    good = quality.measure(quality.look(real.flip(0)[: COUNT // 2], eye), reference)
    poor = quality.measure(quality.look(fake, eye), reference)
    noise = torch.empty(COUNT, 784).uniform_(-1, 1, generator=generator("noise"))
    bad = quality.measure(quality.look(noise, eye), reference)
    assert good["frechet_distance"] < poor["frechet_distance"] < bad["frechet_distance"]
    for name in ("precision", "recall", "density", "coverage"):
        assert good[name] > poor[name] > bad[name], name
        assert bad[name] < 0.05, name


def test_the_nearest_distance_is_that_of_all_differences(mnist, real, fake, monkeypatch):
    train = digits.scaled(mnist.train.images[:1000])
    found = quality.nearest_distances(fake[:50], train)
    differences = [(train.double() - image.double()).norm(dim=1).min() for image in fake[:50]]
    torch.testing.assert_close(found.double(), torch.stack(differences), rtol=1e-5, atol=0)
    monkeypatch.setattr(quality, "BLOCK", 7 * len(train))
    torch.testing.assert_close(quality.nearest_distances(fake[:50], train), found)


def test_a_training_image_is_at_no_distance_from_the_training_set(mnist):
    train = digits.scaled(mnist.train.images)
    copies = train[torch.tensor([0, 17, 31_415, 59_999])]
    assert quality.nearest_distances(copies, train).tolist() == [0, 0, 0, 0]
    assert quality.nearest_distances(-copies, train).min() > 1
