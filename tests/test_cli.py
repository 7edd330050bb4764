"""jobs/cli.py: flags, their errors, and the commands that a job prints."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from processes import REPO

from jobs import interrupt, storage, sweep
from jobs.cli import (
    parse_float_pair,
    parse_int_ranges,
    parse_names,
    print_summary,
    resume_command,
    shell_command,
)
from jobs.formatting import format_value


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lengths 9-3", "range 9-3 is empty"),
        ("--lengths ,", "not a list of integers"),
        ("--lengths -3,5", "'-3,5' is not a list of integers"),
        ("--cells lstm,", "not a list of names"),
        ("--batch-size x", "invalid int value"),
        ("--grad-clip x", "invalid float value"),
        ("--optimizer sgd", "invalid choice: 'sgd'"),
        ("--preset best", "invalid choice: 'best'"),
        ("--seed 3", "unrecognized"),  # not an abbreviation of --seeds
        ("--name a/b", "--name 'a/b': a name consists of"),
        ("--storage s3://", "--storage s3://"),
        ("--storage=", "argument --storage: is empty"),
        ("--name=", "argument --name: is empty"),
        ("--address=", "argument --address: is empty"),
        ("--cpus-per-trial 0", "--cpus-per-trial 0: must be positive"),
        ("--gpus-per-trial many", "--gpus-per-trial many: must be a number or auto"),
        ("--max-concurrent 0", "--max-concurrent 0: must be positive"),
        ("--ablate", "--ablate: requires --preset horizon"),
        ("--epochs 0", "--epochs 0: must be positive"),
    ],
)
def test_bad_flag_is_reported_in_one_line_and_nothing_is_written(
    user_error_of, tmp_path, flags, message
):
    path = tmp_path / "results"
    assert message in user_error_of(sweep.main, "--storage", path, *flags.split())
    assert not path.exists()


@pytest.mark.parametrize(
    ("parse", "text", "value", "canonical"),
    [
        (parse_int_ranges, "3,9,4", (3, 4, 9), "3-4,9"),
        (parse_int_ranges, "9,3-5,4", (3, 4, 5, 9), "3-5,9"),
        (parse_int_ranges, "7", (7,), "7"),
        (parse_names, "rnn, lstm,rnn", ("lstm", "rnn"), "lstm,rnn"),
        (parse_float_pair, "0.5,0.999", (0.5, 0.999), "0.5,0.999"),
    ],
)
def test_lists_are_sorted_and_formatted_as_they_are_parsed(parse, text, value, canonical):
    assert parse(text) == value
    assert format_value(value) == canonical
    assert parse(canonical) == value


def test_resume_command_replaces_fresh_by_the_name_of_the_new_folder(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jobs/sweep.py", "--fresh", "--storage", "a b"])
    assert resume_command("new") == "python jobs/sweep.py --storage 'a b' --name new"


def test_commands_under_ray_submit_are_for_the_terminal_of_the_user(monkeypatch):
    """`ray submit` copies the script to the head's home directory and runs it in a shell."""
    uri = "s3://bucket/x?endpoint_override=host:1&scheme=http"
    script = str(Path.home() / "sweep.py")
    monkeypatch.setattr(sys, "argv", [script, "--lengths", "3-5,9", "--storage", uri])
    start = "ray submit cluster.yaml jobs/sweep.py -- --lengths 3-5,9"
    assert resume_command("new") == f"{start} --storage \"'{uri}'\""
    assert shell_command("analysis/sweep.py", [uri]) == (
        f"ray submit cluster.yaml analysis/sweep.py -- \"'{uri}'\""
    )


@pytest.mark.parametrize(
    ("script", "analysis"),
    [
        ("jobs/gan.py", "analysis/gan.py"),
        ("gan.py", "../analysis/gan.py"),
        ("/suite/jobs/gan.py", "/suite/analysis/gan.py"),
    ],
)
def test_next_command_is_for_the_working_directory(monkeypatch, script, analysis):
    monkeypatch.setattr(sys, "argv", [script])
    assert shell_command("analysis/gan.py", ["/run"]) == f"python {analysis} /run"
    assert resume_command("run") == f"python {script}"


@pytest.mark.parametrize(
    ("done", "failures", "interrupted", "code"),
    [
        (4, [], False, 0),
        (4, [], True, 0),
        (3, [], True, 130),
        (3, [], False, 1),
        (3, ["reason"], True, 1),
    ],
)
def test_exit_code_is_that_of_a_signal_only_after_one(
    monkeypatch, tmp_path, done, failures, interrupted, code
):
    monkeypatch.setattr(interrupt, "interrupted", threading.Event())
    if interrupted:
        interrupt.interrupted.set()
    folder = storage.open_dir(str(tmp_path))
    assert print_summary(done, 4, "epoch", folder, failures, "analysis/gan.py") == code


@pytest.mark.parametrize("stdout", ["closed pipe", "closed", "/dev/full"])
@pytest.mark.parametrize(
    "print_something",
    [
        "cli.print_start(['c'], storage.open_dir('/'), 'logs')",
        "line.update(lambda: 'a')",
        "line.print_line('a')",
        "cli.print_summary(1, 1, 'x', storage.open_dir('/'), [], 'y')",
    ],
)
def test_stdout_that_fails_ends_no_training(print_something, stdout):
    code = f"""
import os
from jobs import cli, progress, storage
def main():
    line = progress.StatusLine()
    {print_something}
    {print_something}
    os.write(2, b"trained")
    return 0
cli.run_main(main)
"""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open("/dev/full" if stdout == "/dev/full" else write_end, "w") as file:
        job = subprocess.run(
            [sys.executable, "-c", code], cwd=REPO, stdout=file, stderr=subprocess.PIPE,
            preexec_fn=(lambda: os.close(1)) if stdout == "closed" else None,
        )  # fmt: skip
    assert (job.stderr, job.returncode) == (b"trained", 0)


def test_jobs_start_for_a_user_without_a_home_directory():
    """As in containers with arbitrary users. Importing Ray fails there."""
    code = "import os, pwd; del os.environ['HOME']; pwd.getpwuid = {}.__getitem__; "
    code += "assert os.path.expanduser('~') == '~'; import jobs.sweep"
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)
