"""What the jobs need of Ray that has no public name. A test fails by name when Ray moves it.

Looked for, in Ray 2.56 to 2.60: the reference of the public API, what ray, ray.train, ray.tune and
ray.util.state export, the command line, and the documented environment variables.
"""

import fcntl
import json
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import ray
from ray.train.torch import TorchConfig
from ray.tune.experiment import Trial

from jobs.errors import UserError
from jobs.storage import StorageDir

SIOCGIFADDR = 0x8915  # Linux: get the address of a network interface

# How long Ray Train waits for the workers of a group before it tries a smaller one. Without it,
# an elastic run that lost a node waits for half a minute at each attempt.
WORKER_GROUP_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"

CHECKPOINT_INDEX = "checkpoint_manager_snapshot.json"  # Ray Train's list of checkpoints


def remove_stale_checkpoint_index(folder: StorageDir) -> None:
    """Removes Ray Train's list of checkpoints if it is truncated or names a missing checkpoint.

    Without this, Ray Train would not start in the folder of a run that was killed. The workers read
    the folder itself; Ray then never deletes the checkpoints of the removed list.
    """
    if CHECKPOINT_INDEX not in folder.names():
        return
    try:
        results = json.loads(folder.read(CHECKPOINT_INDEX))["checkpoint_results"]
        names = {result["checkpoint_dir_name"] for result in results}
        stale = not names <= set(folder.names())
    except (ValueError, KeyError, TypeError):
        stale = True
    if stale:
        folder.delete(CHECKPOINT_INDEX)


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]  # known only at run time
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_set_gloo_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class RayInterfaceTorchConfig(TorchConfig):
    """TorchConfig whose gloo uses the network interface of Ray.

    By default gloo uses the address that the host's name resolves to on the host. That is not
    reachable from other hosts where /etc/hosts says 127.0.1.1, as on Debian: workers on several
    hosts would wait for each other. An environment variable for all workers does not do: the
    interface may have another name on each host.
    """

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def _set_gloo_interface() -> None:
    """Leaves the choice to gloo if no interface has Ray's address, e.g. behind a NAT."""
    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            try:
                response = fcntl.ioctl(any_socket, SIOCGIFADDR, request)
            except OSError:  # the interface has no address
                continue
            if socket.inet_ntoa(response[20:24]) == address:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def trial_error(trial: Trial) -> str:
    """Returns the last error of a trial in one line, from the file that Tune writes on this host.

    Without it, a restart is reported without its reason: Tune's public results have it only after
    the end of the sweep.
    """
    text = Path(trial.error_file).read_text() if trial.error_file else "unknown error"
    return describe_error(text.rpartition("Failure # ")[2])


def describe_error(text: str) -> str:
    """Returns the error of a trial in one line: Ray's own have a page of advice.

    It is the last line of a text, or the first one after the traceback in it.
    """
    if "node running low on memory" in text:  # killed by Ray's memory monitor
        return "killed: the node ran out of memory (lower --max-concurrent, raise --cpus-per-trial)"
    # The second if Ray does not notice the death within a second, or cannot reach the host.
    died = any(message in text for message in ("The actor died", "ActorUnavailableError"))
    if died:
        return "its process died"
    lines = text.strip().splitlines() or ["unknown error"]
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    if not frames:
        return lines[-1]
    # The first line after the last frame of a traceback: a message may have several.
    after = (line for line in lines[frames[-1] :] if line.strip() and not line.startswith(" "))
    return next(after, lines[-1])


def authenticate(address: str) -> None:
    """Turns token authentication on if the cluster at HOST:PORT requires it.

    Ray does so only for a cluster that it finds itself. Without this, a driver with an explicit
    address prints twenty lines of Ray's log, then cannot connect. The other way round, a driver
    with tokens connects to a cluster without, whose actors then die.

    Raises:
        UserError: this host has no token, or another one than the cluster.
        OSError: no Ray answers there.
    """
    if _accepts(address, {}):
        if os.environ.get("RAY_AUTH_MODE") == "token":
            _set_auth_mode("disabled")
        return
    advice = "copy ~/.ray/auth_token from its head to this host"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(os.path.expanduser(path or "~/.ray/auth_token"))
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    where = "RAY_AUTH_TOKEN" if token else f"RAY_AUTH_TOKEN_PATH={path}" if path else str(file)
    try:
        token = token or file.read_text().strip()
    except OSError as error:
        reason = f"{where}: {error.strerror}" if path else advice
        raise UserError(f"the cluster at {address} requires a token: {reason}") from None
    is_token = token.isascii() and token.isprintable()  # gRPC aborts at other characters
    if not is_token or not _accepts(address, {"authorization": f"Bearer {token}"}):
        raise UserError(f"{where} is not the token of the cluster at {address}: {advice}")
    if os.environ.get("RAY_AUTH_MODE") != "token":
        _set_auth_mode("token")


def _set_auth_mode(mode: str) -> None:
    os.environ["RAY_AUTH_MODE"] = mode
    ray._raylet.Config.initialize("")  # Ray has read the variable when it was imported


def _accepts(address: str, metadata: dict[str, str]) -> bool:
    """Returns False if a Ray at HOST:PORT refuses a request without another token.

    Raises:
        OSError: what listens there is no Ray, for which Ray itself would wait for minutes.
    """
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        request = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            request(b"", metadata=[*metadata.items()], timeout=10)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return False
            # Another version of Ray may not have the method; a web server has no gRPC.
            is_grpc = "http2 header" not in (error.details() or "")
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED or not is_grpc:
                raise OSError(f"no Ray answers there (gRPC: {error.code().name})") from None
    return True


def local_address() -> str:
    """Returns the address that a Ray on this host has left, also one that was killed.

    Without it, a job waits for two minutes if that Ray was killed.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        return Path(folder, "ray", "ray_current_cluster").read_text().strip()
    except OSError:
        return ""


def autoscaler_command() -> list[str] | None:
    """Returns the command line of this cluster's autoscaler, None if none is visible here.

    It names the configuration. Without it, a job cannot say at its start that no node that the
    cluster can launch is large enough, and does not use GPUs that are still to be launched. The
    file that `ray up` leaves on the head, ~/ray_bootstrap_config.yaml, would not do: it stays where
    its cluster is gone, and does not tell whether this cluster reads it.
    """
    gcs_address = ray.get_runtime_context().gcs_address
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # the process has ended
        is_autoscaler = any(w.endswith("monitor.py") and "/autoscaler/" in w for w in command)
        if is_autoscaler and f"--gcs-address={gcs_address}" in command:
            return command
    return None
