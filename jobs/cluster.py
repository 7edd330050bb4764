"""The Ray cluster that a job runs on: finding it, and what it has or can launch."""

import logging
import os

import ray

from jobs.flags import Trouble

# Set for every process of a job before it starts. From buffers of about a megabyte on, glibc gives
# memory back to the kernel at every training step and asks for it again, which costs a third of the
# time of an LSTM at 35 steps; and cuBLAS repeats its results only with a workspace of fixed size.
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "CUBLAS_WORKSPACE_CONFIG": ":4096:2",
}

# What Ray says unasked and a user can do nothing about.
QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a warning about a default that is to change
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's tables: the job has a progress line of its own
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

GPU_SHARE = 0.25  # of a GPU for one small network: four of them fill it


def connect(address: str | None) -> None:
    """Connects to the cluster at `address`, else to the one running here, else starts Ray here."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise Trouble(f"--address {address}: {str(error).splitlines()[0]}") from None


def nodes() -> list[dict[str, float]]:
    """Returns what each living node has: its CPUs and GPUs."""
    return [_cpus_gpus(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def resources(cpus: int, gpus: str) -> dict[str, float]:
    """Returns what each worker is to reserve, {"cpu": 1, "gpu": 0.25}.

    Args:
        cpus: for each worker.
        gpus: a number, or `auto`: a share of one, 0 where the cluster has and can launch none.

    Raises:
        Trouble: no node that is there or that can be launched holds that much.
    """
    there, coming = nodes(), launchable()
    if gpus == "auto":
        share = GPU_SHARE if any(node["GPU"] for node in there + (coming or [])) else 0.0
    else:
        try:
            share = float(gpus)
        except ValueError:
            raise Trouble(f"--gpus-per-trial {gpus}: a number, or auto") from None
    if coming is not None and not any(_room(node, cpus, share) for node in there + coming):
        raise Trouble(
            f"no node has {cpus} CPUs and {share:g} GPUs for a trial: the cluster has "
            + "; ".join(f"{node['CPU']:g} CPUs, {node['GPU']:g} GPUs" for node in there)
            + ("; it can launch no other" if not coming else f"; it can launch {coming}")
        )
    return {"cpu": cpus, "gpu": share}


def slots(resources: dict[str, float]) -> int:
    """Returns how many workers fit on the nodes that are there."""
    return sum(_room(node, resources["cpu"], resources["gpu"]) for node in nodes())


def _room(node: dict[str, float], cpus: float, gpus: float) -> int:
    room = node["CPU"] // cpus
    return int(min(room, node["GPU"] // gpus) if gpus else room)


def _cpus_gpus(resources: dict[str, float]) -> dict[str, float]:
    return {"CPU": resources.get("CPU", 0.0), "GPU": resources.get("GPU", 0.0)}


def launchable() -> list[dict[str, float]] | None:
    return []
