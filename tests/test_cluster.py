"""jobs/cluster.py, without Ray: connections that fail."""

import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import REPO, run_script

from jobs import cluster
from jobs.errors import UserError

CONTEXT = SimpleNamespace(address_info={"session_dir": "/session"})  # of a connection


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:1"])
def test_unreachable_cluster_is_reported(address):
    with pytest.raises(UserError, match=f"^--address {re.escape(address)}: .*running"):
        cluster.connect(address)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "refused"),
        ("auto", "refused"),
        ("ray://127.0.0.1:10001", "no Ray Client .*ray submit"),
        ("http://127.0.0.1:8265", "give HOST:PORT"),
    ],
)
def test_unusable_ray_address_is_reported_with_its_variable(
    monkeypatch, tmp_path, address, message
):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")  # of a dead Ray
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
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


def test_local_ray_at_an_ipv6_address_is_found():
    """Ray writes such an address with brackets."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        address = f"[::1]:{server.getsockname()[1]}"
        assert not cluster._has_ended(address)
    assert cluster._has_ended(address)


@pytest.mark.parametrize(
    ("affinity", "quota", "cpus"),
    [
        (64, "400000 100000", None),  # Ray finds the quota itself
        (62, "400000 100000", 4),
        (62, "50000 100000", 1),
        (2, "400000 100000", 2),
        (62, "max 100000", 62),
        (62, None, 62),
    ],
)
def test_local_ray_has_the_cpus_of_this_process(monkeypatch, tmp_path, affinity, quota, cpus):
    """A machine of 64 CPUs, a restriction to some of them, and a container's quota."""
    if quota:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    calls = []
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
    monkeypatch.setattr(cluster, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(cluster.ray, "init", lambda **options: calls.append(options) or CONTEXT)
    cluster.connect("local")
    assert [options["num_cpus"] for options in calls] == [cpus]


def test_variables_of_the_user_stay(monkeypatch):
    for name in cluster.WORKER_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    variables = cluster.runtime_env()["env_vars"]
    changes = {item for item in variables.items() if item not in cluster.WORKER_ENVIRONMENT.items()}
    assert changes == {("GLIBC_TUNABLES", "glibc.malloc.check=1")}
    assert variables.keys() == cluster.WORKER_ENVIRONMENT.keys()


@contextmanager
def listening_process(uid: int) -> Iterator[str]:
    """Yields an address where a process of another user listens, as far as a driver sees it."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if not pid:  # the child
        os.setuid(uid)
        with socket.create_server(("127.0.0.1", 0)) as server:
            os.write(write_fd, f"127.0.0.1:{server.getsockname()[1]}".encode())
            signal.pause()
    try:
        yield os.read(read_fd, 100).decode()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read_fd)
        os.close(write_fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
@pytest.mark.parametrize(("uid", "name"), [(pwd.getpwnam("nobody").pw_uid, "nobody"), (9876, 9876)])
@pytest.mark.parametrize("flag", [None, "auto", "its address", "its address, unknown here"])
def test_local_ray_of_another_user_is_refused(monkeypatch, tmp_path, flag, uid, name):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with listening_process(uid) as address:
        if flag != "its address, unknown here":
            (tmp_path / "ray").mkdir()
            (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        with pytest.raises(UserError, match=f"{address} is of user {name}.*set RAY_TMPDIR"):
            cluster.connect(flag if flag in (None, "auto") else address)


class NoRay(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_address_of_another_program_is_reported_within_seconds(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with HTTPServer(("127.0.0.1", 0), NoRay) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        with pytest.raises(UserError, match=f"^--address {address}: no Ray answers there"):
            cluster.connect(address)
        server.shutdown()


def test_workers_do_not_import_from_the_working_directory_of_the_driver(monkeypatch, tmp_path):
    directories = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster.ray, "init", lambda **_: directories.append(Path.cwd()) or CONTEXT)
    assert cluster.connect("local") == "/session/logs"
    assert directories == [REPO]
    assert Path.cwd() == tmp_path


def test_ray_tmpdir_too_long_for_sockets_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))

    def init(**_: object) -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: /deep")

    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(UserError, match=r"^RAY_TMPDIR: too long for .* sockets"):
        cluster.connect(None)


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("relative", "must be an absolute path"),
        ("/tmp/ü", "must be an absolute path of ASCII"),
        ("/proc", "not writable: "),
        (__file__, "not writable: "),
    ],
)
def test_temporary_folder_that_ray_cannot_use_is_refused(monkeypatch, variable, folder, message):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, folder)
    monkeypatch.setattr(cluster, "local_address", lambda: "")
    with pytest.raises(UserError, match=f"^{variable}={re.escape(folder)}: {message}"):
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
