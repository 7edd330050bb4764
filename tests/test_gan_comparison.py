"""analysis/compare.py on runs of the GAN that are made without Ray."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from analysis import compare, gan_figures, interpolation
from analysis.gan_comparison import METRICS
from analysis.results import read_trials
from models import checkpoint, gan
from models.classifier import load_classifier


def evaluated_copy(run: Path, to: Path, seed: int) -> Path:
    """Copies a run, with another seed, and metrics that no evaluation made."""
    shutil.copytree(run, to)
    settings = json.loads((to / "settings.json").read_text())
    settings["gan"]["seed"] = seed
    (to / "settings.json").write_text(json.dumps(settings))
    latest = read_trials(str(to))[0].latest_checkpoint()
    for row in latest.history:
        row |= {name: (1 + seed + i) / row["epoch"] for i, name in enumerate(METRICS)}
    checkpoint.save(to / latest.name, latest.state, latest.history)
    return to


@pytest.fixture
def runs(gan_run, tmp_path) -> list[Path]:
    return [evaluated_copy(gan_run, tmp_path / f"gan-{seed}", seed) for seed in (3, 4, 8)]


def test_quality_has_each_run_and_their_spread(runs, call_main, tmp_path, monkeypatch):
    monkeypatch.setattr(gan, "NUM_EVAL_SAMPLES", 500)
    monkeypatch.setattr(interpolation, "MIN_CONFIDENCE", 0.2)  # after two epochs no image has more
    out = tmp_path / "out"
    done = call_main(compare.main, *runs, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    quality = pd.read_csv(out / "quality.csv", index_col="metric")
    assert [*quality] == ["gan-3", "gan-4", "gan-8", "median", "smallest", "largest"]
    assert quality.loc["epoch"].unique().tolist() == [2]
    for i, name in enumerate(METRICS):
        expected = [(1 + seed + i) / 2 for seed in (3, 4, 8)]
        assert quality.loc[name].tolist() == [*expected, expected[1], expected[0], expected[2]]
    _, generators = gan_figures.read_run(str(runs[1]))
    paths = interpolation.smoothness_table(generators[2], 4, load_classifier())
    for name, rows in paths.groupby("path"):
        found = quality.loc[f"smoothness, {name}", "gan-4"]
        assert found == pytest.approx(rows["largest/mean step"].median())
    assert "frechet_distance" in done.stdout

    epochs = pd.read_csv(out / "quality_over_epochs.csv")
    assert [*epochs[["run", "seed", "epoch"]].itertuples(index=False, name=None)] == [
        (f"gan-{seed}", seed, epoch) for seed in (3, 4, 8) for epoch in (1, 2)
    ]
    with Image.open(out / "quality_over_epochs.png") as image:
        assert "gan-8, epoch 2: Fréchet distance 4.5" in image.text["Description"]


def test_runs_that_cannot_be_compared_are_refused_in_one_line(runs, gan_run, call_main, tmp_path):
    out = tmp_path / "out"
    early = shutil.copytree(gan_run, tmp_path / "early")
    shutil.rmtree(early / "checkpoint_2")
    for others, message in (
        ([early], "early: no evaluation yet"),
        ([runs[0]], "runs of different names"),
        ([tmp_path / "none"], "none: no such folder"),
    ):
        done = call_main(compare.main, runs[0], *others, "--out", out)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert message in line
        assert not out.exists()
