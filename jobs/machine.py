"""What a worker computes on: set up, and described as every row that it reports has it."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import ray
import torch


def compute_with(threads: int) -> None:
    """Has the calling thread compute with so many threads, and count subnormal numbers as zero.

    Gradients that vanish are subnormal, below 1e-38, before they are zero, and may stay so: the
    smallest such number, times more than a half, is rounded to itself. A CPU takes many times as
    long to compute with them.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def described(device: torch.device) -> dict[str, Any]:
    """Returns the machine, the versions and the process, for a worker that uses `device`."""
    return {
        "device": str(device),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"Ray {ray.__version__}",
        "threads": torch.get_num_threads(),
        "pid": os.getpid(),
        "node_ip": ray.util.get_node_ip_address(),
    }


def _processor() -> str:
    """Returns the processor's name, and how many CPUs the machine has."""
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:  # only Linux has it
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} CPUs"
