"""Interpolation between two digits in the latent space: Figure 7, and how smooth it is."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Tensor

from analysis.cli import ResultsError
from analysis.figures import PALETTE, save
from analysis.images import prediction_table, show_image
from models import gan
from models.classifier import Classifier
from models.gan_metrics import classify

NUM_STEPS = 7  # images between the two ends
MIN_CONFIDENCE = 0.99  # of the classifier in the digit at an end
PAIRS = ((0, 6), (3, 8), (4, 9), (7, 1), (5, 2))
NUM_PAIRS = 100  # whose smoothness is measured


def slerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation of two vectors (d,) at fractions t (n,) of their angle: (n, d).

    Shoemake 1985; for latent vectors, White 2016. Vectors from N(0, 1) have lengths near sqrt(d),
    and points on the straight line between two of them are shorter.
    """
    angle = torch.acos(torch.cosine_similarity(start, end, dim=0).clamp(-1, 1))
    t = t[:, None]
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)


def lerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Linear interpolation of two vectors (d,) at fractions t (n,): (n, d)."""
    return torch.lerp(start, end, t[:, None])


PATHS = {"linear": lerp, "spherical": slerp}


def find_latents(generator: gan.Generator, seed: int, classifier: Classifier) -> dict[int, Tensor]:
    """Returns a latent vector for each digit: the first one with MIN_CONFIDENCE.

    If no image of a digit has that, the one with the highest confidence; a digit that is never
    predicted is left out.
    """
    z = gan.make_latents(seed, "ends", count=gan.NUM_EVAL_SAMPLES, latent_dim=generator.latent_dim)
    predictions = prediction_table(gan.generate(generator, z), classifier)
    latents = {}
    for digit, rows in predictions.groupby("digit"):
        confidence = rows["confidence"].clip(upper=MIN_CONFIDENCE)
        latents[digit] = z[int(rows.loc[confidence.idxmax(), "image"])]  # the first maximum
    return latents


def smoothness(features: Tensor) -> float:
    """Returns the largest step of a path of features (n, d) over its mean step; 1 is even."""
    steps = features.diff(dim=0).norm(dim=1)
    return (steps.max() / steps.mean()).item()


def smoothness_table(generator: gan.Generator, seed: int, classifier: Classifier) -> pd.DataFrame:
    """Returns the smoothness of paths between NUM_PAIRS pairs of images of different digits.

    The pairs are the first latent vectors, two at a time, that both have MIN_CONFIDENCE. Beside the
    two paths, "pixels" blends the two images themselves: the classifier's part in the unevenness.
    """
    z = gan.make_latents(seed, "pairs", count=gan.NUM_EVAL_SAMPLES, latent_dim=generator.latent_dim)
    predictions = prediction_table(gan.generate(generator, z), classifier)
    confident = predictions[predictions["confidence"] >= MIN_CONFIDENCE]
    t = torch.linspace(0, 1, NUM_STEPS + 2)
    rows: list[dict[str, object]] = []
    for first, second in zip(confident.index[::2], confident.index[1::2], strict=False):
        digits = {"from": predictions["digit"][first], "to": predictions["digit"][second]}
        if len(rows) == NUM_PAIRS * (len(PATHS) + 1):
            break
        if digits["from"] == digits["to"]:
            continue
        images = {
            name: gan.generate(generator, f(z[first], z[second], t)) for name, f in PATHS.items()
        }
        images["pixels"] = lerp(images["linear"][0], images["linear"][-1], t)
        for path, frames in images.items():
            ratio = smoothness(classify(frames, classifier).features)
            rows.append({**digits, "path": path, "largest/mean step": ratio})
    return pd.DataFrame(rows, columns=["from", "to", "path", "largest/mean step"])


def plot_smoothness(
    generator: gan.Generator, seed: int, classifier: Classifier, out: Path
) -> Path | None:
    """Plots the distribution of the smoothness of many paths; None without confident images."""
    table = smoothness_table(generator, seed, classifier)
    if table.empty:
        return None
    figure, axes = plt.subplots(figsize=(6, 3.4))
    summary = []
    for (path, rows), color in zip(table.groupby("path", sort=False), PALETTE, strict=False):
        ratios = rows["largest/mean step"].sort_values()
        low, median, high = ratios.quantile([0.1, 0.5, 0.9])
        summary.append(f"{path}: median {median:.1f}, 80 % from {low:.1f} to {high:.1f}")
        fraction = [100 * (i + 1) / len(ratios) for i in range(len(ratios))]
        axes.step(ratios, fraction, where="post", color=color, label=summary[-1])
    axes.set(title=f"how even are the steps between two digits? {len(ratios)} pairs",
             xlabel="largest step / mean step, in features (1 is even)",
             ylabel="paths up to this value (%)", ylim=(0, 100))  # fmt: skip
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16))
    alt = f"Largest step over mean step along {len(ratios)} paths. {'; '.join(summary)}"
    return save(figure, table, out, "smoothness", alt)


def plot_interpolation(
    generator: gan.Generator,
    seed: int,
    classifier: Classifier,
    pairs: list[tuple[int, int]],
    out: Path,
    name: str = "figure7",
) -> tuple[Path, str]:
    """Plots Figure 7: for each pair of digits a linear and a spherical interpolation.

    Leaves out pairs with a digit that the generator never generates.

    Returns:
        The path, and a sentence about the pairs that are left out, empty without any.

    Raises:
        ResultsError: no pair is left.
    """
    ends = find_latents(generator, seed, classifier)
    missing = sorted({digit for pair in pairs for digit in pair} - ends.keys())
    absent = f"no {', '.join(map(str, missing))} in {gan.NUM_EVAL_SAMPLES} generated images"
    left_out = [f"{start} to {end}" for start, end in pairs if not {start, end} <= ends.keys()]
    pairs = [pair for pair in pairs if {*pair} <= ends.keys()]
    if not pairs:
        raise ResultsError(f"no Figure 7: {absent}")
    t = torch.linspace(0, 1, NUM_STEPS + 2)
    rows = [(*pair, path) for pair in pairs for path in PATHS]
    figure, grid = plt.subplots(len(rows), len(t), figsize=(9, 1.28 * len(rows)), squeeze=False)
    tables = []
    for (start, end, path), axes_row in zip(rows, grid, strict=True):
        images = gan.generate(generator, PATHS[path](ends[start], ends[end], t))
        ratio = smoothness(classify(images, classifier).features)
        predictions = prediction_table(images, classifier)
        for axes, image, digit, confidence in zip(
            axes_row, images, predictions["digit"], predictions["confidence"], strict=True
        ):
            show_image(axes, image)
            axes.text(0.5, -0.04, f"{digit}  {confidence:.0%}", ha="center", va="top", size=8,
                      transform=axes.transAxes)  # fmt: skip
        label = f"{start} to {end}\n{path}\nlargest step\n{ratio:.1f} x mean"
        axes_row[0].text(-0.12, 0.5, label, ha="right", va="center", size=8,
                         transform=axes_row[0].transAxes)  # fmt: skip
        labels = {"from": start, "to": end, "path": path, "t": t, "largest/mean step": ratio}
        tables.append(pd.DataFrame(labels).join(predictions[["digit", "confidence"]]))
    title = f"Figure 7: {NUM_STEPS} images between two digits, with predicted digit and confidence"
    grid[0][len(t) // 2].set_title(title, size=10)
    table = pd.concat(tables)
    alt = "; ".join(
        f"{start} to {end}, {path}: " + " ".join(map(str, row["digit"]))
        for (start, end, path), row in table.groupby(["from", "to", "path"], sort=False)
    )
    figure7 = save(figure, table, out, name, f"Predicted digits along each interpolation: {alt}")
    return figure7, f"Figure 7 without {', '.join(left_out)}: {absent}" if left_out else ""
