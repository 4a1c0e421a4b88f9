"""Answers of the API server that go on for long: logs, and watches as one JSON object per line.

Both are iterators that block in `next()`; `close()` from any other thread ends that at once, which is how reflectors
and followed logs stop.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import orjson
import urllib3

from camel_ray.operator.kube.errors import Unreachable, error_of

_READ_BYTES = 65536


class Stream(Iterator[bytes]):
    """The bytes of an answer as they come. Raises Unreachable when it is cut off or silent for too long."""

    def __init__(self, response: urllib3.BaseHTTPResponse, request: str) -> None:
        self._response = response
        self._request = request
        self._lock = threading.Lock()
        self._closed = False

    def __next__(self) -> bytes:
        try:
            data = b"" if self._closed else self._response.read1(_READ_BYTES, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            # The last two are what a read in flight may meet when another thread closes the socket.
            if self._closed:
                raise StopIteration from None
            self.close()
            if isinstance(error, ValueError | AttributeError):
                raise
            raise Unreachable(f"{self._request} was cut off: {error}") from error
        if not data:
            self.close()
            raise StopIteration
        return bytes(data)

    @property
    def closed(self) -> bool:
        """Whether it ended, by itself or by `close`."""
        return self._closed

    def close(self) -> None:
        """End it: a `next()` under way in another thread stops at once."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        # Wakes the reader, who holds the buffer's lock. Refused if all was read: the connection is in the pool then.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            self._response.shutdown()
        self._response.close()


class Watch(Iterator[dict[str, Any]]):
    """The events of a watch: dicts with `type` (ADDED, MODIFIED, DELETED, BOOKMARK) and `object`.

    Ends when the server ends it, which it does after `timeoutSeconds`. Raises Gone when the resource version is too
    old, Unreachable when it is cut off or silent for too long, and another KubeError when the server says so.
    """

    def __init__(self, stream: Stream, request: str) -> None:
        self._stream = stream
        self._request = request
        self._lines: deque[bytes] = deque()
        self._rest: list[bytes] = []
        """The beginning of a line whose end has not come yet, in pieces: objects may have megabytes."""

    def __next__(self) -> dict[str, Any]:
        while not self._lines:
            self._read()
        event: dict[str, Any] = orjson.loads(self._lines.popleft())
        if event["type"] == "ERROR":
            self.close()
            status = event["object"]
            raise error_of(self._request, int(status.get("code") or 500), status)
        return event

    def _read(self) -> None:
        try:
            data = next(self._stream)
        except StopIteration:
            if self._rest:
                self._rest.clear()
                raise Unreachable(f"{self._request} ended in the middle of an event") from None
            raise
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join([*self._rest, lines[0]])
            self._rest.clear()
            self._lines.extend(line for line in lines if line)
        if rest:
            self._rest.append(rest)

    def close(self) -> None:
        """End it: a `next()` under way in another thread stops at once."""
        self._rest.clear()
        self._stream.close()
