"""What people type at a cluster of their own, for real: a head and two workers, each a host.

The cluster.yaml is the repository's, with another provider: its mounts, set-up and start commands
are those under test. Nothing is shared between the hosts but /mnt/shared.
"""

import re
import shlex
import stat
import subprocess

import hosts
import pytest
import scripts
from scripts import wait_for

from analysis.results import read_trials

pytestmark = hosts.needs_hosts


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, shared):
    """The hosts, with Ray on them all: as long as the header of cluster.yaml says."""
    place, source = tmp_path_factory.mktemp("hosts"), f"--bind {shlex.quote(str(shared))}"
    with hosts.network(place, "head", "one", "two", shared=source) as net:
        net.write_cluster_yaml()
        typed(net, "umask 077; ray get-auth-token --generate > ~/token")
        typed(net, "RAY_UP_enable_autoscaler_v2=0 ray up -y ~/cluster.yaml")
        wait_for(lambda: "3 local.cluster.node" in net["head"].run("ray status").stdout, every=1)
        yield net


def typed(net: hosts.Network, line: str) -> str:
    """Types a line at the client; returns what it says."""
    done = net["client"].run(line, timeout=600)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_card(cluster, shared, tmp_path):
    output = typed(
        cluster,
        "ray submit ~/cluster.yaml jobs/sweep.py -- --preset quick --epochs 2 "
        "--storage /mnt/shared --name swept",
    )
    assert "24 of 24 trials done: /mnt/shared/swept" in output
    assert "next: ray submit cluster.yaml analysis/sweep.py -- /mnt/shared/swept" in output
    typed(
        cluster,
        "ray submit ~/cluster.yaml jobs/gan.py -- --preset quick --epochs 1 --batch-size 512 "
        "--workers 3 --cpus-per-worker 1 --storage /mnt/shared --name gan",
    )
    typed(cluster, "ray rsync-down ~/cluster.yaml /mnt/shared/ ~/fetched/")

    fetched = cluster["client"].home / "fetched"
    trials = read_trials(str(fetched / "swept"))
    assert len(trials) == 24
    ends = [(row["node_ip"], row["epoch"]) for trial in trials for row in trial.rows]
    # The trials outlast the start of a process on each host, or one host would do them all.
    addresses = {cluster[name].address for name in ("head", "one", "two")}
    assert {ip for ip, _ in ends} == addresses
    assert sorted(epoch for _, epoch in ends) == sorted([1, 2] * 24)
    (gan,) = read_trials(str(fetched / "gan"))
    assert [row["workers"] for row in gan.rows] == [3]

    for script, run in {"sweep": "swept", "gan": "gan"}.items():
        done = scripts.run(f"analysis/{script}.py", fetched / run, "--out", tmp_path / script)
        assert done.returncode == 0, done.stdout + done.stderr
        assert list((tmp_path / script).glob("*.png"))


def test_the_token_is_a_file_that_only_its_user_reads_and_is_asked_for(cluster):
    token = (cluster["client"].home / "token").read_text()
    for name in ("head", "one", "two"):
        file = cluster[name].home / ".ray" / "auth_token"
        assert file.read_text() == token
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        logs = cluster[name].run(f"grep -rl {token} /tmp ~ --exclude-dir={{.ray,venv}}")
        assert logs.stdout == ""
    assert token not in (cluster["client"].home / "cluster.yaml").read_text()

    # As someone who reaches the head's port, but has no token.
    job = f"HOME=/tmp PYTHONPATH=. python jobs/sweep.py --address {cluster['head'].address}:6379"
    refused = cluster["client"].run(job)
    assert refused.returncode == 2
    assert "set RAY_AUTH_MODE=token" in refused.stdout.splitlines()[-1]


def test_ray_up_without_a_token_ends_with_the_name_of_the_file(cluster):
    up = "RAY_UP_enable_autoscaler_v2=0 ray up -y ~/cluster.yaml; code=$?"
    line = f"mv ~/.ray/auth_token ~/kept; {up}; mv ~/kept ~/.ray/auth_token; exit $code"
    refused = cluster["client"].run(line)
    assert refused.returncode == 1
    told = "FileNotFoundError: [Errno 2] No such file or directory: '/home/suite/.ray/auth_token'"
    assert refused.stdout.splitlines()[-1] == told


def test_ray_client_asks_for_the_token(cluster):
    address = f"{cluster['head'].address}:10001"
    connect = f"from ray.util.client_connect import connect; connect('{address}', "
    line = f'RAY_AUTH_MODE=token python -c "{connect}connection_retries=1)"'
    typed(cluster, line)
    refused = cluster["client"].run(f"HOME=/tmp RAY_AUTH_TOKEN={'0' * 64} {line}")
    assert refused.returncode == 1
    assert "ConnectionError: ray client connection timeout" in refused.stdout


def test_a_job_can_be_submitted_to_the_dashboard(cluster, shared):
    """Which listens on the head alone: `ray dashboard` reaches it, by ssh."""
    listening = cluster["head"].run("ss -ltn").stdout.splitlines()
    (dashboard,) = [line for line in listening if ":8265 " in line]
    assert "127.0.0.1:8265" in dashboard
    with subprocess.Popen(
        cluster["client"].command("ray dashboard ~/cluster.yaml"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as forwarding:
        try:
            wait_for(lambda: ":8265 " in cluster["client"].run("ss -ltn").stdout)
            output = typed(
                cluster,
                "RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 "
                "--working-dir . -- python jobs/sweep.py --cells rnn --lengths 3,5 --seeds 0 "
                "--epochs 1 --samples 2000 --storage /mnt/shared --name job",
            )
        finally:
            forwarding.terminate()
    assert "2 of 2 trials done" in output
    assert len(read_trials(str(shared / "job"))) == 2


def test_storage_that_a_node_does_not_see_is_refused_before_anything_starts(cluster):
    for script in ("sweep", "gan"):
        line = f"ray submit ~/cluster.yaml jobs/{script}.py -- --storage /home/suite/of/mine 2>&1"
        output = cluster["client"].run(line).stdout
        (told,) = [text for text in output.splitlines() if text.startswith(f"{script}.py: ")]
        assert re.search(r"node 10\.77\.0\.[34] does not see /home/suite/of/mine", told)
        assert "a folder that all nodes share" in told
        assert "s3://" in told
    assert not (cluster["head"].home / "of").exists()


def test_ray_down_ends_it(cluster):
    typed(cluster, "ray down -y ~/cluster.yaml")
    wait_for(lambda: not cluster["head"].processes("raylet"))
