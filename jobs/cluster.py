"""The Ray cluster that a job runs on: the connection, and the resources it has or can launch."""

import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs import interrupt, storage
from jobs.autoscaling import launchable_nodes
from jobs.errors import UserError
from jobs.formatting import format_duration, pluralize
from jobs.ray_internals import local_address

# Set for every process of a job before it starts. By default glibc returns large buffers to the
# kernel at every training step and requests them again, which costs up to a third of the time of
# an LSTM at 24 digits and more. Tune trains in a thread, and the thresholds apply only to the first
# arena, the main thread's. And cuBLAS is deterministic only with a workspace of fixed size.
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_ARENA_MAX": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:2",
    "RAY_TRAIN_V2_ENABLED": "1",  # as in the driver: see jobs/__init__.py
}

DEFAULT_GPU_FRACTION = 0.25  # of a GPU for one small network: four of them saturate it


def connect(address: str | None) -> str:
    """Connects to the cluster at `address`, else to the local one, else starts a local Ray.

    Returns:
        The folder of Ray's logs on this host.

    Raises:
        UserError: the cluster cannot be reached, or Ray cannot start.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the job reports failures itself
    variable = os.environ.get("RAY_ADDRESS")
    where = f"--address {address}" if address else "local cluster"
    if variable and not address:
        where = f"RAY_ADDRESS={variable}"
    elif not address and _has_ended(local_address()):
        print(f"the Ray at {local_address()} has ended: starting a local one")
        address = "local"
    options: dict[str, Any] = {
        "address": address,
        "runtime_env": runtime_env(),
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "include_dashboard": False,  # of a Ray that only this command starts
    }
    try:
        _check_listening(address or variable or "")
        with _own_working_directory():
            try:
                context = ray.init(num_cpus=_cpu_affinity(), **options)
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
            raise UserError(
                f"RAY_TMPDIR: too long for the paths of Ray's sockets: {reason}"
            ) from None
        raise UserError(
            f"{where}: {reason} (Is the cluster running? If it uses token authentication, "
            "set RAY_AUTH_MODE=token.)"
        ) from None
    except SystemExit:  # SIGTERM: ray.init sets a handler that raises this
        raise KeyboardInterrupt from None
    signal.signal(signal.SIGTERM, interrupt.like_sigint)
    return f"{context.address_info['session_dir']}/logs"


def runtime_env() -> dict[str, Any]:
    """Returns the runtime environment of every process that Ray starts for the job."""
    environment: dict[str, Any] = {"env_vars": WORKER_ENVIRONMENT}
    quoted = shlex.quote(sys.executable)
    if quoted != sys.executable:  # Ray passes it to a shell unquoted, then waits for workers
        environment["py_executable"] = quoted
    return environment


def _check_listening(address: str) -> None:
    """Raises OSError if nothing listens at HOST:PORT: Ray waits two minutes or prints 20 lines."""
    if address.startswith(("http://", "https://")):
        raise OSError("that is a dashboard's address, for `ray job submit`: give HOST:PORT")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


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


def _cpu_affinity() -> int | None:
    """Returns the number of CPUs that this process is restricted to (e.g. by taskset), or None.

    Ray counts the CPUs of the machine or container; threads that share a core wait for each other.
    """
    if not hasattr(os, "sched_getaffinity"):  # Linux only
        return None
    allowed = len(os.sched_getaffinity(0))
    return allowed if allowed != os.cpu_count() else None


def check_storage(folder: storage.StorageDir) -> None:
    """Raises UserError if a node does not see what the driver writes to a local folder."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    if not folder.is_local or len(alive) == 1:
        return

    @ray.remote(num_cpus=0)
    def read(path: str) -> bytes:
        try:
            return Path(path).read_bytes()
        except OSError:
            return b""

    with storage.marker_file(folder) as (path, content):
        reads = {}
        for node in alive:
            on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            address = node["NodeManagerAddress"]
            reads[address] = read.options(scheduling_strategy=on_node).remote(path)
        for address, result in reads.items():
            try:
                found = ray.get(result, timeout=60)
            except ray.exceptions.RayError as error:
                raise UserError(
                    f"node {address} does not respond: {type(error).__name__}"
                ) from None
            if found != content:
                raise UserError(
                    f"--storage: node {address} does not see {folder.parent}: "
                    f"{storage.SHARED_STORAGE_HINT}"
                )


def resolve_trial_resources(cpus: int, gpus: str) -> dict[str, float]:
    """Returns the resources that each trial reserves, e.g. {"cpu": 1, "gpu": 0.25}.

    Args:
        cpus: of each trial.
        gpus: a number, or `auto`: a fraction of a GPU, 0 if the cluster has and can launch none.

    Raises:
        UserError: no existing or launchable node has that much. If it is unknown what can be
            launched, a number is accepted.
    """
    existing, launchable = alive_nodes(), launchable_nodes()
    gpus_per_trial = _resolve_gpus(
        gpus, DEFAULT_GPU_FRACTION, "--gpus-per-trial", existing, launchable
    )
    if launchable is not None and not any(
        _max_workers_on(node, cpus, gpus_per_trial) for node in existing + launchable
    ):
        can_launch = "; ".join(dict.fromkeys(map(format_resources, launchable))) or "no other"
        raise UserError(
            f"no node has {format_resources({'CPU': cpus, 'GPU': gpus_per_trial})}: "
            f"the cluster has {'; '.join(map(format_resources, existing))}; "
            f"it can launch {can_launch}"
        )
    return {"cpu": cpus, "gpu": gpus_per_trial}


def resolve_worker_group(
    workers: tuple[int, int] | None, cpus: int | None, gpus: str
) -> tuple[tuple[int, int], dict[str, float]]:
    """Returns the minimum and maximum number of workers, and the resources each reserves.

    Args:
        workers: minimum and maximum, or None: one for each GPU that has enough CPUs, one without
            GPUs.
        cpus: of each worker, or None: 1 with GPUs, else an equal part of a node's CPUs.
        gpus: of each worker: an integer, or `auto`: 1, 0 if the cluster has and can launch none.

    Raises:
        UserError: the cluster is known to have and launch too little.
    """
    existing, launchable = alive_nodes(), launchable_nodes()
    gpus_per_worker = _resolve_gpus(gpus, 1, "--gpus-per-worker", existing, launchable)
    if gpus_per_worker % 1:
        raise UserError(f"--gpus-per-worker {gpus}: workers of one run cannot share a GPU")
    if workers is None:
        count = max(1, _total_slots(existing, cpus or 1, gpus_per_worker)) if gpus_per_worker else 1
        workers = count, count
    min_workers, max_workers = workers
    if cpus is None:
        max_cpus = 1 if gpus_per_worker else int(max(node.get("CPU", 0) for node in existing))
        fitting = (
            n for n in range(max_cpus, 1, -1)
            if _total_slots(existing, n, gpus_per_worker) >= max_workers
        )  # fmt: skip
        cpus = next(fitting, 1)
    slots = _total_slots(existing, cpus, gpus_per_worker)
    more = min_workers if launchable is None else _total_slots(launchable, cpus, gpus_per_worker)
    if slots + more < min_workers:
        each = format_resources({"CPU": cpus, "GPU": gpus_per_worker})
        raise UserError(
            f"{pluralize(min_workers, 'worker')} with {each}: "
            f"the cluster has room for {slots}, and can launch nodes for {more or 'no'} more"
        )
    return workers, {"cpu": cpus, "gpu": gpus_per_worker}


def alive_nodes() -> list[dict[str, float]]:
    """Returns the resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _resolve_gpus(
    requested: str,
    default: float,
    flag: str,
    existing: list[dict[str, float]],
    launchable: list[dict[str, float]] | None,
) -> float:
    """Returns the GPUs that each worker reserves: the number requested; `default` for auto."""
    if requested != "auto":
        try:
            number = float(requested)
        except ValueError:
            raise UserError(f"{flag} {requested}: must be a number or auto") from None
        if not 0 <= number <= 1 and not (number > 1 and number.is_integer()):
            raise UserError(f"{flag} {requested}: must be a fraction below 1 or a whole number")
        return number
    if any(node.get("GPU") for node in existing + (launchable or [])):
        return default
    if launchable is None:
        print(f"no GPU found; whether the cluster can launch one is unknown: set {flag} if so")
    return 0.0


def _total_slots(nodes: list[dict[str, float]], cpus: float, gpus: float) -> int:
    return sum(_max_workers_on(node, cpus, gpus) for node in nodes)


def _max_workers_on(node: dict[str, float], cpus: float, gpus: float) -> int:
    count = node.get("CPU", 0) / cpus
    if gpus >= 1:
        count = min(count, node.get("GPU", 0) / gpus)
    elif gpus:  # a fraction is taken from one GPU; ten tenths of a GPU are one
        count = min(count, node.get("GPU", 0) * int(1 / gpus + 1e-6))
    return int(count)


def describe_capacity(resources: dict[str, float], max_concurrent: int | None) -> str:
    """Describes how many trials run concurrently and what each reserves."""
    slots = _total_slots(alive_nodes(), resources["cpu"], resources["gpu"])
    growing = "" if launchable_nodes() == [] else ", more as the cluster grows"
    limit = f", at most {max_concurrent}" if max_concurrent else ""
    each = _format_reserved(resources)
    return f"{pluralize(slots, 'concurrent trial')}{growing}{limit}; each with {each}"


def describe_workers(workers: tuple[int, int], resources: dict[str, float]) -> str:
    """Describes how many workers train together and what each reserves."""
    min_workers, max_workers = workers
    at_least = f"{min_workers} to " if min_workers < max_workers else ""
    count = pluralize(max_workers, "worker")
    return f"{at_least}{count}, each with {_format_reserved(resources)}"


def describe_start(seconds: float, resources: dict[str, float], noun: str) -> str:
    """Describes what a job without a result yet is waiting for.

    Args:
        seconds: since it started.
        resources: of each trial or worker.
        noun: which of the two it is.
    """
    status = f"starting for {format_duration(seconds)}"
    if seconds < 10:
        return status
    try:
        total, free = ray.cluster_resources(), ray.available_resources()
    except ray.exceptions.RayError:  # the cluster does not respond
        return status
    capacity = " and ".join(
        f"{free.get(kind, 0):g} of {pluralize(total.get(kind, 0), kind)}" for kind in ("CPU", "GPU")
    )
    return f"{status}; each {noun} needs {_format_reserved(resources)}; free: {capacity}"


def _format_reserved(resources: dict[str, float]) -> str:
    return format_resources({"CPU": resources["cpu"], "GPU": resources["gpu"]})


def format_resources(resources: dict[str, float]) -> str:
    return " and ".join(pluralize(resources.get(kind, 0), kind) for kind in ("CPU", "GPU"))
