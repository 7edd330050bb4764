"""Ray clusters for tests. Each has its own port, token and temporary folder."""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import processes

FAKE_AUTOSCALING = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "0",  # it needs files of the fake provider that wheels lack
}

RAY = str(Path(sys.executable).parent / "ray")
# Ray's default ports are fixed, and may be taken by another cluster or node on this machine.
ANY_PORT = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]


@dataclass(frozen=True)
class Cluster:
    """A running cluster: its address, and the environment with its token."""

    address: str
    environment: dict[str, str] = field(repr=False)  # too long for a failed test's output

    def run(self, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Runs a script of the suite on the cluster, to its end."""
        return processes.run_script(
            script, *arguments, "--address", self.address, env=self.environment
        )

    def running(
        self, script: str, *arguments: object
    ) -> AbstractContextManager[subprocess.Popen[str]]:
        """Runs a script of the suite on the cluster, in the background within the block."""
        return processes.running_script(
            script, *arguments, "--address", self.address, env=self.environment
        )

    def evaluate(self, code: str) -> object:
        """Runs Python code in a driver process of its own; returns the JSON that it prints."""
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
    def node(self, *flags: str) -> Iterator[Callable[[], None]]:
        """Adds a node with one CPU; yields a function that kills it and all its processes.

        Args:
            flags: more flags of `ray start`; they override the ones set here.
        """
        command = [RAY, "start", "--address", self.address, "--num-cpus=1", "--num-gpus=0"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats", *ANY_PORT, *flags]
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
                yield lambda: processes.kill_session(start)
            finally:
                processes.kill_session(start)


@contextmanager
def started(
    *flags: str, launches: dict[str, int] | None = None, token: bool = True
) -> Iterator[Cluster]:
    """Starts a head node with one CPU; all processes of the cluster end with the block.

    Args:
        flags: more flags of `ray start`; they override the ones set here.
        token: whether the cluster requires one.
        launches: the resources of a worker node. The autoscaler of the head launches up to two,
            as processes on this machine. None: the cluster has no autoscaler.
    """
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # short, for sockets
        temp_dir = Path(folder)
        address = f"127.0.0.1:{free_port()}"
        # A token in the environment has precedence over the one in ~/.ray/auth_token, which a head
        # node would use and a driver with an explicit address would not.
        mode = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
        mode = mode if token else {"RAY_AUTH_MODE": "disabled"}
        environment = os.environ | mode | {"RAY_TMPDIR": folder}
        command = [RAY, "start", "--head"]
        command += ["--port", address.partition(":")[2], "--num-cpus=1", "--num-gpus=0"]
        command += ["--object-store-memory=100000000"]
        command += ["--include-dashboard=false", "--disable-usage-stats", *ANY_PORT]
        head_environment = environment
        if launches is not None:
            configuration = temp_dir / "autoscaling.yaml"
            # JSON is valid YAML.
            configuration.write_text(json.dumps(_autoscaling_config(address, launches)))
            command += ["--autoscaling-config", str(configuration)]
            head_environment = environment | FAKE_AUTOSCALING
        with (temp_dir / "start.out").open("w+") as output:
            start = subprocess.Popen(
                [*command, *flags],
                env=head_environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            assert start.wait(timeout=300) == 0, (temp_dir / "start.out").read_text()
            yield Cluster(address, environment)
        finally:
            processes.kill_session(start)
            survivors = _commands_with_path(folder)
            assert not survivors, f"processes of the cluster survive: {survivors}"


def free_port() -> int:
    """Returns a free port between Ray's own ports and the ephemeral ports of Linux."""
    while True:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _autoscaling_config(address: str, launches: dict[str, int]) -> dict[str, object]:
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,  # by default the nodes join the cluster at port 6379
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": launches, "node_config": {}, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        # Required by the schema, and unused.
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        **{key: [] for key in ("initialization_commands", "setup_commands")},
        **{key: [] for key in ("head_setup_commands", "head_start_ray_commands")},
        **{key: [] for key in ("worker_setup_commands", "worker_start_ray_commands")},
        "file_mounts_sync_continuously": False,
    }


def _commands_with_path(folder: str) -> list[str]:
    """Returns the command lines that contain a path in `folder`, as those of Ray's servers do."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # the process has ended
        if f"{folder}/" in command:
            found.append(f"{process.name} {command.replace(chr(0), ' ')}")
    return found
