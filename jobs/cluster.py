"""The Ray cluster that a job runs on: finding it, and what it has or can launch."""

import logging
import os
import shlex
import sys
from typing import Any

import ray

from jobs.autoscaling import launchable
from jobs.flags import Trouble

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

# What Ray says unasked and a user can do nothing about.
QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a warning about a default that is to change
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's tables: the job has a progress line of its own
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # tracebacks of each retry: the job tells what failed
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

GPU_SHARE = 0.25  # of a GPU for one small network: four of them fill it


def connect(address: str | None) -> None:
    """Connects to the cluster at `address`, else to the one running here, else starts Ray here."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("tune", "execution.experiment_state"):  # they tell failures a second time
        logging.getLogger(f"ray.tune.{name}").setLevel(logging.CRITICAL)
    runtime_env: dict[str, Any] = {"env_vars": WORKER_ENVIRONMENT}
    if " " in sys.executable:  # which Ray hands to a shell as it is, and then waits for workers
        runtime_env["py_executable"] = shlex.quote(sys.executable)
    try:
        ray.init(
            address=address,
            runtime_env=runtime_env,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise Trouble(
            f"--address {address}: {str(error).splitlines()[0]} "
            "(does it run, and does it ask for a token? then set RAY_AUTH_MODE=token)"
        ) from None


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
    if gpus == "auto":
        share = GPU_SHARE if any(node.get("GPU") for node in there + (coming or [])) else 0.0
    else:
        try:
            share = float(gpus)
        except ValueError:
            raise Trouble(f"--gpus-per-trial {gpus}: must be a number or auto") from None
        if not 0 <= share <= 1 and not (share > 1 and share.is_integer()):
            raise Trouble(f"--gpus-per-trial {gpus}: must be a part of one GPU, or whole ones")
    if coming is None and share == 0 and gpus == "auto":
        print("no GPU is here, and what the cluster may launch is not known: see --gpus-per-trial")
    if coming is not None and not any(_room(node, cpus, share) for node in there + coming):
        raise Trouble(
            f"no node has room for {_shown({'CPU': cpus, 'GPU': share})}: "
            f"the cluster has {'; '.join(map(_shown, there))}; "
            f"it can launch {'; '.join(map(_shown, coming)) or 'no other'}"
        )
    return {"cpu": cpus, "gpu": share}


def nodes() -> list[dict[str, float]]:
    """Returns the resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(node: dict[str, float], cpus: float, gpus: float) -> int:
    room = node.get("CPU", 0) / cpus
    if gpus:
        room = min(room, node.get("GPU", 0) / gpus)
    return int(room + 1e-6)  # ten tenths of a GPU are one


def plan(resources: dict[str, float], at_most: int | None) -> str:
    """Returns a line that says how many workers will run at a time, and what each reserves."""
    slots = sum(_room(node, resources["cpu"], resources["gpu"]) for node in nodes())
    growing = "" if launchable() == [] else ", more as the cluster grows"
    limit = f", at most {at_most}" if at_most else ""
    each = _shown({"CPU": resources["cpu"], "GPU": resources["gpu"]})
    return f"{slots} at a time{growing}{limit}; each with {each}"


def _shown(resources: dict[str, float]) -> str:
    amounts = [(resources.get(kind, 0), kind) for kind in ("CPU", "GPU")]
    return " and ".join(f"{n:g} {kind}{'' if n == 1 else 's'}" for n, kind in amounts)
