import json
import math
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn

from models import classifier, gan, gan_metrics, image_data
from models.image_data import LabeledImages
from models.rng import make_rng

COUNT = 2000


@pytest.fixture(scope="module")
def mnist():
    return image_data.load()


@pytest.fixture(scope="module")
def pretrained():
    return classifier.load_classifier()


@pytest.fixture(scope="module")
def real(mnist):
    return image_data.normalize(mnist.test.images[:COUNT])


@pytest.fixture(scope="module")
def fake(mnist):
    """Flawed digits: with less contrast, with noise, and none of them a 7."""
    images = mnist.train.images[mnist.train.labels != 7][: COUNT - 300]
    images = image_data.normalize(images)
    noise = torch.randn(images.shape, generator=make_rng("fake"))
    return (0.9 * images + 0.1 * noise).clamp(-1, 1)


@pytest.fixture(scope="module")
def reference(real, pretrained):
    return gan_metrics.ReferenceStats.from_images(real, pretrained)


@pytest.fixture(scope="module")
def measure(pretrained, reference):
    """Returns the metrics of images, compared with the real ones."""
    return lambda images: gan_metrics.measure(gan_metrics.classify(images, pretrained), reference)


def gaussian(name: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=make_rng(name))


class Float64Features(nn.Module):
    """A feature extractor for torchmetrics, which computes in the dtype of the features."""

    def __init__(self, num_features, extract):
        super().__init__()
        self.num_features, self.extract = num_features, extract

    def forward(self, inputs):
        return self.extract(inputs).double()


def test_frechet_distance_matches_torchmetrics(real, fake, pretrained, measure):
    # Slow to import, here and in test_neighbor_metrics_match_prdc: the processes that
    # test_quality_metrics_of_two_workers_equal_those_of_one spawns import this file, too.
    from torchmetrics.image.fid import FrechetInceptionDistance

    features = Float64Features(classifier.NUM_FEATURES, pretrained.features)
    expected = FrechetInceptionDistance(feature=features, normalize=True)
    expected.update(real, real=True)
    expected.update(fake, real=False)
    distance = measure(fake)["frechet_distance"]
    assert distance > 10
    # Features that are never active have rounding errors as eigenvalues, whose roots are larger.
    assert distance == pytest.approx(expected.compute().item(), rel=1e-6)

    a, b = gaussian("a", 500, 16), 2 * gaussian("b", 400, 16) + 1
    expected = FrechetInceptionDistance(feature=Float64Features(16, nn.Identity()))
    expected.update(a, real=True)
    expected.update(b, real=False)
    assert gan_metrics.frechet_distance(a, b) == pytest.approx(expected.compute().item(), rel=1e-10)


def test_frechet_distance_of_gaussians_matches_the_closed_form():
    white = gaussian("white", 1000, 4)
    white -= white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(white.T.cov())).T
    a = white * torch.tensor([1.0, 2.0, 3.0, 0.0])
    b = white * torch.tensor([2.0, 2.0, 1.0, 0.0]) + torch.tensor([0.0, 3.0, 0.0, 4.0])
    # 25 of the means, and (1 - 2)^2 + (2 - 2)^2 + (3 - 1)^2 = 5 of the standard deviations
    assert gan_metrics.frechet_distance(a, b) == pytest.approx(30, rel=1e-12)
    # A large mean costs no precision.
    assert gan_metrics.frechet_distance(a + 1000, b + 1000) == pytest.approx(30, rel=1e-9)


@pytest.mark.parametrize("k", [3, 5])
def test_neighbor_metrics_match_prdc(fake, pretrained, reference, k, monkeypatch):
    from prdc import compute_prdc

    features, _ = gan_metrics.classify(fake, pretrained)
    expected = compute_prdc(reference.features.numpy(), features.numpy(), k)
    monkeypatch.setattr(gan_metrics, "BLOCK", 300 * len(fake))  # the last block is smaller
    precision, recall = gan_metrics.precision_recall(reference.features, features, k)
    density, coverage = gan_metrics.density_coverage(reference.features, features, k)
    metrics = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
    assert metrics == pytest.approx(expected, rel=1e-12)
    assert all(0.1 < value < 0.95 for value in metrics.values())  # so they could be wrong

    known = {"knn_distances": reference.knn_distances}  # of a larger k
    pair = gan_metrics.precision_recall(reference.features, features, k, **known)
    assert pair == (precision, recall)
    pair = gan_metrics.density_coverage(reference.features, features, k, **known)
    assert pair == (density, coverage)


def test_knn_squared_distances_are_ascending_and_exclude_the_point_itself():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    expected = [[1, 9, 49], [1, 4, 36], [4, 9, 16], [16, 36, 49]]
    assert gan_metrics.knn_squared_distances(line, 3).tolist() == expected


def test_neighbor_metrics_of_distant_datasets_are_zero():
    a, b = gaussian("a", 300, 8), gaussian("b", 200, 8) + 100
    assert gan_metrics.precision_recall(a, b) == (0, 0)
    assert gan_metrics.density_coverage(a, b) == (0, 0)


def test_metrics_of_real_images(mnist, real, pretrained, measure):
    """Real images are perfect in comparison with themselves; predictions agree with labels."""
    metrics = measure(real)
    assert metrics["frechet_distance"] == pytest.approx(0, abs=1e-9)
    for name in ("precision", "recall", "coverage"):
        assert metrics[name] == 1, name
    assert metrics["density"] == pytest.approx(1, abs=1e-3)
    counts = mnist.test.labels[:COUNT].bincount()
    rarest = counts.min().item() / COUNT
    assert metrics["rarest_class_fraction"] == pytest.approx(rarest, abs=0.003)
    assert metrics["kl_to_uniform"] == pytest.approx(gan_metrics.kl_to_uniform(counts), abs=1e-3)
    confidence = pretrained(real).softmax(1).amax(1).mean().item()
    assert metrics["confidence"] == pytest.approx(confidence)
    assert 0.98 < confidence < 1


def test_metrics_of_one_repeated_image_show_mode_collapse(real, measure):
    metrics = measure(real[:1].expand(100, -1))
    assert metrics["precision"] == 1
    assert metrics["recall"] < 0.01
    assert metrics["coverage"] < 0.01
    assert metrics["kl_to_uniform"] == pytest.approx(math.log(10))
    assert metrics["rarest_class_fraction"] == 0


def test_metrics_rank_images_by_quality(real, fake, measure):
    noise = torch.empty(COUNT, 784).uniform_(-1, 1, generator=make_rng("noise"))
    good, poor, bad = measure(real.flip(0)[: COUNT // 2]), measure(fake), measure(noise)
    assert good["frechet_distance"] < poor["frechet_distance"] < bad["frechet_distance"]
    for name in ("precision", "recall", "density", "coverage"):
        assert good[name] > poor[name] > bad[name], name
        assert bad[name] < 0.05, name


def test_digit_counts_and_their_divergence_from_uniform():
    logits = torch.eye(10)[[0, 0, 3, 9]]
    assert gan_metrics.digit_counts(logits).tolist() == [2, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert gan_metrics.kl_to_uniform(torch.full((10,), 7)) == pytest.approx(0, abs=1e-12)
    assert gan_metrics.kl_to_uniform(torch.eye(10)[4]) == pytest.approx(math.log(10))
    halves = torch.tensor([5, 5, 0, 0, 0, 0, 0, 0, 0, 0])
    assert gan_metrics.kl_to_uniform(halves) == pytest.approx(math.log(5))


def test_nearest_distances_match_those_of_all_differences(mnist, fake, monkeypatch):
    train = image_data.normalize(mnist.train.images[:1000])
    distances = gan_metrics.nearest_distances(fake[:50], train)
    expected = [(train.double() - image.double()).norm(dim=1).min() for image in fake[:50]]
    torch.testing.assert_close(distances.double(), torch.stack(expected), rtol=1e-5, atol=0)
    monkeypatch.setattr(gan_metrics, "BLOCK", 7 * len(train))
    torch.testing.assert_close(gan_metrics.nearest_distances(fake[:50], train), distances)


def test_nearest_distance_of_a_copy_is_zero(mnist):
    train = image_data.normalize(mnist.train.images)
    copies = train[torch.tensor([0, 17, 31_415, 59_999])]
    assert gan_metrics.nearest_distances(copies, train).tolist() == [0, 0, 0, 0]
    assert gan_metrics.nearest_distances(-copies, train).min() > 1


def evaluate_worker(rank: int, num_workers: int, folder: Path) -> None:
    """Evaluates, as one of several workers, a generator that blends training images."""
    torch.set_num_threads(1)
    if num_workers > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_workers
        )
    gan.NUM_EVAL_SAMPLES = COUNT
    mnist = image_data.load()
    generator = nn.Sequential(
        nn.Linear(8, 500, bias=False), nn.Softmax(1), nn.Linear(500, image_data.PIXELS, bias=False)
    )
    with torch.no_grad():
        generator[0].weight.normal_(std=5, generator=make_rng("generator"))
        generator[2].weight.copy_(image_data.normalize(mnist.train.images[:500]).T)
    test = LabeledImages(mnist.test.images[:500], mnist.test.labels[:500])
    metrics = gan_metrics.QualityEvaluator(0, 8, test).evaluate(generator, rank)
    (folder / f"{num_workers}-{rank}.json").write_text(json.dumps(metrics))
    if num_workers > 1:
        dist.barrier()
        dist.destroy_process_group()


def test_quality_metrics_of_two_workers_equal_those_of_one(tmp_path):
    for num_workers in (1, 2):
        multiprocessing.spawn(evaluate_worker, (num_workers, tmp_path), nprocs=num_workers)
    one, first, second = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")
    )
    assert first == one
    assert second == {}
    assert all(0.1 < one[name] < 0.99 for name in ("precision", "recall", "coverage")), one
