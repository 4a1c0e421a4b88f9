"""A small API server for the tests of the cluster commands: CamelPipelines, pods and logs over HTTP, with faults.

It speaks the part of the Kubernetes API that the commands use (get, list, watch, apply, merge patch, log) and knows no
rules; what only a real API server can show is tested in `tests/cluster/test_cli.py`.
"""

from __future__ import annotations

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]
PIPELINES = "camelpipelines"


class ApiServer:
    """Objects by kind, namespace and name. A change wakes watches."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._version = 10
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._history: list[tuple[int, str, str, Object]] = []
        self._closed = False
        self.failures: list[tuple[str, int, Object]] = []
        """Each answers the next request whose path holds its text, with a status and a body."""
        self.logs: dict[tuple[str, str], list[bytes | str]] = {}
        """What a container printed, by pod and container; a str instead of bytes cuts the connection there, once."""
        self.requests: list[tuple[str, str, Any]] = []
        """Method, path with query, and body of every request."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server._handle(self, None)

            def do_PATCH(self) -> None:
                server._handle(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def put(self, plural: str, obj: Object) -> Object:
        """Store an object as its newest state."""
        with self._changed:
            self._version += 1
            metadata = obj["metadata"]
            key = (plural, metadata["namespace"], metadata["name"])
            metadata = {"uid": "u1", "generation": 1, "creationTimestamp": "2026-11-23T07:00:00Z", **metadata}
            stored = {**copy.deepcopy(obj), "metadata": {**metadata, "resourceVersion": str(self._version)}}
            kind = "MODIFIED" if key in self._objects else "ADDED"
            self._objects[key] = stored
            self._history.append((self._version, plural, kind, stored))
            self._changed.notify_all()
            return stored

    def remove(self, plural: str, namespace: str, name: str) -> None:
        with self._changed:
            self._version += 1
            gone = self._objects.pop((plural, namespace, name))
            self._history.append((self._version, plural, "DELETED", gone))
            self._changed.notify_all()

    def get(self, plural: str, namespace: str, name: str) -> Object:
        return self._objects[plural, namespace, name]

    def wait_for_request(self, text: str, *, count: int = 1) -> None:
        """Until `count` requests whose path holds `text` have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: sum(text in r[1] for r in self.requests) >= count, timeout=60)

    def _handle(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        with self._changed:
            self.requests.append((handler.command, handler.path, body))
            failure = next((f for f in self.failures if f[0] in handler.path), None)
            if failure:
                self.failures.remove(failure)
            self._changed.notify_all()
        if failure:
            _answer(handler, failure[1], failure[2])
            return
        split = urlsplit(handler.path)
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        parts = split.path.strip("/").split("/")
        namespace = parts[parts.index("namespaces") + 1] if "namespaces" in parts else ""
        rest = parts[parts.index("namespaces") + 2 :] if namespace else parts[3:] if parts[0] == "apis" else parts[2:]
        plural, name, sub = (*rest, "", "")[:3]
        if sub == "log":
            self._log(handler, name, query)
        elif "watch" in query:
            self._watch(handler, plural, namespace, query)
        elif handler.command == "PATCH":
            self._patch(handler, plural, namespace, name, body)
        elif name:
            found = self._objects.get((plural, namespace, name))
            _answer(handler, 200 if found else 404, found or status(404, "NotFound", f'{plural} "{name}" not found'))
        else:
            items = [o for (p, n, _), o in sorted(self._objects.items()) if p == plural and namespace in ("", n)]
            items = [o for o in items if _selected(o, query)]
            _answer(handler, 200, {"items": items, "metadata": {"resourceVersion": str(self._version)}})

    def _patch(self, handler: BaseHTTPRequestHandler, plural: str, namespace: str, name: str, body: Object) -> None:
        found = self._objects.get((plural, namespace, name), {"metadata": {"namespace": namespace, "name": name}})
        merged = _merged(found, body)
        _answer(handler, 200, found if merged == found else self.put(plural, merged))

    def _watch(self, handler: BaseHTTPRequestHandler, plural: str, namespace: str, query: dict[str, str]) -> None:
        _begin_chunks(handler)
        after = int(query["resourceVersion"])
        while True:
            with self._changed:
                while not self._closed and self._version <= after:
                    self._changed.wait()
                new = [(v, k, o) for v, p, k, o in self._history if p == plural and v > after and _selected(o, query)]
                after = self._version
                if self._closed:
                    return
            for _, kind, obj in new:
                if obj["metadata"]["namespace"] == namespace:
                    _chunk(handler, json.dumps({"type": kind, "object": obj}).encode() + b"\n")
            if any("end-watch" in o["metadata"].get("annotations", {}) for _, _, o in new):
                _chunk(handler, b"")
                return

    def _log(self, handler: BaseHTTPRequestHandler, pod: str, query: dict[str, str]) -> None:
        pieces = self.logs[pod, query["container"]]
        _begin_chunks(handler)
        lines = b"".join(piece for piece in pieces if isinstance(piece, bytes)).splitlines(keepends=True)
        if "tailLines" in query:
            _chunk(handler, b"".join(lines[-int(query["tailLines"]) :]))
        elif query.get("follow"):
            for number, piece in enumerate(pieces):
                if isinstance(piece, str):
                    del pieces[number]
                    handler.close_connection = True
                    return
                _chunk(handler, piece)
        else:
            _chunk(handler, b"".join(lines))
        _chunk(handler, b"")


def _answer(handler: BaseHTTPRequestHandler, code: int, body: Object) -> None:
    data = json.dumps(body).encode()
    handler.send_response(code)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def _begin_chunks(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()


def _chunk(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    handler.wfile.flush()


def status(code: int, reason: str, message: str, **details: Any) -> Object:
    return {"kind": "Status", "code": code, "reason": reason, "message": message, "details": details}


def _selected(obj: Object, query: dict[str, str]) -> bool:
    metadata = obj["metadata"]
    fields = query.get("fieldSelector", "").removeprefix("metadata.name=")
    wanted = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
    return fields in ("", metadata["name"]) and wanted.items() <= metadata.get("labels", {}).items()


def _merged(old: Object, patch: Object) -> Object:
    merged = dict(old)
    for key, value in patch.items():
        merged[key] = _merged(merged.get(key) or {}, value) if isinstance(value, dict) else value
    return merged
