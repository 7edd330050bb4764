"""Trial processes killed at random. tests/soak.py (`make soak`) injects all faults of faults.py."""

import faults
import netns_hosts
import pytest

pytestmark = [pytest.mark.ray, netns_hosts.needs_hosts, faults.needs_disk]


def test_random_sigkills_leave_results_identical(tmp_path):
    with faults.cluster(tmp_path) as cluster:
        killed, _ = faults.kill_at_random(cluster, trials=6, seed=0)
    assert killed == 2
