"""How the operator's small HTTP servers listen: a thread per connection, on all addresses of the pod, IPv6 included."""

from __future__ import annotations

import socket
import socketserver
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


class Listener(socketserver.ThreadingMixIn, HTTPServer):
    """Listens from the moment it is made; `port` 0 takes a free one. Raises OSError if the port is taken."""

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        # clusters with only IPv6 addresses exist; one socket serves both
        dual = not host and socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if dual or ":" in host else socket.AF_INET
        self._dual = dual
        super().__init__((host or ("::" if dual else "0.0.0.0"), port), handler)

    @property
    def port(self) -> int:
        """The port it listens on, also where 0 was asked for."""
        return int(self.server_address[1])

    def server_bind(self) -> None:
        """Bind without asking the DNS for our name, as HTTPServer does, which may take long."""
        if self._dual:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that ended badly is its client's business."""
