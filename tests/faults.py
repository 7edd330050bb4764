"""A cluster of hosts, and what can go wrong with it, done on purpose.

Whatever happens, a run ends with the numbers of one to which nothing happened, each epoch once.
tests/test_faults.py does some of it once, tests/soak.py all of it several times.
"""

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import hosts
import pytest
from scripts import TOP, UNCOMPILED, wait_for
from sets import part_of_mnist

from analysis.results import NoResults, Trial, read_trials

MEASURED = [
    *("epoch", "val_accuracy", "val_loss", "train_loss"),
    *("loss_d", "loss_g", "d_real", "d_fake", "frechet_distance"),
]

SWEEP = "sweep.py --cells lstm,rnn --lengths 20 --seeds 0-2 --epochs 8 --samples 4000"
GAN = (
    "gan.py --data /mnt/shared/digits --workers 3 --cpus-per-worker 1 --epochs 5 --batch-size 128 "
    "--keep-every 2 --quality-every 1"
)
SHORT_TRIALS = {
    30: "sweep.py --lengths 3-5 --seeds 0-4 --epochs 4 --samples 4000",
    200: "sweep.py --lengths 3-12 --seeds 0-9 --epochs 2 --samples 2000",
}

Numbers = dict[str, list[tuple]]


class Cluster:
    """A head and two workers with a CPU each, and a shared disk of 300 MB."""

    def __init__(self, net: hosts.Network, device: str):
        self.net, self.device = net, device
        # As the client sees it: this process has it not mounted, so that it can be taken off.
        self.shared = Path(f"/proc/{net['client'].first_process()}/root{hosts.SHARED}")
        self.expected: dict[str, Numbers] = {}

    def start_ray(self, name: str) -> None:
        where = "--head --port=6379" if name == "head" else f"--address={self.head}:6379"
        # First ends whatever is left there of an earlier cluster.
        line = f"ray stop --force; RAY_AUTH_MODE=token ray start {where}"
        done = self.net[name].run(line)
        assert done.returncode == 0, done.stdout

    @property
    def head(self) -> str:
        return self.net["head"].address

    def furnish(self) -> None:
        """Installs the suite on every host, with the token, as `ray up` does."""
        suite = self.shared / "suite"
        suite.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(TOP / name, suite)
        for name in ("jobs", "models", "analysis"):
            shutil.copytree(TOP / name, suite / name, ignore=UNCOMPILED)
        token = self.shared / "token"
        token.write_text("0" * 64)
        token.chmod(0o600)
        for name in self.nodes:
            home = self.net[name].home
            (home / ".ray").mkdir()
            shutil.copy(token, home / ".ray" / "auth_token")
            for job in (TOP / "jobs").glob("*.py"):  # as `ray submit` copies a script
                shutil.copy(job, home)
            install = "cp -r /mnt/shared/suite /tmp/suite && pip install --quiet /tmp/suite"
            done = self.net[name].run(install)
            assert done.returncode == 0, done.stdout
        part_of_mnist(self.shared / "digits", 1293, 200)

    def repair_disk(self) -> None:
        """Takes the disk off every host, has it checked, and gives it back."""
        for host in self.net.hosts.values():
            assert host.run(f"umount --lazy {hosts.SHARED}").returncode == 0
        mended = 1  # it found something, and mended it
        hosts.quietly("e2fsck", "-fy", self.device, codes=(0, mended))
        for host in self.net.hosts.values():
            done = host.run(f"mount {self.device} {hosts.SHARED}")
            assert done.returncode == 0, done.stdout

    @property
    def nodes(self) -> list[str]:
        return [name for name in self.net.hosts if name != "client"]

    def numbers(self, job: str) -> Numbers:
        """Returns what the job measures when nothing happens to it."""
        if job not in self.expected:
            run = Run(self, job, f"undisturbed-{len(self.expected)}")
            run.start()
            output, _ = run.driver.communicate(timeout=900)
            assert run.driver.returncode == 0, output
            self.expected[job] = run.numbers()
            run.remove()
        return self.expected[job]


def _has_loop_devices() -> bool:
    try:
        return not hosts.lacking and bool(hosts.quietly("losetup", "--find"))
    except AssertionError:
        return False


needs_disk = pytest.mark.skipif(
    not _has_loop_devices(), reason="the shared disk is a file: needs a loop device"
)


@contextmanager
def cluster(place: Path) -> Iterator[Cluster]:
    disk, homes = place / "disk", place / "hosts"
    homes.mkdir()
    with disk.open("wb") as file:
        file.truncate(300 * 2**20)
    hosts.quietly("mkfs.ext4", "-q", disk)
    device = hosts.quietly("losetup", "--find", "--show", disk)
    try:
        with hosts.network(homes, "head", "one", "two", shared=device) as net:
            made = Cluster(net, device)
            made.furnish()
            for name in made.nodes:
                made.start_ray(name)
            yield made
    finally:
        hosts.quietly("losetup", "--detach", device)


@dataclass
class Run:
    """A job on the cluster, started on its head as `ray submit` does."""

    cluster: Cluster
    job: str
    name: str
    driver: subprocess.Popen | None = None

    def start(self) -> None:
        storage = f"--storage /mnt/shared/{self.name} --name it"
        line = f"RAY_AUTH_MODE=token python ~/{self.job} {storage}"
        self.driver = subprocess.Popen(
            self.cluster.net["head"].command(f"exec env {line}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def title(self) -> str:
        """What Ray calls the processes that train."""
        return "ray::ImplicitFunc" if self.job.startswith("sweep") else "ray::RayTrainWorker"

    def trials(self) -> list[Trial]:
        with suppress(NoResults):
            return read_trials(str(self.cluster.shared / self.name / "it"))
        return []

    def numbers(self) -> Numbers:
        return {
            trial.name: [tuple(row.get(name) for name in MEASURED) for row in trial.rows]
            for trial in self.trials()
        }

    def epochs(self) -> dict[str, int]:
        """Returns how many epochs each trial has done."""
        return {trial.name: len(trial.rows) for trial in self.trials()}

    def kill_driver(self) -> None:
        _kill(self.cluster.net["head"].processes("python", self.job.split()[0]))

    def check(self, expected: Numbers) -> None:
        """Asserts the numbers, and that no epoch was trained twice on the way to them."""
        assert self.numbers() == expected
        for trial in self.trials():
            history = [row["epoch"] for row in trial.newest_checkpoint().history]
            assert history == list(range(1, len(trial.rows) + 1))

    def remove(self) -> None:
        """Makes room for the next one."""
        shutil.rmtree(self.cluster.shared / self.name)


# A fault is done to a run that is under way. It returns when the cluster is whole again.
Fault = Callable[[Run], None]


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def process_killed(run: Run) -> None:
    net = run.cluster.net
    found = [pid for name in run.cluster.nodes for pid in net[name].processes(run.title)]
    assert found
    _kill(found[-1:])


def driver_killed(run: Run) -> None:
    run.kill_driver()
    run.driver.wait()
    run.start()


def host_lost(run: Run) -> None:
    """With all that ran on it; a new one of the same name joins a while later."""
    net = run.cluster.net
    host = next(net[name] for name in ("one", "two") if net[name].processes(run.title))
    host.kill()
    time.sleep(20)  # the others do without it
    host.start()
    run.cluster.start_ray(host.name)


def head_lost(run: Run) -> None:
    """With the driver; a new cluster on the same storage is given the same command."""
    run.cluster.net["head"].kill()
    run.driver.wait()
    run.cluster.net["head"].start()
    for name in run.cluster.nodes:
        run.cluster.start_ray(name)
    run.start()


def network_cut(run: Run) -> None:
    """Between one worker and all others, for half a minute: Ray may take it for lost meanwhile."""
    host = run.cluster.net["two"]
    host.link("down")
    time.sleep(30)
    host.link("up")
    # Where the head had taken it for lost, the raylet ends itself once it learns of that.
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and host.processes("raylet"):
        time.sleep(1)
    if not host.processes("raylet"):
        run.cluster.start_ray("two")


def storage_full(run: Run) -> None:
    """Until the job has given up."""
    filler = run.cluster.shared / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**20))
    try:
        _gives_up(run)
    finally:
        filler.unlink()
    run.start()


def storage_read_only(run: Run) -> None:
    """As a file system turns itself when its disk fails; until the disk is repaired."""
    os.sync()
    assert run.cluster.net["head"].run(f"mount -o remount,abort {hosts.SHARED}").returncode == 0
    try:
        _gives_up(run)
    finally:
        run.cluster.repair_disk()
    run.start()


def _gives_up(run: Run) -> None:
    before = run.numbers()
    output, _ = run.driver.communicate(timeout=300)
    assert run.driver.returncode == 1, output
    assert "failed: " in output
    assert "to continue: " in output
    for name, rows in run.numbers().items():  # what was there can be read
        assert rows[: len(before[name])] == before[name]


FAULTS: dict[str, tuple[str, Fault]] = {
    "a trial's process is killed": (SWEEP, process_killed),
    "a GAN worker is killed": (GAN, process_killed),
    "the sweep's driver is killed": (SWEEP, driver_killed),
    "the GAN's driver is killed": (GAN, driver_killed),
    "a worker host disappears in mid-sweep": (SWEEP, host_lost),
    "a worker host disappears in mid-GAN": (GAN, host_lost),
    "the head disappears in mid-sweep": (SWEEP, head_lost),
    "the head disappears in mid-GAN": (GAN, head_lost),
    "a worker's network is cut for 30 s": (SWEEP, network_cut),
    "the storage is full": (SWEEP, storage_full),
    "the storage turns read-only": (SWEEP, storage_read_only),
}


def suffer(cluster: Cluster, fault: str, name: str) -> float:
    """Does a fault to a run, and sees it end as if nothing had happened.

    Returns the seconds from the fault until every trial that was under way is an epoch further.
    """
    job, inflict = FAULTS[fault]
    expected = cluster.numbers(job)
    run = Run(cluster, job, name)
    run.start()
    try:
        seconds = _recover(run, inflict, expected)
        output, _ = run.driver.communicate(timeout=600)
    except Exception as error:
        run.kill_driver()
        said = run.driver.communicate()[0]
        raise AssertionError(f"{fault}: {error}: {run.epochs()}\n{said}") from error
    finally:
        run.kill_driver()
    assert run.driver.returncode == 0, output
    run.check(expected)
    run.remove()
    return seconds


def _recover(run: Run, inflict: Fault, expected: Numbers) -> float:
    wait_for(lambda: sum(run.epochs().values()) >= 2 * len(expected), run.driver, every=0.5)
    before = {n: done for n, done in run.epochs().items() if done < len(expected[n])}
    assert before  # else there is nothing to recover
    began = time.monotonic()
    inflict(run)
    # Tune puts a trial that was lost behind those that wait: they may run to their ends first.
    wait_for(lambda: all(run.epochs().get(n, 0) > before[n] for n in before), every=0.5)
    return time.monotonic() - began


def soak(cluster: Cluster, trials: int, seed: int) -> tuple[int, int]:
    """Kills a third as many processes as there are trials, while a sweep of short ones runs.

    When, in epochs that are done, and which: at random. Returns how many were killed, and how often
    the command had to be typed.
    """
    expected = cluster.numbers(SHORT_TRIALS[trials])
    assert len(expected) == trials
    run = Run(cluster, SHORT_TRIALS[trials], f"soak-{trials}-{seed}")
    chance, over, killed = random.Random(seed), threading.Event(), 0
    epochs = sum(map(len, expected.values()))
    # By a clock, a quick machine would be done before, and on a slow one no trial end an epoch.
    moments = sorted(chance.sample(range(epochs // 2), trials // 3))

    def kill() -> None:
        nonlocal killed
        nodes = [cluster.net[name] for name in cluster.nodes]
        while killed < len(moments) and not over.wait(0.1):
            if sum(run.epochs().values()) < moments[killed]:
                continue
            found = [pid for host in nodes for pid in host.processes(run.title)]
            if found:
                _kill([chance.choice(found)])
                killed += 1

    killer = threading.Thread(target=kill)
    killer.start()
    typed = 0
    try:
        while run.driver is None or run.driver.returncode != 0:
            assert typed < 10
            typed += 1
            run.start()
            run.driver.communicate(timeout=900)
    finally:
        over.set()
        killer.join()
        run.kill_driver()
    run.check(expected)
    run.remove()
    return killed, typed
