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
        (LAPTOP, [], (None, None, "auto"), ((1, 1), {"CPU": 2, "GPU": 0})),
        (LAPTOP, [], ((2, 2), None, "auto"), ((2, 2), {"CPU": 1, "GPU": 0})),
        (LAPTOP, [], ((1, 8), None, "auto"), ((1, 8), {"CPU": 1, "GPU": 0})),
        (NODES, [], (None, None, "auto"), ((1, 1), {"CPU": 16, "GPU": 0})),
        (NODES, [], ((2, 8), None, "auto"), ((2, 8), {"CPU": 4, "GPU": 0})),
        (NODES, [], ((3, 3), None, "auto"), ((3, 3), {"CPU": 8, "GPU": 0})),
        (NODES, [], ((2, 8), 2, "auto"), ((2, 8), {"CPU": 2, "GPU": 0})),
        (GPUS, [], (None, None, "auto"), ((8, 8), {"CPU": 1, "GPU": 1})),
        (GPUS, [], (None, None, "0.5"), ((16, 16), {"CPU": 1, "GPU": 0.5})),
        (GPUS, [], ((2, 4), 3, "auto"), ((2, 4), {"CPU": 3, "GPU": 1})),
        (GPUS, [], (None, None, "0"), ((1, 1), {"CPU": 8, "GPU": 0})),
        (LAPTOP, [{"CPU": 4, "GPU": 1}], (None, None, "auto"), ((1, 1), {"CPU": 1, "GPU": 1})),
        (LAPTOP, [{"CPU": 4, "GPU": 1}], ((4, 4), None, "auto"), ((4, 4), {"CPU": 1, "GPU": 1})),
        (LAPTOP, None, ((3, 3), None, "1"), ((3, 3), {"CPU": 1, "GPU": 1})),
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
        (((1, 1), None, "many"), "--gpus-per-worker many"),
    ],
)
def test_what_will_never_be_there_is_refused(monkeypatch, asked, said):
    monkeypatch.setattr(cluster, "nodes", lambda: LAPTOP)
    monkeypatch.setattr(cluster, "launchable", lambda: [])
    with pytest.raises(Trouble, match=said):
        cluster.worker_group(*asked)
