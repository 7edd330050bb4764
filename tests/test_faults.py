"""Faults of a cluster: trials killed at random, and by `pytest -m soak` hosts that are lost.

`make soak` does them all.
"""

import faults
import hosts
import pytest

pytestmark = [hosts.needs_hosts, faults.needs_disk]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with faults.cluster(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.mark.soak
@pytest.mark.parametrize(
    "fault",
    [
        "a worker host disappears in mid-sweep",
        "the head disappears in mid-sweep",
    ],
)
def test_a_sweep_ends_as_if_nothing_had_happened(cluster, fault):
    faults.suffer(cluster, fault, fault.replace(" ", "-"))


def test_thirty_trials_that_are_killed_at_random_end_exactly_once(cluster):
    killed, _ = faults.soak(cluster, trials=30, seed=0)
    assert killed == 10
