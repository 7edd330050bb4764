"""Runs both jobs and all analysis scripts with the oldest and the newest versions of the packages.

  python tests/compat.py             both, as in `make compat`
  python tests/compat.py oldest      the oldest versions that pyproject.toml declares
  python tests/compat.py newest      the newest versions that pip finds
  python tests/compat.py here        the environment of this Python: nothing is installed

The two environments are in .compat/. They are built again when their versions have changed.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mnist_files import mnist_subset
from processes import REPO, running_script, session_pids, session_without_agents, wait_for

from analysis.cli import ResultsError
from analysis.results import read_trials

# Each job runs to its end, and once more under another name: killed, and resumed.
JOBS = {
    "sweep": "--cells lstm,rnn --lengths 5 --seeds 0 --epochs 4 --num-sequences 10000",
    "gan": "--epochs 2 --workers 2 --batch-size 64 --eval-every 1 --data ~/mnist",
}
METRICS = {
    "sweep": ("epoch", "train_loss", "val_loss", "val_accuracy"),
    "gan": ("epoch", "loss_d", "loss_g", "frechet_distance"),
}

# The analysis scripts, each with files that it must write.
ANALYSIS = {
    "sweep.py ~/ray_results/sweep --num-test-samples 20 --out ~/sweep": (
        "sweep/comparison.png sweep/comparison.csv sweep/transfer_lstm_uniform.png"
    ),
    "compare.py ~/ray_results/sweep ~/ray_results/sweep-reference --out ~/compare": (
        "compare/side_by_side.png compare/outcomes.csv"
    ),
    "horizon.py ~/ray_results/sweep --out ~/horizon": "horizon/effective_length.png",
    "gan.py ~/ray_results/gan --out ~/gan": "gan/losses.png gan/digits.png gan/training.gif",
    "trials.py ~/ray_results/sweep ~/ray_results/gan --query 'epoch > 1' --sort epoch": "",
    "trials.py ~/ray_results/sweep --epochs --csv ~/epochs.csv.gz": "epochs.csv.gz",
    "report.py ~/ray_results/sweep ~/ray_results/gan --out ~/report.html": "report.html",
}


def oldest_versions() -> dict[str, str]:
    """Returns the oldest version of each package that pyproject.toml declares."""
    project = (REPO / "pyproject.toml").read_text()
    (dependencies,) = re.findall(r"^dependencies = \[$(.*?)^\]$", project, re.M | re.S)
    return dict(re.findall(r'"([\w-]+).*>=([\d.]+)', dependencies))


@contextmanager
def step(text: str) -> Iterator[None]:
    """Prints what is done and how long it took; ends this process if it fails."""
    start = time.monotonic()
    print(f"  {text}", end="", flush=True)
    try:
        yield
    except (AssertionError, OSError, ValueError, subprocess.SubprocessError) as error:
        sys.exit(f"  failed\n{error}")
    print(f"  ({time.monotonic() - start:.0f} s)", flush=True)


def output_of(*command: str | Path) -> str:
    """Returns what a command prints; raises AssertionError if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr[-4000:]}"
    return done.stdout


def install(environment: Path, versions: dict[str, str]) -> Path:
    """Installs the suite, with the given versions of some packages; returns the Python.

    An environment in which pip would install nothing but the suite is used again.
    """
    python = environment / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--upgrade", "--upgrade-strategy", "eager"]
    pip += ["--editable", REPO, *(f"{name}=={version}" for name, version in versions.items())]
    if python.exists():
        report = json.loads(output_of(*pip, "--dry-run", "--report", "-"))
        if len(report["install"]) == 1:
            return python
    shutil.rmtree(environment, ignore_errors=True)
    output_of(sys.executable, "-m", "venv", environment)
    output_of(*pip)
    return python


def run(line: str, kill_when: Callable[[], bool] | None = None) -> None:
    """Runs a script to its end, or kills it with SIGKILL; none of its processes may survive it."""
    with running_script(*shlex.split(line.replace("~", os.environ["HOME"]))) as process:
        if kill_when:
            wait_for(kill_when, process)
            process.kill()
        output, _ = process.communicate(timeout=600)
        expected = -signal.SIGKILL if kill_when else 0
        assert process.returncode == expected, f"exit code {process.returncode}\n{output[-4000:]}"
        # The agents of a killed Ray search for it for a minute.
        running = session_without_agents if kill_when else session_pids
        with suppress(AssertionError):
            wait_for(lambda: not running(process.pid), minutes=1)
        assert not running(process.pid), f"processes survive: {running(process.pid)}"


def has_checkpoint(run: Path) -> bool:
    """Returns whether a run has a valid checkpoint of a completed epoch."""
    with suppress(ResultsError):  # the run has not started
        latest = [trial.latest_checkpoint() for trial in read_trials(str(run))]
        return any(checkpoint and checkpoint.epoch for checkpoint in latest)
    return False


def assert_resumed(job: str, run: Path, reference: Path) -> None:
    """Checks that a run resumed from a checkpoint, and has the rows of an uninterrupted one."""
    rows, expected = (
        [row for trial in read_trials(str(folder)) for row in trial.rows]
        for folder in (run, reference)
    )
    assert any(row["resumed_from_epoch"] for row in rows), "not resumed from a checkpoint"
    for row, same in zip(rows, expected, strict=True):
        for name in METRICS[job]:
            assert row[name] == same[name], f"{name}: {row[name]} resumed, {same[name]} otherwise"


def run_everything() -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as home:  # short, for sockets
        os.environ["RAY_TMPDIR"] = os.environ["HOME"] = home
        mnist_subset(Path(home, "mnist"), 12_800, 200)
        for job, flags in JOBS.items():
            line, folder = f"jobs/{job}.py {flags} --name {job}", Path(home, "ray_results", job)
            with step(f"jobs/{job}.py"):
                run(f"{line}-reference")
            with step(f"jobs/{job}.py, killed"):
                run(line, kill_when=lambda folder=folder: has_checkpoint(folder))
            with step(f"jobs/{job}.py, resumed with identical results"):
                run(line)
                assert_resumed(job, folder, folder.with_name(f"{job}-reference"))
        for line, files in ANALYSIS.items():
            with step(f"analysis/{line}"):
                run(f"analysis/{line}")
                empty = [name for name in files.split() if not Path(home, name).read_bytes()]
                assert not empty, f"empty: {empty}"


def main() -> None:
    sides = sys.argv[1:] or ["oldest", "newest"]
    if sides == ["here"]:
        return run_everything()
    if not {*sides} <= {"oldest", "newest"}:
        sys.exit(__doc__)
    oldest, rows = oldest_versions(), []
    for side in sides:
        print(f"{side}, Python {sys.version.split()[0]}:", flush=True)
        with step("installation"):
            python = install(REPO / ".compat" / side, oldest if side == "oldest" else {})
        if subprocess.run([python, __file__, "here"]).returncode:
            sys.exit(f"{side}: failed")
        lines = output_of(python, "-m", "pip", "list", "--format", "freeze").lower().split()
        found = dict(line.split("==") for line in lines)
        rows.append([side, *(found[package.lower()] for package in oldest)])
    for row in (["", *oldest], *rows):  # as in README.md
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
