"""analysis/export.py: sweeps and GANs in MLflow, on a real server, and in wandb's offline files."""

import itertools
import math
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from clusters import free_port
from exported_runs import (
    exported_by_mlflow,
    history_in_mlflow,
    history_in_wandb,
    items,
    mlflow_client,
    records_of_wandb,
)
from fake_experiments import make_row, set_age, write_trial
from fake_trials import make_trial, write_trials
from processes import REPO, kill_session, wait_for

from analysis import export
from analysis.results import Trial, read_trials
from analysis.trackers import export_id, metrics_of
from models import gan

pytestmark = pytest.mark.skipif(
    not (find_spec("mlflow") and find_spec("wandb")),
    reason="needs mlflow-skinny and wandb (pip install '.[test]')",
)

MLFLOW = REPO / ".venv-mlflow" / "bin" / "mlflow"  # not in .venv: its pins conflict with moto's
START = 1.7e9
TRACKERS = [["--to", "mlflow", "--tracking-uri", "{server}"], ["--to", "wandb", "--out", "{out}"]]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The URL of an MLflow server on loopback."""
    if not MLFLOW.exists():
        pytest.skip(f"needs {MLFLOW} (make test installs it)")
    folder, url = tmp_path_factory.mktemp("mlflow"), f"http://127.0.0.1:{free_port()}"
    command = [MLFLOW, "server", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", folder / "artifacts"]
    environment = {**os.environ, "PYTHONPATH": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip

    def answers() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=60):
            return True
        return False

    try:
        wait_for(answers, process)
        yield url
    finally:
        kill_session(process)


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def export_lines(call_main) -> Callable[..., list[str]]:
    """Runs the script, which must print no error; returns the lines of its output."""

    def run(*arguments: object) -> list[str]:
        done = call_main(export.main, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return run


numbers = itertools.count()


def make_trials(epochs: int = 4, **options: Any) -> list[Trial]:
    """Returns two trials with times of their own, as any two experiments have."""
    trials = []
    for seed in (0, 1):
        start = START + 1000 * next(numbers)
        columns = {
            "train_loss": [1 / 3, 0.25, 1e-7, math.pi][:epochs],
            "epoch_end_time": [start + 10.125 * n for n in range(1, epochs + 1)],
            "epoch_seconds": [10.0] * epochs,
            "hardware": ["a CPU"] * epochs,
        }
        trials.append(make_trial([0.1, 0.5, 0.9, 0.99][:epochs], seed=seed, **columns, **options))
    return trials


@pytest.fixture
def sweep(tmp_path, request) -> Path:
    """A sweep of two finished trials, whose experiment has a name of its own on the server."""
    return write_trials(tmp_path / f"sweep{next(numbers)}", *make_trials())


def expected_history(trial: Trial) -> dict[int, tuple[float, dict[str, float]]]:
    return {
        row["training_iteration"]: (row["epoch_end_time"], metrics_of(row)) for row in trial.rows
    }


def test_mlflow_has_parameters_metrics_and_times_of_each_trial(sweep, server, export_lines):
    lines = export_lines(sweep, "--to", "mlflow", "--tracking-uri", server, "--no-figures")
    assert lines == [f"{sweep}: 2 of 2 trials, 8 new epochs, 0 new figures", f"in MLflow: {server}"]
    runs = exported_by_mlflow(server, sweep.name)
    trials = read_trials(str(sweep))
    assert {*runs} == {trial.name for trial in trials}
    for trial in trials:
        run = runs[trial.name]
        assert run.data.params == {name: str(value) for name, value in trial.config.items()}
        assert history_in_mlflow(server, run) == expected_history(trial)
        assert run.info.status == "FINISHED"
        first, *_, last = trial.rows
        assert run.info.start_time == 1000 * (first["epoch_end_time"] - 10)
        assert run.info.end_time == 1000 * last["epoch_end_time"]
        assert run.data.tags["hardware"] == "a CPU"


def test_mlflow_has_the_figures_of_the_sweep(sweep, server, export_lines, tmp_path):
    (line, _) = export_lines(sweep, "--to", "mlflow", "--tracking-uri", server)
    run = exported_by_mlflow(server, sweep.name)[sweep.name]
    client = mlflow_client(server)
    paths = [each.path for each in client.list_artifacts(run.info.run_id, "figures")]
    assert line.endswith(f", {len(paths)} new figures")
    assert "figures/accuracy_lstm.png" in paths
    local = client.download_artifacts(run.info.run_id, "figures/accuracy_lstm.png", str(tmp_path))
    assert Path(local).read_bytes().startswith(b"\x89PNG")
    assert "LSTM" in run.data.tags["mlflow.note.content"]


def test_wandb_has_settings_metrics_and_times_of_each_trial(sweep, tmp_path, export_lines):
    lines = export_lines(sweep, "--to", "wandb", "--out", tmp_path, "--no-figures")
    assert lines == [
        f"{sweep}: 2 of 2 trials, 8 new epochs, 0 new figures",
        f"to upload: wandb sync {tmp_path}/wandb/offline-run-*",
    ]
    records = records_of_wandb(tmp_path)
    assert len(records) == 2
    for trial in read_trials(str(sweep)):
        run_records = records[export_id(trial)]
        (run,) = [r.run for r in run_records if r.WhichOneof("record_type") == "run"]
        assert (run.project, run.display_name) == (sweep.name, trial.name)
        settings = items(run.config.update)
        assert {name: settings[name] for name in trial.config} == trial.config
        assert history_in_wandb(run_records) == expected_history(trial)
        (exit_code,) = [r.exit.exit_code for r in run_records if r.HasField("exit")]
        assert exit_code == 0


def test_wandb_has_the_figures_of_the_sweep(sweep, tmp_path, export_lines):
    (line, _) = export_lines(sweep, "--to", "wandb", "--out", tmp_path)
    images = list(tmp_path.glob("wandb/offline-run-*/files/media/images/figures/*.png"))
    assert line.endswith(f", {len(images)} new figures")
    assert any(path.name.startswith("accuracy_lstm") for path in images)


@pytest.mark.parametrize("flags", TRACKERS)
def test_second_call_adds_only_new_epochs(tmp_path, server, export_lines, flags):
    flags = [flag.format(server=server, out=tmp_path) for flag in flags]
    first, second = make_trials()
    partial = Trial(**{**vars(second), "rows": second.rows[:2]})
    folder = write_trials(tmp_path / f"running{next(numbers)}", first, partial)
    line, _ = export_lines(folder, *flags)
    assert line.startswith(f"{folder}: 2 of 2 trials, 6 new epochs, ")
    line, _ = export_lines(folder, *flags)
    assert line == f"{folder}: 2 of 2 trials, 0 new epochs, 0 new figures"
    if "mlflow" in flags:
        run = exported_by_mlflow(server, folder.name)[second.name]
        assert (run.info.status, run.info.end_time) == ("RUNNING", None)
    set_age(folder / second.name, 1000)  # the sweep runs again, this trial not yet
    assert [trial.status for trial in read_trials(str(folder))] == ["finished", "pending"]
    line, _ = export_lines(folder, *flags)
    assert line == f"{folder}: 2 of 2 trials, 0 new epochs, 0 new figures"
    if "mlflow" in flags:
        run = exported_by_mlflow(server, folder.name)[second.name]
        assert (run.info.status, run.info.end_time) == ("SCHEDULED", None)
    shutil.rmtree(folder)
    write_trials(folder, first, second)
    line, _ = export_lines(folder, *flags)
    assert line.startswith(f"{folder}: 2 of 2 trials, 2 new epochs, ")
    _, second = read_trials(str(folder))
    if "mlflow" in flags:
        run = exported_by_mlflow(server, folder.name)[second.name]
        assert run.info.status == "FINISHED"
        history = history_in_mlflow(server, run)
    else:
        history = history_in_wandb(records_of_wandb(tmp_path)[export_id(second)])
    assert history == expected_history(second)
    line, _ = export_lines(folder, *flags, "--num-test-samples", 50)
    assert line.startswith(f"{folder}: 2 of 2 trials, 0 new epochs, ")
    assert not line.endswith(" 0 new figures")  # they may have other numbers


def test_grown_sweep_keeps_its_runs(tmp_path, server, export_lines):
    """MLflow refuses other values of parameters."""
    flags = ["--to", "mlflow", "--tracking-uri", server, "--no-figures"]
    trials = make_trials(epochs=4)
    folder = write_trials(tmp_path / f"grown{next(numbers)}", *trials)
    export_lines(folder, *flags)
    for trial in trials:
        trial.config["epochs"] = 6
    shutil.rmtree(folder)
    write_trials(folder, *trials)
    assert (
        export_lines(folder, *flags)[0] == f"{folder}: 2 of 2 trials, 0 new epochs, 0 new figures"
    )
    runs = exported_by_mlflow(server, folder.name)
    assert [run.data.tags["epochs"] for run in runs.values()] == ["6", "6"]


@pytest.mark.parametrize("flags", TRACKERS)
def test_failed_trial_is_exported_as_failed(tmp_path, server, export_lines, flags):
    flags = [flag.format(server=server, out=tmp_path) for flag in flags]
    trial, _ = make_trials()
    folder = write_trials(tmp_path / f"failed{next(numbers)}", trial)
    (folder / trial.name / "failure.txt").write_text("Traceback\nMemoryError: too large\n")
    (trial,) = read_trials(str(folder))
    export_lines(folder, *flags, "--no-figures")
    if "mlflow" in flags:
        run = exported_by_mlflow(server, folder.name)[trial.name]
        assert (run.info.status, run.data.tags["error"]) == ("FAILED", "MemoryError: too large")
    else:
        records = records_of_wandb(tmp_path)[export_id(trial)]
        assert [r.exit.exit_code for r in records if r.HasField("exit")] == [1]


@pytest.mark.parametrize("flags", TRACKERS)
def test_names_and_values_that_trackers_refuse_are_exported(tmp_path, server, export_lines, flags):
    flags = [flag.format(server=server, out=tmp_path) for flag in flags]
    rows = [make_row(1, timestamp="2024", big=10**400, **{"acc@1": 0.5})]
    folder = tmp_path / f"we#ird{next(numbers)}"
    write_trial(folder, "trial", {"opt(lr)": 1}, rows)
    line, _ = export_lines(folder, *flags)
    assert line == f"{folder}: 1 of 1 trials, 1 new epochs, 0 new figures"
    if "mlflow" in flags:
        (run,) = exported_by_mlflow(server, folder.name).values()
        assert run.data.metrics["acc_1"] == 0.5
        assert run.data.params["opt_lr_"] == "1"


@pytest.mark.parametrize("flags", TRACKERS)
def test_experiment_of_another_project_is_exported(
    tmp_path, third_party_experiment, server, export_lines, flags
):
    flags = [flag.format(server=server, out=tmp_path) for flag in flags]
    line, _ = export_lines(third_party_experiment, *flags)
    assert line == f"{third_party_experiment}: 2 of 2 trials, 6 new epochs, 0 new figures"
    if "mlflow" in flags:
        for run in exported_by_mlflow(server, third_party_experiment.name).values():
            assert run.data.metrics["info/step"] == 30
            assert run.data.params["optimizer/name"] == "sgd"


@pytest.mark.parametrize("flags", TRACKERS)
def test_gan_is_one_run_with_its_figures(
    tmp_path, gan_run, server, export_lines, flags, monkeypatch
):
    monkeypatch.setattr(gan, "NUM_EVAL_SAMPLES", 200)
    flags = [flag.format(server=server, out=tmp_path) for flag in flags]
    *_, line, _ = export_lines(gan_run, *flags)  # before it: digits that it does not generate
    assert line.startswith(f"{gan_run}: 1 of 1 trials, 2 new epochs, ")
    assert not line.endswith(" 0 new figures")
    if "mlflow" in flags:
        (run,) = exported_by_mlflow(server, gan_run.name).values()
        artifacts = mlflow_client(server).list_artifacts(run.info.run_id, "figures")
        assert "figures/figure6.png" in [each.path for each in artifacts]
    else:
        (run_records,) = records_of_wandb(tmp_path).values()
        assert any("figures/figure6" in key for r in run_records for key in items(r.summary.update))


def test_local_store_is_the_default_of_mlflow(sweep, export_lines, tmp_path):
    lines = export_lines(sweep, "--to", "mlflow", "--no-figures")
    assert lines[-1] == f"in MLflow: sqlite:///{tmp_path}/mlflow.db"
    assert {*exported_by_mlflow(f"sqlite:///{tmp_path}/mlflow.db", sweep.name)} == {
        trial.name for trial in read_trials(str(sweep))
    }


@pytest.mark.parametrize(("package", "hint"), [("mlflow", "mlflow-skinny"), ("wandb", "wandb")])
def test_missing_package_is_named_in_one_line(sweep, call_main, monkeypatch, package, hint):
    monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError
    done = call_main(export.main, sweep, "--to", package)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert f": pip install {hint}" in line


def test_unreachable_server_is_reported_without_its_password(sweep, call_main):
    with socket.socket() as silent:  # it accepts connections and does not answer
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        urls = [f"http://127.0.0.1:{port}" for port in (free_port(), silent.getsockname()[1])]
        for url in urls:
            secret = url.replace("//", "//me:secret@")
            done = call_main(export.main, sweep, "--to", "mlflow", "--tracking-uri", secret)
            assert (done.returncode, done.stdout) == (2, "")
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"script.py: MLflow, {url}: ")
            assert "secret" not in line
            assert "is the server running?" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "csv"], "invalid choice: 'csv'"),
        ([], "the following arguments are required: --to"),
        (["--to", "wandb", "--tracking-uri", "x"], "--tracking-uri requires --to mlflow"),
        (["--to", "mlflow", "--out", "x"], "--out requires --to wandb"),
        (["--to", "mlflow", "--tracking-uri", "nosql://x"], "MLflow, nosql://x: "),
        (["--to", "wandb", "--out", "/proc/none"], "/proc/none"),
    ],
)
def test_impossible_flags_are_refused_in_one_line(sweep, call_main, flags, message):
    done = call_main(export.main, sweep, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("script.py: ")
    assert message in line


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_missing_results_are_refused_before_anything_is_written(
    sweep, tmp_path, call_main, monkeypatch, tracker
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = call_main(export.main, sweep, tmp_path / "missing", "--to", tracker)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"script.py: {tmp_path}/missing: no such folder, or it is empty\n"
    assert list((tmp_path / "here").iterdir()) == []


def test_corrupt_record_is_reported_in_one_line(sweep, tmp_path, call_main):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "exported.json").write_text('{"truncated')
    done = call_main(export.main, sweep, "--to", "wandb", "--out", tmp_path)
    assert done.returncode == 2
    assert "exported.json is corrupt" in done.stderr
