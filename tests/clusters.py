"""Ray clusters for tests, each with a port, a token and a folder of its own."""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import scripts
from ray.cluster_utils import FAKE_HEAD_NODE_ID

FAKE_AUTOSCALING = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "0",  # it needs files of the fake provider that wheels lack
}


RAY = str(Path(sys.executable).parent / "ray")
# The ports that are the same by default may be taken, by another cluster or node on this machine.
ANY_PORT = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs, as those see it who were told where it is and what its token is."""

    address: str
    environment: dict[str, str] = field(repr=False)  # too long for a failed test's output

    def run(self, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Runs a script of the suite on the cluster, to its end."""
        return scripts.run(script, *arguments, "--address", self.address, env=self.environment)

    def answer(self, code: str) -> object:
        """Runs Python code in a driver of its own and returns what it prints, read as JSON."""
        connect = f"import json, ray; ray.init({self.address!r}, logging_level='ERROR')\n"
        done = subprocess.run(
            [sys.executable, "-c", connect + code],
            cwd="/",
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def node(self) -> Iterator[Callable[[], None]]:
        """Adds a node with one CPU, and yields what kills it with all that runs on it."""
        command = [RAY, "start", "--address", self.address, "--num-cpus=1", "--num-gpus=0"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats", *ANY_PORT]
        with tempfile.TemporaryFile("w+") as output:
            start = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = start.wait(timeout=300)
                output.seek(0)
                assert code == 0, output.read()
                yield lambda: scripts.end_session(start)
            finally:
                scripts.end_session(start)


@contextmanager
def started(*flags: str, launches: dict[str, int] | None = None) -> Iterator[Cluster]:
    """Starts a head with one CPU; it and all that it launched end with the block.

    Args:
        flags: more of them for `ray start`.
        launches: the resources of a node of which the head's autoscaler launches up to two, which
            are processes here; none for a cluster that does not grow.
    """
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # short, for sockets
        place = Path(folder)
        address = f"127.0.0.1:{_free_port()}"
        # A token in the environment goes before that in ~/.ray/auth_token, which a head would use
        # and a driver that is given an address would not.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
        environment = os.environ | token
        command = [RAY, "start", "--head"]
        command += ["--port", address.partition(":")[2], "--num-cpus=1", "--num-gpus=0"]
        command += ["--temp-dir", folder, "--object-store-memory=100000000"]
        command += ["--include-dashboard=false", "--disable-usage-stats", *ANY_PORT]
        head_environment = environment
        if launches is not None:
            configuration = place / "autoscaling.yaml"
            configuration.write_text(json.dumps(_configuration(address, launches)))  # it is YAML
            command += ["--autoscaling-config", str(configuration)]
            head_environment = environment | FAKE_AUTOSCALING
        with (place / "start.out").open("w+") as output:
            start = subprocess.Popen(
                [*command, *flags],
                env=head_environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            assert start.wait(timeout=300) == 0, (place / "start.out").read_text()
            yield Cluster(address, environment)
        finally:
            scripts.end_session(start)
            left = _naming(folder)
            assert not left, f"these are left of the cluster: {left}"


def _free_port() -> int:
    """Returns a port that nobody gets by chance: Ray asks for dozens of any, and has its own."""
    while True:
        port = random.randrange(20_000, 32_768)  # Ray's own end before, Linux gives those after
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _configuration(address: str, launches: dict[str, int]) -> dict[str, object]:
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "fake_multinode",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": address,  # else the nodes join what listens on 6379
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": launches, "node_config": {}, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        # It insists on these, although it launches no more than processes.
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        **{key: [] for key in ("initialization_commands", "setup_commands")},
        **{key: [] for key in ("head_setup_commands", "head_start_ray_commands")},
        **{key: [] for key in ("worker_setup_commands", "worker_start_ray_commands")},
        "file_mounts_sync_continuously": False,
    }


def _naming(place: str) -> list[str]:
    """Returns the command lines in which a folder is named, as it is in those of Ray's servers."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"{place}/" in command:
            found.append(f"{process.name} {command.replace(chr(0), ' ')}")
    return found
