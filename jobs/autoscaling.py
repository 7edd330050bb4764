"""What a Ray cluster may still launch, as far as a job can know."""

from pathlib import Path
from typing import Any

import ray
import yaml


def launchable() -> list[dict[str, float]] | None:
    """Returns the resources of each node that the autoscaler may launch, none without one.

    Ray's API tells neither, but its autoscaler is a process on the head node which names its
    configuration, if it has one, on its command line. Returns None where no such process is seen:
    this one runs on another node, or the autoscaler in a container of its own (KubeRay). Also where
    the configuration does not tell what a node has (provider `local`).
    """
    command = _autoscaler_command(ray.get_runtime_context().gcs_address)
    if command is None:
        return None
    files = [word.partition("=")[2] for word in command if word.startswith("--autoscaling-config=")]
    if not files:
        return []
    return _nodes(yaml.safe_load(Path(files[0]).expanduser().read_text()))


def _nodes(configuration: dict[str, Any]) -> list[dict[str, float]] | None:
    """Returns the resources of each node that a configuration lets be launched.

    They are no fewer than there can be: `max_workers` of the cluster holds for all types together,
    and some may run already.
    """
    types = configuration["available_node_types"].values()
    most = configuration["max_workers"]
    nodes = [
        dict(node["resources"])
        for node in types
        for _ in range(min(node.get("max_workers", 0), most))
    ]
    return nodes if all(nodes) else None  # on premises they are found when the node is there


def _autoscaler_command(gcs_address: str) -> list[str] | None:
    """Returns the command line of this cluster's autoscaler, None where it does not run here."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended
        is_autoscaler = any(w.endswith("monitor.py") and "/autoscaler/" in w for w in command)
        if is_autoscaler and f"--gcs-address={gcs_address}" in command:
            return command
    return None
