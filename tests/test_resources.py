"""jobs/resources.py, without Ray: resources on clusters of several shapes."""

from collections.abc import Callable

import pytest

from jobs import resources
from jobs.errors import UserError

LAPTOP = [{"CPU": 2}]
CPU_NODES = [{"CPU": 16}, {"CPU": 16}]
GPU_NODES = [{"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 4}]

Nodes = list[dict[str, float]]


@pytest.fixture
def set_nodes(monkeypatch) -> Callable[[Nodes, Nodes | None], None]:
    """Sets the nodes that are alive and those that the autoscaler can launch (None: unknown)."""

    def set_both(alive: Nodes, launchable: Nodes | None) -> None:
        monkeypatch.setattr(resources, "alive_nodes", lambda: alive)
        monkeypatch.setattr(resources, "launchable_nodes", lambda: launchable)

    return set_both


@pytest.mark.parametrize(
    ("alive", "launchable", "requested", "resolved"),
    [
        (LAPTOP, [], (None, None, "auto"), ((1, 1), {"cpu": 2, "gpu": 0})),
        (LAPTOP, [], ((2, 2), None, "auto"), ((2, 2), {"cpu": 1, "gpu": 0})),
        (LAPTOP, [], ((1, 8), None, "auto"), ((1, 8), {"cpu": 1, "gpu": 0})),
        (CPU_NODES, [], (None, None, "auto"), ((1, 1), {"cpu": 16, "gpu": 0})),
        (CPU_NODES, [], ((2, 8), None, "auto"), ((2, 8), {"cpu": 4, "gpu": 0})),
        (CPU_NODES, [], ((3, 3), None, "auto"), ((3, 3), {"cpu": 8, "gpu": 0})),
        (CPU_NODES, [], ((2, 8), 2, "auto"), ((2, 8), {"cpu": 2, "gpu": 0})),
        (GPU_NODES, [], (None, None, "auto"), ((8, 8), {"cpu": 1, "gpu": 1})),
        (GPU_NODES, [], (None, 3, "auto"), ((4, 4), {"cpu": 3, "gpu": 1})),  # two per node
        (GPU_NODES, [], (None, None, "2"), ((4, 4), {"cpu": 1, "gpu": 2})),
        (GPU_NODES, [], ((2, 4), 3, "auto"), ((2, 4), {"cpu": 3, "gpu": 1})),
        (GPU_NODES, [], (None, None, "0"), ((1, 1), {"cpu": 8, "gpu": 0})),
        (LAPTOP, [{"CPU": 4, "GPU": 1}], (None, None, "auto"), ((1, 1), {"cpu": 1, "gpu": 1})),
        (
            LAPTOP,
            [{"CPU": 4, "GPU": 1}] * 4,
            ((4, 4), None, "auto"),
            ((4, 4), {"cpu": 1, "gpu": 1}),
        ),
        (LAPTOP, None, ((3, 3), None, "1"), ((3, 3), {"cpu": 1, "gpu": 1})),
        ([{"CPU": 0}], CPU_NODES, (None, None, "auto"), ((1, 1), {"cpu": 16, "gpu": 0})),
        ([{"CPU": 0}], CPU_NODES, ((4, 4), None, "auto"), ((4, 4), {"cpu": 8, "gpu": 0})),
        ([{"CPU": 0}], None, (None, None, "auto"), ((1, 1), {"cpu": 1, "gpu": 0})),
    ],
)
def test_worker_group_fits_the_nodes(set_nodes, alive, launchable, requested, resolved):
    set_nodes(alive, launchable)
    assert resources.resolve_worker_group(*requested) == resolved


@pytest.mark.parametrize(
    ("launchable", "requested", "message"),
    [
        ([], ((3, 3), None, "auto"), "room for 2, and can launch nodes for no more"),
        ([], ((3, 8), None, "auto"), "room for 2"),
        ([], ((1, 1), 4, "auto"), "1 worker with 4 CPUs and 0 GPUs: the cluster has room for 0"),
        ([], ((1, 1), None, "1"), "room for 0"),
        ([], ((1, 1), None, "1.5"), "--gpus-per-worker 1.5"),
        ([], ((2, 2), None, "0.5"), "cannot share a GPU"),
        ([], ((1, 1), None, "many"), "--gpus-per-worker many: must be a number or auto"),
        ([{"CPU": 4}] * 3, ((1, 1), 100, "auto"), "nodes for no more"),
        ([{"CPU": 4}] * 3, ((64, 64), 1, "auto"), "room for 2, and can launch nodes for 12 more"),
    ],
)
def test_worker_group_that_cannot_fit_is_refused(set_nodes, launchable, requested, message):
    set_nodes(LAPTOP, launchable)
    with pytest.raises(UserError, match=message):
        resources.resolve_worker_group(*requested)


@pytest.mark.parametrize(
    ("alive", "launchable", "requested", "resolved"),
    [
        (LAPTOP, [], (1, "auto"), {"cpu": 1, "gpu": 0}),
        (GPU_NODES, [], (2, "auto"), {"cpu": 2, "gpu": 0.25}),
        (LAPTOP, [{"CPU": 4, "GPU": 1}], (4, "auto"), {"cpu": 4, "gpu": 0.25}),
        (LAPTOP, None, (64, "1"), {"cpu": 64, "gpu": 1}),  # may be launchable
        (GPU_NODES, [], (1, "2"), {"cpu": 1, "gpu": 2}),
    ],
)
def test_trial_resources_fit_one_node(set_nodes, alive, launchable, requested, resolved):
    set_nodes(alive, launchable)
    assert resources.resolve_trial_resources(*requested) == resolved


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ((4096, "auto"), "no node has 4096 CPUs and 0 GPUs: the cluster has 2 CPUs"),
        ((1, "1"), "no node has 1 CPU and 1 GPU"),
        ((1, "some"), "must be a number or auto"),
        ((1, "1.5"), "must be a fraction below 1 or a whole number"),
        ((1, "nan"), "must be a fraction below 1 or a whole number"),
    ],
)
def test_trial_resources_that_no_node_has_are_refused(set_nodes, requested, message):
    set_nodes(LAPTOP, [])
    with pytest.raises(UserError, match=message):
        resources.resolve_trial_resources(*requested)


@pytest.mark.parametrize(("gpus", "slots"), [(0.25, 12), (0.1, 30), (0.4, 6), (0.6, 3), (2, 1)])
def test_gpu_fraction_is_of_one_gpu(set_nodes, gpus, slots):
    set_nodes([{"CPU": 64, "GPU": 3}], [])
    description = resources.describe_capacity({"cpu": 1, "gpu": gpus}, None)
    assert description.startswith(f"{slots} concurrent trial")
