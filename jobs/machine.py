"""The machine that a worker computes on: how torch uses it, and how result rows describe it."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import ray
import torch


def configure_torch(num_threads: int) -> None:
    """Sets the calling thread's number of compute threads, and flushes subnormal numbers to zero.

    Vanishing gradients are subnormal (below 1e-38) before they are zero, and may stay so: the
    smallest subnormal times a factor above one half rounds to itself. A CPU computes with
    subnormal numbers many times slower.
    """
    torch.set_num_threads(num_threads)
    torch.set_flush_denormal(True)


def set_gpu_precision(tf32: bool) -> None:
    """Makes GPUs compute in IEEE float32, or in TF32: float32 with a mantissa of 10 bits.

    By default torch uses TF32 in cuDNN's recurrent kernels and convolutions, and float32 in other
    products of matrices.
    """
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32


def hardware_info(device: torch.device) -> dict[str, Any]:
    """Returns the columns that describe hardware, library versions and process of a worker."""
    on_gpu = device.type == "cuda"
    tf32 = torch.backends.cuda.matmul.allow_tf32
    return {
        "device": str(device),
        "hardware": torch.cuda.get_device_name(device) if on_gpu else _cpu_name(),
        "library_versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"Ray {ray.__version__}",
        "num_threads": torch.get_num_threads(),
        "numeric_precision": "TF32" if on_gpu and tf32 else "float32",
        "pid": os.getpid(),
        "node_ip": ray.util.get_node_ip_address(),
    }


def _cpu_name() -> str:
    """Returns the name of the processor and the number of CPUs."""
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:  # Linux only
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} CPUs"
