"""How good generated digits are: what a classifier sees in them, against what it sees in real ones.

    eye = classifier.load()
    reference = Reference.of(scaled(digits.test.images), eye)    # once
    measure(look(images, eye), reference)    # {"frechet_distance": 12.3, "precision": 0.81, ...}

Every measure also stands alone, on features or counts. Images are (n, 784), pixels from -1 to 1;
features are (n, d); what is compared lies on one device. Nothing here is drawn at random.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from models.classifier import DIGITS, Classifier

PRECISION_K = 3  # the neighbours of Kynkäänniemi et al. 2019
COVERAGE_K = 5  # the neighbours of Naeem et al. 2020
BLOCK = 2**23  # distances held at a time: 64 MB in float64, near the best speed on CPUs


class Seen(NamedTuple):
    """What the eye sees in images."""

    features: Tensor  # (n, d) float64
    logits: Tensor  # (n, 10)


@dataclass(frozen=True)
class Reference:
    """Real images as the eye sees them."""

    features: Tensor  # (n, d) float64
    near: Tensor  # (n, 5) of each, its squared distances to the nearest others

    @classmethod
    def of(cls, images: Tensor, eye: Classifier) -> "Reference":
        features = look(images, eye).features
        return cls(features, neighbours(features, max(PRECISION_K, COVERAGE_K)))


def measure(seen: Seen, reference: Reference) -> dict[str, float]:
    """Returns every measure of n generated images against the reference's real ones.

    frechet_distance: 0 at best. It grows with n's smallness: compare equal n only.
    precision, recall: shares, 1 at best: images among real ones, real ones among images.
    density, coverage: as precision and recall, but outliers weigh less. Density may exceed 1.
    confidence: the mean of the eye's highest probability.
    kl_to_uniform, smallest_share: of the digits that the eye names. 0 nats and 0.1 at best.
    """
    features, logits = seen
    precision, recall = precision_recall(reference.features, features, near=reference.near)
    density, coverage = density_coverage(reference.features, features, near=reference.near)
    counts = digit_counts(logits)
    return {
        "frechet_distance": frechet_distance(reference.features, features),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
        "confidence": logits.softmax(1).amax(1).double().mean().item(),
        "kl_to_uniform": kl_to_uniform(counts),
        "smallest_share": counts.min().item() / len(logits),
    }


@torch.no_grad()
def look(images: Tensor, eye: Classifier) -> Seen:
    """Returns what the eye sees in images, (n, 784)."""
    features = torch.cat([eye.features(batch) for batch in images.split(500)])
    return Seen(features.double(), eye.head(features))


def digit_counts(logits: Tensor) -> Tensor:
    """Returns how many images the eye takes for each digit: (n, 10) -> (10,) int64."""
    return logits.argmax(1).bincount(minlength=DIGITS)


def kl_to_uniform(counts: Tensor) -> float:
    """Returns the KL divergence, in nats, of a histogram to the uniform distribution.

    Args:
        counts: (10,); 0 for equal counts, log 10 where one digit has them all.
    """
    shares = counts.double() / counts.sum()
    return (math.log(len(counts)) - torch.special.entr(shares).sum()).item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Returns the Fréchet distance between Gaussians fitted to features (Heusel et al. 2017).

    |mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)), A and B the covariances.

    Args:
        a: (n, d)
        b: (m, d)
    """
    a, b = a.double(), b.double()
    A, B = a.T.cov(), b.T.cov()  # (d, d)
    # With A = R R^T and B = S S^T, the roots of A B's eigenvalues are the singular values of R^T S.
    # Taken so, no eigenvalue is complex, nor is the root of a rounding taken, even where features
    # that are never active make A and B singular.
    root_trace = torch.linalg.svdvals(_root(A).T @ _root(B)).sum()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    return (mean + A.trace() + B.trace() - 2 * root_trace).item()


def _root(covariance: Tensor) -> Tensor:
    """Returns R, of R R^T = covariance: its eigenvectors, each times its eigenvalue's root."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()


def precision_recall(
    real: Tensor, fake: Tensor, k: int = PRECISION_K, near: Tensor | None = None
) -> tuple[float, float]:
    """Returns improved precision and recall (Kynkäänniemi et al. 2019), each from 0 to 1.

    Precision is the share of fakes inside of any real one's ball, which reaches to its k-th
    neighbour; recall the share of real ones inside of any fake's ball.

    Args:
        real: (n, d) features, more than k
        fake: (m, d) features, more than k
        near: neighbours(real, k or more), if already known
    """
    real, fake = real.double(), fake.double()
    real_radii = (neighbours(real, k) if near is None else near)[:, k - 1]  # (n,)
    fake_radii = neighbours(fake, k)[:, k - 1]  # (m,)
    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=fake.device)
    for rows, squared in _squared_distances(real, fake):
        precise |= (squared < real_radii[rows, None]).any(0)
        recalled[rows] = (squared < fake_radii).any(1)
    return precise.double().mean().item(), recalled.double().mean().item()


def density_coverage(
    real: Tensor, fake: Tensor, k: int = COVERAGE_K, near: Tensor | None = None
) -> tuple[float, float]:
    """Returns density (0 or more) and coverage (0 to 1) (Naeem et al. 2020).

    Density is the mean number of real ones' balls that a fake lies in, divided by k; coverage the
    share of real ones with a fake in their ball.

    Args:
        real: (n, d) features, more than k
        fake: (m, d) features
        near: neighbours(real, k or more), if already known
    """
    real, fake = real.double(), fake.double()
    radii = (neighbours(real, k) if near is None else near)[:, k - 1]  # (n,)
    inside = torch.zeros(len(real), dtype=torch.int64, device=real.device)
    for rows, squared in _squared_distances(real, fake):
        inside[rows] = (squared < radii[rows, None]).sum(1)
    density = inside.sum().item() / (k * len(fake))
    return density, (inside > 0).double().mean().item()


def neighbours(features: Tensor, k: int) -> Tensor:
    """Returns the squared distances to the k nearest others, ascending: (n, d) -> (n, k)."""
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
    # float32 is precise enough to choose the nearest by, twice as fast as float64; the distance
    # itself is then taken from the difference, so that a copy is at 0 and not near it.
    blocks = _squared_distances(images, others)
    nearest = torch.cat([squared.argmin(1) for _, squared in blocks])  # (n,)
    return (images - others[nearest]).norm(dim=1)


def _squared_distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields rows of a, (n, d), and their squared distances to all of b, (m, d): (rows, m).

    |a|^2 + |b|^2 - 2 a b as one matrix product is ten times as fast as the sum over differences,
    but rounds to what is small beside |a|^2. In float32 that leaves four digits of a near
    neighbour's distance and parts a point from its copy; so features come here in float64.
    """
    left = torch.cat([-2 * a, a.square().sum(1, keepdim=True), torch.ones_like(a[:, :1])], 1)
    right = torch.cat([b, torch.ones_like(b[:, :1]), b.square().sum(1, keepdim=True)], 1)
    size = max(1, BLOCK // len(b))
    for start in range(0, len(a), size):
        rows = slice(start, start + size)
        yield rows, left[rows] @ right.T
