"""Figure 7: paths of latent vectors from one digit to another, and what is seen on the way."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Tensor

from analysis.figures import save
from analysis.images import seen_table, show
from analysis.results import NoResults
from models import classifier, gan, quality

STEPS = 7  # images between the two ends
SURE = 0.99  # what the classifier gives to the digit at an end, or more
PAIRS = ((0, 6), (3, 8), (4, 9), (7, 1), (5, 2))


def pairs_of(start: int | None, end: int | None) -> list[tuple[int, int]]:
    """Returns the pairs of digits to interpolate between, of what --from and --to say."""
    if start is None and end is None:
        return list(PAIRS)
    if start is None or end is None:
        raise NoResults("--from and --to go together")
    if start == end:
        raise NoResults(f"--from {start} --to {end}: interpolate between two different digits")
    return [(start, end)]


def slerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Returns points on the arc between two vectors (d,), at shares t (n,) of its angle: (n, d).

    Spherical interpolation (Shoemake 1985; for latent vectors, White 2016): vectors drawn from
    N(0, 1) have lengths near sqrt(d), and points of the straight line between two are shorter.
    """
    angle = torch.acos(torch.cosine_similarity(start, end, dim=0).clamp(-1, 1))
    t = t[:, None]
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)


def lerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Returns points on the straight line between two vectors (d,), at shares t (n,): (n, d)."""
    return torch.lerp(start, end, t[:, None])


PATHS = {"linear": lerp, "spherical": slerp}


def find_latents(
    generator: gan.Generator, seed: int, eye: classifier.Classifier
) -> dict[int, Tensor]:
    """Returns for each digit a latent vector of which the classifier is sure: the first found.

    A digit of which it never is has its best one; one that is never seen, none.
    """
    z = gan.latents(seed, "ends", count=gan.SAMPLES, latent_dim=generator.latent_dim)
    seen = seen_table(gan.draw(generator, z), eye)
    found = {}
    for digit, rows in seen.groupby("digit"):
        sure = rows["confidence"].clip(upper=SURE)
        found[digit] = z[int(rows.loc[sure.idxmax(), "image"])]  # the first of the surest
    return found


def smoothness(features: Tensor) -> float:
    """Returns the largest step of a path of features (n, d) over its mean step: 1 is even."""
    steps = features.diff(dim=0).norm(dim=1)
    return (steps.max() / steps.mean()).item()


def draw_interpolation(
    generator: gan.Generator,
    seed: int,
    eye: classifier.Classifier,
    pairs: list[tuple[int, int]],
    out: Path,
    name: str = "figure7",
) -> Path:
    """Draws Figure 7: for each pair of digits a path from one to the other, straight and on an arc.

    A pair with a digit that the generator never draws is left out, and told.

    Raises:
        NoResults: no pair is left.
    """
    ends = find_latents(generator, seed, eye)
    never = sorted({digit for pair in pairs for digit in pair} - ends.keys())
    if never:
        print(f"never seen in {gan.SAMPLES} samples: {', '.join(map(str, never))}")
    pairs = [pair for pair in pairs if set(pair) <= ends.keys()]
    if not pairs:
        raise NoResults("no Figure 7: the digits to interpolate between are never drawn")
    t = torch.linspace(0, 1, STEPS + 2)
    rows = [(*pair, path) for pair in pairs for path in PATHS]
    figure, grid = plt.subplots(len(rows), len(t), figsize=(9, 1.28 * len(rows)), squeeze=False)
    tables = []
    for (start, end, path), line in zip(rows, grid, strict=True):
        images = gan.draw(generator, PATHS[path](ends[start], ends[end], t))
        uneven = smoothness(quality.look(images, eye).features)
        seen = seen_table(images, eye)
        for axes, image, digit, sure in zip(
            line, images, seen["digit"], seen["confidence"], strict=True
        ):
            show(axes, image)
            axes.text(0.5, -0.04, f"{digit}  {sure:.0%}", ha="center", va="top", size=8,
                      transform=axes.transAxes)  # fmt: skip
        label = f"{start} to {end}\n{path}\nlargest step\n{uneven:.1f} x mean"
        line[0].text(-0.12, 0.5, label, ha="right", va="center", size=8,
                     transform=line[0].transAxes)  # fmt: skip
        labels = {"from": start, "to": end, "path": path, "t": t, "largest/mean step": uneven}
        tables.append(pd.DataFrame(labels).join(seen[["digit", "confidence"]]))
    title = f"Figure 7: {STEPS} images between two digits, and what a classifier sees"
    grid[0][len(t) // 2].set_title(title, size=10)
    table = pd.concat(tables)
    alt = "; ".join(
        f"{start} to {end}, {path}: " + " ".join(map(str, row["digit"]))
        for (start, end, path), row in table.groupby(["from", "to", "path"], sort=False)
    )
    return save(figure, table, out, name, f"The digits seen on the way from {alt}")
