"""How the operator's small HTTP servers listen: a thread per connection, on all addresses of the pod, IPv6 included.

Whoever reaches a port may open connections and say nothing on them, or a byte now and then, and where no network policy
is enforced that is everybody. So places are few, one client has a share of them only, and every connection has an end.
Where no place is left, the client that has kept us waiting for longest goes: a request takes milliseconds, so that a
probe of the kubelet has its answer however many others just hold the line.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, BinaryIO, cast

PLACES = 64
"""Connections at a time."""
PLACES_OF_ONE = 16
"""Of one address: no pod shall disturb the others. Requests take milliseconds, so this is enough for many pods whose
addresses are hidden behind one."""
IDLE_SECONDS = 10.0
"""Longest silence of a client."""
WHOLE_SECONDS = 20.0
"""Longest time for one request: a client that sends a byte now and then is not silent."""
_LEAVE_SECONDS = 1.0
"""Longest wait for the end of a connection that was cut, while nobody else comes in."""
_MAX_HEAD = 32 << 10
"""Of the request line and all headers; the longest token of a pod takes half of it."""


@dataclass
class _Guest:
    client: str
    until: float
    served: bool = False
    """Whether we work for it, so that the wait is ours and not the client's."""


class Listener(socketserver.ThreadingMixIn, HTTPServer):
    """Listens from the moment it is made; `port` 0 takes a free one. Raises OSError if the port is taken."""

    request_queue_size = 128  # of connections not accepted yet; with the default of 5 a burst of them waits for seconds

    def __init__(self, host: str, port: int, handler: type[Handler]) -> None:
        # clusters with only IPv6 addresses exist; one socket serves both
        dual = not host and socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if dual or ":" in host else socket.AF_INET
        self._dual = dual
        self._left = threading.Condition()
        """A connection has ended."""
        self._open: dict[socket.socket, _Guest] = {}
        """The oldest first."""
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

    def get_request(self) -> tuple[socket.socket, Any]:
        """A new connection."""
        connection, address = super().get_request()
        connection.settimeout(IDLE_SECONDS)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Give the connection a place, if need be that of another one. False where we are at work for all of them."""
        client = str(client_address[0])
        with self._left:
            rivals = [connection for connection, guest in self._open.items() if guest.client == client]
            if len(rivals) < PLACES_OF_ONE:
                rivals = list(self._open) if len(self._open) >= PLACES else []
            if rivals:
                idle = next((connection for connection in rivals if not self._open[connection].served), None)
                if idle is None:
                    return False
                _cut(idle, socket.SHUT_RDWR)
                if not self._left.wait_for(lambda: idle not in self._open, _LEAVE_SECONDS):
                    return False
            self._open[request] = _Guest(client, time.monotonic() + WHOLE_SECONDS)
            return True

    @contextlib.contextmanager
    def serves(self, connection: socket.socket) -> Iterator[None]:
        """While we work on the answer to a request that has come in whole: its connection keeps its place."""
        with self._left:
            guest = self._open[connection]
            guest.served = True
        try:
            yield
        finally:
            guest.served = False

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, whoever of the two ended it."""
        with self._left:  # first of all: nobody cuts a socket whose number may be another's already
            self._open.pop(request, None)
            self._left.notify_all()
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Between two connections: cut those that take too long."""
        now = time.monotonic()
        with self._left:
            for connection, guest in self._open.items():
                if now > guest.until:
                    _cut(connection, socket.SHUT_RDWR)

    def server_close(self) -> None:
        """Listen no more, nor to what has not been asked by now. Answers under way are given."""
        with self._left:
            for connection in self._open:
                _cut(connection, socket.SHUT_RD)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that ended badly is its client's business."""


def _cut(connection: socket.socket, how: int) -> None:
    """Wake the thread that waits for the client, past TLS, with the end of the connection; it closes it then."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, how)


class Handler(BaseHTTPRequestHandler):
    """One request per connection, with a head of bounded length."""

    server_version, sys_version = "camel-ray", ""

    def setup(self) -> None:
        """Read through `_Bounded`: http.server itself takes a hundred headers of 64 KiB each."""
        super().setup()
        self.rfile = cast("Any", _Bounded(cast("BinaryIO", self.rfile)))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: probes come every few seconds, reports are counted, and what is in them is not for logs."""


class _Bounded:
    """The two ways to read a request, until its head is longer than it may be."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, _MAX_HEAD
        self.close = file.close

    def readline(self, limit: int) -> bytes:
        """A line of the head. Raises LineTooLong, which becomes the answer 431."""
        if self._left <= 0:
            raise http.client.LineTooLong("head")
        line = self._file.readline(min(limit, self._left))
        self._left -= len(line)
        return line

    def read(self, size: int) -> bytes:
        """The body, whose length is known and bounded."""
        return self._file.read(size)
