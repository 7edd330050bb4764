"""The commands of cluster.yaml's header, on a head node and two worker nodes.

The hosts use the repository's cluster.yaml with another provider: its mounts, setup commands and
start commands are under test. They share nothing but /mnt/shared.
"""

import re
import shlex
import stat
import subprocess

import netns_hosts
import pytest
from mnist_files import mnist_subset
from processes import wait_for

from analysis.results import read_trials

pytestmark = [pytest.mark.ray, netns_hosts.needs_hosts]

UP = "RAY_UP_enable_autoscaler_v2=0 ray up -y ~/cluster.yaml"
NODES = ("head", "one", "two")
HEAD_PORT = 6379  # in cluster.yaml


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def net(tmp_path_factory, shared):
    """The hosts; `ray up` has started Ray on each."""
    folder, source = tmp_path_factory.mktemp("hosts"), f"--bind {shlex.quote(str(shared))}"
    with netns_hosts.network(folder, *NODES, shared=source) as net:
        net.write_cluster_yaml()
        client, head = net["client"], net["head"]
        client.check_output("umask 077; ray get-auth-token --generate > ~/token")
        client.check_output(UP)
        wait_for(lambda: "3 local.cluster.node" in head.run("ray status").stdout, every=1)
        yield net


def test_submitted_sweep_runs_on_all_nodes_and_its_figures_can_be_downloaded(net, shared):
    client = net["client"]
    # The trials last longer than the start of a process, or one node would run them all.
    output = client.check_output(
        "ray submit ~/cluster.yaml jobs/sweep.py -- --cells lstm --lengths 20 --seeds 0-5 "
        "--epochs 2 --num-sequences 20000 --storage /mnt/shared --name sweep"
    )
    assert "6 of 6 trials done: /mnt/shared/sweep" in output
    next_command = "ray submit cluster.yaml analysis/sweep.py -- /mnt/shared/sweep"
    assert f"next: {next_command}" in output
    rows = [row for trial in read_trials(str(shared / "sweep")) for row in trial.rows]
    assert {row["node_ip"] for row in rows} == {net[name].address for name in NODES}
    assert sorted(row["epoch"] for row in rows) == [1] * 6 + [2] * 6

    next_command = next_command.replace("cluster.yaml", "~/cluster.yaml")
    client.check_output(f"{next_command} --out figures")
    client.check_output("ray rsync-down ~/cluster.yaml '~/figures/' ~/figures/")
    assert list((client.home / "figures").glob("*.png"))


def test_submitted_gan_trains_with_a_worker_on_each_node(net, shared):
    mnist_subset(shared / "digits", 1280, 200)
    output = net["client"].check_output(
        "ray submit ~/cluster.yaml jobs/gan.py -- --data /mnt/shared/digits --epochs 1 "
        "--workers 3 --cpus-per-worker 1 --storage /mnt/shared --name gan"
    )
    assert "1 of 1 epoch done: /mnt/shared/gan" in output
    (gan,) = read_trials(str(shared / "gan"))  # a node has one CPU, so each has one worker
    assert [row["num_workers"] for row in gan.rows] == [3]


def test_only_the_user_can_read_the_token(net):
    token = (net["client"].home / "token").read_text()
    for name in NODES:
        file = net[name].home / ".ray" / "auth_token"
        assert file.read_text() == token
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        files = net[name].run(f"grep -rl {token} /tmp ~ --exclude-dir={{.ray,venv}}")
        assert files.stdout == ""
    assert token not in (net["client"].home / "cluster.yaml").read_text()


def test_client_without_the_token_is_rejected(net):
    command = "HOME=/tmp PYTHONPATH=. python jobs/sweep.py"  # no ~/.ray/auth_token
    rejected = net["client"].run(f"{command} --address {net['head'].address}:{HEAD_PORT}")
    assert rejected.returncode == 2
    assert "requires a token: copy ~/.ray/auth_token" in rejected.stdout.splitlines()[-1]


def test_ray_client_connects_only_with_the_token(net):
    address = f"{net['head'].address}:10001"  # Ray's default port for its clients
    line = f"RAY_AUTH_MODE=token python -c \"import ray; ray.init('ray://{address}')\""
    net["client"].check_output(line)
    rejected = net["client"].run(f"HOME=/tmp RAY_AUTH_TOKEN={'0' * 64} {line}")
    assert rejected.returncode == 1
    assert "ConnectionError: ray client connection timeout" in rejected.stdout


def test_ray_up_without_a_token_names_the_missing_file(net):
    line = f"mv ~/.ray/auth_token ~/kept; {UP}; code=$?; mv ~/kept ~/.ray/auth_token; exit $code"
    failed = net["client"].run(line)
    assert failed.returncode == 1
    message = (
        "FileNotFoundError: [Errno 2] No such file or directory: '/home/suite/.ray/auth_token'"
    )
    assert failed.stdout.splitlines()[-1] == message


def test_dashboard_listens_on_the_heads_localhost_and_accepts_jobs(net, shared):
    """`ray dashboard` forwards it over ssh, and `ray job submit` uses it."""
    listening = net["head"].run("ss -ltn").stdout.splitlines()
    (dashboard,) = [line for line in listening if ":8265 " in line]
    assert "127.0.0.1:8265" in dashboard
    with subprocess.Popen(
        net["client"].command("ray dashboard ~/cluster.yaml"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as forwarding:
        try:
            wait_for(lambda: ":8265 " in net["client"].run("ss -ltn").stdout)
            output = net["client"].check_output(
                "RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 "
                "--working-dir . -- python jobs/sweep.py --cells rnn --lengths 3 --seeds 0 "
                "--epochs 1 --num-sequences 2000 --storage /mnt/shared --name job"
            )
        finally:
            forwarding.terminate()
    assert "1 of 1 trial done" in output
    assert len(read_trials(str(shared / "job"))) == 1


@pytest.mark.parametrize("job", ["sweep", "gan"])
def test_storage_that_a_node_does_not_see_is_refused(net, job):
    storage = "/home/suite/not/shared"
    submit = f"ray submit ~/cluster.yaml jobs/{job}.py -- --storage {storage} 2>&1"
    output = net["client"].run(submit).stdout
    (message,) = [line for line in output.splitlines() if line.startswith(f"{job}.py: ")]
    assert re.search(rf"node 10\.77\.0\.[34] does not see {storage}: give --storage", message)
    assert not (net["head"].home / "not").exists()


def test_ray_down_ends_the_cluster(net):
    assert net["head"].is_listening(HEAD_PORT)
    net["client"].check_output("ray down -y ~/cluster.yaml")
    wait_for(lambda: not net["head"].is_listening(HEAD_PORT))
