"""Collective operations of data-parallel workers, where torch.distributed is initialized.

A single process is one worker: then nothing here communicates.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import torch

# Imported before any process group exists: its default arguments capture the group at the first
# import, and torch.optim would import it later. A process group that outlives
# destroy_process_group() keeps gloo's threads until the interpreter ends, and the process then
# sometimes ends by SIGABRT.
import torch.distributed.nn
from torch import Tensor, nn
from torch import distributed as dist

# Gradients with at least this many elements get their own all-reduce; smaller ones share a bucket.
BUCKET_THRESHOLD_NUMEL = 100_000


def world_size() -> int:
    """Returns the number of workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shard_slice(count: int) -> slice:
    """Returns this worker's shard of `count` items; shards differ in size by one at most."""
    rank = dist.get_rank() if world_size() > 1 else 0
    return slice(count * rank // world_size(), count * (rank + 1) // world_size())


def all_gather(x: Tensor) -> Tensor:
    """Gathers one vector (n,) of each worker: (workers, n).

    For small vectors, gloo's all-gather takes a fraction of the time of its all-reduce.
    """
    gathered = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(gathered, x)
    return torch.stack(gathered)


def all_reduce_sum_(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its sum over all workers."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


@contextmanager
def all_reduce_gradients(network: nn.Module) -> Iterator[None]:
    """Sums the gradients that `backward` computes within the block over all workers.

    Large gradients are reduced while `backward` computes the next ones, small ones in one bucket
    at the end. DistributedDataParallel, which ray.train.torch.prepare_model() adds, is as fast, but
    it rebuilds its buckets after its first step: with three workers or more, a resumed run then
    sums in another order than an uninterrupted one, and its results differ.
    """
    if world_size() == 1:
        yield
        return
    pending: list[dist.Work] = []

    def start(parameter: Tensor) -> None:
        pending.append(dist.all_reduce(_gradient_of(parameter), async_op=True))

    parameters = list(network.parameters())
    small = [p for p in parameters if p.numel() < BUCKET_THRESHOLD_NUMEL]
    large = [p for p in parameters if p.numel() >= BUCKET_THRESHOLD_NUMEL]
    hooks = [parameter.register_post_accumulate_grad_hook(start) for parameter in large]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    bucket = torch.cat([_gradient_of(parameter).flatten() for parameter in small])
    dist.all_reduce(bucket)
    chunks = bucket.split([parameter.numel() for parameter in small])
    for parameter, chunk in zip(small, chunks, strict=True):
        _gradient_of(parameter).copy_(chunk.view_as(parameter))
    for work in pending:
        work.wait()


def _gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None  # backward() has run
    return parameter.grad


def pin_threads_to_cores(local_rank: int, local_workers: int, threads: int) -> None:
    """Keeps the threads of different workers from competing for a core. Linux only.

    If the workers on this machine use all of its cores, each worker gets its own: a gloo thread on
    another worker's core delays that worker, and all workers wait for it at the next batch norm.

    On a worker with a single core, gloo's receive thread preempts the send thread and spins on its
    lock until the next scheduler tick (4 ms). Threads of policy SCHED_BATCH wait instead.

    Args:
        local_rank: rank of this worker on its machine.
        local_workers: number of workers on this machine.
        threads: compute threads of each worker.
    """
    if world_size() == 1 or not hasattr(os, "SCHED_BATCH"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == local_workers * threads:
        cores = cores[local_rank * threads : (local_rank + 1) * threads]
    for thread in map(int, os.listdir("/proc/self/task")):
        with suppress(OSError):  # the thread has ended, or a sandbox forbids it
            os.sched_setaffinity(thread, cores)
            os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
