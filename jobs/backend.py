"""How the workers of Ray Train reach each other: NCCL on GPUs, gloo on CPUs."""

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig

SIOCGIFADDR = 0x8915  # Linux: get the address of a network interface


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]  # known only at run time
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_set_gloo_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class RayInterfaceTorchConfig(TorchConfig):
    """TorchConfig whose gloo uses the network interface of Ray.

    By default gloo uses the address that the host's name resolves to on the host. That is not
    reachable from other hosts where /etc/hosts says 127.0.1.1, as on Debian.
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
