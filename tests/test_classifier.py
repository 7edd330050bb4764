import pytest
import torch

from models import classifier, image_data
from models.image_data import LabeledImages
from models.rng import make_rng


@pytest.fixture(scope="module")
def mnist():
    return image_data.load()


@pytest.fixture(scope="module")
def pretrained():
    return classifier.load_classifier()


@pytest.fixture
def one_thread():
    """The order in which several threads add numbers is not fixed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_pretrained_classifier_is_accurate_and_small(mnist, pretrained):
    assert classifier.WEIGHTS.stat().st_size <= 500_000
    assert classifier.accuracy(pretrained, mnist.test) >= 0.992


def test_loading_gives_a_frozen_network_and_keeps_torchs_rng_state():
    before = torch.get_rng_state()
    network = classifier.load_classifier()
    assert torch.equal(torch.get_rng_state(), before)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_logits_are_the_last_layer_of_the_features(mnist, pretrained):
    images = image_data.normalize(mnist.test.images[:100])
    features = pretrained.features(images)
    assert features.shape == (100, classifier.NUM_FEATURES)
    assert pretrained(images).shape == (100, classifier.NUM_CLASSES)
    assert torch.equal(pretrained.head(features), pretrained(images))
    # In eval mode the features of an image do not depend on its batch.
    torch.testing.assert_close(pretrained.features(images[:1]), features[:1])


def test_augmentation_changes_every_image_but_no_label(mnist, pretrained):
    images = image_data.normalize(mnist.train.images[:500])
    augmented = classifier.augment(images, make_rng("augment"))
    assert augmented.shape == images.shape
    assert augmented.min() >= -1 - 1e-5
    assert augmented.max() <= 1 + 1e-5
    assert (augmented - images).abs().mean(1).min() > 0.01
    predictions = pretrained(augmented).argmax(1)
    assert (predictions == mnist.train.labels[:500]).double().mean() > 0.98


def test_training_learns_and_is_determined_by_the_seed(mnist, one_thread, capsys):
    data = LabeledImages(mnist.train.images[:5000], mnist.train.labels[:5000])
    first, again = (classifier.train_classifier(data, seed=3, epochs=1) for _ in range(2))
    torch.testing.assert_close(again.state_dict(), first.state_dict(), rtol=0, atol=0)
    small = LabeledImages(data.images[:256], data.labels[:256])
    third, fourth = (classifier.train_classifier(small, seed=s, epochs=1) for s in (3, 4))
    assert not torch.equal(third.head.weight, fourth.head.weight)
    assert classifier.accuracy(first, mnist.test) > 0.8
    assert capsys.readouterr().out.count("epoch 1/1: loss") == 4
