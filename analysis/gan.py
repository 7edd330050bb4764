"""Draws what a GAN's training made: the report's Figures 4-7, losses, quality.

  python analysis/gan.py ~/ray_results/gan-report --out figures
  python analysis/gan.py ~/ray_results/gan-report --from 3 --to 8   only this
  python analysis/gan.py s3://BUCKET/gan/gan-report --out figures

Each figure is a PNG with the numbers behind it beside it as a CSV; training.gif
shows the same latent vectors over the epochs. A training that is still running
may be drawn.
"""

from analysis.arguments import Parser, check_writable, end_quietly, exit_with

if __name__ == "__main__":
    end_quietly()  # for as long as it runs: the imports alone take seconds

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure
from torch import Tensor

from analysis.figures import COLORS, save
from analysis.images import GREY, seen_table, tiled
from analysis.interpolation import draw_interpolation, pairs_of
from analysis.results import NoResults, Trial, read_trials
from models import classifier, digits, gan, quality
from models.randomness import generator as random_generator

GRID = 8  # rows and columns of a grid of images
NEAREST = 2_000  # images of which the nearest training image is looked for


def read_run(results: str) -> tuple[Trial, dict[int, gan.Generator]]:
    """Reads a run of jobs/gan.py, and the generators that its checkpoints hold, by epoch.

    Raises:
        NoResults: there is no such run, or no checkpoint that fits it.
    """
    run, *others = read_trials(results)
    if others or not {"latent_dim", "epochs", "seed", "data"} <= run.config.keys():
        raise NoResults(f"{results}: not a run of jobs/gan.py")
    generators = {}
    for checkpoint in run.checkpoints():
        generator = gan.Generator(run.config["latent_dim"])
        try:
            generator.load_state_dict(checkpoint.state["generator"])
        except (RuntimeError, KeyError, TypeError):
            raise NoResults(
                f"{results}/{checkpoint.name}: not a GAN with latent vectors of "
                f"{run.config['latent_dim']}"
            ) from None
        generators[checkpoint.epoch] = generator
    if not generators:
        raise NoResults(f"{results}: no whole checkpoint is here yet")
    return run, dict(sorted(generators.items()))


def grid_figure(images: Tensor, title: str) -> Figure:
    figure, axes = plt.subplots(figsize=(5, 5.3))
    axes.imshow(tiled(images, GRID).numpy(), **GREY)
    axes.set_axis_off()
    axes.set_title(title, size=10)
    return figure


def draw_grids(
    run: Trial, generators: dict[int, gan.Generator], eye: classifier.Classifier, out: Path
) -> list[Path]:
    """Draws Figures 4, 5 and 6: the same latent vectors before, halfway through and at the end."""
    first, last = min(generators), max(generators)
    middle = min(generators, key=lambda epoch: abs(epoch - last / 2))
    pictures = []
    for name, epoch, when in (
        ("figure4", first, "before training" if first == 0 else "at first"),
        ("figure5", middle, "during training"),
        ("figure6", last, "after training" if last == run.config["epochs"] else "so far"),
    ):
        images = gan.draw(generators[epoch], grid_latents(run))
        title, seen = f"Figure {name[-1]}: G {when}, epoch {epoch}", seen_table(images, eye)
        pictures.append(save(grid_figure(images, title), seen, out, name, told(seen)))
    return pictures


def told(seen: pd.DataFrame) -> str:
    """Returns in words what is seen in a grid of images."""
    counts = seen["digit"].value_counts().sort_index()
    digits_seen = ", ".join(f"{digit}: {count}" for digit, count in counts.items())
    return (
        f"{len(seen)} generated images. As the classifier names them, digit and number of images: "
        f"{digits_seen}; it is {seen['confidence'].median():.0%} sure of the median one."
    )


def grid_latents(run: Trial) -> Tensor:
    config = run.config
    return gan.latents(config["seed"], "grid", count=GRID**2, latent_dim=config["latent_dim"])


def draw_training(run: Trial, generators: dict[int, gan.Generator], out: Path) -> Path:
    """Writes training.gif: the grid's latent vectors, a picture for each checkpoint."""
    figure = grid_figure(torch.full((GRID**2, digits.PIXELS), -1.0), "")
    (axes,) = figure.axes
    writer = PillowWriter(fps=4)
    path = out / "training.gif"
    with writer.saving(figure, path, dpi=80):
        for epoch, generator in generators.items():
            images = gan.draw(generator, grid_latents(run))
            axes.images[0].set_data(tiled(images, GRID).numpy())
            axes.set_title(f"epoch {epoch}", size=10)
            for _ in range(6 if epoch == max(generators) else 1):  # the last one stands still
                writer.grab_frame()
    plt.close(figure)
    return path


def draw_losses(rows: pd.DataFrame, out: Path) -> Path:
    """Draws both losses, and D's opinion of real images and of generated ones, over the epochs."""
    figure, (losses, opinions) = plt.subplots(1, 2, figsize=(9, 3.4))
    for axes, column, name, color in (
        (losses, "loss_d", "$L_D$", COLORS[0]),
        (losses, "loss_g", "$L_G$", COLORS[1]),
        (opinions, "d_real", "D(x), real images", COLORS[0]),
        (opinions, "d_fake", "D(G(z)), generated images", COLORS[1]),
    ):
        axes.plot(rows["epoch"], rows[column], label=name, color=color, lw=1.4)
    losses.set(title="losses", xlabel="epoch", ylabel="mean over the epoch (nats)")
    opinions.set(title="what D takes for real", xlabel="epoch", ylabel="mean probability")
    opinions.set_ylim(0, 1)
    for axes in (losses, opinions):
        axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    numbers = rows[["epoch", "loss_d", "loss_g", "d_real", "d_fake"]]
    first, last = rows.iloc[0], rows.iloc[-1]
    alt = f"From epoch {first['epoch']} to {last['epoch']}: " + ", ".join(
        f"{name} from {first[column]:.2f} to {last[column]:.2f}"
        for column, name in (
            ("loss_d", "loss of D"), ("loss_g", "loss of G"),
            ("d_real", "D(x)"), ("d_fake", "D(G(z))"),
        )
    )  # fmt: skip
    return save(figure, numbers, out, "losses", alt)


def draw_quality(rows: pd.DataFrame, floor: pd.Series, out: Path) -> Path:
    """Draws the measures of quality over the epochs, beside what real images reach."""
    figure, (distance, shares) = plt.subplots(1, 2, figsize=(9, 3.4))
    distance.semilogy(rows["epoch"], rows["frechet_distance"], "o-", ms=3, color=COLORS[0])
    distance.axhline(floor["frechet_distance"], color="black", lw=1, ls=":")
    distance.text(0.01, floor["frechet_distance"] * 1.1, "training images",
                  transform=distance.get_yaxis_transform())  # fmt: skip
    distance.set(title="Fréchet distance to the test images", xlabel="epoch")
    for name, color in zip(("precision", "recall", "density", "coverage"), COLORS, strict=False):
        shares.plot(rows["epoch"], rows[name], "o-", ms=3, label=name, color=color)
        shares.axhline(floor[name], color=color, lw=1, ls=":")
    shares.set(title="dotted: training images", xlabel="epoch", ylabel="share")
    shares.set_ylim(0)
    for axes in (distance, shares):
        axes.xaxis.get_major_locator().set_params(integer=True)
    shares.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4)
    columns = ["epoch", "frechet_distance", "precision", "recall", "density", "coverage"]
    first, last = rows.iloc[0], rows.iloc[-1]
    alt = f"From epoch {first['epoch']} to {last['epoch']}, and of training images: " + ", ".join(
        f"{name.replace('_', ' ')} {first[name]:.3g}, {last[name]:.3g}, {floor[name]:.3g}"
        for name in columns[1:]
    )
    return save(figure, rows[columns], out, "quality_over_epochs", alt)


def quality_table(
    samples: Tensor, data: digits.Digits, eye: classifier.Classifier
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Measures generated images, (10000, 784), and two anchors: real images and noise.

    Returns:
        Each measure for each kind of image; how many of each digit the classifier sees in them;
        and each kind's distances to the nearest training images, in pixel values from -1 to 1.
    """
    test, training = digits.scaled(data.test.images), digits.scaled(data.train.images)
    reference = quality.Reference.of(test, eye)
    some = torch.randperm(len(training), generator=random_generator("floor"))[: len(samples)]
    noise = torch.rand(samples.shape, generator=random_generator("ceiling")) * 2 - 1
    measures, counts = {}, {}
    kinds = {"generated": samples, "training images": training[some], "uniform noise": noise}
    for name, images in kinds.items():
        seen = quality.look(images, eye)
        measures[name] = quality.measure(seen, reference)
        counts[name] = quality.digit_counts(seen.logits)
    nearest = {
        name: pd.Series(quality.nearest_distances(images[:NEAREST], training))
        for name, images in {"generated": samples, "test images": test}.items()
    }
    return pd.DataFrame(measures), pd.DataFrame(counts), pd.DataFrame(nearest)


def draw_digits(counts: pd.DataFrame, measures: pd.DataFrame, out: Path) -> Path:
    """Draws how often the classifier sees each digit in the samples."""
    figure, axes = plt.subplots(figsize=(6, 3.4))
    percent = 100 * counts / counts.sum()
    axes.bar(percent.index, percent["generated"], color=COLORS[0], label="generated")
    axes.plot(percent.index, percent["training images"], "k_", ms=22, label="training images")
    kl = measures.loc["kl_to_uniform", "generated"]
    axes.set(title=f"digits seen in the samples: KL to uniform {kl:.3f} nats", ylabel="share (%)")
    axes.set_xticks(range(10))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    numbers = counts.rename_axis("digit").reset_index()
    shares = ", ".join(f"{digit}: {share:.1f}%" for digit, share in percent["generated"].items())
    return save(figure, numbers, out, "digits", f"Share of each digit in the samples: {shares}")


def draw_nearest(nearest: pd.DataFrame, out: Path) -> Path:
    """Draws how far from generated, and from test images the nearest training image is.

    Copies of training images would be nearer than test images are.
    """
    figure, axes = plt.subplots(figsize=(6, 3.4))
    for (name, distances), color in zip(nearest.items(), COLORS, strict=False):
        label = f"{name}, median {distances.median():.2f}"
        axes.hist(distances.dropna(), bins=50, range=(0, nearest.max().max()), alpha=0.6,
                  color=color, label=label)  # fmt: skip
    axes.set(title="is it copying?", ylabel="images",
             xlabel="distance to the nearest training image (pixels from -1 to 1)")  # fmt: skip
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    medians = ", ".join(f"{name} {median:.2f}" for name, median in nearest.median().items())
    alt = f"Distance to the nearest training image, median: {medians}"
    return save(figure, nearest, out, "nearest", alt)


def draw_measures(
    run: Trial,
    generators: dict[int, gan.Generator],
    data: digits.Digits,
    eye: classifier.Classifier,
    out: Path,
) -> tuple[list[Path], str]:
    """Draws losses, quality, digits and nearest images; returns the pictures, and a table as text.

    Writes quality.csv, too: the newest generator's measures between those of the anchors.
    """
    epoch = max(generators)
    z = gan.sample_latents(run.config["seed"], run.config["latent_dim"])
    measures, counts, nearest = quality_table(gan.draw(generators[epoch], z), data, eye)
    measures.rename_axis("measure").reset_index().to_csv(out / "quality.csv", index=False)
    pictures = [draw_digits(counts, measures, out), draw_nearest(nearest, out)]
    rows = pd.DataFrame(run.rows)
    if len(rows):
        pictures.append(draw_losses(rows, out))
    if "frechet_distance" in rows:
        measured = rows.dropna(subset="frechet_distance")
        pictures.append(draw_quality(measured, measures["training images"], out))
    medians = nearest.median()
    return pictures, (
        f"epoch {epoch} of {run.config['epochs']}, {gan.SAMPLES} samples:\n"
        f"{measures.to_string(float_format='{:.4g}'.format)}\n"
        f"nearest training image (median distance): generated {medians['generated']:.2f}, "
        f"test images {medians['test images']:.2f}"
    )


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("results", metavar="RESULTS", help="a run of jobs/gan.py: folder or URI")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder (figures)")
    for end in ("from", "to"):
        parser.add_argument(
            f"--{end}", type=int, choices=range(10), dest=end, metavar="DIGIT",
            help=f"draw nothing but an interpolation {end} this digit (all figures)",
        )  # fmt: skip
    return parser


def main() -> int:
    arguments = parser().parse_args()
    one_pair = arguments.to is not None
    try:
        pairs = pairs_of(vars(arguments)["from"], arguments.to)
        run, generators = read_run(arguments.results)
        data = None if one_pair else digits.load(run.config["data"])
        arguments.out.mkdir(parents=True, exist_ok=True)
        check_writable(arguments.out)
    except (NoResults, digits.DataError, OSError) as error:
        print(f"analysis/gan.py: {error}", file=sys.stderr)
        return 2
    out, eye, told, made = arguments.out, classifier.load(), [], []
    if data:
        made += draw_grids(run, generators, eye, out)
        pictures, measures = draw_measures(run, generators, data, eye, out)
        told.append(measures)
        made += [*pictures, draw_training(run, generators, out), out / "quality.csv"]
    last, seed = generators[max(generators)], run.config["seed"]
    name = "figure7_{}_to_{}".format(*pairs[0]) if one_pair else "figure7"
    missed = False
    try:
        made.append(draw_interpolation(last, seed, eye, pairs, out, name))
    except NoResults as error:  # the other figures are drawn all the same
        print(f"analysis/gan.py: {error}", file=sys.stderr)
        missed = one_pair
    print("".join(f"{line}\n" for line in (*told, *made)), end="")
    return 2 if missed else 0


if __name__ == "__main__":
    exit_with(main)
