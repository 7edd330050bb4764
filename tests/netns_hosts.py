"""Hosts for tests: network namespaces of this machine, each with its own sshd, home and /tmp.

The hosts reach each other over a virtual switch and nothing else. Only the client, where a user
types commands, sees this repository. All hosts share Python's packages, the CPU cores, and
/mnt/shared.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import yaml
from processes import REPO, wait_for

USER, HOME, SHARED = "suite", "/home/suite", "/mnt/shared"
PACKAGES = {  # of Debian, by the tool that they provide
    "ip": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "rsync": "rsync",
    "unshare": "util-linux",
    "losetup": "mount",
    "mkfs.ext4": "e2fsprogs",
}
TMPFS = ["-t", "tmpfs", "tmpfs"]
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def run_command(*command: object, codes: tuple[int, ...] = (0,)) -> str:
    """Runs a command, asserts that its exit code is one of `codes`, and returns its stdout."""
    done = subprocess.run(
        list(map(str, command)), env=os.environ | {"PATH": PATH}, capture_output=True, text=True
    )
    assert done.returncode in codes, f"{command}: {done.stderr}"
    return done.stdout.strip()


def _missing_requirements() -> str:
    """Returns what this machine lacks to create hosts; empty if nothing."""
    packages = sorted(PACKAGES[tool] for tool in PACKAGES if shutil.which(tool, path=PATH) is None)
    if packages:
        return " ".join(packages)
    try:
        run_command(
            "unshare", "--mount", "--pid", "--net", "--uts", "--fork", "mount", *TMPFS, "/mnt"
        )
    except AssertionError as error:
        return f"permission to create namespaces, e.g. root ({error})"
    return ""


MISSING = _missing_requirements()
needs_hosts = pytest.mark.skipif(bool(MISSING), reason=f"hosts are namespaces: needs {MISSING}")


def create_venv(folder: Path, path: str, *packages: str) -> None:
    """Creates a virtual environment with pip, ray and what this machine's environment has.

    Args:
        folder: where this process creates it.
        path: what it is called on the hosts.
        packages: more folders on the hosts with packages.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    lines = [str(Path(torch.__file__).parent.parent), *packages]
    (site_packages / "of-the-machine.pth").write_text("\n".join(lines) + "\n")
    for tool in ("pip", "ray"):
        (entry,) = entry_points(group="console_scripts", name=tool)
        script = folder / "bin" / tool
        script.write_text(
            f"#!{path}/bin/python\n"
            f"from {entry.module} import {entry.attr}\nraise SystemExit({entry.attr}())\n"
        )
        script.chmod(0o755)


# Runs as the first process of a host: when it ends, all other processes of the host end.
BOOT = """
set -e
exec 8<{prefix} 9<{repo}
mount --make-rprivate /
mount -t tmpfs tmpfs /home && mkdir {home} && mount --bind {folder}/home {home}
mount -t tmpfs tmpfs /mnt && mkdir {shared} && mount {source} {shared}
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/hosts /etc/hosts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run && mkdir /run/sshd
mount -t tmpfs tmpfs /tmp
mkdir -p {repo} && {mount_repo} {repo}
mkdir -p {prefix} && mount --no-canonicalize --bind /proc/self/fd/8 {prefix}
exec 8<&- 9<&-
hostname {name}
exec {sshd} -D -e -f {home}/sshd_config
"""


class Host:
    """A host of a network, with a single user."""

    def __init__(self, network: "Network", name: str, address: str, sees_repository: bool):
        self.network, self.name, self.address = network, name, address
        self.sees_repository = sees_repository
        self.namespace = f"{network.name}-{name}"
        self.folder = network.folder / name
        self.home = self.folder / "home"
        self.boot: subprocess.Popen | None = None
        self._create_home()
        _ip("netns", "add", self.namespace)
        _ip("-n", self.namespace, "link", "set", "lo", "up")
        self._connect()

    def _create_home(self) -> None:
        self.home.mkdir(parents=True)
        create_venv(self.home / "venv", f"{HOME}/venv")
        # The host has no network; what the suite needs is installed.
        (self.home / ".config" / "pip").mkdir(parents=True)
        (self.home / ".config" / "pip" / "pip.conf").write_text(
            "[global]\nno-index = true\n[install]\nno-build-isolation = false\n"
            "disable-pip-version-check = true\n"
        )
        # One CPU per host: by default Ray counts all CPUs of this machine on each.
        (self.home / ".bashrc").write_text(
            f'export PATH="{HOME}/venv/bin:{PATH}" RAY_OVERRIDE_RESOURCES=\'{{"CPU": 1}}\'\n'
        )
        ssh = self.home / ".ssh"
        ssh.mkdir(mode=0o700)
        shutil.copy(self.network.key.with_suffix(".pub"), ssh / "authorized_keys")
        key = self.home / "host_key"
        run_command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
        (self.home / "sshd_config").write_text(
            f"HostKey {HOME}/host_key\nAuthorizedKeysFile {HOME}/.ssh/authorized_keys\n"
            "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        )
        # The user is root under another name, whose home hides no other home.
        passwd = f"{USER}:*:0:0::{HOME}:/bin/bash\n" + Path("/etc/passwd").read_text()
        (self.folder / "passwd").write_text(passwd)
        # As Debian's installer writes it: the host's own name has no address that others reach.
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")

    def _connect(self) -> None:
        """Connects the host to the switch."""
        port = f"to-{self.name}"
        switch = ["-n", self.network.switch, "link"]
        _ip(*switch, "add", port, "type", "veth", "peer", "eth0", "netns", self.namespace)
        _ip(*switch, "set", port, "master", "switch", "up")
        _ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.namespace, "link", "set", "eth0", "up")
        # Nothing answers there, but Ray takes its own address from the default route.
        _ip("-n", self.namespace, "route", "add", "default", "via", "10.77.0.254")

    def start(self) -> None:
        """Boots the host. After `kill`, its home is as it was, and its /tmp is empty."""
        hide, bind = "mount -t tmpfs tmpfs", "mount --no-canonicalize --bind /proc/self/fd/9"
        script = BOOT.format(
            prefix=shlex.quote(sys.prefix),
            folder=shlex.quote(str(self.folder)),
            home=HOME,
            shared=SHARED,
            source=self.network.shared,
            repo=shlex.quote(str(REPO)),
            mount_repo=bind if self.sees_repository else hide,
            name=self.name,
            sshd=shutil.which("sshd", path=PATH),
        )
        command = ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--pid", "--uts"]
        command += ["--fork", "--kill-child", "--mount-proc", "bash", "-c", script]
        log = self.folder / "boot.log"
        with log.open("w") as output:
            self.boot = subprocess.Popen(
                command,
                env=os.environ | {"PATH": PATH},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

        def is_listening() -> bool:
            assert self.boot.poll() is None, log.read_text()
            return "listening" in log.read_text()

        wait_for(is_listening)
        self.set_link("up")

    def kill(self) -> None:
        """Ends the host and all its processes at once, as a power failure does.

        No connection is closed: the other hosts are not notified.
        """
        if self.boot:
            self.set_link("down")
            init = Path(f"/proc/{self.init_pid()}")
            os.kill(self.boot.pid, signal.SIGKILL)  # --kill-child: also kills the first process
            self.boot.wait()
            self.boot = None
            wait_for(lambda: not init.exists())  # it waits for all others

    def set_link(self, state: str) -> None:
        """Cuts (`down`) or restores (`up`) the host's network; its processes continue."""
        _ip("-n", self.network.switch, "link", "set", f"to-{self.name}", state)

    def init_pid(self) -> int:
        """Returns the pid, on this machine, of the host's process 1."""
        children = Path(f"/proc/{self.boot.pid}/task/{self.boot.pid}/children").read_text()
        return int(children.split()[0]) if children else self.boot.pid

    def pids(self, *words: str) -> list[int]:
        """Returns the pids, on this machine, of processes whose command line has all words."""
        namespace = os.readlink(f"/proc/{self.init_pid()}/ns/pid")
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_text().replace("\0", " ")
                if os.readlink(process / "ns" / "pid") != namespace:
                    continue
            except OSError:
                continue  # it has ended
            if all(word in command for word in words):
                found.append(int(process.name))
        return found

    def is_listening(self, port: int) -> bool:
        """Returns whether a process of the host accepts connections at a TCP port."""
        return f":{port} " in self.check_output("ss -ltn")

    def command(self, line: str) -> list[str]:
        """Returns the command that runs a line of shell on the host, as in a login shell."""
        enter = ["nsenter", "--target", str(self.init_pid()), "--mount", "--pid", "--uts"]
        enter += ["--net", "env", "-i", f"HOME={HOME}", f"USER={USER}", "TERM=dumb"]
        cwd = str(REPO) if self.sees_repository else HOME
        return [*enter, "bash", "-c", f"cd {shlex.quote(cwd)} && . ~/.bashrc && {line}"]

    def run(self, line: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Runs a line of shell on the host; stdout and stderr come back as one text."""
        return subprocess.run(
            self.command(line),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def check_output(self, line: str) -> str:
        """Runs a line of shell, asserts that it succeeds, and returns its output."""
        done = self.run(line, timeout=600)
        assert done.returncode == 0, done.stdout
        return done.stdout


class Network:
    """Hosts behind one switch. The first one, `client`, is the machine that a user types at."""

    def __init__(self, folder: Path, shared: str):
        self.name = f"suite{os.getpid()}"
        self.folder, self.shared = folder, shared
        self.switch = f"{self.name}-switch"
        self.key = folder / "key"
        self.hosts: dict[str, Host] = {}

    def boot(self, names: list[str]) -> None:
        run_command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "switch", "up")
        for number, name in enumerate(["client", *names], start=1):
            host = Host(self, name, f"10.77.0.{number}", sees_repository=name == "client")
            self.hosts[name] = host
        shutil.copy(self.key, self["client"].home / ".ssh" / "key")
        for host in self.hosts.values():
            host.start()

    def write_cluster_yaml(self) -> None:
        """Writes ~/cluster.yaml on the client: the repository's, with these hosts as its nodes.

        It omits Docker, the commands that prepare it, and the cluster's size.
        """
        config = yaml.safe_load((REPO / "cluster.yaml").read_text())
        for key in ("docker", "available_node_types", "head_node_type", "max_workers"):
            del config[key]
        del config["initialization_commands"]
        _, head, *workers = (host.address for host in self.hosts.values())
        config["provider"] = {"type": "local", "head_ip": head, "worker_ips": workers}
        config["auth"] = {"ssh_user": USER, "ssh_private_key": "~/.ssh/key"}
        (self["client"].home / "cluster.yaml").write_text(yaml.safe_dump(config))

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def close(self) -> None:
        for host in self.hosts.values():
            with suppress(AssertionError):  # the other hosts must end, too
                host.kill()
        for line in run_command("ip", "netns", "list").splitlines():
            if line.split()[0].startswith(f"{self.name}-"):
                _ip("netns", "delete", line.split()[0])


@contextmanager
def network(folder: Path, *names: str, shared: str) -> Iterator[Network]:
    """Boots `client` and hosts with these names; all of them end with the block.

    Args:
        folder: an empty folder for their homes.
        shared: the source of each host's /mnt/shared: a device, or `--bind` and a folder.
    """
    net = Network(folder, shared)
    try:
        net.boot(list(names))
        yield net
    finally:
        net.close()


def _ip(*words: str) -> None:
    run_command("ip", *words)
