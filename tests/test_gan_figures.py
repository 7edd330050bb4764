"""Figures of a run of jobs/gan.py, and of one that is made without Ray."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from mnist_files import mnist_subset
from PIL import Image
from processes import run_script

import analysis.gan
from analysis import gan_figures, interpolation
from analysis.results import read_trials
from models import checkpoint, gan
from models.classifier import load_classifier

NAMES = ("figure4", "figure5", "figure6", "losses", "quality_over_epochs", "digits", "nearest")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run of three epochs on a small dataset; epoch 1 is not evaluated."""
    folder = tmp_path_factory.mktemp("gan figures")
    data = mnist_subset(folder / "dataset", 6400, 300)
    flags = ["--data", data, "--epochs", 3, "--keep-every", 1, "--eval-every", 2]
    flags += ["--cpus-per-worker", 1, "--storage", folder, "--name", "small"]
    done = run_script("jobs/gan.py", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "small"


@pytest.fixture(scope="module")
def plotted(trained) -> tuple[Path, str]:
    """The folder of figures of analysis/gan.py, and what it printed."""
    out = trained.parent / "figures"
    done = run_script("analysis/gan.py", trained, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_script_writes_each_figure_with_its_data(plotted):
    out, output = plotted
    for name in NAMES:
        with Image.open(out / f"{name}.png") as image:
            assert image.width > 400
            assert len(image.text["Description"]) > 30
        assert len(pd.read_csv(out / f"{name}.csv")) > 0
        assert f"{out / name}.png\n" in output
    assert "epoch 3 of 3, 10000 samples" in output


def test_gif_has_a_frame_per_checkpoint(plotted):
    out, _ = plotted
    with Image.open(out / "training.gif") as animation:
        # The repeated frames at the end may be stored as one that is shown longer.
        assert animation.n_frames >= 4


def test_quality_agrees_with_the_metrics_of_the_job(plotted, trained):
    out, _ = plotted
    table = pd.read_csv(out / "quality.csv", index_col="metric")
    assert list(table) == ["generated", "training images", "uniform noise"]
    (trial,) = read_trials(str(trained))
    for name, value in table["generated"].items():
        assert trial.rows[-1][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    evaluated = [row["epoch"] for row in trial.rows if "frechet_distance" in row]
    assert pd.read_csv(out / "quality_over_epochs.csv")["epoch"].tolist() == evaluated == [2, 3]


def test_baselines_enclose_the_generated_images(plotted):
    out, _ = plotted
    table = pd.read_csv(out / "quality.csv", index_col="metric")
    distances = table.loc["frechet_distance"]
    assert distances["training images"] < distances["generated"] < distances["uniform noise"]
    assert table.loc["precision", "training images"] > 0.5
    counts = pd.read_csv(out / "digits.csv", index_col="digit")
    assert counts.sum().tolist() == [10_000, 6400, 10_000]


def test_generators_are_those_of_the_checkpoints(gan_run):
    trial, generators = gan_figures.read_run(str(gan_run))
    assert list(generators) == [0, 1, 2]
    z = gan_figures.grid_latents(trial)
    assert torch.equal(z, gan_figures.grid_latents(trial))
    initial = gan.GAN(100, 0, 0.0002, (0.5, 0.999)).generator
    torch.testing.assert_close(gan.generate(generators[0], z), gan.generate(initial, z))


def test_interpolation_has_seven_images_between_two_digits(
    call_main, trained, few_samples, tmp_path
):
    trial, generators = gan_figures.read_run(str(trained))
    digits = interpolation.find_latents(generators[3], trial.config["seed"], load_classifier())
    assert len(digits) > 1  # the run generates more than one digit
    start, end = min(digits), max(digits)
    done = call_main(analysis.gan.main, trained, "--out", tmp_path, "--from", start, "--to", end)
    path = tmp_path / f"figure7_{start}_to_{end}.png"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}\n", "")
    assert {*tmp_path.iterdir()} == {path, path.with_suffix(".csv")}
    table = pd.read_csv(path.with_suffix(".csv"))
    assert {*table["path"]} == {"linear", "spherical"}
    for _, rows in table.groupby("path"):
        assert rows["t"].tolist() == pytest.approx([i / 8 for i in range(9)])
        assert [rows["digit"].iloc[0], rows["digit"].iloc[-1]] == [start, end]


@pytest.fixture
def gan_copy(gan_run, tmp_path) -> Path:
    """A copy of the run made without Ray, which a test may damage."""
    return shutil.copytree(gan_run, tmp_path / "small-gan")


@pytest.fixture
def few_samples(monkeypatch) -> None:
    """Evaluates fewer samples, where the numbers do not matter."""
    monkeypatch.setattr(gan, "NUM_EVAL_SAMPLES", 1000)


@pytest.mark.parametrize(("pair", "code"), [([], 0), (["--from", 3, "--to", 8], 2)])
def test_figure_7_is_left_out_if_its_digits_are_missing(
    call_main, gan_copy, few_samples, tmp_path, pair, code
):
    """The generator is made to generate a single image."""
    (trial,) = read_trials(str(gan_copy))
    latest = trial.latest_checkpoint()
    latest.state["generator"]["11.weight"].zero_()
    checkpoint.save(gan_copy / latest.name, latest.state, latest.history)
    out = tmp_path / "out"
    done = call_main(analysis.gan.main, gan_copy, "--out", out, *pair)
    assert done.returncode == code
    (sentence,) = done.stderr.splitlines()
    missing = "[0-9, ]+" if not pair else "(3, 8|3|8)"
    assert re.search(rf"\.py: no Figure 7: no {missing} in 1000 generated images$", sentence)
    assert (out / "figure6.png").exists() == (code == 0)
    assert not list(out.glob("figure7*"))


def test_figure_7_names_the_pairs_that_it_leaves_out(gan_run, monkeypatch, tmp_path):
    ends = dict(zip((1, 3, 8), torch.randn(3, 100), strict=True))
    monkeypatch.setattr(interpolation, "find_latents", lambda *_: ends)
    _, generators = gan_figures.read_run(str(gan_run))
    path, left_out = interpolation.plot_interpolation(
        generators[2], 0, load_classifier(), [(3, 8), (1, 7), (0, 1)], tmp_path
    )
    assert {*pd.read_csv(path.with_suffix(".csv"))["from"]} == {3}
    assert left_out == "Figure 7 without 1 to 7, 0 to 1: no 0, 7 in 10000 generated images"


@pytest.mark.parametrize(
    ("epochs", "labels"),
    [
        ([0], ["before training"] * 3),
        ([1], ["at the first checkpoint", "during training", "so far"]),
        ([2], ["after training"] * 3),
        ([0, 1], ["before training", "before training", "so far"]),
        ([0, 1, 2], ["before training", "during training", "after training"]),
    ],
)
def test_titles_of_the_grids_say_when_in_training_they_are(
    gan_run, monkeypatch, tmp_path, epochs, labels
):
    run, generators = gan_figures.read_run(str(gan_run))
    titles = []

    def record(images, title):
        titles.append(title)
        return grid_figure(images, title)

    grid_figure = gan_figures.grid_figure
    monkeypatch.setattr(gan_figures, "grid_figure", record)
    chosen = {epoch: generators[epoch] for epoch in epochs}
    gan_figures.plot_grids(run, chosen, load_classifier(), tmp_path)
    assert [title.partition(": G ")[2].partition(",")[0] for title in titles] == labels


def test_run_before_its_first_epoch_has_figures_without_losses(
    call_main, gan_copy, few_samples, tmp_path
):
    for epoch in (1, 2):
        shutil.rmtree(gan_copy / f"checkpoint_{epoch}")
    done = call_main(analysis.gan.main, gan_copy, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "epoch 0 of 2" in done.stdout
    assert (tmp_path / "out" / "digits.png").exists()
    assert not (tmp_path / "out" / "losses.png").exists()


def test_run_without_its_dataset_has_all_figures_that_do_not_need_it(call_main, gan_copy, tmp_path):
    settings = gan_copy / "settings.json"
    settings.write_text(settings.read_text().replace("dataset", "no such folder"))
    done = call_main(analysis.gan.main, gan_copy, "--out", tmp_path / "out")
    assert done.returncode == 0
    assert "no figures that need the dataset: " in done.stderr
    assert "no such folder/train-images-idx3-ubyte.gz" in done.stderr
    written = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert {"figure4.png", "figure5.png", "figure6.png", "losses.png"} <= written
    assert not {"digits.png", "nearest.png"} & written


def without_checkpoints(run: Path) -> None:
    for folder in run.glob("checkpoint_*"):
        shutil.rmtree(folder)


def with_another_latent_dim(run: Path) -> None:
    state = gan.GAN(99, 0, 0.1, (0.9, 0.999)).state_dict()
    checkpoint.save(run / "checkpoint_2", state, [{"training_iteration": n} for n in (1, 2)])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_checkpoints, "no valid checkpoint yet"),
        (with_another_latent_dim, "checkpoint_2: not a GAN with latent_dim 100"),
    ],
)
def test_corrupt_run_is_refused_in_one_line(call_main, gan_copy, tmp_path, damage, message):
    damage(gan_copy)
    done = call_main(analysis.gan.main, gan_copy, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_tune_experiment_is_not_a_gan_run(call_main, third_party_experiment):
    done = call_main(analysis.gan.main, third_party_experiment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"{third_party_experiment}: not a run of jobs/gan.py\n")
