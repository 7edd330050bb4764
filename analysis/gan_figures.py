"""Figures of a run of the GAN: the report's Figures 4-6, losses, sample quality, a GIF."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure
from torch import Tensor

from analysis.cli import ResultsError
from analysis.figures import PALETTE, save
from analysis.images import GRAY_IMAGE, describe_predictions, image_grid, prediction_table
from analysis.interpolation import PAIRS, plot_interpolation, plot_smoothness
from analysis.results import Trial, read_trials
from models import gan, gan_metrics, image_data
from models.classifier import Classifier
from models.rng import make_rng

# Printed where the dataset is not MNIST as it comes with the package.
OTHER_DATA = (
    "The metrics use the features of a classifier of MNIST's digits. On other images its classes\n"
    "(digits.png, Figure 7, confidence, kl_to_uniform, rarest_class_fraction) mean nothing.\n"
)
GRID = 8  # rows and columns of a grid of images
NUM_NEAREST = 2_000  # images whose nearest training image is searched


def read_run(results: str) -> tuple[Trial, dict[int, gan.Generator]]:
    """Reads a run of jobs/gan.py, and the generators of its checkpoints, by epoch.

    Raises:
        ResultsError: there is no such run, or no checkpoint that fits it.
    """
    run, *others = read_trials(results)
    if others or not {"latent_dim", "epochs", "seed", "data"} <= run.config.keys():
        raise ResultsError(f"{results}: not a run of jobs/gan.py")
    generators = {}
    for checkpoint in run.checkpoints():
        generator = gan.Generator(run.config["latent_dim"])
        try:
            generator.load_state_dict(checkpoint.state["generator"])
        except (RuntimeError, KeyError, TypeError):
            raise ResultsError(
                f"{results}/{checkpoint.name}: not a GAN with latent_dim {run.config['latent_dim']}"
            ) from None
        generators[checkpoint.epoch] = generator
    if not generators:
        raise ResultsError(f"{results}: no valid checkpoint yet")
    return run, dict(sorted(generators.items()))


def grid_latents(run: Trial) -> Tensor:
    config = run.config
    return gan.make_latents(config["seed"], "grid", count=GRID**2, latent_dim=config["latent_dim"])


def grid_figure(images: Tensor, title: str) -> Figure:
    figure, axes = plt.subplots(figsize=(5, 5.3))
    axes.imshow(image_grid(images, GRID).numpy(), **GRAY_IMAGE)
    axes.set_axis_off()
    axes.set_title(title, size=10)
    return figure


def plot_grids(
    run: Trial, generators: dict[int, gan.Generator], classifier: Classifier, out: Path
) -> list[Path]:
    """Plots Figures 4, 5 and 6: the same latent vectors before, during and after training."""
    first, last = min(generators), max(generators)
    middle = min(generators, key=lambda epoch: abs(epoch - last / 2))
    ends = {0: "before training", run.config["epochs"]: "after training"}
    paths = []
    for name, epoch, default in (
        ("figure4", first, "at the first checkpoint"),
        ("figure5", middle, "during training"),
        ("figure6", last, "so far"),
    ):
        label = ends.get(epoch, default)
        images = gan.generate(generators[epoch], grid_latents(run))
        figure = grid_figure(images, f"Figure {name[-1]}: G {label}, epoch {epoch}")
        predictions = prediction_table(images, classifier)
        paths.append(save(figure, predictions, out, name, describe_predictions(predictions)))
    return paths


def write_training_gif(run: Trial, generators: dict[int, gan.Generator], out: Path) -> Path:
    """Writes training.gif: the images of the same latent vectors, one frame per checkpoint."""
    figure = grid_figure(torch.full((GRID**2, image_data.PIXELS), -1.0), "")
    (axes,) = figure.axes
    writer = PillowWriter(fps=4)
    path = out / "training.gif"
    with writer.saving(figure, path, dpi=80):
        for epoch, generator in generators.items():
            images = gan.generate(generator, grid_latents(run))
            axes.images[0].set_data(image_grid(images, GRID).numpy())
            axes.set_title(f"epoch {epoch}", size=10)
            for _ in range(6 if epoch == max(generators) else 1):  # the last one stays longer
                writer.grab_frame()
    plt.close(figure)
    return path


def plot_losses(rows: pd.DataFrame, out: Path) -> Path:
    """Plots both losses, and the discriminator outputs for real and generated images."""
    figure, (losses, outputs) = plt.subplots(1, 2, figsize=(9, 3.4))
    for axes, column, label, color in (
        (losses, "loss_d", "$L_D$", PALETTE[0]),
        (losses, "loss_g", "$L_G$", PALETTE[1]),
        (outputs, "d_real", "D(x), real images", PALETTE[0]),
        (outputs, "d_fake", "D(G(z)), generated images", PALETTE[1]),
    ):
        axes.plot(rows["epoch"], rows[column], label=label, color=color, lw=1.4)
    losses.set(title="losses", xlabel="epoch", ylabel="mean over the epoch (nats)")
    outputs.set(title="discriminator outputs", xlabel="epoch", ylabel="mean probability")
    outputs.set_ylim(0, 1)
    for axes in (losses, outputs):
        axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    data = rows[["epoch", "loss_d", "loss_g", "d_real", "d_fake"]]
    first, last = rows.iloc[0], rows.iloc[-1]
    alt = f"From epoch {first['epoch']} to {last['epoch']}: " + ", ".join(
        f"{name} from {first[column]:.2f} to {last[column]:.2f}"
        for column, name in (
            ("loss_d", "loss of D"), ("loss_g", "loss of G"),
            ("d_real", "D(x)"), ("d_fake", "D(G(z))"),
        )
    )  # fmt: skip
    return save(figure, data, out, "losses", alt)


def plot_quality(rows: pd.DataFrame, baseline: pd.Series | None, out: Path) -> Path:
    """Plots the quality metrics over the epochs, with the real-data baseline if it is known."""
    figure, (distance, values) = plt.subplots(1, 2, figsize=(9, 3.4))
    distance.semilogy(rows["epoch"], rows["frechet_distance"], "o-", ms=3, color=PALETTE[0])
    if baseline is not None:
        distance.axhline(baseline["frechet_distance"], color="black", lw=1, ls=":")
        distance.text(0.01, baseline["frechet_distance"] * 1.1, "training images",
                      transform=distance.get_yaxis_transform())  # fmt: skip
    distance.set(title="Fréchet distance to the test images", xlabel="epoch")
    for name, color in zip(("precision", "recall", "density", "coverage"), PALETTE, strict=False):
        values.plot(rows["epoch"], rows[name], "o-", ms=3, label=name, color=color)
        if baseline is not None:
            values.axhline(baseline[name], color=color, lw=1, ls=":")
            values.set_title("dotted: training images")
    values.set(xlabel="epoch", ylabel="value")
    values.set_ylim(0)
    for axes in (distance, values):
        axes.xaxis.get_major_locator().set_params(integer=True)
    values.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4)
    columns = ["epoch", "frechet_distance", "precision", "recall", "density", "coverage"]
    first, last = rows.iloc[0], rows.iloc[-1]
    shown = [first, last] if baseline is None else [first, last, baseline]
    also = "" if baseline is None else ", and for training images"
    alt = f"At epochs {first['epoch']} and {last['epoch']}{also}: " + ", ".join(
        f"{name.replace('_', ' ')} {', '.join(f'{values[name]:.3g}' for values in shown)}"
        for name in columns[1:]
    )
    return save(figure, rows[columns], out, "quality_over_epochs", alt)


def quality_tables(
    samples: Tensor, data: image_data.ImageSplits, classifier: Classifier
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Evaluates samples, (10000, 784), with two baselines: training images and uniform noise.

    Returns:
        Each metric for samples and baselines; their predicted digits' counts; and the distances of
        samples and test images to the nearest training image, in pixel values from -1 to 1.
    """
    test, training = (image_data.normalize(split.images) for split in (data.test, data.train))
    reference = gan_metrics.ReferenceStats.from_images(test, classifier)
    # "floor" and "ceiling" are keys of random streams: other strings would change the results.
    subset = torch.randperm(len(training), generator=make_rng("floor"))[: len(samples)]
    noise = torch.rand(samples.shape, generator=make_rng("ceiling")) * 2 - 1
    metrics, counts = {}, {}
    kinds = {"generated": samples, "training images": training[subset], "uniform noise": noise}
    for name, images in kinds.items():
        output = gan_metrics.classify(images, classifier)
        metrics[name] = gan_metrics.measure(output, reference)
        counts[name] = gan_metrics.digit_counts(output.logits)
    nearest = {
        name: pd.Series(gan_metrics.nearest_distances(images[:NUM_NEAREST], training))
        for name, images in {"generated": samples, "test images": test}.items()
    }
    return pd.DataFrame(metrics), pd.DataFrame(counts), pd.DataFrame(nearest)


def plot_digits(counts: pd.DataFrame, metrics: pd.DataFrame, out: Path) -> Path:
    """Plots how often each digit is predicted in the samples."""
    figure, axes = plt.subplots(figsize=(6, 3.4))
    percent = 100 * counts / counts.sum()
    axes.bar(percent.index, percent["generated"], color=PALETTE[0], label="generated")
    axes.plot(percent.index, percent["training images"], "k_", ms=22, label="training images")
    kl = metrics.loc["kl_to_uniform", "generated"]
    axes.set(title=f"predicted digits: KL to uniform {kl:.3f} nats", ylabel="fraction (%)")
    axes.set_xticks(range(10))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    data = counts.rename_axis("digit").reset_index()
    fractions = ", ".join(f"{digit}: {value:.1f}%" for digit, value in percent["generated"].items())
    return save(figure, data, out, "digits", f"Fraction of each digit in the samples: {fractions}")


def plot_nearest(nearest: pd.DataFrame, out: Path) -> Path:
    """Plots the distances of generated images and of test images to the nearest training image.

    Copies of training images would be nearer than test images are.
    """
    figure, axes = plt.subplots(figsize=(6, 3.4))
    for (name, distances), color in zip(nearest.items(), PALETTE, strict=False):
        label = f"{name}, median {distances.median():.2f}"
        axes.hist(distances.dropna(), bins=50, range=(0, nearest.max().max()), alpha=0.6,
                  color=color, label=label)  # fmt: skip
    axes.set(title="does the generator copy training images?", ylabel="images",
             xlabel="distance to the nearest training image (pixels from -1 to 1)")  # fmt: skip
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    medians = ", ".join(f"{name} {median:.2f}" for name, median in nearest.median().items())
    alt = f"Distance to the nearest training image, median: {medians}"
    return save(figure, nearest, out, "nearest", alt)


def plot_metrics(
    run: Trial,
    generators: dict[int, gan.Generator],
    data: image_data.ImageSplits | None,
    classifier: Classifier,
    out: Path,
) -> tuple[list[Path], str]:
    """Plots losses, quality, digits and nearest images; returns the paths, and a table as text.

    Writes quality.csv, too: the metrics of the latest generator and of the baselines.

    Args:
        data: the run's dataset, or None if it is gone: then only what the rows have is plotted.
    """
    epoch, rows = max(generators), pd.DataFrame(run.rows)
    paths = [plot_losses(rows, out)] if len(rows) else []
    evaluated = rows.dropna(subset="frechet_distance") if "frechet_distance" in rows else None
    if data is None:
        if evaluated is not None:
            paths.append(plot_quality(evaluated, None, out))
        return paths, f"epoch {epoch} of {run.config['epochs']}, without its dataset"
    z = gan.eval_latents(run.config["seed"], run.config["latent_dim"])
    samples = gan.generate(generators[epoch], z)
    metrics, counts, nearest = quality_tables(samples, data, classifier)
    metrics.rename_axis("metric").reset_index().to_csv(out / "quality.csv", index=False)
    paths = [plot_digits(counts, metrics, out), plot_nearest(nearest, out), *paths]
    if evaluated is not None:
        paths.append(plot_quality(evaluated, metrics["training images"], out))
    paths.append(out / "quality.csv")
    medians = nearest.median()
    return paths, OTHER_DATA * bool(run.config["data"]) + (
        f"epoch {epoch} of {run.config['epochs']}, {gan.NUM_EVAL_SAMPLES} samples:\n"
        f"{metrics.to_string(float_format='{:.4g}'.format)}\n"
        f"nearest training image (median distance): generated {medians['generated']:.2f}, "
        f"test images {medians['test images']:.2f}"
    )


def plot_latest(
    run: Trial, generators: dict[int, gan.Generator], classifier: Classifier, out: Path
) -> tuple[list[Path], str, list[str]]:
    """Plots all figures of a run but its grids: how it was trained, what it generates now.

    Returns:
        The paths, a table as text, and a sentence about each thing that is left out.
    """
    data, left_out = None, []
    try:
        data = image_data.load(run.config["data"])
    except image_data.DataError as error:
        left_out.append(f"no figures that need the dataset: {error}")
    paths, table = plot_metrics(run, generators, data, classifier, out)
    latest, seed = generators[max(generators)], run.config["seed"]
    if path := plot_smoothness(latest, seed, classifier, out):
        paths.append(path)
    try:
        path, missing_pairs = plot_interpolation(latest, seed, classifier, list(PAIRS), out)
        paths.append(path)
        left_out += [missing_pairs] if missing_pairs else []
    except ResultsError as error:
        left_out.append(str(error))
    return paths, table, left_out
