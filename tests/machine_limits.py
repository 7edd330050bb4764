"""The limits of this machine, its fastest matrix product and its memory, and what a step does."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile


def best_rate(work: Callable[[], object], amount: float, repeats: int = 5) -> float:
    """Returns `amount` per second of the fastest of several repetitions."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return amount / min(seconds)


def repeated(work: Callable[[], object], times: int) -> Callable[[], None]:
    def repeat() -> None:
        for _ in range(times):
            work()

    return repeat


PRODUCTS = ("@", "nn.Linear", "oneDNN")


def product_seconds(
    rows: int, inner: int, columns: int, products: Sequence[str] = PRODUCTS
) -> float:
    """Returns the time of the fastest matrix product that torch has, or of some of them."""
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    weight = right.T.contiguous()
    left_mkldnn, weight_mkldnn = left.to_mkldnn(), weight.to_mkldnn()
    works: dict[str, Callable[[], object]] = {
        "@": lambda: left @ right,
        "nn.Linear": lambda: nn.functional.linear(left, weight),
        "oneDNN": lambda: torch.ops.aten.mkldnn_linear(left_mkldnn, weight_mkldnn),
    }
    # A hundredth of a second, if the product itself takes the time and not the call.
    repeats = min(1000, max(1, int(2e9 / (2 * rows * inner * columns))))
    return 1 / max(best_rate(repeated(works[name], repeats), repeats, 10) for name in products)


def adam_seconds(network: nn.Module) -> float:
    """Returns the time of Adam's memory traffic at the speed of a copy of the parameters."""
    size = sum(parameter.numel() for parameter in network.parameters())
    source, target = torch.randn(size), torch.empty(size)
    repeats = max(1, int(1e7 / size))
    copies = best_rate(repeated(lambda: target.copy_(source), repeats), repeats, 10)
    # Adam reads parameter, gradient and two moments, and writes all but the gradient. A copy reads
    # once and writes once.
    return 7 / 2 / copies


def time_shares(work: Callable[[], object], groups: dict[str, tuple[str, ...]]) -> list[str]:
    """Returns the percentage of time in each group of operations, and in the rest.

    Args:
        groups: the names of the operations, as torch's profiler has them.
    """
    work()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    shares = [sum(times.get(name, 0) for name in names) for names in groups.values()]
    shares.append(sum(times.values()) - sum(shares))
    return [f"{share / sum(times.values()):.0%}" for share in shares]


ADAM = ("aten::_fused_adam_", "Optimizer.step#Adam.step")  # groups of operations
