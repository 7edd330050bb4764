"""A Slurm cluster for tests: slurmctld on the client, slurmd on the other hosts, munge on all.

Each host has a process table of its own: `ray stop`, which ends each job, sees no other Ray.
"""

import re
import secrets
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import netns_hosts
import pytest
from netns_hosts import SHARED
from processes import IGNORE_PYCACHE, REPO, wait_for

PACKAGES = {  # of Debian, by the tool that they provide
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
}
MISSING = sorted(
    {package for t, package in PACKAGES.items() if shutil.which(t, path=netns_hosts.PATH) is None}
)
needs_slurm = pytest.mark.skipif(bool(MISSING), reason=f"needs {' '.join(MISSING)}")

# A requeued job waits until its credential has expired: 2 minutes by default.
CONFIG = """
ClusterName=suite
SlurmctldHost=client({controller})
SlurmUser=root
AuthInfo=cred_expire=5
SchedulerParameters=sched_interval=1
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
MinJobAge=86400
ReturnToService=2
StateSaveLocation=/tmp/slurmctld
SlurmdSpoolDir=/tmp/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/tmp/slurmctld.log
SlurmdLogFile=/tmp/slurmd.log
{nodes}
PartitionName=all Nodes=ALL Default=YES
"""
MUNGED = (
    "mkdir -p /run/munge && munged --key-file ~/munge.key --seed-file /tmp/munge.seed "
    "--log-file /tmp/munge.log --pid-file /run/munge/munged.pid"
)


class Slurm:
    """The cluster, with the suite and its environment on the shared disk."""

    def __init__(self, net: netns_hosts.Network, shared: Path):
        self.net, self.shared = net, shared
        self.suite = f"{SHARED}/suite"  # on the hosts

    @property
    def nodes(self) -> list[netns_hosts.Host]:
        return [host for name, host in self.net.hosts.items() if name != "client"]

    def install_suite(self) -> None:
        """Installs the suite once, for all nodes: its folder and a virtual environment in it."""
        for name in ("deploy", "jobs", "models"):
            shutil.copytree(REPO / name, self.shared / "suite" / name, ignore=IGNORE_PYCACHE)
        venv = ".venv"
        netns_hosts.create_venv(self.shared / "suite" / venv, f"{self.suite}/{venv}", self.suite)

    def start(self) -> None:
        nodes = (f"NodeName={node.name} NodeAddr={node.address} CPUs=1" for node in self.nodes)
        config = CONFIG.format(controller=self.net["client"].address, nodes="\n".join(nodes))
        folder = self.shared / "slurm"
        folder.mkdir()
        (folder / "slurm.conf").write_text(config)
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # the hosts have no cgroups
        key = secrets.token_bytes(128)
        for host in self.net.hosts.values():
            (host.home / "munge.key").touch(mode=0o600)
            (host.home / "munge.key").write_bytes(key)
            with (host.home / ".bashrc").open("a") as file:
                file.write(f"export SLURM_CONF={SHARED}/slurm/slurm.conf\n")
            host.check_output(MUNGED)
        client = self.net["client"]
        client.check_output("mkdir /tmp/slurmctld && slurmctld")
        for node in self.nodes:
            node.check_output("slurmd || { cat /tmp/slurmd.log; false; }")
        wait_for(lambda: client.run("sinfo -h -o %T").stdout.split() == ["idle"], every=0.5)

    def submit(self, options: str, script: str) -> "Job":
        """Submits a job of the suite, as a user does in the suite's folder."""
        output = self.net["client"].check_output(
            f"cd {self.suite} && sbatch {options} deploy/slurm.sbatch {script}"
        )
        return Job(self, int(output.split()[-1]))


class Job:
    def __init__(self, slurm: Slurm, number: int):
        self.slurm, self.number = slurm, number

    @property
    def log(self) -> str:
        file = self.slurm.shared / "suite" / f"slurm-{self.number}.out"
        return file.read_text() if file.exists() else ""

    def fields(self) -> dict[str, str]:
        """Returns what Slurm says of the job."""
        output = self.slurm.net["client"].check_output(f"scontrol show job -o {self.number}")
        return dict(re.findall(r"(\w+)=(\S+)", output))

    def state(self) -> tuple[str, int, str]:
        """Returns the name of the job's state, how often it was requeued, and its exit code."""
        fields = self.fields()
        return fields["JobState"], int(fields["Restarts"]), fields["ExitCode"].partition(":")[0]

    def first_address(self) -> str:
        return self.slurm.net[self.fields()["BatchHost"]].address

    def command(self, line: str) -> None:
        """Runs a Slurm command on this job."""
        self.slurm.net["client"].check_output(f"{line} {self.number}")

    def wait_for_end(self) -> tuple[str, int, str]:
        """Returns the state in which the job has left the queue."""
        client = self.slurm.net["client"]
        wait_for(lambda: not client.check_output(f"squeue -h -j {self.number}"), every=0.5)
        return self.state()


@contextmanager
def cluster(folder: Path, *names: str) -> Iterator[Slurm]:
    """Starts a cluster with these nodes, one CPU each; it ends with the block."""
    hosts, shared = folder / "hosts", folder / "shared"
    hosts.mkdir()
    shared.mkdir()
    source = f"--bind {shlex.quote(str(shared))}"
    with netns_hosts.network(hosts, *names, shared=source) as net:
        slurm = Slurm(net, shared)
        slurm.install_suite()
        slurm.start()
        yield slurm
