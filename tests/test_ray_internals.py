"""The installed Ray has the private names in jobs/ray_internals.py and tests/ray_private.py.

The autoscaler's command line is found in test_autoscaling.py.
"""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import clusters
import processes
import pytest
import ray
import ray_private

from jobs import RAY_VARIABLES, ray_internals

pytestmark = pytest.mark.ray

# A trial and a worker save their own title, session and environment. Two more trials fail.
RUN_BOTH = """
import contextlib, os, sys, tempfile
from pathlib import Path
from ray import train, tune
from jobs.ray_internals import RayInterfaceTorchConfig, trial_error
from ray.train.torch import TorchTrainer

def save(config):
    title = Path("/proc/self/cmdline").read_text()
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    Path("FOLDER", config["name"]).write_text(json.dumps([title, os.getsid(0), interface]))
    if config["name"] == "raises":
        raise ValueError("first line\\nlast line")
    if config["name"] == "dies":
        os._exit(1)

def save_checkpoint(config):
    save(config)
    with tempfile.TemporaryDirectory() as local:
        train.report({}, checkpoint=train.Checkpoint.from_directory(local))

class Errors(tune.Callback):
    def on_trial_error(self, iteration, trials, trial, **info):
        Path("FOLDER", trial.config["name"] + "-error").write_text(trial_error(trial))

with contextlib.redirect_stdout(sys.stderr):
    tune.Tuner(
        save,
        param_space={"name": tune.grid_search(["trial", "raises", "dies"])},
        run_config=tune.RunConfig(
            storage_path="FOLDER", name="tune", verbose=0, callbacks=[Errors()]
        ),
    ).fit()
    TorchTrainer(
        save_checkpoint,
        train_loop_config={"name": "worker"},
        torch_config=RayInterfaceTorchConfig(backend="gloo"),
        scaling_config=train.ScalingConfig(num_workers=1),
        run_config=train.RunConfig(storage_path="FOLDER", name="train"),
    ).fit()
print("null")
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """What the trials and the worker of RUN_BOTH saved, and the titles of all processes."""
    folder = tmp_path_factory.mktemp("found")
    with clusters.started() as cluster:
        environment = cluster.environment | {"PYTHONPATH": str(processes.REPO)}
        cluster = clusters.Cluster(cluster.address, environment)
        cluster.evaluate(RUN_BOTH.replace("FOLDER", str(folder)))
        trial, _, _ = json.loads((folder / "trial").read_text())
        worker, session, interface = json.loads((folder / "worker").read_text())
        pids = processes.session_pids(session)
        everything = [Path(f"/proc/{pid}/cmdline").read_text() for pid in pids]
        titles = {"trial": [trial], "worker": [worker], "cluster": everything}
        yield SimpleNamespace(cluster=cluster, folder=folder, titles=titles, interface=interface)


@pytest.mark.parametrize(
    ("process", "name"),
    [
        ("trial", ray_private.TRIAL),
        ("worker", ray_private.TRAIN_WORKER),
        *(("cluster", name) for name in ray_private.AGENTS),
    ],
)
def test_ray_names_the_process(found, process, name):
    assert any(title.startswith(name) for title in found.titles[process]), found.titles[process]


def test_gloo_uses_the_interface_of_ray(found):
    assert found.interface in [name for _, name in socket.if_nameindex()]


def test_ray_train_lists_its_checkpoints_in_a_file(found):
    index = json.loads((found.folder / "train" / ray_internals.CHECKPOINT_INDEX).read_text())
    (result,) = index["checkpoint_results"]
    assert (found.folder / "train" / result["checkpoint_dir_name"]).is_dir()


@pytest.mark.parametrize(
    ("trial", "error"), [("raises", "ValueError: first line"), ("dies", "its process died")]
)
def test_tune_writes_the_errors_of_a_trial(found, trial, error):
    assert (found.folder / f"{trial}-error").read_text() == error


def test_exception_of_an_unreachable_trial_has_its_name():
    assert "ActorUnavailableError" in repr(ray.exceptions.ActorUnavailableError("x", b"0" * 16))


def test_ray_train_reads_the_limit_of_a_worker_groups_start():
    sources = Path(ray.__file__).parent.glob("train/v2/**/*.py")
    name = f'"{ray_internals.WORKER_GROUP_START_TIMEOUT}"'
    assert any(name in source.read_text() for source in sources)


def test_ray_leaves_its_address_for_drivers_on_its_host(found):
    code = "from jobs.ray_internals import local_address; print(json.dumps(local_address()))"
    address = found.cluster.evaluate(code)
    assert address.partition(":")[2] == found.cluster.address.partition(":")[2]


def test_ray_reads_the_variables_of_the_jobs():
    """Ray is silent about a variable that it does not know."""
    folder = Path(ray.__file__).parent
    command = ["grep", "-rohF", *(f"-e{name}" for name in RAY_VARIABLES), "--include=*.py", folder]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {*found.split()} == {*RAY_VARIABLES}


def test_workers_of_a_local_ray_do_not_yield_to_other_processes():
    code = (
        "import os; from jobs import cluster; cluster.connect('local');"
        "print(cluster.ray.get(cluster.ray.remote(lambda: os.nice(0)).remote()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "0\n")


CONNECT = """
import sys
from jobs import cluster
from jobs.cli import run_main

def main():
    print(cluster.connect(sys.argv[1]))
    assert cluster.ray.get(cluster.ray.remote(lambda: 7).remote()) == 7
    return 0

run_main(main)
"""
TOKEN = "{token}"


@pytest.mark.parametrize(
    ("variables", "file", "message"),
    [
        ({"RAY_AUTH_TOKEN": TOKEN}, "", ""),
        ({}, TOKEN, ""),
        ({"RAY_AUTH_MODE": "disabled"}, TOKEN, ""),
        ({}, "", "requires a token: copy ~/.ray/auth_token from its head to this host"),
        ({}, "0" * 64, "auth_token is not the token of the cluster at"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, TOKEN, "RAY_AUTH_TOKEN is not"),
        ({"RAY_AUTH_TOKEN_PATH": "/no"}, TOKEN, "RAY_AUTH_TOKEN_PATH=/no: No such file"),
        ({}, "two\nlines", "auth_token is not the token of the cluster at"),
    ],
)
def test_token_is_used_where_the_cluster_requires_it(found, tmp_path, variables, file, message):
    environment = {**found.cluster.environment, "HOME": str(tmp_path)}
    token = environment.pop("RAY_AUTH_TOKEN")
    del environment["RAY_AUTH_MODE"]
    environment |= {name: value.format(token=token) for name, value in variables.items()}
    if file:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(file.format(token=token))
    command = [sys.executable, "-c", CONNECT, found.cluster.address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if message:
        (line,) = done.stderr.splitlines()
        assert message in line
        assert (done.returncode, done.stdout) == (2, "")
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("/logs\n")


def test_trial_killed_by_the_memory_monitor_is_reported_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")  # every machine uses more
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    flags = ["--cells", "rnn", "--lengths", 3, "--seeds", 0, "--storage", tmp_path]
    done = processes.run_script("jobs/sweep.py", *flags, "--address", "local")
    assert (done.returncode, done.stderr) == (1, "")
    (failure,) = re.findall("^failed: (.*)$", done.stdout, re.M)
    assert "killed: the node ran out of memory (lower --max-concurrent" in failure
    assert max(map(len, done.stdout.splitlines())) < 300  # no page of advice


def test_tokens_are_turned_off_for_a_cluster_without(tmp_path):
    """Otherwise the driver connects, and every actor dies."""
    with clusters.started(token=False) as cluster:
        environment = cluster.environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
        command = [sys.executable, "-c", CONNECT, cluster.address]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
