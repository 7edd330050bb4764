"""analysis/compare.py on runs of the GAN that are made without Ray."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from fake_trials import make_trial, write_trials
from PIL import Image

from analysis import compare, gan_comparison, gan_figures, interpolation
from analysis.gan_comparison import METRICS
from analysis.results import read_trials
from models import checkpoint, gan
from models.classifier import load_classifier


def change_settings(run: Path, **settings: object) -> None:
    file = run / "settings.json"
    file.write_text(json.dumps({"gan": json.loads(file.read_text())["gan"] | settings}))


def evaluated_copy(run: Path, to: Path, seed: int) -> Path:
    """Copies a run, with another seed, and metrics that no evaluation made.

    The first epoch is evaluated only in runs of odd seeds.
    """
    shutil.copytree(run, to)
    change_settings(to, seed=seed)
    latest = read_trials(str(to))[0].latest_checkpoint()
    for row in latest.history:
        if row["epoch"] == 2 or seed % 2:
            row |= {name: (1 + seed + i) / row["epoch"] for i, name in enumerate(METRICS)}
    checkpoint.save(to / latest.name, latest.state, latest.history)
    return to


@pytest.fixture
def runs(gan_run, tmp_path, monkeypatch) -> list[Path]:
    monkeypatch.setattr(gan, "NUM_EVAL_SAMPLES", 20)
    return [evaluated_copy(gan_run, tmp_path / f"gan-{seed}", seed) for seed in (3, 4, 8)]


def test_run_that_lacks_a_metric_is_compared_in_the_others(runs):
    latest = read_trials(str(runs[0]))[0].latest_checkpoint()
    for row in latest.history:
        row.pop("coverage", None)
    checkpoint.save(runs[0] / latest.name, latest.state, latest.history)
    read = gan_comparison.read_runs({run.name: str(run) for run in runs})
    table = gan_comparison.quality_over_epochs(read)
    missing = [(run, name) for run, part in table.groupby("run") for name in METRICS
               if part[name].isna().any()]  # fmt: skip
    assert missing == [(runs[0].name, "coverage")]


def test_quality_has_each_run_and_their_spread(runs, call_main, tmp_path, monkeypatch):
    # After two epochs a generator makes images of one digit only.
    predictions = {"image": range(20), "digit": [0, 1] * 10, "confidence": 1.0}
    monkeypatch.setattr(interpolation, "prediction_table", lambda *_: pd.DataFrame(predictions))
    out = tmp_path / "out"
    done = call_main(compare.main, *runs, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    quality = pd.read_csv(out / "quality.csv", index_col="metric")
    assert [*quality] == ["gan-3", "gan-4", "gan-8", "median", "smallest", "largest"]
    smoothness = [f"smoothness, {path}" for path in ("linear", "spherical", "pixels")]
    assert [*quality.index] == ["epoch", *METRICS, *smoothness]
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
    evaluations = [("gan-3", 3, 1), ("gan-3", 3, 2), ("gan-4", 4, 2), ("gan-8", 8, 2)]
    columns = epochs[["run", "seed", "epoch"]]
    assert [*columns.itertuples(index=False, name=None)] == evaluations
    with Image.open(out / "quality_over_epochs.png") as image:
        assert "gan-8: seed 8, epoch 2: Fréchet distance 4.5" in image.text["Description"]


def test_smoothness_is_that_of_the_last_evaluation(runs, monkeypatch):
    """A killed run may have a later checkpoint."""
    latest = read_trials(str(runs[0]))[0].latest_checkpoint()
    del latest.history[-1]["frechet_distance"]
    checkpoint.save(runs[0] / latest.name, latest.state, latest.history)
    ((_, generator),) = gan_comparison.read_runs({"killed": str(runs[0])}).values()
    _, generators = gan_figures.read_run(str(runs[0]))
    evaluated = [g for epoch, g in generators.items() if epoch == 1]
    states = [g.state_dict() for g in (generator, *evaluated)]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    assert not states[0]["0.weight"].equal(generators[2].state_dict()["0.weight"])


def test_smoothness_is_missing_if_the_checkpoint_of_the_last_evaluation_was_not_kept(
    runs, call_main, tmp_path
):
    latest = read_trials(str(runs[0]))[0].latest_checkpoint()
    # Without an evaluation; its checkpoint replaces that of epoch 2.
    latest.history.append({"epoch": 3, "training_iteration": 3})
    checkpoint.save(runs[0] / latest.name, latest.state, latest.history)
    ((run, generator),) = gan_comparison.read_runs({"killed": str(runs[0])}).values()
    assert gan_comparison.median_smoothness(run, generator, load_classifier()) == {}
    done = call_main(compare.main, *runs, "--out", tmp_path / "out")
    lines = [line for line in done.stdout.splitlines() if "no smoothness" in line]
    assert [line.partition(":")[0] for line in lines] == ["gan-3"]


def test_spread_is_missing_where_a_run_has_no_value(runs, tmp_path, monkeypatch):
    read = gan_comparison.read_runs({run.name: str(run) for run in runs})
    found = [{"smoothness, linear": 2.0}, {}, {"smoothness, linear": 3.0}]
    monkeypatch.setattr(gan_comparison, "median_smoothness", lambda *_: found.pop(0))
    labels = {name: name for name in read}
    quality, _ = gan_comparison.compare_gans(read, labels, tmp_path)
    assert quality.loc["smoothness, linear"].isna().tolist() == [False, True, False] + 3 * [True]


def test_says_that_metrics_mean_little_on_another_dataset(runs, call_main, tmp_path):
    for data, expected in (("", False), ("fashion-mnist", True)):
        for run in runs:
            change_settings(run, data=data)
        done = call_main(compare.main, *runs, "--out", tmp_path / "out")
        assert (done.returncode, gan_figures.OTHER_DATA in done.stdout) == (0, expected)


def test_runs_that_cannot_be_compared_are_refused_in_one_line(runs, gan_run, call_main, tmp_path):
    out, early, other = tmp_path / "out", tmp_path / "early", tmp_path / "other"
    shutil.copytree(gan_run, early)
    shutil.rmtree(early / "checkpoint_2")
    shutil.copytree(gan_run, other)
    change_settings(other, data="fashion-mnist")
    sweep = write_trials(tmp_path / "sweep", make_trial([0.1, 1.0], init="uniform"))
    for arguments, message in (
        ([runs[0], early], "early: no evaluation yet"),
        ([runs[0], other], "runs of different datasets"),
        ([runs[0], sweep], "sweep: not a run of jobs/gan.py"),
        ([sweep, runs[0]], "is not a trial of jobs/sweep.py"),
        ([runs[0], f"{runs[0]}/"], "two runs are called gan-3"),
        ([runs[0], tmp_path / "none"], "none: no such folder"),
    ):
        done = call_main(compare.main, *arguments, "--out", out)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert message in line
        assert not out.exists()


def test_names_of_runs_are_those_of_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [".", "some/run/", "s3://bucket/gan?endpoint_override=http://host:9000&region=x"]
    assert [*compare.by_name(runs)] == [tmp_path.name, "run", "gan"]
