"""The Ray cluster that a job runs on: finding it, and what it has or can launch."""

import logging
import os
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs import storage
from jobs.autoscaling import launchable
from jobs.flags import Trouble
from jobs.progress import plural

# Set for every process of a job before it starts. By default glibc gives big buffers back to the
# kernel at every training step and asks for them again, which costs up to a third of the time of an
# LSTM from 24 steps on. Tune trains in a thread, and only in the first arena, the main thread's, do
# the thresholds hold. And cuBLAS repeats its results only with a workspace of fixed size.
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_ARENA_MAX": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:2",
}

GPU_SHARE = 0.25  # of a GPU for one small network: four of them fill it


def connect(address: str | None) -> None:
    """Connects to the cluster at `address`, else to the one running here, else starts Ray here."""
    # What tells failures a second time.
    for name in ("tune", "execution.experiment_state", "execution.tune_controller"):
        logging.getLogger(f"ray.tune.{name}").setLevel(logging.CRITICAL)
    options: dict[str, Any] = {
        "address": address,
        "runtime_env": runtime_env(),
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "include_dashboard": False,  # of a Ray that only this command starts
    }
    try:
        _check_listening(address or "")
        try:
            ray.init(num_cpus=_cpus_allowed(), **options)
        except ValueError:  # there is a cluster, which has its own number
            ray.init(**options)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"--address {address}" if address else "the cluster here"
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "AF_UNIX path length" in reason:
            raise Trouble(
                f"RAY_TMPDIR: too long for the names of Ray's sockets: {reason}"
            ) from None
        raise Trouble(
            f"{where}: {reason} "
            "(does it run, and does it ask for a token? then set RAY_AUTH_MODE=token)"
        ) from None


def runtime_env() -> dict[str, Any]:
    """Returns what `ray.init` is told of each process that it will start."""
    told: dict[str, Any] = {"env_vars": WORKER_ENVIRONMENT}
    if " " in sys.executable:  # which Ray hands to a shell as it is, and then waits for workers
        told["py_executable"] = shlex.quote(sys.executable)
    return told


def _check_listening(address: str) -> None:
    """Raises OSError where an address is HOST:PORT and nothing listens: Ray says so in 20 lines."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _cpus_allowed() -> int | None:
    """Returns how many CPUs this process is held to (by taskset, say), None if to none.

    Ray counts those of the machine or of the container, and threads that share a core wait for
    each other.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return allowed if allowed < os.cpu_count() else None


def check_storage(folder: storage.Folder) -> None:
    """Raises Trouble where a node does not see what the driver writes to a local folder."""
    living = [node for node in ray.nodes() if node["Alive"]]
    if not folder.is_local or len(living) == 1:
        return

    @ray.remote(num_cpus=0)
    def read(path: str) -> bytes:
        try:
            return Path(path).read_bytes()
        except OSError:
            return b""

    with storage.token(folder) as (path, content):
        answers = {}
        for node in living:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answer = read.options(scheduling_strategy=there).remote(path)
            answers[node["NodeManagerAddress"]] = answer
        for address, answer in answers.items():
            try:
                found = ray.get(answer, timeout=60)
            except ray.exceptions.RayError as error:
                raise Trouble(f"node {address} does not answer: {type(error).__name__}") from None
            if found != content:
                raise Trouble(
                    f"--storage: node {address} does not see {folder.parent}: {storage.WAYS_OUT}"
                )


def resources(cpus: int, gpus: str) -> dict[str, float]:
    """Returns what each worker is to reserve, {"cpu": 1, "gpu": 0.25}.

    Args:
        cpus: for each worker.
        gpus: a number, or `auto`: a share of one, 0 where the cluster has and can launch none.

    Raises:
        Trouble: no node that is there or that can be launched holds that much. Where it cannot be
            known what may be launched, a number is believed.
    """
    there, coming = nodes(), launchable()
    share = _gpus(gpus, GPU_SHARE, "--gpus-per-trial", there, coming)
    if coming is not None and not any(_room(node, cpus, share) for node in there + coming):
        raise Trouble(
            f"no node has room for {_shown({'CPU': cpus, 'GPU': share})}: "
            f"the cluster has {'; '.join(map(_shown, there))}; "
            f"it can launch {'; '.join(dict.fromkeys(map(_shown, coming))) or 'no other'}"
        )
    return {"cpu": cpus, "gpu": share}


def worker_group(
    workers: tuple[int, int] | None, cpus: int | None, gpus: str
) -> tuple[tuple[int, int], dict[str, float]]:
    """Returns how many workers train together, at least and at most, and what each reserves.

    Args:
        workers: at least and at most, or None: one for each GPU that has its CPUs, one where
            there are none.
        cpus: for each, or None: without GPUs, its share of those that are here; else 1.
        gpus: for each: a whole number, or `auto`: 1, 0 where the cluster has and can launch none.

    Raises:
        Trouble: the cluster lacks the room, and is known to launch none.
    """
    there, coming = nodes(), launchable()
    share = _gpus(gpus, 1, "--gpus-per-worker", there, coming)
    if share % 1:
        raise Trouble(f"--gpus-per-worker {gpus}: workers of one run cannot share a GPU")
    if workers is None:
        count = max(1, _slots(there, cpus or 1, share)) if share else 1
        workers = count, count
    least, most = workers
    if cpus is None:
        most_of_a_node = 1 if share else int(max(node.get("CPU", 0) for node in there))
        fitting = (n for n in range(most_of_a_node, 1, -1) if _slots(there, n, share) >= most)
        cpus = next(fitting, 1)
    room = _slots(there, cpus, share)
    more = least if coming is None else _slots(coming, cpus, share)
    if room + more < least:
        raise Trouble(
            f"{plural(least, 'worker')} with {_shown({'CPU': cpus, 'GPU': share})}: "
            f"the cluster has room for {room}, and can launch nodes for {more or 'no'} more"
        )
    return workers, {"cpu": cpus, "gpu": share}


def nodes() -> list[dict[str, float]]:
    """Returns the resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _gpus(
    asked: str,
    share: float,
    flag: str,
    there: list[dict[str, float]],
    coming: list[dict[str, float]] | None,
) -> float:
    """Returns the GPUs that each worker reserves: as asked, and `share` for auto, if there are."""
    if asked != "auto":
        try:
            number = float(asked)
        except ValueError:
            raise Trouble(f"{flag} {asked}: must be a number or auto") from None
        if not 0 <= number <= 1 and not (number > 1 and number.is_integer()):
            raise Trouble(f"{flag} {asked}: must be a part of one GPU, or whole ones")
        return number
    if any(node.get("GPU") for node in there + (coming or [])):
        return share
    if coming is None:
        print(f"no GPU is here, and what the cluster may launch is not known: see {flag}")
    return 0.0


def _slots(nodes: list[dict[str, float]], cpus: float, gpus: float) -> int:
    return sum(_room(node, cpus, gpus) for node in nodes)


def _room(node: dict[str, float], cpus: float, gpus: float) -> int:
    room = node.get("CPU", 0) / cpus
    if gpus >= 1:
        room = min(room, node.get("GPU", 0) / gpus)
    elif gpus:  # a worker's part is of one GPU, and ten tenths of a GPU are one
        room = min(room, node.get("GPU", 0) * int(1 / gpus + 1e-6))
    return int(room)


def plan(resources: dict[str, float], at_most: int | None) -> str:
    """Returns a line that says how many workers will run at a time, and what each reserves."""
    slots = _slots(nodes(), resources["cpu"], resources["gpu"])
    growing = "" if launchable() == [] else ", more as the cluster grows"
    limit = f", at most {at_most}" if at_most else ""
    return f"{slots} at a time{growing}{limit}; each with {_reserved(resources)}"


def group_plan(workers: tuple[int, int], resources: dict[str, float]) -> str:
    """Returns how many workers train together, and what each reserves, in words."""
    least, most = workers
    from_to = f"{least} to " if least < most else ""
    return f"{from_to}{plural(most, 'worker')}, each with {_reserved(resources)}"


def _reserved(resources: dict[str, float]) -> str:
    return _shown({"CPU": resources["cpu"], "GPU": resources["gpu"]})


def _shown(resources: dict[str, float]) -> str:
    return " and ".join(plural(resources.get(kind, 0), kind) for kind in ("CPU", "GPU"))
