"""Runs whose storage is a bucket of an S3 server on this machine's loopback interface."""

import json
import urllib.request
from collections.abc import Iterator

import boto3
import clusters
import pytest
from botocore.exceptions import ClientError
from conftest import GRID
from fake_experiments import MEASURED
from mnist_files import mnist_subset
from processes import run_script, running_script, wait_for

import analysis.gan
import analysis.sweep
import analysis.trials
from analysis.results import read_trials

pytestmark = pytest.mark.ray

BUCKET = "runs"


@pytest.fixture(scope="module")
def bucket(moto_server) -> None:
    boto3.client("s3").create_bucket(Bucket=BUCKET)


@pytest.fixture(scope="module")
def cluster(bucket) -> Iterator[clusters.Cluster]:
    """A cluster whose nodes find the server in their environment."""
    with clusters.started("--num-cpus=2") as cluster:
        yield cluster


@pytest.fixture
def write_permission_for_a_prefix(bucket, moto_server, monkeypatch) -> Iterator[str]:
    """The only prefix in which the keys of this process can read and write."""
    iam = boto3.client("iam")
    iam.create_user(UserName="student")
    statements = [
        {"Action": ["s3:ListBucket", "s3:HeadBucket"], "Resource": f"arn:aws:s3:::{BUCKET}"},
        {"Action": "s3:*", "Resource": f"arn:aws:s3:::{BUCKET}/course/student/*"},
    ]
    policy = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", **each} for each in statements],
    }
    iam.put_user_policy(UserName="student", PolicyName="own", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="student")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])

    def check_permissions_after(requests: float) -> None:
        url, headers = f"http://{moto_server}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, str(requests).encode(), headers))

    check_permissions_after(0)
    yield "course/student"
    check_permissions_after(float("inf"))


def metrics(results: str) -> dict[str, list[tuple]]:
    """Returns the metrics of each trial, epoch by epoch."""
    return {
        trial.name: [tuple(row[name] for name in MEASURED) for row in trial.rows]
        for trial in read_trials(results)
    }


def has_finished_trial(client, prefix: str) -> bool:
    """Returns whether a trial has its second checkpoint, faster than `read_trials`."""
    objects = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return any(each["Key"].endswith("checkpoint_000001/checkpoint.json") for each in objects)


def test_killed_sweep_resumes_in_a_bucket(cluster, tiny, call_main, tmp_path):
    command = ["jobs/sweep.py", *GRID, "--cells", "rnn"]  # half of `tiny`
    command += ["--storage", f"s3://{BUCKET}/some/sweeps", "--name", "rnn"]
    results = f"s3://{BUCKET}/some/sweeps/rnn"
    expected = {name: rows for name, rows in metrics(str(tiny)).items() if name.startswith("rnn")}
    client = boto3.client("s3")
    with running_script(*command, "--max-concurrent", 1) as driver:  # its Ray ends with it
        wait_for(lambda: has_finished_trial(client, "some/sweeps/rnn/"), driver)
        driver.kill()
    finished = [name for name, rows in metrics(results).items() if rows == expected[name]]
    assert 0 < len(finished) < 4
    done = cluster.run(*command)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert f"4 of 4 trials done: {results}\n" in done.stdout
    assert metrics(results) == expected

    done = call_main(analysis.trials.main, results)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in expected)
    done = call_main(analysis.sweep.main, results, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob("*.png"))


def test_gan_writes_its_checkpoints_to_a_bucket(cluster, call_main, tmp_path):
    data = mnist_subset(tmp_path / "dataset", 1280, 200)
    command = ["jobs/gan.py", "--data", data, "--epochs", 2, "--keep-every", 1]
    command += ["--cpus-per-worker", 1, "--storage", f"s3://{BUCKET}", "--name", "gan"]
    done = cluster.run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"2 of 2 epochs done: s3://{BUCKET}/gan\n" in done.stdout
    (run,) = read_trials(f"s3://{BUCKET}/gan")
    assert sorted(checkpoint.epoch for checkpoint in run.checkpoints()) == [0, 1, 2]
    assert len(run.folder.names("events.out.tfevents.")) == 1
    done = call_main(analysis.gan.main, f"s3://{BUCKET}/gan", "--out", tmp_path / "figures")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "figures" / "figure6.png").exists()


def test_uri_can_name_the_server(bucket, moto_server, monkeypatch):
    """Then the environment of the nodes needs the keys only: this job starts its own node."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = f"?endpoint_override={moto_server}&scheme=http&region=us-east-1"
    command = ["jobs/sweep.py", "--cells", "rnn", "--lengths", 3, "--seeds", 0, "--epochs", 1]
    command += ["--num-sequences", 2000, "--storage", f"s3://{BUCKET}/named{options}"]
    done = run_script(*command, "--name", "one")
    assert done.returncode == 0, done.stdout + done.stderr
    results = f"s3://{BUCKET}/named/one{options}"
    assert f"1 of 1 trial done: {results}\n" in done.stdout
    assert len(read_trials(results)) == 1


def test_jobs_need_permission_for_their_prefix_only(write_permission_for_a_prefix, tmp_path):
    with pytest.raises(ClientError, match="AccessDenied"):
        boto3.Session().client("s3").put_object(Bucket=BUCKET, Key="other", Body=b"")
    storage = f"s3://{BUCKET}/{write_permission_for_a_prefix}"
    sweep = ["jobs/sweep.py", "--cells", "rnn", "--lengths", 3, "--seeds", 0, "--epochs", 1]
    sweep += ["--num-sequences", 2000]
    data = mnist_subset(tmp_path / "dataset", 1280, 200)
    gan = ["jobs/gan.py", "--data", data, "--epochs", 1, "--cpus-per-worker", 1]
    for name, command in {"sweep": sweep, "gan": gan}.items():
        done = run_script(*command, "--storage", storage, "--name", name)
        assert done.returncode == 0, done.stdout + done.stderr
        (trial,) = read_trials(f"{storage}/{name}")
        assert trial.status == "finished"
