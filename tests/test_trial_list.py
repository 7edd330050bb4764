"""Tune runs exactly the trials of a list, within a concurrency limit, also after a restore."""

import itertools
import json
import time
from pathlib import Path

import pytest
import ray
from ray import tune

from jobs import cluster
from jobs.tuning import Limit, TrialList, param_space

pytestmark = pytest.mark.ray

CONFIGS = [{"number": n, "letter": letter} for n in (3, 1, 2) for letter in "ba"]


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    """A Ray of this process, with three CPUs."""
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(num_cpus=3, runtime_env=cluster.runtime_env(), **quiet)
    yield
    ray.shutdown()


class Crash(tune.Callback):
    """Raises in the driver when the n-th trial starts."""

    def __init__(self, n: int):
        self.started, self.n = 0, n

    def on_trial_start(self, iteration, trials, trial, **info):
        self.started += 1
        if self.started == self.n:
            raise RuntimeError("crash")


def make_tuner(path: Path, at_most: int | None, *callbacks: tune.Callback) -> tuple:
    """Returns a Tuner of CONFIGS and its trainable, which writes its start and end times.

    The first trials wait for each other, as many as may run concurrently (two without a limit).
    So the limit is reached, however long a process takes to start.
    """
    times = path / f"limit {at_most}"
    times.mkdir()

    def train(config):
        start = time.time()
        own = times / f"{config['number']}{config['letter']}"
        own.write_text(json.dumps([start, None]))
        while len(list(times.iterdir())) < (at_most or 2) and time.time() < start + 60:
            time.sleep(0.05)
        time.sleep(0.2)
        own.write_text(json.dumps([start, time.time()]))
        tune.report({"epoch": 1})

    tuner = tune.Tuner(
        train,
        param_space=param_space(CONFIGS),
        tune_config=tune.TuneConfig(
            search_alg=TrialList(CONFIGS, at_most),
            num_samples=len(CONFIGS),
            scheduler=Limit(at_most) if at_most else None,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="run", storage_path=str(path), verbose=0, callbacks=list(callbacks)
        ),
    )
    return tuner, train


def max_concurrent(path: Path, at_most: int | None) -> int:
    """Returns the maximum number of trials that ran at the same time."""
    spans = [json.loads(file.read_text()) for file in (path / f"limit {at_most}").iterdir()]
    events = [(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans]
    return max(itertools.accumulate(change for _, change in sorted(events)))


def names(configs) -> list[str]:
    return sorted(f"{config['number']}{config['letter']}" for config in configs)


@pytest.mark.parametrize("at_most", [None, 2])
def test_each_listed_trial_runs_once_within_the_limit(tmp_path, at_most):
    results = make_tuner(tmp_path, at_most)[0].fit()
    assert names(result.config for result in results) == names(CONFIGS)
    concurrent = max_concurrent(tmp_path, at_most)
    assert concurrent == at_most if at_most else concurrent >= 2


@pytest.mark.parametrize(("first", "second"), [(None, 1), (3, 2), (1, None)])
def test_restored_run_has_the_new_limit(tmp_path, first, second):
    with pytest.raises(RuntimeError, match="crash"):
        make_tuner(tmp_path, first, Crash(first or 2))[0].fit()
    _, train = make_tuner(tmp_path, second)
    results = tune.Tuner.restore(str(tmp_path / "run"), train).fit()
    assert names(result.config for result in results) == names(CONFIGS)
    assert all(result.metrics["epoch"] == 1 for result in results)
    concurrent = max_concurrent(tmp_path, second)
    assert concurrent == second if second else concurrent >= 2
