"""Jobs on a cluster that grows: Ray's own autoscaler, whose nodes are processes here."""

import re
from collections.abc import Iterator
from types import SimpleNamespace

import clusters
import pytest

from analysis.results import read_trials

pytestmark = pytest.mark.ray

GRID = ["--cells", "lstm,rnn", "--lengths", "3,4", "--seeds", "0,1"]
GRID += ["--epochs", 1, "--num-sequences", 2000]
LAUNCHABLE = "from jobs.autoscaling import launchable_nodes; print(json.dumps(launchable_nodes()))"

# The GPUs of each node, and of the node of each process, also of those that have ended.
GPUS = """
from ray.util.state import list_actors
nodes = {node["NodeID"]: node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]}
actors = list_actors(ray.get_runtime_context().gcs_address, detail=True)
print(json.dumps({
    "of_nodes": sorted(nodes.values()),
    "of_pid": {actor.pid: nodes.get(actor.node_id) for actor in actors},
}))
"""


@pytest.fixture(scope="module")
def growing() -> Iterator[clusters.Cluster]:
    """A cluster with one CPU that can launch two nodes with a CPU and a GPU each."""
    # The dashboard answers `list_actors`.
    dashboard = ["--include-dashboard=true", f"--dashboard-port={clusters.free_port()}"]
    with clusters.started(*dashboard, launches={"CPU": 1, "GPU": 1}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def swept(growing, tmp_path_factory) -> SimpleNamespace:
    """A sweep of eight trials on GPUs, started when the cluster had none."""
    path = tmp_path_factory.mktemp("swept")
    before = growing.evaluate(GPUS)
    done = growing.run("jobs/sweep.py", *GRID, "--storage", path, "--gpus-per-trial", "auto")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return SimpleNamespace(
        before=before,
        output=done.stdout,
        trials=read_trials(str(path / "figures")),
        after=growing.evaluate(GPUS),
    )


def test_launchable_nodes_are_known_before_they_are_launched(growing):
    assert growing.evaluate(LAUNCHABLE) == [{"CPU": 1, "GPU": 1}] * 2


def test_resources_that_no_node_can_have_are_refused_and_nothing_is_written(growing, tmp_path):
    path = tmp_path / "results"
    done = growing.run("jobs/sweep.py", *GRID, "--storage", path, "--gpus-per-trial", 3)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line == (
        "sweep.py: no node has 1 CPU and 3 GPUs: "
        "the cluster has 1 CPU and 0 GPUs; it can launch 1 CPU and 1 GPU"
    )
    assert not path.exists()


def test_sweep_launches_gpu_nodes_and_its_trials_share_them(swept):
    assert swept.before == {"of_nodes": [0], "of_pid": {}}
    capacity = "0 concurrent trials, more as the cluster grows; each with 1 CPU and 0.25 GPUs"
    assert capacity in swept.output.splitlines()
    assert "8 of 8 trials done" in swept.output
    assert [trial.status for trial in swept.trials] == ["finished"] * 8
    assert swept.after["of_nodes"] in ([0, 1], [0, 1, 1])
    for trial in swept.trials:
        assert swept.after["of_pid"][str(trial.rows[-1]["pid"])] == 1


def test_concurrency_limit_holds_on_a_grown_cluster(swept, growing, tmp_path):
    flags = ["--gpus-per-trial", 0.5, "--max-concurrent", 1, "--storage", tmp_path]
    done = growing.run("jobs/sweep.py", *GRID, *flags)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert re.search(
        r"^[12] concurrent trials?, more as the cluster grows, at most 1; "
        r"each with 1 CPU and 0\.5 GPUs$",
        done.stdout,
        re.MULTILINE,
    )
    trials = read_trials(str(tmp_path / "figures"))
    assert [trial.status for trial in trials] == ["finished"] * 8
    assert len({trial.rows[-1]["pid"] for trial in trials}) == 1


def test_autoscaler_of_another_cluster_is_ignored(growing):
    """KubeRay starts heads with --no-monitor: the autoscaler has its own container.

    A head that has an autoscaler and launches no nodes is in test_sweep.py: there the number of
    concurrent trials is final.
    """
    with clusters.started("--no-monitor") as cluster:
        assert cluster.evaluate(LAUNCHABLE) is None
