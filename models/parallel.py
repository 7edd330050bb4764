"""What the workers of one training do together, where torch.distributed is initialised.

One process alone is one worker: then nothing here communicates.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import torch

# Imported for its default arguments: they keep whatever process group there is when it is first
# imported, as torch.optim does in time. Kept beyond destroy_process_group(), gloo's threads meet
# the end of the interpreter, and the process ends by SIGABRT once in a while.
import torch.distributed.nn
from torch import Tensor, nn
from torch import distributed as dist

LARGE = 100_000  # numbers in a gradient from which on it travels by itself


def world_size() -> int:
    """Returns how many workers train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(count: int) -> slice:
    """Returns this worker's share of `count` things: shares differ by one at the most."""
    rank = dist.get_rank() if world_size() > 1 else 0
    return slice(count * rank // world_size(), count * (rank + 1) // world_size())


def gather(x: Tensor) -> Tensor:
    """Returns the vectors (n,) that the workers have, one each, as (workers, n).

    For what is small, gloo gathers in a fraction of the time that it takes to add up.
    """
    gathered = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(gathered, x)
    return torch.stack(gathered)


def add_up(tensors: Iterable[Tensor]) -> None:
    """Puts the sum over all workers into each tensor."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


@contextmanager
def gradients_added_up(network: nn.Module) -> Iterator[None]:
    """Makes the gradients that `backward` computes within the block their sums over all workers.

    The large ones travel while it computes the next, the small ones together at the end.
    """
    if world_size() == 1:
        yield
        return
    under_way = []

    def start(parameter: Tensor) -> None:
        under_way.append(dist.all_reduce(parameter.grad, async_op=True))

    parameters = list(network.parameters())
    small = [parameter for parameter in parameters if parameter.numel() < LARGE]
    large = [parameter for parameter in parameters if parameter.numel() >= LARGE]
    hooks = [parameter.register_post_accumulate_grad_hook(start) for parameter in large]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    together = torch.cat([parameter.grad.flatten() for parameter in small])
    dist.all_reduce(together)
    parts = together.split([parameter.numel() for parameter in small])
    for parameter, part in zip(small, parts, strict=True):
        parameter.grad.copy_(part.view_as(parameter))
    for work in under_way:
        work.wait()


def settle_on_cores(local_rank: int, local_workers: int, threads: int) -> None:
    """Keeps threads of the workers out of each other's way; without effect but on Linux.

    Where the workers of this machine fill it, each has its own cores: a thread of gloo that runs on
    the core of another worker holds that up, and all wait for it at the next batch norm.

    On a worker's only core, gloo's thread that receives takes over from the one that sends, finds
    the connection locked by it, and asks again and again, until the scheduler's next tick, 4 ms
    later. Threads of policy SCHED_BATCH wait until the core is free instead.

    Args:
        local_rank: of this worker, among those of its machine.
        local_workers: how many these are.
        threads: that each computes with.
    """
    if world_size() == 1 or not hasattr(os, "SCHED_BATCH"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == local_workers * threads:
        cores = cores[local_rank * threads : (local_rank + 1) * threads]
    for thread in map(int, os.listdir("/proc/self/task")):
        with suppress(OSError):  # it has ended meanwhile, or a sandbox does not allow it
            os.sched_setaffinity(thread, cores)
            os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
