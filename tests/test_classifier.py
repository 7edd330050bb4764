import pytest
import torch

from models import classifier, digits


@pytest.fixture(scope="module")
def mnist():
    return digits.load()


@pytest.fixture
def one_thread():
    """The order in which threads add up numbers is their own affair."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_shipped_classifier_names_digits(mnist):
    assert classifier.WEIGHTS.stat().st_size <= 500_000
    assert classifier.accuracy(classifier.load(), mnist.test) >= 0.992


def test_it_comes_ready_to_judge_and_draws_nothing(mnist):
    before = torch.get_rng_state()
    eye = classifier.load()
    assert torch.equal(torch.get_rng_state(), before)
    assert not eye.training
    assert not any(parameter.requires_grad for parameter in eye.parameters())


def test_the_logits_are_the_features_through_the_last_layer(mnist):
    eye = classifier.load()
    images = digits.scaled(mnist.test.images[:100])
    features = eye.features(images)
    assert features.shape == (100, classifier.FEATURES)
    assert eye(images).shape == (100, 10)
    assert torch.equal(eye.head(features), eye(images))
    # In eval mode an image is seen alike in any company.
    torch.testing.assert_close(eye.features(images[:1]), features[:1])


def test_images_are_turned_scaled_and_shifted_only_a_little(mnist):
    images = digits.scaled(mnist.train.images[:500])
    moved = classifier.moved(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved.min() >= -1 - 1e-5
    assert moved.max() <= 1 + 1e-5
    assert (moved - images).abs().mean(1).min() > 0.01  # none stays where it was
    eye = classifier.load()
    assert (eye(moved).argmax(1) == mnist.train.labels[:500]).double().mean() > 0.98


def test_training_learns_and_is_the_same_from_the_same_seed(mnist, one_thread, capsys):
    few = digits.Images(mnist.train.images[:5000], mnist.train.labels[:5000])
    first, second = (classifier.train(few, seed=3, epochs=1) for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    other = classifier.train(digits.Images(few.images[:256], few.labels[:256]), seed=4, epochs=1)
    assert not torch.equal(other.head.weight, first.head.weight)
    assert classifier.accuracy(first, mnist.test) > 0.8
    assert capsys.readouterr().out.count("epoch 1 of 1: loss") == 3
