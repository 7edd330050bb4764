"""What the analysis scripts have in common: arguments, errors, exit codes, closed pipes."""

import os
import subprocess
import sys
from importlib import import_module

import pytest
from fake_trials import make_trial, write_trials
from processes import REPO, run_script, script_command

from analysis import cli

SCRIPTS = ("trials", "sweep", "horizon", "gan", "report", "compare")


@pytest.fixture
def results(tmp_path):
    trials = [make_trial([0.1, 1, 1], init="uniform", seed=seed) for seed in (0, 1)]
    return write_trials(tmp_path / "results", *trials)


@pytest.fixture
def refusal(call_main):
    """Runs a script, which must print one line on stderr and exit with code 2; returns the line."""

    def run(script: str, *arguments: object) -> str:
        done = call_main(import_module(f"analysis.{script}").main, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        return line.removeprefix("script.py: ")

    return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_results_are_refused_before_anything_is_written(
    refusal, results, tmp_path, monkeypatch, script
):
    working_dir = tmp_path / "here"
    working_dir.mkdir()
    monkeypatch.chdir(working_dir)
    missing = tmp_path / "missing"
    expected = f"{missing}: no such folder, or it is empty"
    assert refusal(script, missing) == expected
    if script != "gan":  # it takes a single run
        assert refusal(script, results, missing) == expected
    assert list(working_dir.iterdir()) == []


@pytest.mark.parametrize("script", [*SCRIPTS, "export"])
def test_empty_arguments_are_refused(refusal, script):
    """As where the shell does not know a variable: the working directory is not meant."""
    flags = ["--to", "mlflow"] if script == "export" else []
    assert refusal(script, "", *flags) == "argument RUN: is empty"
    empty = {"trials": "--csv=", "export": "--tracking-uri="}.get(script, "--out=")
    assert refusal(script, "RUN", empty, *flags) == f"argument {empty[:-1]}: is empty"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("gan", "the following arguments are required: RUN"),
        ("gan RUN --fro 3", "unrecognized arguments: --fro 3"),
        ("gan RUN --from 3", "--from and --to require each other"),
        ("gan RUN --from 3 --to 3", "--from 3 --to 3: choose two different digits"),
        ("gan RUN --from 12 --to 3", "argument --from: invalid choice: 12"),
        ("sweep RUN --num-test-samples 9", "argument --num-test-samples: 9: must be an integer"),
        ("report RUN --num-test-samples x", "argument --num-test-samples: x: must be an integer"),
        ("report RUN --out .", "--out .: is a folder, give a file"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(refusal, command, message):
    assert refusal(*command.split()).startswith(message)


@pytest.mark.parametrize(
    ("script", "out"), [("sweep", "file"), ("horizon", "file"), ("report", "file/page.html")]
)
def test_out_that_is_a_file_is_refused_in_one_line(refusal, results, tmp_path, script, out):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refusal(script, results, "--out", tmp_path / out)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a read-only file system")
@pytest.mark.parametrize("script", ["sweep", "horizon", "gan", "report"])
def test_read_only_out_is_refused_before_work(refusal, results, request, tmp_path, script):
    if script == "gan":
        results = request.getfixturevalue("gan_run")
    out = tmp_path / "read-only"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", str(out)]
    subprocess.run(mount, check=True)
    try:
        assert str(out) in refusal(script, results, "--out", out)
        assert str(out / "new") in refusal(script, results, "--out", out / "new")
    finally:
        subprocess.run(["umount", str(out)], check=True)


@pytest.mark.parametrize("script", ["horizon", "report"])
def test_script_in_its_own_process_returns_exit_code_2(tmp_path, script):
    done = run_script(f"analysis/{script}.py", tmp_path / "missing")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{script}.py: {tmp_path}/missing: no such folder, or it is empty\n"


@pytest.mark.parametrize("flags", [[], ["--csv", "-"]])
def test_closed_pipe_is_no_error(results, flags):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as closed:
        done = subprocess.run(
            script_command("analysis/trials.py", results, *flags),
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_summary_counts_trials_that_are_left_out(capsys, tmp_path):
    cli.print_summary(["finding"], [tmp_path / "a.png"], finished=3, trials=5)
    left_out = "left out: 2 of 5 trials, which are not finished"
    assert capsys.readouterr().out == f"finding\n{left_out}\n{tmp_path / 'a.png'}\n"
    cli.print_summary(["finding"], [], finished=5, trials=5)
    assert capsys.readouterr().out == "finding\n"


def test_script_may_be_started_with_stdout_closed(tmp_path):
    run = write_trials(tmp_path / "run", make_trial([0.1]))
    command = [sys.executable, "analysis/trials.py", run, "--csv", tmp_path / "table.csv"]
    done = subprocess.run(command, cwd=REPO, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "table.csv").exists()
