"""analysis/gan.py, on a run of two epochs: what it draws, and what it refuses."""

import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.image import imread
from PIL import Image
from scripts import run
from sets import part_of_mnist

from analysis import gan as drawing
from analysis import images as pictures
from analysis import interpolation, trials
from analysis.results import NoResults, read_trials
from models import checkpoint, classifier, digits, gan

PICTURES = ("figure4", "figure5", "figure6", "losses", "quality_over_epochs", "digits", "nearest")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run on a small set: three epochs, the second is not kept."""
    place = tmp_path_factory.mktemp("gan figures")
    data = part_of_mnist(place / "set", 6400, 300)
    flags = ["--data", data, "--epochs", 3, "--keep-every", 1, "--quality-every", 2]
    flags += ["--cpus-per-worker", 1]  # of cores that others have work for, too
    done = run("jobs/gan.py", *flags, "--storage", place, "--name", "small")
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "small"


@pytest.fixture(scope="module")
def seen_digits(trained) -> list[int]:
    """The digits that the classifier sees in what the small run's generator draws."""
    trial, generators = drawing.read_run(str(trained))
    found = sorted(
        interpolation.find_latents(generators[3], trial.config["seed"], classifier.load())
    )
    assert len(found) > 1  # else there is nothing to interpolate between
    return found


@pytest.fixture(scope="module")
def drawn(trained) -> tuple[Path, str]:
    out = trained.parent / "figures"
    done = run("analysis/gan.py", trained, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_every_figure_is_drawn_with_its_numbers_and_named(drawn):
    out, said = drawn
    for name in PICTURES:
        assert imread(out / f"{name}.png").shape[1] > 400
        assert len(pd.read_csv(out / f"{name}.csv")) > 0
        assert f"{out / name}.png" in said
    assert "epoch 3 of 3, 10000 samples" in said


def test_the_animation_has_a_picture_for_each_checkpoint(drawn):
    out, _ = drawn
    with Image.open(out / "training.gif") as film:
        # The still ones at the end may be stored as one, shown longer.
        assert film.n_frames >= 4
        film.seek(3)


def test_the_table_of_quality_is_measured_and_has_its_anchors(drawn, trained):
    """The generated column is what the job wrote of the same epoch: two ways to one number."""
    out, _ = drawn
    table = pd.read_csv(out / "quality.csv", index_col="measure")
    assert list(table) == ["generated", "training images", "uniform noise"]
    (trial,) = read_trials(str(trained))
    for name, value in table["generated"].items():
        assert trial.rows[-1][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    distances = table.loc["frechet_distance"]
    assert distances["training images"] < distances["generated"] < distances["uniform noise"]
    assert table.loc["precision", "training images"] > 0.5
    counts = pd.read_csv(out / "digits.csv", index_col="digit")
    assert counts.sum().tolist() == [10_000, 6400, 10_000]


def test_the_same_latent_vectors_are_drawn_at_the_kept_epochs(trained):
    trial, generators = drawing.read_run(str(trained))
    assert list(generators) == [0, 1, 2, 3]
    z = drawing.grid_latents(trial)
    assert torch.equal(z, drawing.grid_latents(trial))
    start = gan.GAN(100, 0, 0.0002, (0.5, 0.999)).generator
    torch.testing.assert_close(gan.draw(generators[0], z), gan.draw(start, z))


def test_a_pair_is_drawn_alone_with_seven_images_between_its_ends(
    called, trained, seen_digits, tmp_path
):
    start, end = seen_digits[0], seen_digits[-1]
    done = called(drawing.main, trained, "--out", tmp_path, "--from", start, "--to", end)
    name = f"figure7_{start}_to_{end}"
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / name}.png\n"), done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png", f"{name}.csv"}
    table = pd.read_csv(tmp_path / f"{name}.csv")
    assert len(table) == 2 * 9
    for path, row in table.groupby("path"):
        assert path in ("linear", "spherical")
        assert row["t"].tolist() == pytest.approx([i / 8 for i in range(9)])
        assert [row["digit"].iloc[0], row["digit"].iloc[-1]] == [start, end]


def test_the_paths_join_their_ends_and_the_arc_keeps_the_length():
    start, end = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    t = torch.linspace(0, 1, 5)
    for path in (interpolation.lerp, interpolation.slerp):
        torch.testing.assert_close(path(start, end, t)[[0, -1]], torch.stack([start, end]))
    arc = interpolation.slerp(start, end, t)
    torch.testing.assert_close(arc.norm(dim=1), torch.full((5,), 3.0))
    quarter = torch.tensor([3 * math.cos(math.pi / 8), 3 * math.sin(math.pi / 8)])
    torch.testing.assert_close(arc[1], quarter)
    torch.testing.assert_close(interpolation.lerp(start, end, t)[2], torch.tensor([1.5, 1.5]))


def test_an_even_path_has_a_smoothness_of_one_and_a_jump_more():
    even = torch.arange(9.0)[:, None].expand(9, 3)
    assert interpolation.smoothness(even) == pytest.approx(1)
    jump = torch.tensor([[0.0], [0.0], [0.0], [4.0], [4.0]])
    assert interpolation.smoothness(jump) == pytest.approx(4)


def test_a_grid_shows_each_image_in_its_place():
    images = torch.arange(6.0)[:, None].expand(6, digits.PIXELS)
    grid = pictures.tiled(images, columns=3)
    assert grid.shape == (60, 90)
    assert grid[15, 15::30].tolist() == [0, 1, 2]
    assert grid[45, 15::30].tolist() == [3, 4, 5]
    assert (grid[30] == -1).all()


def test_what_is_seen_in_real_digits_is_what_they_are():
    test = digits.load().test
    seen = pictures.seen_table(digits.scaled(test.images[:200]), classifier.load())
    assert (torch.tensor(seen["digit"].to_numpy()) == test.labels[:200]).double().mean() > 0.97


@pytest.fixture
def few_samples(monkeypatch) -> int:
    """How many samples of a generator are looked at: as many as a test of a message needs."""
    monkeypatch.setattr(gan, "SAMPLES", 1000)
    return 1000


@pytest.fixture
def refusal(called):
    def refused_with(*arguments: object) -> str:
        done = called(drawing.main, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        return line

    return refused_with


def test_what_cannot_be_drawn_is_told_in_one_line(refusal, trained, foreign, tmp_path):
    assert "two different digits" in refusal(trained, "--from", 3, "--to", 3)
    assert "go together" in refusal(trained, "--from", 3)
    assert "not a run of jobs/gan.py" in refusal(foreign)
    assert "no such folder" in refusal(tmp_path / "nowhere")
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "notes.txt").touch()
    assert "neither trials of Ray Tune nor a run of jobs/gan.py" in refusal(notes)
    assert "invalid choice: 12" in refusal(trained, "--from", 12, "--to", 3)
    assert "unrecognized arguments: --fro 3" in refusal(trained, "--fro", 3)
    assert "required: RESULTS" in refusal()


def test_digits_that_are_never_drawn_are_told_and_the_rest_is_drawn(
    called, trained, few_samples, tmp_path
):
    """A generator that draws nothing but one image: the classifier sees one digit in it."""
    folder = shutil.copytree(trained, tmp_path / "small")
    (trial,) = read_trials(str(folder))
    last = max(trial.checkpoints(), key=lambda c: c.epoch)
    for name, value in last.state["generator"].items():
        if name == "11.weight":
            value.zero_()
    checkpoint.save(folder / last.name, last.state, trial.rows)
    for pair, code in (([], 0), (["--from", 3, "--to", 8], 2)):
        done = called(drawing.main, folder, "--out", tmp_path / "out", *pair)
        assert done.returncode == code
        assert f"never seen in {few_samples} samples" in done.stdout
        assert done.stderr == (
            "analysis/gan.py: no Figure 7: the digits to interpolate between are never drawn\n"
        )
    assert (tmp_path / "out" / "figure6.png").exists()
    assert not list((tmp_path / "out").glob("figure7*"))


def test_a_run_before_its_first_epoch_is_drawn_as_it_is(called, trained, few_samples, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "small")
    (folder / "result.json").unlink()
    (trial,) = read_trials(str(folder))
    for found in trial.checkpoints():
        if found.epoch > 0:
            shutil.rmtree(folder / found.name)
    done = called(drawing.main, folder, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "epoch 0 of 3" in done.stdout
    assert not (tmp_path / "losses.png").exists()


@pytest.mark.parametrize("content", ["{", "", "[]", "3"])
def test_damaged_parameters_are_told(trained, tmp_path, content):
    folder = shutil.copytree(trained, tmp_path / "small")
    (folder / "params.json").write_text(content)
    with pytest.raises(NoResults):
        drawing.read_run(str(folder))


def test_rows_that_are_lost_or_damaged_are_in_the_checkpoints(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "small")
    (undamaged,) = read_trials(str(folder))
    (folder / "result.json").write_bytes(b"\xff\n3\nnull\n{}\n")
    (trial,) = read_trials(str(folder))
    assert trial.rows == undamaged.rows


def test_a_run_whose_images_are_gone_is_told(refusal, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "small")
    params = (folder / "params.json").read_text()
    gone = params.replace(str(trained.parent / "set"), "/nowhere")
    (folder / "params.json").write_text(gone)
    assert "/nowhere/train-images-idx3-ubyte.gz" in refusal(folder)


def test_a_checkpoint_of_other_shapes_is_told(refusal, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "small")
    (trial,) = read_trials(str(folder))
    last = folder / max(trial.checkpoints(), key=lambda c: c.epoch).name
    checkpoint.save(last, gan.GAN(99, 0, 0.1, (0.9, 0.999)).state_dict(), trial.rows)
    assert f"{last.name}: not a GAN with latent vectors of 100" in refusal(folder)


def test_a_run_is_browsed_as_a_trial(called, trained):
    done = called(trials.main, trained, "--columns", "trial,status,epoch,latent_dim")
    assert done.stdout.split()[4:8] == ["small", "finished", "3", "100"]
