"""Runs whose storage is a bucket, of an S3 server on this machine's loopback."""

import boto3
import pytest
from conftest import GRID
from experiments import MEASURED
from scripts import run, started, wait_for
from sets import part_of_mnist

from analysis.results import read_trials

BUCKET = "runs"


@pytest.fixture(scope="module")
def server(amazon):
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    return amazon


def numbers(results: str) -> dict[str, list[tuple]]:
    return {
        trial.name: [tuple(row[name] for name in MEASURED) for row in trial.rows]
        for trial in read_trials(results)
    }


def finished(results: str) -> int:
    return sum(len(rows) == 2 for rows in numbers(results).values())


def last_checkpoints(client, prefix: str) -> list[str]:
    """Returns the second epochs' checkpoints; to read the results takes longer than a trial."""
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    names = [each["Key"] for each in listed]
    return [name for name in names if name.endswith("checkpoint_000001/checkpoint.json")]


def test_a_sweep_that_was_killed_goes_on_in_a_bucket(server, tiny, tmp_path):
    command = ["jobs/sweep.py", *GRID, "--cells", "rnn"]  # half of the tiny one
    command += ["--storage", f"s3://{BUCKET}/some/sweeps", "--name", "rnn"]
    results = f"s3://{BUCKET}/some/sweeps/rnn"
    expected = {name: rows for name, rows in numbers(str(tiny)).items() if name.startswith("rnn")}
    client = boto3.client("s3")
    with started(*command, "--max-concurrent", 1) as driver:
        wait_for(lambda: last_checkpoints(client, "some/sweeps/rnn/"), driver)
        driver.kill()
    before = finished(results)
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"4 of 4 trials done: {results}" in done.stdout
    assert done.stderr == ""
    assert 0 < before < 4
    assert numbers(results) == expected

    table = run("analysis/trials.py", results)
    assert table.returncode == 0, table.stderr
    assert all(name in table.stdout for name in expected)
    drawn = run("analysis/sweep.py", results, "--out", tmp_path)
    assert drawn.returncode == 0, drawn.stdout + drawn.stderr
    assert list(tmp_path.glob("*.png"))


def test_a_gan_has_its_checkpoints_in_a_bucket(server, tmp_path):
    data = part_of_mnist(tmp_path / "set", 1280, 200)
    command = ["jobs/gan.py", "--data", data, "--epochs", 2, "--keep-every", 1]
    command += ["--cpus-per-worker", 1, "--storage", f"s3://{BUCKET}", "--name", "gan"]
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    again = run(*command)
    assert again.stdout.startswith(f"2 of 2 epochs done: s3://{BUCKET}/gan\n")
    (trial,) = read_trials(f"s3://{BUCKET}/gan")
    assert sorted(checkpoint.epoch for checkpoint in trial.checkpoints()) == [0, 1, 2]
    drawn = run("analysis/gan.py", f"s3://{BUCKET}/gan", "--out", tmp_path / "figures")
    assert drawn.returncode == 0, drawn.stdout + drawn.stderr
    assert (tmp_path / "figures" / "figure6.png").exists()


def test_a_server_can_be_named_in_the_uri(server, monkeypatch):
    """As that of an institute: then no variable has to be set on the nodes but the keys."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = f"?endpoint_override={server}&scheme=http&region=us-east-1"
    command = ["jobs/sweep.py", "--cells", "rnn", "--lengths", 3, "--seeds", 0, "--epochs", 1]
    command += ["--samples", 2000, "--storage", f"s3://{BUCKET}/named{options}", "--name", "one"]
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    results = f"s3://{BUCKET}/named/one{options}"
    assert f"1 of 1 trial done: {results}\n" in done.stdout
    assert len(read_trials(results)) == 1


def test_a_bucket_that_is_not_there_is_told_in_one_line(server):
    done = run("jobs/sweep.py", "--storage", "s3://nowhere/x")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("sweep.py: --storage: s3://nowhere/x/figures cannot be written")
