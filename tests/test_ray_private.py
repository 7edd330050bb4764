"""The installed Ray has the private names in ray_private.py."""

import json
from pathlib import Path

import clusters
import processes
import pytest
import ray_private

pytestmark = pytest.mark.ray

# A trial and a worker save their own title and session.
RUN_BOTH = """
import contextlib, os, sys
from pathlib import Path
from ray import train, tune
from ray.train.torch import TorchTrainer

def save(config):
    title = Path("/proc/self/cmdline").read_text()
    Path("FOLDER", config["name"]).write_text(json.dumps([title, os.getsid(0)]))

with contextlib.redirect_stdout(sys.stderr):
    run_config = tune.RunConfig(storage_path="FOLDER", name="tune", verbose=0)
    tune.Tuner(save, param_space={"name": "trial"}, run_config=run_config).fit()
    TorchTrainer(
        save,
        train_loop_config={"name": "worker"},
        scaling_config=train.ScalingConfig(num_workers=1),
        run_config=train.RunConfig(storage_path="FOLDER", name="train"),
    ).fit()
print("null")
"""


@pytest.fixture(scope="module")
def titles(tmp_path_factory) -> dict[str, list[str]]:
    """The titles of a trial, of a worker, and of all processes of a cluster."""
    folder = tmp_path_factory.mktemp("titles")
    with clusters.started() as cluster:
        cluster.evaluate(RUN_BOTH.replace("FOLDER", str(folder)))
        trial, _ = json.loads((folder / "trial").read_text())
        worker, session = json.loads((folder / "worker").read_text())
        pids = processes.session_pids(session)
        everything = [Path(f"/proc/{pid}/cmdline").read_text() for pid in pids]
    return {"trial": [trial], "worker": [worker], "cluster": everything}


@pytest.mark.parametrize(
    ("process", "name"),
    [
        ("trial", ray_private.TRIAL),
        ("worker", ray_private.TRAIN_WORKER),
        *(("cluster", name) for name in ray_private.AGENTS),
    ],
)
def test_ray_names_the_process(titles, process, name):
    assert any(title.startswith(name) for title in titles[process]), titles[process]
