"""What the workers of one training do together, where torch.distributed is initialised.

One process alone is one worker: then nothing here communicates.
"""

import os
from collections.abc import Iterable
from contextlib import suppress

import torch

# Imported for its default arguments: they keep whatever process group there is when it is first
# imported, as torch.optim does in time. Kept beyond destroy_process_group(), gloo's threads meet
# the end of the interpreter, and the process ends by SIGABRT once in a while.
import torch.distributed.nn
from torch import Tensor
from torch import distributed as dist

LARGE = 100_000  # numbers in a tensor from which on it is added up by itself, not with others


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
    """Puts the sum over all workers into each tensor; the small ones travel together."""
    if world_size() == 1:
        return
    tensors = list(tensors)
    small = [tensor for tensor in tensors if tensor.numel() < LARGE]
    sums = [tensor for tensor in tensors if tensor.numel() >= LARGE]
    if small:
        sums.append(torch.cat([tensor.flatten() for tensor in small]))
    for work in [dist.all_reduce(tensor, async_op=True) for tensor in sums]:
        work.wait()
    if small:
        parts = sums[-1].split([tensor.numel() for tensor in small])
        for tensor, part in zip(small, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def let_senders_finish() -> None:
    """Keeps gloo's threads from taking the core from each other; without effect but on Linux.

    On a worker's only core, the thread that receives takes over from the one that sends, finds the
    connection locked by it, and asks again and again, until the scheduler's next tick, 4 ms later.
    Threads of policy SCHED_BATCH wait until the core is free instead.
    """
    if world_size() > 1 and hasattr(os, "SCHED_BATCH"):
        for thread in os.listdir("/proc/self/task"):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setscheduler(int(thread), os.SCHED_BATCH, os.sched_param(0))
