"""A proxy in front of the apiserver that answers, delays, loses and silences requests as a test tells it.

    with FaultProxy(control_plane) as proxy:
        start_operator(control_plane, kubeconfig=proxy.kubeconfig(account))
        proxy.rule = lambda method, path: Fault("answer", status=429) if method == "POST" else None

It shows the apiserver's own certificate, so clients notice nothing. Requests are recognised on the way in; what comes
back is passed on byte by byte, so a watch streams as without it.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rig.control_plane import ControlPlane
from rig.process import HOST


@dataclass(frozen=True)
class Fault:
    """What happens to a request instead of an answer."""

    kind: Literal["answer", "refuse", "lose", "silence", "delay"]
    """`answer`: the proxy answers with `status`. `refuse`: the connection is reset, the request never arrives. `lose`:
    it is carried out, and the connection reset instead of the answer. `silence`: it is carried out, and nothing comes
    back. `delay`: it arrives later."""
    status: int = 500
    seconds: float = 0.0
    """For `delay`; for `answer` the Retry-After, if it is not 0."""
    call: Callable[[], None] | None = None
    """Called at that moment: before an answer, a refusal or a delay, and after what was carried out."""


Rule = Callable[[str, str], Fault | None]
"""What shall happen to a request, by its method and its path with query. It is called in the proxy's thread."""


class FaultProxy:
    """Runs in a thread of its own. `rule` may be replaced at any time; connections that are open obey the new one."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self.rule: Rule = lambda method, path: None
        self.mute_watches = False
        """While it is true, watches that are open go silent for ever, as behind a firewall that forgot them."""
        self._plane = control_plane
        key = control_plane.ca_file.with_suffix(".key")
        self._inside = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._inside.load_cert_chain(control_plane.ca_file, key)
        self._outside = ssl.create_default_context(cafile=str(control_plane.ca_file))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy")
        self._open: set[asyncio.Task[None]] = set()

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._accepted, HOST, 0, ssl=self._inside))
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def kubeconfig(self, original: Path) -> Path:
        """A copy of a kubeconfig that goes through this proxy. It names the same token file."""
        config = json.loads(original.read_text())
        config["clusters"][0]["cluster"]["server"] = f"https://{HOST}:{self.port}"
        path = original.with_name(f"{original.stem}.{self.port}.kubeconfig")
        path.write_text(json.dumps(config))
        return path

    def drop_connections(self) -> None:
        """Reset every connection that is open, watches included."""

        async def drop() -> None:
            for task in self._open:
                task.cancel()

        self._run(drop())

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=120)

    async def _close(self) -> None:
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        backwards: asyncio.Task[None] | None = None
        upstream: asyncio.StreamWriter | None = None
        try:
            answers, upstream = await asyncio.open_connection(HOST, self._plane.port, ssl=self._outside)
            way = _Way(writer, lambda: self.mute_watches)
            backwards = asyncio.create_task(way.pass_back(answers))
            while (request := await _read_request(reader)) is not None:
                if not await self._handle(request, upstream, way):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # either side has gone, or a test resets the connection
        finally:
            for end in (writer, upstream):
                if end is not None:
                    end.transport.abort()
            if backwards is not None:
                backwards.cancel()
                await asyncio.gather(backwards, return_exceptions=True)
            self._open.discard(task)

    async def _handle(self, request: _Request, upstream: asyncio.StreamWriter, way: _Way) -> bool:
        """Let one request happen; returns whether the connection lives on."""
        fault = self.rule(request.method, request.path)
        way.watches = "watch=" in request.path
        if fault and fault.kind in ("lose", "silence"):
            way.begin_loss()
            upstream.write(request.raw)
            await way.answered.wait()
        if fault and fault.call:
            fault.call()
        if fault is None or fault.kind == "delay":
            if fault:
                await asyncio.sleep(fault.seconds)
            upstream.write(request.raw)
            await upstream.drain()
        elif fault.kind == "answer":
            way.writer.write(_answer(fault))
            await way.writer.drain()
        return fault is None or fault.kind not in ("refuse", "lose")


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    raw: bytes


class _Way:
    """The way back to a client."""

    def __init__(self, writer: asyncio.StreamWriter, mute: Callable[[], bool]) -> None:
        self.writer = writer
        self.watches = False
        self._mute = mute
        self.answered = asyncio.Event()
        self._lost = False

    def begin_loss(self) -> None:
        """From now on nothing gets through; `answered` is set by the first thing that does not."""
        self._lost = True

    async def pass_back(self, answers: asyncio.StreamReader) -> None:
        """Pass on what the apiserver says, until it has said everything."""
        with suppress(OSError):
            while data := await answers.read(65536):
                self._lost = self._lost or (self.watches and self._mute())
                if self._lost:
                    self.answered.set()
                else:
                    self.writer.write(data)
                    await self.writer.drain()
        self.answered.set()
        if not self._lost:
            self.writer.close()


async def _read_request(reader: asyncio.StreamReader) -> _Request | None:
    """The next request of a connection; None if the client has closed it."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *headers = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in headers)}
    if "transfer-encoding" in fields:
        raise OSError("a request with a body of unknown length cannot be passed on")
    body = await reader.readexactly(int(fields.get("content-length") or 0))
    return _Request(method, path, head + body)


def _answer(fault: Fault) -> bytes:
    reasons = {410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
    status = {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "reason": reasons.get(fault.status, "Unknown"),
        "message": "a fault of the test",
        "code": fault.status,
    }
    body = json.dumps(status).encode()
    retry = f"Retry-After: {fault.seconds:.0f}\r\n" if fault.seconds else ""
    head = (
        f"HTTP/1.1 {fault.status} Fault\r\nContent-Type: application/json\r\n{retry}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
