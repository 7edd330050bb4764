"""Hosts for tests: network namespaces of this machine, each with its own sshd, home and /tmp.

They see each other over a switch of their own and nothing else: not the network of this machine,
not this repository (but for the client, from which people type). What they share is Python's
packages, the two cores, and what a test mounts as /mnt/shared.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
import yaml
from scripts import TOP, wait_for

USER, HOME, SHARED = "suite", "/home/suite", "/mnt/shared"
NEEDED = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync"}
NEEDED |= {"unshare": "util-linux", "losetup": "mount", "mkfs.ext4": "e2fsprogs"}
TMPFS = ["-t", "tmpfs", "tmpfs"]
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def quietly(*command: object, codes: tuple[int, ...] = (0,)) -> str:
    """Runs a command that has to end with one of these exit codes; returns what it prints."""
    done = subprocess.run(
        list(map(str, command)), env=os.environ | {"PATH": PATH}, capture_output=True, text=True
    )
    assert done.returncode in codes, f"{command}: {done.stderr}"
    return done.stdout.strip()


def _lacking() -> str:
    """Returns what this machine lacks for hosts, nothing where they can be had."""
    missing = sorted(NEEDED[tool] for tool in NEEDED if shutil.which(tool, path=PATH) is None)
    if missing:
        return " ".join(missing)
    try:
        quietly("unshare", "--mount", "--pid", "--net", "--uts", "--fork", "mount", *TMPFS, "/mnt")
    except AssertionError as error:
        return f"leave to make namespaces, as root has it ({error})"
    return ""


lacking = _lacking()
needs_hosts = pytest.mark.skipif(bool(lacking), reason=f"hosts are namespaces: needs {lacking}")

# Runs as the first process of a host: when it ends, all others of the host do.
BOOT = """
set -e
exec 8<{prefix} 9<{top}
mount --make-rprivate /
mount -t tmpfs tmpfs /home && mkdir {home} && mount --bind {place}/home {home}
mount -t tmpfs tmpfs /mnt && mkdir {shared} && mount {source} {shared}
mount --bind {place}/passwd /etc/passwd
mount --bind {place}/hosts /etc/hosts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run && mkdir /run/sshd
mount -t tmpfs tmpfs /tmp
mkdir -p {top} && {mount_top} {top}
mkdir -p {prefix} && mount --no-canonicalize --bind /proc/self/fd/8 {prefix}
exec 8<&- 9<&-
hostname {name}
exec {sshd} -D -e -f {home}/sshd_config
"""


class Host:
    """A machine of its own, as far as what runs on it can tell."""

    def __init__(self, network: "Network", name: str, address: str, sees_repository: bool):
        self.network, self.name, self.address = network, name, address
        self.sees_repository = sees_repository
        self.namespace = f"{network.name}-{name}"
        self.place = network.place / name
        self.home = self.place / "home"
        self.boot: subprocess.Popen | None = None
        self._furnish()
        _ip("netns", "add", self.namespace)
        _ip("-n", self.namespace, "link", "set", "lo", "up")
        self._plug_in()

    def _furnish(self) -> None:
        self.home.mkdir(parents=True)
        python = self.home / "venv" / "bin" / "python"
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", self.home / "venv"], check=True
        )
        (packages,) = (self.home / "venv").glob("lib/python*/site-packages")
        (packages / "of-the-machine.pth").write_text(f"{_packages()}\n")
        here = f"{HOME}/venv/bin/{python.name}"
        for tool, module in {"pip": "pip._internal.cli.main", "ray": "ray.scripts.scripts"}.items():
            script = python.with_name(tool)
            script.write_text(f"#!{here}\nfrom {module} import main\nraise SystemExit(main())\n")
            script.chmod(0o755)
        # As a machine without network has it; what the suite needs is there.
        (self.home / ".config" / "pip").mkdir(parents=True)
        (self.home / ".config" / "pip" / "pip.conf").write_text(
            "[global]\nno-index = true\n[install]\nno-build-isolation = false\n"
            "disable-pip-version-check = true\n"
        )
        # One CPU each: by itself Ray gives every host all those of this machine.
        (self.home / ".bashrc").write_text(
            f'export PATH="{HOME}/venv/bin:{PATH}" RAY_OVERRIDE_RESOURCES=\'{{"CPU": 1}}\'\n'
        )
        ssh = self.home / ".ssh"
        ssh.mkdir(mode=0o700)
        shutil.copy(self.network.key.with_suffix(".pub"), ssh / "authorized_keys")
        key = self.home / "host_key"
        quietly("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
        (self.home / "sshd_config").write_text(
            f"HostKey {HOME}/host_key\nAuthorizedKeysFile {HOME}/.ssh/authorized_keys\n"
            "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        )
        # The user is root under another name, with a home that hides nobody's.
        passwd = f"{USER}:*:0:0::{HOME}:/bin/bash\n" + Path("/etc/passwd").read_text()
        (self.place / "passwd").write_text(passwd)
        # As Debian's installer writes it: no address by which others could reach this host.
        (self.place / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")

    def _plug_in(self) -> None:
        plug = f"to-{self.name}"
        switch = ["-n", self.network.switch, "link"]
        veth = ["type", "veth", "peer", "eth0", "netns", self.namespace]
        _ip(*switch, "add", plug, *veth)
        _ip(*switch, "set", plug, "master", "switch", "up")
        _ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.namespace, "link", "set", "eth0", "up")
        # Leads nowhere, but Ray asks the kernel which address it would leave the host by.
        _ip("-n", self.namespace, "route", "add", "default", "via", "10.77.0.254")

    def start(self) -> None:
        """Boots the host, as it was when it was killed but for its /tmp."""
        hidden, seen = "mount -t tmpfs tmpfs", "mount --no-canonicalize --bind /proc/self/fd/9"
        script = BOOT.format(
            prefix=shlex.quote(sys.prefix),
            place=shlex.quote(str(self.place)),
            home=HOME,
            shared=SHARED,
            source=self.network.shared,
            top=shlex.quote(str(TOP)),
            mount_top=seen if self.sees_repository else hidden,
            name=self.name,
            sshd=shutil.which("sshd", path=PATH),
        )
        command = ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--pid", "--uts"]
        command += ["--fork", "--kill-child", "--mount-proc", "bash", "-c", script]
        log = self.place / "boot.log"
        with log.open("w") as output:
            self.boot = subprocess.Popen(
                command,
                env=os.environ | {"PATH": PATH},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

        def listens() -> bool:
            assert self.boot.poll() is None, log.read_text()
            return "listening" in log.read_text()

        wait_for(listens)
        self.link("up")

    def kill(self) -> None:
        """The host is gone from one moment to the next, with all that ran on it.

        As when its power fails: nobody hears of it, not even by a connection that closes.
        """
        if self.boot:
            self.link("down")
            first = Path(f"/proc/{self.first_process()}")
            os.kill(self.boot.pid, signal.SIGKILL)  # --kill-child: and its first process with it
            self.boot.wait()
            self.boot = None
            wait_for(lambda: not first.exists())  # which waits for all others

    def link(self, state: str) -> None:
        """Cuts the host's network (`down`) or restores it (`up`); all goes on running."""
        _ip("-n", self.network.switch, "link", "set", f"to-{self.name}", state)

    def first_process(self) -> int:
        """Returns the pid, here, of what is process 1 there."""
        children = Path(f"/proc/{self.boot.pid}/task/{self.boot.pid}/children").read_text()
        return int(children.split()[0]) if children else self.boot.pid

    def processes(self, *words: str) -> list[int]:
        """Returns the pids, here, of the host's processes in whose command lines all words are."""
        namespace = os.readlink(f"/proc/{self.first_process()}/ns/pid")
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

    def command(self, line: str) -> list[str]:
        """Returns what runs a line of shell on the host, as its user in a login shell would."""
        enter = ["nsenter", "--target", str(self.first_process()), "--mount", "--pid", "--uts"]
        enter += ["--net", "env", "-i", f"HOME={HOME}", f"USER={USER}", "TERM=dumb"]
        where = str(TOP) if self.sees_repository else HOME
        return [*enter, "bash", "-c", f"cd {shlex.quote(where)} && . ~/.bashrc && {line}"]

    def run(self, line: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(line),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )


class Network:
    """Hosts that see each other. The first one, `client`, is the machine that people type at."""

    def __init__(self, place: Path, shared: str):
        self.name = f"suite{os.getpid()}"
        self.place, self.shared = place, shared
        self.switch = f"{self.name}-switch"
        self.key = place / "key"
        self.hosts: dict[str, Host] = {}

    def boot(self, names: list[str]) -> None:
        quietly("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "switch", "up")
        for number, name in enumerate(["client", *names], start=1):
            host = Host(self, name, f"10.77.0.{number}", sees_repository=name == "client")
            self.hosts[name] = host
        shutil.copy(self.key, self.hosts["client"].home / ".ssh" / "key")
        for host in self.hosts.values():
            host.start()

    def write_cluster_yaml(self) -> None:
        """Writes ~/cluster.yaml on the client: the repository's, but for these hosts.

        What else is left out are the commands that get Docker ready, and the size of the cluster.
        """
        config = yaml.safe_load((TOP / "cluster.yaml").read_text())
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
            with suppress(AssertionError):  # the others have to end, too
                host.kill()
        for line in quietly("ip", "netns", "list").splitlines():
            if line.split()[0].startswith(f"{self.name}-"):
                _ip("netns", "delete", line.split()[0])


@contextmanager
def network(place: Path, *names: str, shared: str) -> Iterator[Network]:
    """Boots `client` and hosts of these names; all of it ends with the block.

    Args:
        place: an empty folder for their homes.
        shared: what each of them mounts as /mnt/shared: a device, or `--bind` and a folder.
    """
    net = Network(place, shared)
    try:
        net.boot(list(names))
        yield net
    finally:
        net.close()


def _packages() -> str:
    return str(Path(torch.__file__).parent.parent)


def _ip(*words: str) -> None:
    quietly("ip", *words)
