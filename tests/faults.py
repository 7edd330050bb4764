"""Faults of a cluster, injected into a running job.

Whatever the fault, the job must end with the results of an undisturbed run, each epoch once.
tests/soak.py injects every fault, tests/test_faults.py a few random SIGKILLs.
"""

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import netns_hosts
import pytest
import ray_private
from mnist_files import mnist_subset
from processes import IGNORE_PYCACHE, REPO, wait_for

from analysis.results import ResultsError, Trial, read_trials

MEASURED = [
    *("epoch", "val_accuracy", "val_loss", "train_loss"),
    *("loss_d", "loss_g", "d_real", "d_fake", "frechet_distance"),
]

SWEEP = "sweep.py --cells lstm,rnn --lengths 20 --seeds 0-2 --epochs 8 --num-sequences 4000"
GAN = (
    "gan.py --data /mnt/shared/digits --workers 3 --cpus-per-worker 1 --epochs 5 --batch-size 128 "
    "--keep-every 2 --eval-every 1"
)
SHORT_TRIALS = {  # by number of trials
    6: "sweep.py --cells lstm,rnn --lengths 3-5 --seeds 0 --epochs 4 --num-sequences 4000",
    200: "sweep.py --cells lstm,rnn --lengths 3-12 --seeds 0-9 --epochs 2 --num-sequences 2000",
}

OBJECT_MANAGER_PORT = 8076  # each node of a cluster listens there

Results = dict[str, list[tuple]]  # of each trial, the measured columns of each epoch


class Cluster:
    """A head node and two worker nodes with one CPU each, and a shared disk of 300 MB."""

    def __init__(self, net: netns_hosts.Network, device: str):
        self.net, self.device = net, device
        # The disk as the client sees it: this process has not mounted it, so it can be unmounted.
        self.shared = Path(f"/proc/{net['client'].init_pid()}/root{netns_hosts.SHARED}")
        self.expected: dict[str, Results] = {}

    @property
    def nodes(self) -> list[netns_hosts.Host]:
        return [host for name, host in self.net.hosts.items() if name != "client"]

    def start_ray(self, name: str) -> None:
        head = self.net["head"].address
        role = "--head --port=6379" if name == "head" else f"--address={head}:6379"
        # `ray stop` ends what is left of an earlier cluster on this host.
        self.net[name].check_output(
            "ray stop --force; RAY_AUTH_MODE=token ray start --disable-usage-stats "
            f"--object-manager-port={OBJECT_MANAGER_PORT} {role}"
        )

    def start_ray_everywhere(self) -> None:
        self.start_ray("head")
        with ThreadPoolExecutor() as threads:
            list(threads.map(self.start_ray, ["one", "two"]))

    def install_suite(self) -> None:
        """Installs the suite and the token on every node, as `ray up` does."""
        suite = self.shared / "suite"
        suite.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(REPO / name, suite)
        for name in ("jobs", "models", "analysis"):
            shutil.copytree(REPO / name, suite / name, ignore=IGNORE_PYCACHE)
        for node in self.nodes:
            token = node.home / ".ray" / "auth_token"
            token.parent.mkdir()
            token.write_text("0" * 64)
            token.chmod(0o600)
            for job in (REPO / "jobs").glob("*.py"):  # `ray submit` copies a script there
                shutil.copy(job, node.home)
        install = "cp -r /mnt/shared/suite /tmp/suite && pip install --quiet /tmp/suite"
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda node: node.check_output(install), self.nodes))
        mnist_subset(self.shared / "digits", 1293, 200)

    def repair_disk(self) -> None:
        """Unmounts the disk on every host, repairs it and mounts it again."""
        for host in self.net.hosts.values():
            host.check_output(f"umount --lazy {netns_hosts.SHARED}")
        errors_corrected = 1
        netns_hosts.run_command("e2fsck", "-fy", self.device, codes=(0, errors_corrected))
        for host in self.net.hosts.values():
            host.check_output(f"mount {self.device} {netns_hosts.SHARED}")

    def reference_results(self, job: str) -> Results:
        """Returns the results of an undisturbed run of a job."""
        if job not in self.expected:
            run = Run(self, job, f"reference-{len(self.expected)}")
            run.start()
            output, _ = run.driver.communicate(timeout=900)
            assert run.driver.returncode == 0, output
            self.expected[job] = run.results()
            run.remove()
        return self.expected[job]


def _has_loop_devices() -> bool:
    try:
        return not netns_hosts.MISSING and bool(netns_hosts.run_command("losetup", "--find"))
    except AssertionError:
        return False


needs_disk = pytest.mark.skipif(
    not _has_loop_devices(), reason="the shared disk is a file: needs a loop device"
)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Starts a cluster whose disk and homes are in `folder`; it ends with the block."""
    disk, homes = folder / "disk", folder / "hosts"
    homes.mkdir()
    with disk.open("wb") as file:
        file.truncate(300 * 2**20)
    netns_hosts.run_command("mkfs.ext4", "-q", disk)
    device = netns_hosts.run_command("losetup", "--find", "--show", disk)
    try:
        with netns_hosts.network(homes, "head", "one", "two", shared=device) as net:
            started = Cluster(net, device)
            started.install_suite()
            started.start_ray_everywhere()
            yield started
    finally:
        netns_hosts.run_command("losetup", "--detach", device)


@dataclass
class Run:
    """A job on the cluster, started on the head node as `ray submit` does."""

    cluster: Cluster
    job: str
    name: str
    driver: subprocess.Popen | None = None

    def start(self) -> None:
        storage = f"--storage /mnt/shared/{self.name} --name run"
        line = f"RAY_AUTH_MODE=token python ~/{self.job} {storage}"
        self.driver = subprocess.Popen(
            self.cluster.net["head"].command(f"exec env {line}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def process_title(self) -> str:
        """The title that Ray gives the processes that train."""
        return ray_private.TRIAL if self.job.startswith("sweep") else ray_private.TRAIN_WORKER

    def trials(self) -> list[Trial]:
        with suppress(ResultsError):
            return read_trials(str(self.cluster.shared / self.name / "run"))
        return []

    def results(self) -> Results:
        return {
            trial.name: [tuple(row.get(name) for name in MEASURED) for row in trial.rows]
            for trial in self.trials()
        }

    def epochs_done(self) -> dict[str, int]:
        return {trial.name: len(trial.rows) for trial in self.trials()}

    def kill_driver(self) -> None:
        _kill(self.cluster.net["head"].pids("python", self.job.split()[0]))

    def check(self, expected: Results) -> None:
        """Asserts identical results, and that the checkpoints contain each epoch once."""
        assert self.results() == expected
        for trial in self.trials():
            epochs = [row["epoch"] for row in trial.latest_checkpoint().history]
            assert epochs == list(range(1, len(trial.rows) + 1))

    def remove(self) -> None:
        """Frees the disk for the next run."""
        shutil.rmtree(self.cluster.shared / self.name)


# Injects a fault into a running job; returns when the cluster is healthy again.
Fault = Callable[[Run], None]


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_process(run: Run) -> None:
    pids = [pid for node in run.cluster.nodes for pid in node.pids(run.process_title)]
    assert pids
    _kill(pids[-1:])


def kill_driver(run: Run) -> None:
    run.kill_driver()
    run.driver.wait()
    run.start()


def lose_worker_node(run: Run) -> None:
    """Ends a worker node that runs a process of the job; a node of the same name joins later."""
    net = run.cluster.net
    node = next(net[name] for name in ("one", "two") if net[name].pids(run.process_title))
    node.kill()
    time.sleep(20)
    node.start()
    run.cluster.start_ray(node.name)


def lose_head_node(run: Run) -> None:
    """Ends the head node and the driver; a new cluster on the same storage re-runs the command."""
    head = run.cluster.net["head"]
    head.kill()
    run.driver.wait()
    head.start()
    run.cluster.start_ray_everywhere()
    run.start()


def cut_network(run: Run) -> None:
    """Cuts a worker node from all others for 30 s, in which Ray may declare it dead."""
    node = run.cluster.net["two"]
    node.set_link("down")
    time.sleep(30)
    node.set_link("up")
    # If the head has declared the node dead, its Ray exits as soon as it learns of that.
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and node.is_listening(OBJECT_MANAGER_PORT):
        time.sleep(1)
    if not node.is_listening(OBJECT_MANAGER_PORT):
        run.cluster.start_ray("two")


def fill_storage(run: Run) -> None:
    """Fills the disk until the job has failed."""
    filler = run.cluster.shared / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**20))
    try:
        _wait_for_failure(run)
    finally:
        filler.unlink()
    run.start()


def make_storage_read_only(run: Run) -> None:
    """Makes the file system read-only, as it is after a disk error, until the job has failed."""
    os.sync()
    run.cluster.net["head"].check_output(f"mount -o remount,abort {netns_hosts.SHARED}")
    try:
        _wait_for_failure(run)
    finally:
        run.cluster.repair_disk()
    run.start()


def _wait_for_failure(run: Run) -> None:
    before = run.results()
    output, _ = run.driver.communicate(timeout=300)
    assert run.driver.returncode == 1, output
    assert "failed: " in output
    assert "to resume: " in output
    for name, rows in run.results().items():  # what was stored can be read
        assert rows[: len(before[name])] == before[name]


FAULTS: dict[str, tuple[str, Fault]] = {
    "SIGKILL of a trial process": (SWEEP, kill_process),
    "SIGKILL of a GAN worker": (GAN, kill_process),
    "SIGKILL of the sweep driver": (SWEEP, kill_driver),
    "SIGKILL of the GAN driver": (GAN, kill_driver),
    "worker node lost during a sweep": (SWEEP, lose_worker_node),
    "worker node lost during GAN training": (GAN, lose_worker_node),
    "head node lost during a sweep": (SWEEP, lose_head_node),
    "head node lost during GAN training": (GAN, lose_head_node),
    "network of a worker node cut for 30 s": (SWEEP, cut_network),
    "storage full": (SWEEP, fill_storage),
    "storage becomes read-only": (SWEEP, make_storage_read_only),
}


def inject(cluster: Cluster, fault: str, name: str) -> float:
    """Injects a fault into a run and asserts that it ends with identical results.

    Returns the seconds from the fault until every trial that was running has completed another
    epoch.
    """
    job, inject_fault = FAULTS[fault]
    expected = cluster.reference_results(job)
    run = Run(cluster, job, name)
    run.start()
    try:
        seconds = _recovery_seconds(run, inject_fault, expected)
        output, _ = run.driver.communicate(timeout=600)
    except Exception as error:
        run.kill_driver()
        output = run.driver.communicate()[0]
        raise AssertionError(f"{fault}: {error}: {run.epochs_done()}\n{output}") from error
    finally:
        run.kill_driver()
    assert run.driver.returncode == 0, output
    run.check(expected)
    run.remove()
    return seconds


def _recovery_seconds(run: Run, inject_fault: Fault, expected: Results) -> float:
    wait_for(lambda: sum(run.epochs_done().values()) >= 2 * len(expected), run.driver, every=0.5)
    before = {name: n for name, n in run.epochs_done().items() if n < len(expected[name])}
    assert before  # otherwise the job has ended before the fault
    start = time.monotonic()
    inject_fault(run)
    # Tune puts a lost trial behind the pending ones, which may all run first.
    wait_for(
        lambda: all(run.epochs_done().get(name, 0) > before[name] for name in before), every=0.5
    )
    return time.monotonic() - start


def kill_at_random(cluster: Cluster, trials: int, seed: int) -> tuple[int, int]:
    """Kills random trial processes of a sweep of short trials, at random numbers of epochs done.

    Re-runs the command until it succeeds, then asserts identical results. Returns the number of
    kills, a third of the number of trials, and how many times the command ran.
    """
    expected = cluster.reference_results(SHORT_TRIALS[trials])
    assert len(expected) == trials
    run = Run(cluster, SHORT_TRIALS[trials], f"random-{trials}-{seed}")
    rng, ended, kills = random.Random(seed), threading.Event(), 0
    epochs = sum(map(len, expected.values()))
    # Not times: a fast machine would end before the last kill, a slow one would complete no epoch.
    epochs_at_kill = sorted(rng.sample(range(epochs // 2), trials // 3))

    def kill() -> None:
        nonlocal kills
        while kills < len(epochs_at_kill) and not ended.wait(0.1):
            if sum(run.epochs_done().values()) < epochs_at_kill[kills]:
                continue
            pids = [pid for node in cluster.nodes for pid in node.pids(run.process_title)]
            if pids:
                _kill([rng.choice(pids)])
                kills += 1

    killer = threading.Thread(target=kill)
    killer.start()
    commands = 0
    try:
        while run.driver is None or run.driver.returncode != 0:
            assert commands < 10
            commands += 1
            run.start()
            run.driver.communicate(timeout=900)
    finally:
        ended.set()
        killer.join()
        run.kill_driver()
    run.check(expected)
    run.remove()
    return kills, commands
