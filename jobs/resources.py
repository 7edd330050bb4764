"""The resources that a cluster has or can launch, and what each trial or worker reserves."""

import ray

from jobs.autoscaling import launchable_nodes
from jobs.errors import UserError
from jobs.formatting import format_duration, pluralize
from jobs.progress import print_lines

DEFAULT_GPU_FRACTION = 0.25  # of a GPU for one small network: four of them saturate it


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
    gpus_per_trial = parse_gpus("--gpus-per-trial", gpus)
    if gpus_per_trial is None:
        gpus_per_trial = _auto_gpus(DEFAULT_GPU_FRACTION, "--gpus-per-trial", existing, launchable)
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
    gpus_per_worker = parse_gpus("--gpus-per-worker", gpus, shared=False)
    if gpus_per_worker is None:
        gpus_per_worker = _auto_gpus(1, "--gpus-per-worker", existing, launchable)
    if workers is None:
        count = max(1, _total_slots(existing, cpus or 1, gpus_per_worker)) if gpus_per_worker else 1
        workers = count, count
    min_workers, max_workers = workers
    if cpus is None:
        # A head node may reserve all of its CPUs, while no other node is launched yet.
        nodes = existing if any(node.get("CPU") for node in existing) else launchable or existing
        max_cpus = 1 if gpus_per_worker else int(max(node.get("CPU", 0) for node in nodes))
        fitting = (
            n for n in range(max_cpus, 1, -1)
            if _total_slots(nodes, n, gpus_per_worker) >= max_workers
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


def parse_gpus(flag: str, text: str, shared: bool = True) -> float | None:
    """Parses the GPUs that each trial or worker reserves; None for auto.

    Args:
        shared: whether several can share a GPU.

    Raises:
        UserError: it is not a possible number.
    """
    if text == "auto":
        return None
    try:
        number = float(text)
    except ValueError:
        raise UserError(f"{flag} {text}: must be a number or auto") from None
    if not 0 <= number <= 1 and not (number > 1 and number.is_integer()):
        raise UserError(f"{flag} {text}: must be a fraction below 1 or a whole number")
    if number % 1 and not shared:
        raise UserError(f"{flag} {text}: workers of one run cannot share a GPU")
    return number


def _auto_gpus(
    default: float,
    flag: str,
    existing: list[dict[str, float]],
    launchable: list[dict[str, float]] | None,
) -> float:
    """Returns the GPUs that each reserves where the user has not said: `default`, if any exist."""
    if any(node.get("GPU") for node in existing + (launchable or [])):
        return default
    if launchable is None:
        print_lines(
            f"no GPU found; whether the cluster can launch one is unknown: set {flag} if so"
        )
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
    reserved = " and ".join(
        f"{total.get(kind, 0) - free.get(kind, 0):g} of {pluralize(total.get(kind, 0), kind)}"
        for kind in ("CPU", "GPU")
    )
    return (
        f"{status}; each {noun} needs {_format_reserved(resources)}; "
        f"reserved, by this job or others: {reserved}"
    )


def _format_reserved(resources: dict[str, float]) -> str:
    return format_resources({"CPU": resources["cpu"], "GPU": resources["gpu"]})


def format_resources(resources: dict[str, float]) -> str:
    return " and ".join(pluralize(resources.get(kind, 0), kind) for kind in ("CPU", "GPU"))
