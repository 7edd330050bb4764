"""The nodes that a Ray cluster can still launch, as far as a job can know."""

from pathlib import Path
from typing import Any

import yaml

from jobs.ray_internals import autoscaler_command


def launchable_nodes() -> list[dict[str, float]] | None:
    """Returns the resources of each node that the autoscaler can launch; empty without autoscaler.

    Ray has no API for this, but its autoscaler is a process on the head node whose command line
    names its configuration. Returns None if no such process is visible: this process runs on
    another node, or the autoscaler runs in its own container (KubeRay). Also None if the
    configuration does not state the resources of a node (provider `local`).
    """
    command = autoscaler_command()
    if command is None:
        return None
    files = [word.partition("=")[2] for word in command if word.startswith("--autoscaling-config=")]
    if not files:
        return []
    return _nodes_of(yaml.safe_load(Path(files[0]).expanduser().read_text()))


def _nodes_of(configuration: dict[str, Any]) -> list[dict[str, float]] | None:
    """Returns the resources of each node that a configuration allows.

    An upper bound: `max_workers` of the cluster limits all types together, and some may run
    already.
    """
    node_types = configuration["available_node_types"].values()
    max_workers = configuration["max_workers"]
    nodes = [
        dict(node_type["resources"])
        for node_type in node_types
        for _ in range(min(node_type.get("max_workers", 0), max_workers))
    ]
    return nodes if all(nodes) else None  # on premises, Ray detects them when the node starts
