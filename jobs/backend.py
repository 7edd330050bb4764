"""How the workers of Ray Train reach each other: nccl on GPUs, gloo on CPUs."""

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig

SIOCGIFADDR = 0x8915  # asks Linux for the address of a network interface


class _Backend(TorchConfig().backend_cls):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_listen_where_ray_does)
        super().on_start(worker_group, backend_config)


@dataclass
class Backend(TorchConfig):
    """Ray Train's own, but that gloo uses the network by which the nodes know each other.

    By itself it takes the address that the host's name has on the host, which is no address for
    others where /etc/hosts says 127.0.1.1, as Debian writes it.
    """

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def _listen_where_ray_does() -> None:
    """Leaves the choice to gloo where no interface has Ray's address, as behind a NAT."""
    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            try:
                answer = fcntl.ioctl(any_socket, SIOCGIFADDR, request)
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
