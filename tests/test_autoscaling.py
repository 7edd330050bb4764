"""jobs/sweep.py on a cluster that grows: Ray's own autoscaler, whose nodes are processes here."""

import re
from types import SimpleNamespace

import clusters
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config
from scripts import TOP

from analysis.results import read_trials
from jobs import autoscaling

GRID = ["--cells", "lstm,rnn", "--lengths", "3,4", "--seeds", "0,1"]
GRID += ["--epochs", 1, "--samples", 2000]
LAUNCHABLE = "from jobs.autoscaling import launchable; print(json.dumps(launchable()))"

# Who ran where. Ray's public ways to ask for actors that have ended need the dashboard.
CENSUS = """
from ray._private.state import actors
nodes = {node["NodeID"]: node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]}
print(json.dumps({
    "gpus": sorted(nodes.values()),
    "gpus_of": {actor["Pid"]: nodes.get(actor["Address"]["NodeID"]) for actor in actors().values()},
}))
"""


@pytest.fixture(scope="module")
def growing():
    """A cluster whose head has one CPU, and which may launch two nodes with a GPU."""
    with clusters.started(launches={"CPU": 1, "GPU": 1}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def swept(growing, tmp_path_factory):
    """A sweep of eight trials that began while there was no GPU, and a look at what it left."""
    place = tmp_path_factory.mktemp("swept")
    before = growing.answer(CENSUS)
    done = growing.run("jobs/sweep.py", *GRID, "--storage", place, "--gpus-per-trial", "auto")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    trials = read_trials(str(place / "figures"))
    return SimpleNamespace(
        before=before, output=done.stdout, trials=trials, after=growing.answer(CENSUS)
    )


def test_what_may_be_launched_is_known_before_it_is(growing):
    assert growing.answer(LAUNCHABLE) == [{"CPU": 1, "GPU": 1}] * 2


def test_what_no_node_can_have_is_told_at_once_and_nothing_is_written(growing, tmp_path):
    place = tmp_path / "results"
    done = growing.run("jobs/sweep.py", *GRID, "--storage", place, "--gpus-per-trial", 3)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line == (
        "sweep.py: no node has room for 1 CPU and 3 GPUs: "
        "the cluster has 1 CPU and 0 GPUs; it can launch 1 CPU and 1 GPU"
    )
    assert not place.exists()


def test_from_no_gpu_at_all_a_sweep_takes_shares_and_runs_on_nodes_launched_for_it(swept):
    assert swept.before == {"gpus": [0], "gpus_of": {}}
    assert (
        "0 at a time, more as the cluster grows; each with 1 CPU and 0.25 GPUs"
        in swept.output.splitlines()
    )
    assert "8 of 8 trials done" in swept.output
    assert [trial.status for trial in swept.trials] == ["finished"] * 8
    assert swept.after["gpus"] in ([0, 1], [0, 1, 1])
    for trial in swept.trials:
        assert swept.after["gpus_of"][str(trial.rows[-1]["pid"])] == 1


def test_a_grown_cluster_is_used_no_further_than_asked(swept, growing, tmp_path):
    flags = ["--gpus-per-trial", 0.5, "--max-concurrent", 1, "--storage", tmp_path]
    done = growing.run("jobs/sweep.py", *GRID, *flags)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert re.search(
        r"^[12] at a time, more as the cluster grows, at most 1; each with 1 CPU and 0\.5 GPUs$",
        done.stdout,
        re.MULTILINE,
    )
    trials = read_trials(str(tmp_path / "figures"))
    assert [trial.status for trial in trials] == ["finished"] * 8
    assert len({trial.rows[-1]["pid"] for trial in trials}) == 1


@pytest.mark.parametrize(
    ("flags", "known"),
    [([], []), (["--no-monitor"], None)],
    ids=["a head that launches none", "an autoscaler elsewhere"],
)
def test_the_autoscaler_of_another_cluster_is_not_taken_for_this_ones(growing, flags, known):
    """KubeRay starts heads with --no-monitor: the autoscaler has a container of its own."""
    with clusters.started(*flags) as cluster:
        assert cluster.answer(LAUNCHABLE) == known


ON_PREMISES = """
cluster_name: room
provider: {type: local, head_ip: 192.0.2.1, worker_ips: [192.0.2.2, 192.0.2.3]}
auth: {ssh_user: me}
"""


@pytest.mark.parametrize(
    ("text", "known"),
    [((TOP / "cluster.yaml").read_text(), [{"CPU": 4, "GPU": 1}] * 4), (ON_PREMISES, None)],
    ids=["cluster.yaml", "on premises"],
)
def test_what_ray_up_may_launch_is_known_but_where_machines_differ(text, known):
    """On premises head and workers are of one type, and what each has shows when it has joined."""
    assert autoscaling._nodes(prepare_config(yaml.safe_load(text))) == known
