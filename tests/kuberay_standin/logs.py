"""The part of a kubelet that the apiserver asks for container logs, so that `kubectl logs -f` works."""

from __future__ import annotations

import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

Read = Callable[[str, str, str], tuple[bytes, bool] | None]
"""Of namespace, pod and container: what is written so far, and whether that is all. None: no such container."""
_LOOK_SECONDS = 0.1


class LogServer:
    """Serves `/containerLogs/NAMESPACE/POD/CONTAINER` with TLS on a free port of the loopback."""

    def __init__(self, read: Read, directory: Path) -> None:
        certificate, key = directory / "kubelet.crt", directory / "kubelet.key"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=kubelet"]
        subprocess.run([*command, "-out", certificate, "-keyout", key], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(read))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, name="logs", daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_port

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(read: Read) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(url.query).items()}
            parts = url.path.strip("/").split("/")
            found = read(parts[1], parts[2], parts[3]) if parts[0] == "containerLogs" and len(parts) == 4 else None
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if found:
                self._send(parts, found, query)
            self.wfile.write(b"0\r\n\r\n")

        def _send(self, parts: list[str], found: tuple[bytes, bool] | None, query: dict[str, str]) -> None:
            text, done = found or (b"", True)
            lines = text.splitlines(keepends=True)
            wanted = int(query.get("tailLines", len(lines)))
            self._chunk(b"".join(lines[max(0, len(lines) - wanted) :]))
            sent = len(text)
            while query.get("follow") == "true" and not done:
                time.sleep(_LOOK_SECONDS)
                text, done = read(parts[1], parts[2], parts[3]) or (text, True)
                self._chunk(text[sent:])
                sent = len(text)

        def _chunk(self, data: bytes) -> None:
            if data:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
