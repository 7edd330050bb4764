"""jobs/cluster.py, without Ray.

Resources on clusters of several shapes, and connections that fail.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import REPO, run_script

from jobs import cluster
from jobs.errors import UserError

LAPTOP = [{"CPU": 2}]
CPU_NODES = [{"CPU": 16}, {"CPU": 16}]
GPU_NODES = [{"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 4}]

CONTEXT = SimpleNamespace(address_info={"session_dir": "/session"})  # of a connection

Nodes = list[dict[str, float]]


@pytest.fixture
def set_nodes(monkeypatch) -> Callable[[Nodes, Nodes | None], None]:
    """Sets the nodes that are alive and those that the autoscaler can launch (None: unknown)."""

    def set_both(alive: Nodes, launchable: Nodes | None) -> None:
        monkeypatch.setattr(cluster, "alive_nodes", lambda: alive)
        monkeypatch.setattr(cluster, "launchable_nodes", lambda: launchable)

    return set_both


@pytest.mark.parametrize(
    ("alive", "launchable", "requested", "resolved"),
    [
        (LAPTOP, [], (None, None, "auto"), ((1, 1), {"cpu": 2, "gpu": 0})),
        (LAPTOP, [], ((2, 2), None, "auto"), ((2, 2), {"cpu": 1, "gpu": 0})),
        (LAPTOP, [], ((1, 8), None, "auto"), ((1, 8), {"cpu": 1, "gpu": 0})),
        (CPU_NODES, [], (None, None, "auto"), ((1, 1), {"cpu": 16, "gpu": 0})),
        (CPU_NODES, [], ((2, 8), None, "auto"), ((2, 8), {"cpu": 4, "gpu": 0})),
        (CPU_NODES, [], ((3, 3), None, "auto"), ((3, 3), {"cpu": 8, "gpu": 0})),
        (CPU_NODES, [], ((2, 8), 2, "auto"), ((2, 8), {"cpu": 2, "gpu": 0})),
        (GPU_NODES, [], (None, None, "auto"), ((8, 8), {"cpu": 1, "gpu": 1})),
        (GPU_NODES, [], (None, 3, "auto"), ((4, 4), {"cpu": 3, "gpu": 1})),  # two per node
        (GPU_NODES, [], (None, None, "2"), ((4, 4), {"cpu": 1, "gpu": 2})),
        (GPU_NODES, [], ((2, 4), 3, "auto"), ((2, 4), {"cpu": 3, "gpu": 1})),
        (GPU_NODES, [], (None, None, "0"), ((1, 1), {"cpu": 8, "gpu": 0})),
        (LAPTOP, [{"CPU": 4, "GPU": 1}], (None, None, "auto"), ((1, 1), {"cpu": 1, "gpu": 1})),
        (
            LAPTOP,
            [{"CPU": 4, "GPU": 1}] * 4,
            ((4, 4), None, "auto"),
            ((4, 4), {"cpu": 1, "gpu": 1}),
        ),
        (LAPTOP, None, ((3, 3), None, "1"), ((3, 3), {"cpu": 1, "gpu": 1})),
    ],
)
def test_worker_group_fits_the_nodes(set_nodes, alive, launchable, requested, resolved):
    set_nodes(alive, launchable)
    assert cluster.resolve_worker_group(*requested) == resolved


@pytest.mark.parametrize(
    ("launchable", "requested", "message"),
    [
        ([], ((3, 3), None, "auto"), "room for 2, and can launch nodes for no more"),
        ([], ((3, 8), None, "auto"), "room for 2"),
        ([], ((1, 1), 4, "auto"), "1 worker with 4 CPUs and 0 GPUs: the cluster has room for 0"),
        ([], ((1, 1), None, "1"), "room for 0"),
        ([], ((1, 1), None, "1.5"), "--gpus-per-worker 1.5"),
        ([], ((2, 2), None, "0.5"), "cannot share a GPU"),
        ([], ((1, 1), None, "many"), "--gpus-per-worker many: must be a number or auto"),
        ([{"CPU": 4}] * 3, ((1, 1), 100, "auto"), "nodes for no more"),
        ([{"CPU": 4}] * 3, ((64, 64), 1, "auto"), "room for 2, and can launch nodes for 12 more"),
    ],
)
def test_worker_group_that_cannot_fit_is_refused(set_nodes, launchable, requested, message):
    set_nodes(LAPTOP, launchable)
    with pytest.raises(UserError, match=message):
        cluster.resolve_worker_group(*requested)


@pytest.mark.parametrize(
    ("alive", "launchable", "requested", "resolved"),
    [
        (LAPTOP, [], (1, "auto"), {"cpu": 1, "gpu": 0}),
        (GPU_NODES, [], (2, "auto"), {"cpu": 2, "gpu": 0.25}),
        (LAPTOP, [{"CPU": 4, "GPU": 1}], (4, "auto"), {"cpu": 4, "gpu": 0.25}),
        (LAPTOP, None, (64, "1"), {"cpu": 64, "gpu": 1}),  # may be launchable
        (GPU_NODES, [], (1, "2"), {"cpu": 1, "gpu": 2}),
    ],
)
def test_trial_resources_fit_one_node(set_nodes, alive, launchable, requested, resolved):
    set_nodes(alive, launchable)
    assert cluster.resolve_trial_resources(*requested) == resolved


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ((4096, "auto"), "no node has 4096 CPUs and 0 GPUs: the cluster has 2 CPUs"),
        ((1, "1"), "no node has 1 CPU and 1 GPU"),
        ((1, "some"), "must be a number or auto"),
        ((1, "1.5"), "must be a fraction below 1 or a whole number"),
        ((1, "nan"), "must be a fraction below 1 or a whole number"),
    ],
)
def test_trial_resources_that_no_node_has_are_refused(set_nodes, requested, message):
    set_nodes(LAPTOP, [])
    with pytest.raises(UserError, match=message):
        cluster.resolve_trial_resources(*requested)


@pytest.mark.parametrize(("gpus", "slots"), [(0.25, 12), (0.1, 30), (0.4, 6), (0.6, 3), (2, 1)])
def test_gpu_fraction_is_of_one_gpu(set_nodes, gpus, slots):
    set_nodes([{"CPU": 64, "GPU": 3}], [])
    description = cluster.describe_capacity({"cpu": 1, "gpu": gpus}, None)
    assert description.startswith(f"{slots} concurrent trial")


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:1"])
def test_unreachable_cluster_is_reported(address):
    with pytest.raises(UserError, match=f"^--address {re.escape(address)}: .*running"):
        cluster.connect(address)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "refused"),
        ("ray://127.0.0.1:1", "refused"),
        ("http://127.0.0.1:8265", "give HOST:PORT"),
    ],
)
def test_unreachable_ray_address_is_reported_with_its_variable(monkeypatch, address, message):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"^RAY_ADDRESS={re.escape(address)}: .*{message}"):
        cluster.connect(None)


def test_local_ray_that_was_killed_is_replaced(monkeypatch, tmp_path, capsys):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    calls = []
    monkeypatch.setattr(cluster.ray, "init", lambda **options: calls.append(options) or CONTEXT)
    cluster.connect(None)
    assert [options["address"] for options in calls] == ["local"]
    assert "127.0.0.1:1 has ended" in capsys.readouterr().out


def test_workers_do_not_import_from_the_working_directory_of_the_driver(monkeypatch, tmp_path):
    directories = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster.ray, "init", lambda **_: directories.append(Path.cwd()) or CONTEXT)
    assert cluster.connect("local") == "/session/logs"
    assert directories == [REPO]
    assert Path.cwd() == tmp_path


def test_ray_tmpdir_too_long_for_sockets_is_reported(monkeypatch):
    def init(**_: object) -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: /deep")

    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(UserError, match=r"^RAY_TMPDIR: too long for .* sockets"):
        cluster.connect(None)


def test_token_authentication_without_a_token_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    script = "from jobs import cluster; cluster.connect(None)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    *_, line = done.stderr.splitlines()
    assert line.startswith("jobs.errors.UserError: RAY_AUTH_TOKEN_PATH")
    assert "/nowhere/token" in line
    assert "ray get-auth-token --generate" in line


def test_gan_job_starts_where_train_v2_is_disabled(monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "0")
    done = run_script("jobs/gan.py", "--help")
    assert done.returncode == 0, done.stderr
