"""Quality metrics of generated digits, on the features and predictions of the digit classifier.

    classifier = load_classifier()
    reference = ReferenceStats.from_images(normalize(data.test.images), classifier)    # once
    measure(classify(images, classifier), reference)    # {"frechet_distance": 12.3, ...}

Every metric is also a function of its own, on features or counts. Images are (n, 784), pixels from
-1 to 1; features are (n, d); the arguments of a comparison are on one device. Nothing is sampled.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from models import distributed, gan
from models.classifier import NUM_CLASSES, Classifier, load_classifier
from models.image_data import LabeledImages, normalize

PRECISION_K = 3  # nearest neighbors in Kynkäänniemi et al. 2019
COVERAGE_K = 5  # nearest neighbors in Naeem et al. 2020
BLOCK = 2**23  # distances in memory at a time: 64 MB in float64, near the best speed on CPUs


class ClassifierOutput(NamedTuple):
    features: Tensor  # (n, d) float64
    logits: Tensor  # (n, 10)


@dataclass(frozen=True)
class ReferenceStats:
    """Real images, which generated ones are compared with."""

    features: Tensor  # (n, d) float64
    knn_distances: Tensor  # (n, 5) squared distances to the nearest others, ascending

    @classmethod
    def from_images(cls, images: Tensor, classifier: Classifier) -> "ReferenceStats":
        features = classify(images, classifier).features
        return cls(features, knn_squared_distances(features, max(PRECISION_K, COVERAGE_K)))


class QualityEvaluator:
    """Evaluates a generator against the test images, with all workers of a run.

    Each worker generates and classifies its shard of the samples; rank 0 computes the metrics.
    """

    def __init__(self, seed: int, latent_dim: int, test: LabeledImages):
        self.z = gan.eval_latents(seed, latent_dim)
        self.images = test.images
        self.classifier = load_classifier(test.images.device)
        self.reference: ReferenceStats | None = None

    def evaluate(self, generator: gan.Generator, rank: int) -> dict[str, float]:
        """Returns the metrics on rank 0, an empty dictionary on other ranks."""
        shard = distributed.shard_slice(len(self.z))
        local = classify(gan.generate(generator, self.z[shard]), self.classifier)
        gathered = ClassifierOutput(*(x.new_zeros(len(self.z), x.shape[1]) for x in local))
        for all_rows, local_rows in zip(gathered, local, strict=True):
            all_rows[shard] = local_rows
        distributed.all_reduce_sum_(gathered)
        if rank > 0:
            return {}
        if self.reference is None:
            self.reference = ReferenceStats.from_images(normalize(self.images), self.classifier)
        return measure(gathered, self.reference)


def measure(generated: ClassifierOutput, reference: ReferenceStats) -> dict[str, float]:
    """Returns every metric of n generated images, compared with the real images of the reference.

    frechet_distance: 0 is best. It is biased upwards for small n: compare equal n only.
    precision, recall: fractions, 1 is best. Generated images among real ones, and vice versa.
    density, coverage: as precision and recall, less sensitive to outliers. Density may exceed 1.
    confidence: mean of the classifier's highest probability.
    kl_to_uniform, rarest_class_fraction: of the predicted digits. 0 nats and 0.1 are best.
    """
    features, logits = generated
    precision, recall = precision_recall(
        reference.features, features, knn_distances=reference.knn_distances
    )
    density, coverage = density_coverage(
        reference.features, features, knn_distances=reference.knn_distances
    )
    counts = digit_counts(logits)
    return {
        "frechet_distance": frechet_distance(reference.features, features),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
        "confidence": logits.softmax(1).amax(1).double().mean().item(),
        "kl_to_uniform": kl_to_uniform(counts),
        "rarest_class_fraction": counts.min().item() / len(logits),
    }


@torch.no_grad()
def classify(images: Tensor, classifier: Classifier) -> ClassifierOutput:
    """Returns the classifier's features and logits of images, (n, 784)."""
    features = torch.cat([classifier.features(batch) for batch in images.split(500)])
    return ClassifierOutput(features.double(), classifier.head(features))


def digit_counts(logits: Tensor) -> Tensor:
    """Returns how often each digit is predicted: (n, 10) -> (10,) int64."""
    return logits.argmax(1).bincount(minlength=NUM_CLASSES)


def kl_to_uniform(counts: Tensor) -> float:
    """Returns the KL divergence, in nats, of a histogram from the uniform distribution.

    Args:
        counts: (10,); the result is 0 for equal counts, log 10 if one digit has them all.
    """
    fractions = counts.double() / counts.sum()
    return (math.log(len(counts)) - torch.special.entr(fractions).sum()).item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Returns the Fréchet distance between Gaussians fitted to features (Heusel et al. 2017).

    |mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)), A and B the covariances.

    Args:
        a: (n, d)
        b: (m, d)
    """
    a, b = a.double(), b.double()
    A, B = a.T.cov(), b.T.cov()  # (d, d)
    # With A = R R^T and B = S S^T, the square roots of A B's eigenvalues are the singular values
    # of R^T S. So no eigenvalue is complex and no root of a negative rounding error is taken, even
    # where features that are never active make A and B singular.
    root_trace = torch.linalg.svdvals(_root(A).T @ _root(B)).sum()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    return (mean + A.trace() + B.trace() - 2 * root_trace).item()


def _root(covariance: Tensor) -> Tensor:
    """Returns R with R R^T = covariance: each eigenvector times the root of its eigenvalue."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()


def precision_recall(
    real: Tensor, fake: Tensor, k: int = PRECISION_K, knn_distances: Tensor | None = None
) -> tuple[float, float]:
    """Returns improved precision and recall (Kynkäänniemi et al. 2019), each from 0 to 1.

    Precision is the fraction of fakes inside the ball of any real image, whose radius is the
    distance to its k-th nearest neighbor; recall is the fraction of real images inside the ball of
    any fake.

    Args:
        real: (n, d) features, n > k
        fake: (m, d) features, m > k
        knn_distances: knn_squared_distances(real, k or more), if already known
    """
    real, fake = real.double(), fake.double()
    real_knn = knn_squared_distances(real, k) if knn_distances is None else knn_distances
    real_radii = real_knn[:, k - 1]  # (n,)
    fake_radii = knn_squared_distances(fake, k)[:, k - 1]  # (m,)
    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=fake.device)
    for rows, squared in _squared_distances(real, fake):
        precise |= (squared < real_radii[rows, None]).any(0)
        recalled[rows] = (squared < fake_radii).any(1)
    return precise.double().mean().item(), recalled.double().mean().item()


def density_coverage(
    real: Tensor, fake: Tensor, k: int = COVERAGE_K, knn_distances: Tensor | None = None
) -> tuple[float, float]:
    """Returns density (0 or more) and coverage (0 to 1) (Naeem et al. 2020).

    Density is the mean number of real images whose ball contains a fake, divided by k; coverage is
    the fraction of real images with a fake in their ball.

    Args:
        real: (n, d) features, n > k
        fake: (m, d) features
        knn_distances: knn_squared_distances(real, k or more), if already known
    """
    real, fake = real.double(), fake.double()
    real_knn = knn_squared_distances(real, k) if knn_distances is None else knn_distances
    radii = real_knn[:, k - 1]  # (n,)
    inside = torch.zeros(len(real), dtype=torch.int64, device=real.device)
    for rows, squared in _squared_distances(real, fake):
        inside[rows] = (squared < radii[rows, None]).sum(1)
    density = inside.sum().item() / (k * len(fake))
    return density, (inside > 0).double().mean().item()


def knn_squared_distances(features: Tensor, k: int) -> Tensor:
    """Returns squared distances to the k nearest neighbors, ascending: (n, d) -> (n, k)."""
    features = features.double()
    blocks = _squared_distances(features, features)
    nearest = [squared.topk(k + 1, largest=False).values for _, squared in blocks]
    return torch.cat(nearest)[:, 1:]  # the nearest of all is the point itself


def nearest_distances(images: Tensor, others: Tensor) -> Tensor:
    """Returns the Euclidean distance of each image to its nearest in `others`, over the pixels.

    Args:
        images: (n, 784)
        others: (m, 784)

    Returns:
        (n,)
    """
    # float32 is precise enough to find the nearest, twice as fast as float64. The distance itself
    # is then taken from the difference, so that a copy is at 0.
    blocks = _squared_distances(images, others)
    nearest = torch.cat([squared.argmin(1) for _, squared in blocks])  # (n,)
    return (images - others[nearest]).norm(dim=1)


def _squared_distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields rows of a, (n, d), and their squared distances to all of b, (m, d): (rows, m).

    |a|^2 + |b|^2 - 2 a b as one matrix product is ten times as fast as the sum over differences,
    but its rounding error is relative to |a|^2. In float32 that leaves four digits of a near
    neighbor's distance and separates a point from its copy; so features are float64 here.
    """
    left = torch.cat([-2 * a, a.square().sum(1, keepdim=True), torch.ones_like(a[:, :1])], 1)
    right = torch.cat([b, torch.ones_like(b[:, :1]), b.square().sum(1, keepdim=True)], 1)
    size = max(1, BLOCK // len(b))
    for start in range(0, len(a), size):
        rows = slice(start, start + size)
        yield rows, left[rows] @ right.T
