"""How many workers train together, and what each reserves, on clusters of several shapes."""

import pytest

from jobs import cluster
from jobs.flags import Trouble

LAPTOP = [{"CPU": 2}]
NODES = [{"CPU": 16}, {"CPU": 16}]
GPUS = [{"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 4}]


@pytest.mark.parametrize(
    ("there", "coming", "asked", "group"),
    [
        (LAPTOP, [], (None, None, "auto"), ((1, 1), {"cpu": 2, "gpu": 0})),
        (LAPTOP, [], ((2, 2), None, "auto"), ((2, 2), {"cpu": 1, "gpu": 0})),
        (LAPTOP, [], ((1, 8), None, "auto"), ((1, 8), {"cpu": 1, "gpu": 0})),
        (NODES, [], (None, None, "auto"), ((1, 1), {"cpu": 16, "gpu": 0})),
        (NODES, [], ((2, 8), None, "auto"), ((2, 8), {"cpu": 4, "gpu": 0})),
        (NODES, [], ((3, 3), None, "auto"), ((3, 3), {"cpu": 8, "gpu": 0})),
        (NODES, [], ((2, 8), 2, "auto"), ((2, 8), {"cpu": 2, "gpu": 0})),
        (GPUS, [], (None, None, "auto"), ((8, 8), {"cpu": 1, "gpu": 1})),
        (GPUS, [], (None, 3, "auto"), ((4, 4), {"cpu": 3, "gpu": 1})),  # two of each node
        (GPUS, [], (None, None, "2"), ((4, 4), {"cpu": 1, "gpu": 2})),
        (GPUS, [], ((2, 4), 3, "auto"), ((2, 4), {"cpu": 3, "gpu": 1})),
        (GPUS, [], (None, None, "0"), ((1, 1), {"cpu": 8, "gpu": 0})),
        (LAPTOP, [{"CPU": 4, "GPU": 1}], (None, None, "auto"), ((1, 1), {"cpu": 1, "gpu": 1})),
        (
            LAPTOP,
            [{"CPU": 4, "GPU": 1}] * 4,
            ((4, 4), None, "auto"),
            ((4, 4), {"cpu": 1, "gpu": 1}),
        ),
        (LAPTOP, None, ((3, 3), None, "1"), ((3, 3), {"cpu": 1, "gpu": 1})),
    ],
)
def test_workers_share_what_is_there(monkeypatch, there, coming, asked, group):
    monkeypatch.setattr(cluster, "nodes", lambda: there)
    monkeypatch.setattr(cluster, "launchable", lambda: coming)
    assert cluster.worker_group(*asked) == group


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (((3, 3), None, "auto"), "the cluster has room for 2"),
        (((3, 8), None, "auto"), "the cluster has room for 2"),
        (((1, 1), 4, "auto"), "1 worker with 4 CPUs and 0 GPUs: the cluster has room for 0"),
        (((1, 1), None, "1"), "the cluster has room for 0"),
        (((1, 1), None, "1.5"), "--gpus-per-worker 1.5"),
        (((2, 2), None, "0.5"), "cannot share a GPU"),
        (((1, 1), None, "many"), "--gpus-per-worker many"),
    ],
)
def test_what_will_never_be_there_is_refused(monkeypatch, asked, said):
    monkeypatch.setattr(cluster, "nodes", lambda: LAPTOP)
    monkeypatch.setattr(cluster, "launchable", lambda: [])
    with pytest.raises(Trouble, match=said):
        cluster.worker_group(*asked)


@pytest.mark.parametrize(
    ("workers", "cpus", "said"),
    [
        ((1, 1), 100, "nodes for no more"),
        ((64, 64), 1, "room for 2, and can launch nodes for 12 more"),
    ],
)
def test_nodes_that_may_come_must_have_the_room_too(monkeypatch, workers, cpus, said):
    monkeypatch.setattr(cluster, "nodes", lambda: LAPTOP)
    monkeypatch.setattr(cluster, "launchable", lambda: [{"CPU": 4}] * 3)
    with pytest.raises(Trouble, match=said):
        cluster.worker_group(workers, cpus, "auto")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((4096, "auto"), "no node has room for 4096 CPUs and 0 GPUs: the cluster has 2 CPUs"),
        ((1, "1"), "no node has room for 1 CPU and 1 GPU"),
        ((1, "some"), "must be a number or auto"),
        ((1, "1.5"), "must be a part of one GPU, or whole ones"),
        ((1, "nan"), "must be a part of one GPU, or whole ones"),
    ],
)
def test_what_no_trial_can_have_is_refused(monkeypatch, asked, said):
    monkeypatch.setattr(cluster, "nodes", lambda: LAPTOP)
    monkeypatch.setattr(cluster, "launchable", lambda: [])
    with pytest.raises(Trouble, match=said):
        cluster.resources(*asked)


@pytest.mark.parametrize(("share", "slots"), [(0.25, 12), (0.1, 30), (0.4, 6), (0.6, 3), (2, 1)])
def test_a_part_of_a_gpu_is_of_one_gpu(monkeypatch, share, slots):
    monkeypatch.setattr(cluster, "nodes", lambda: [{"CPU": 64, "GPU": 3}])
    monkeypatch.setattr(cluster, "launchable", lambda: [])
    assert cluster.plan({"cpu": 1, "gpu": share}, None).startswith(f"{slots} at a time;")


def test_a_folder_too_deep_for_rays_sockets_is_told(monkeypatch):
    def init(**_: object) -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: /deep")

    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(Trouble, match=r"^RAY_TMPDIR: too long for .* sockets"):
        cluster.connect(None)
