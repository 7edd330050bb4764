"""The Ray cluster that a job runs on: the connection, its processes' environment, its storage."""

import logging
import os
import pwd
import shlex
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs import interrupt, storage
from jobs.errors import UserError
from jobs.progress import print_lines
from jobs.ray_internals import authenticate, local_address

LISTEN = "0A"  # a socket's state in /proc/net/tcp
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of this container

# Set for every process of a job before it starts. By default glibc returns large buffers to the
# kernel at every training step and requests them again, which costs a third of the time of an
# LSTM at 35 digits and more. Tune trains in a thread, and the thresholds apply only to the first
# arena, the main thread's. Huge pages make a training step up to 8 % faster; many systems give them
# only to programs that ask. cuBLAS is deterministic only with a workspace of fixed size. And
# threads of OpenMP spin at a barrier for milliseconds, also on the core that the last one needs:
# beside a busy process, a GAN with two threads is 2.6 times as fast if they spin 2,000 times, then
# sleep. What the user has set stays.
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:2",
    "GOMP_SPINCOUNT": "2000",
    "RAY_TRAIN_V2_ENABLED": "1",  # as in the driver: see jobs/__init__.py
}


def connect(address: str | None) -> str:
    """Connects to the cluster at `address`, else to the local one, else starts a local Ray.

    Returns:
        The folder of Ray's logs on this host.

    Raises:
        UserError: the cluster cannot be reached, or Ray cannot start.
    """
    env_address = os.environ.get("RAY_ADDRESS")
    local = local_address()
    where = f"--address {address}" if address else "local cluster"
    if env_address and not address:
        where = f"RAY_ADDRESS={env_address}"
    elif not address and _has_ended(local):
        print_lines(f"the Ray at {local} has ended: starting a local one")
        address = "local"
    target = address or env_address or local
    if target == "auto":
        target = local
    if other_user := _other_user(target):
        raise UserError(
            f"{where}: the Ray at {target} is of user {other_user}, whose processes cannot write "
            "to your folders: set RAY_TMPDIR to a folder of your own, and the job starts its own "
            "Ray, if neither --address nor RAY_ADDRESS names another"
        )
    if target in ("", "local"):
        _check_temp_dir()
    options: dict[str, Any] = {
        "address": address,
        "runtime_env": runtime_env(),
        "logging_level": logging.CRITICAL,  # the job reports failures itself
        "log_to_driver": False,
        "include_dashboard": False,  # of a Ray that only this command starts
    }
    try:
        if _check_listening(target):
            authenticate(target)
        with _own_working_directory():
            try:
                context = ray.init(num_cpus=_cpu_limit(), **options)
            except ValueError:  # a cluster exists, and has its own number of CPUs
                context = ray.init(**options)
    except ray.exceptions.RayError as error:  # token authentication without a valid token
        reason = str(error).partition(". ")[0]
        raise UserError(
            f"{reason} (Create a token with `ray get-auth-token --generate`, "
            "or unset RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH.)"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "AF_UNIX path length" in reason:
            variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
            raise UserError(
                f"{variable}: too long for the paths of Ray's sockets (set RAY_TMPDIR to a short "
                f"one): {reason}"
            ) from None
        hint = "" if reason.endswith(")") else " (Is the cluster running?)"
        raise UserError(f"{where}: {reason}{hint}") from None
    signal.signal(signal.SIGTERM, interrupt.raise_once)  # ray.init has set another handler
    return f"{context.address_info['session_dir']}/logs"


def _check_temp_dir() -> None:
    """Raises UserError if Ray cannot use the folder that the environment names for its files."""
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = os.environ.get(variable)
    if not folder:
        return
    if not (folder.isascii() and os.path.isabs(folder)):
        raise UserError(f"{variable}={folder}: must be an absolute path of ASCII characters")
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{variable}={folder}: not writable: {error.strerror}") from None


def runtime_env() -> dict[str, Any]:
    """Returns the runtime environment of every process that Ray starts for the job."""
    variables = {name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()}
    environment: dict[str, Any] = {"env_vars": variables}
    quoted = shlex.quote(sys.executable)
    if quoted != sys.executable:  # Ray passes it to a shell unquoted, then waits for workers
        environment["py_executable"] = quoted
    return environment


def _check_listening(address: str) -> bool:
    """Returns whether an address is HOST:PORT, and something listens there.

    Raises:
        OSError: nothing listens, for which Ray would wait for two minutes, or the address is of a
            dashboard or for Ray Client, in which Tune does not work.
    """
    if address.startswith(("http://", "https://")):
        raise OSError("a dashboard's address (give HOST:PORT, or use `ray job submit`)")
    if address.startswith("ray://"):
        raise OSError("no Ray Client (start the job on a host of the cluster, or `ray submit` it)")
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        return True
    return False


def _other_user(address: str) -> str:
    """Returns the user of what listens at an address of this host, empty if it is this one.

    A job cannot write to the temporary folder of another user's Ray: Ray would abort.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return ""
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))  # fails for the address of another host
    except OSError:
        return ""
    uids = set()
    for table in Path("/proc/net").glob("tcp*"):  # Linux only; tcp6 may be missing
        for line in table.read_text().splitlines()[1:]:
            _, own, _, state, _, _, _, uid, *_ = line.split()
            if state == LISTEN and int(own.rpartition(":")[2], 16) == int(port):
                uids.add(int(uid))
    if not uids or os.getuid() in uids:
        return ""
    with suppress(KeyError):
        return pwd.getpwuid(min(uids)).pw_name
    return str(min(uids))


def _has_ended(address: str) -> bool:
    """Returns whether there is an address at which nothing listens: its Ray was killed."""
    try:
        _check_listening(address)
    except OSError:
        return True
    return False


@contextmanager
def _own_working_directory() -> Iterator[None]:
    """Connects from the folder of this suite's packages.

    Ray puts the working directory of the driver first on the workers' path: there, a package named
    models, jobs or analysis would take the place of the suite's.
    """
    working_directory = os.getcwd()
    os.chdir(Path(__file__).parent.parent)
    try:
        yield
    finally:
        os.chdir(working_directory)


def _cpu_limit() -> int | None:
    """Returns the number of CPUs if this process is restricted to some (e.g. by taskset), or None.

    Ray counts the CPUs of the machine or container; threads that share a core wait for each other.
    """
    if not hasattr(os, "sched_getaffinity"):  # Linux only
        return None
    allowed = len(os.sched_getaffinity(0))
    if allowed == os.cpu_count():
        return None
    # The container may have less time than these CPUs. Ray does not look if it is given a number.
    with suppress(OSError, ValueError):  # no control groups of version 2, or no quota: "max"
        quota, period = map(int, CPU_QUOTA.read_text().split())  # microseconds
        allowed = min(allowed, max(1, quota // period))
    return allowed


def check_storage(folder: storage.StorageDir) -> None:
    """Raises UserError if a node does not see what the driver writes, or cannot write there."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    if not folder.is_local or len(alive) == 1:
        return

    @ray.remote(num_cpus=0)
    def read_and_write(path: str) -> tuple[bytes, str]:
        try:
            content = Path(path).read_bytes()
        except OSError:
            return b"", ""
        try:
            with tempfile.NamedTemporaryFile(dir=Path(path).parent):
                return content, ""
        except OSError as error:
            return content, str(error)

    with storage.marker_file(folder) as (path, content):
        results = {}
        for node in alive:
            on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            address = node["NodeManagerAddress"]
            results[address] = read_and_write.options(scheduling_strategy=on_node).remote(path)
        for address, result in results.items():
            try:
                found, error_text = ray.get(result, timeout=60)
            except ray.exceptions.RayError as error:
                raise UserError(
                    f"node {address} does not respond: {type(error).__name__}"
                ) from None
            if found != content:
                raise UserError(
                    f"--storage: node {address} does not see {folder.parent}: "
                    f"{storage.SHARED_STORAGE_HINT}"
                )
            if error_text:
                raise UserError(
                    f"--storage: node {address} cannot write to {folder.parent}: {error_text}: "
                    "run the cluster as the same user, or give the folder to both"
                )
