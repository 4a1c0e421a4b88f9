"""Runs user code in a process of its own that can be killed at any moment.

User code may hang, exit, crash, fork, print without end or load a model: none of that may touch the run. A
`UserProcess` is started at its first call and again after each kill. Kills reach the whole process group, so what user
code started goes too (except what left the group with `setsid`). If the driver itself dies, the child notices that its
stdin ends and kills its group.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camel_ray.errors import RewardError
from camel_ray.ppo.rewards import child
from camel_ray.ppo.rewards.score import TIMED_OUT

LOAD_SECONDS = 60.0
_MAX_REPLY_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 16
_TAIL_BYTES = 1000
# How often a silent process is asked whether it lives: its death closes no pipe that a child of its own holds open.
_POLL_SECONDS = 0.1
_DEATH_SECONDS = 2.0
"""Longest time between the end of a process's output and its own, which a busy machine draws out."""
INTERRUPTED = "interrupted"
"""Reason of a call that was ended from outside."""


class CallFailed(Exception):
    """A call gave no result. `reason` is a few stable words to count by, `detail` what else is known."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass(frozen=True)
class UserSource:
    """A callable object of a user's Python file, as text: a restarted process runs what the run began with."""

    source: str
    path: str
    """Where the text came from: for messages, and its directory is the first that imports are looked up in."""
    name: str
    """Name of the function or class."""

    @classmethod
    def read(cls, path: str, name: str, *, base_dir: Path, field: str) -> UserSource:
        """Read the file `path`, which may be relative to `base_dir`. Raises RewardError that names `field`."""
        full = (base_dir / path).resolve()
        try:
            return cls(full.read_text(encoding="utf-8"), str(full), name)
        except (OSError, UnicodeDecodeError) as error:
            missing = isinstance(error, FileNotFoundError | IsADirectoryError)
            problem = f"there is no file {full}" if missing else f"{full} cannot be read: {error}"
            raise RewardError(f"{field}: {problem}; check the path") from None


class UserProcess:
    """One process with one object of a user's file.

    `handler` is a Python file with `handle(object, request)`, which runs in the process; requests and results are
    JSON. One thread at a time may call `start`, `ask` and `close`; `interrupt` may come from any thread.
    """

    def __init__(self, source: UserSource, *, handler: Path) -> None:
        self.source, self._handler = source, handler
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr_tail = b""
        self._interrupted = False
        self._lock = threading.Lock()

    def start(self, *, seconds: float) -> None:
        """Start the process and load the file; nothing if it runs already. Raises CallFailed."""
        if self._process is not None:
            return
        with self._lock:
            if self._interrupted:
                raise CallFailed(INTERRUPTED)
            try:
                process = subprocess.Popen(
                    # -P: what lies beside child.py must not hide modules that user code imports.
                    [sys.executable, "-P", str(child.__file__), str(self._handler)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    start_new_session=True,  # a kill reaches its children, and Ctrl-C does not reach it before us
                )
            except OSError as error:
                raise CallFailed("cannot be started", str(error)) from None
            self._process, self._stderr_tail = process, b""
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        request = {"source": self.source.source, "path": self.source.path, "name": self.source.name}
        try:
            self._exchange(process, request, seconds)
        except CallFailed as error:
            self._kill()
            raise CallFailed("cannot be loaded", str(error)) from None

    def ask(self, request: Any, *, seconds: float) -> Any:
        """The result of one request within the time limit, which counts from the moment the file is loaded.

        Loading, where it is due, may take 60 s or `seconds`, whichever is longer. Raises CallFailed with the reason
        `raised <type>` (the process lives on), or `timed out`, `process died`, `unreadable reply`, `cannot be started`,
        `cannot be loaded` (the process is gone, and the next call starts a new one).
        """
        self.start(seconds=max(seconds, LOAD_SECONDS))
        assert self._process is not None
        return self._exchange(self._process, request, seconds)

    def interrupt(self) -> None:
        """Kill the process and start none any more: the call in progress, if any, fails at once."""
        with self._lock:
            self._interrupted = True
            process = self._process
        if process is not None and process.returncode is None:
            _kill_group(process)

    def close(self) -> None:
        """Kill the process and everything it started."""
        self.interrupt()
        self._kill()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        _kill_group(process)
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel, say on a dead network disk
            process.wait(timeout=5.0)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def _exchange(self, process: subprocess.Popen[bytes], request: Any, seconds: float) -> Any:
        """Send a request, wait for the reply; kill the process if there is none."""
        try:
            line = self._transfer(process, json.dumps(request).encode() + b"\n", time.monotonic() + seconds)
            reply = _decode(line)
        except _Timeout:
            self._kill()
            raise CallFailed(TIMED_OUT, f"no result within {seconds:g} s") from None
        except _Died:
            detail = self._describe_death(process)
            self._kill()
            raise CallFailed("process died", detail) from None
        except ValueError as error:
            self._kill()
            raise CallFailed("unreadable reply", str(error)) from None
        if "error" in reply:
            raise CallFailed(f"raised {reply['error']}", str(reply.get("detail", "")))
        return reply["result"]

    def _transfer(self, process: subprocess.Popen[bytes], data: bytes, deadline: float) -> bytes:
        """Write `data` and read one line. Both at once and never blocking: a process that hangs does not read either,
        and a pipe holds only 64 KiB.
        """
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        unsent, received = memoryview(data), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdin, selectors.EVENT_WRITE)
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(process.stderr, selectors.EVENT_READ)
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise _Timeout
                ready = selector.select(min(left, _POLL_SECONDS))
                if not ready and process.poll() is not None:
                    raise _Died
                for key, _ in ready:
                    if key.fileobj is process.stdin:
                        try:
                            unsent = unsent[os.write(key.fd, unsent[:_CHUNK_BYTES]) :]
                        except BlockingIOError:
                            continue
                        except OSError:  # gone; what it still said, or the end of its stdout, follows
                            unsent = unsent[:0]
                        if not unsent:
                            selector.unregister(process.stdin)
                    elif key.fileobj is process.stderr:
                        if not self._read_stderr(key.fd):
                            selector.unregister(process.stderr)
                    else:
                        chunk = os.read(key.fd, _CHUNK_BYTES)
                        if not chunk:
                            raise _Died
                        received += chunk
                        if chunk.endswith(b"\n"):  # the child writes one line and then waits for us
                            return bytes(received)
                        if len(received) > _MAX_REPLY_BYTES:
                            raise ValueError(f"more than {_MAX_REPLY_BYTES >> 20} MiB")

    def _read_stderr(self, descriptor: int) -> bool:
        """Keep the end of what user code printed; False at the end of the stream."""
        try:
            chunk = os.read(descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return True
        self._stderr_tail = (self._stderr_tail + chunk)[-_TAIL_BYTES:]
        return bool(chunk)

    def _describe_death(self, process: subprocess.Popen[bytes]) -> str:
        assert process.stderr is not None
        self._read_stderr(process.stderr.fileno())
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_DEATH_SECONDS)
        code = process.returncode
        if code is None:
            said = ["closed its output"]
        elif code < 0:
            said = [f"signal {signal.Signals(-code).name}"]
        else:
            said = [f"exit code {code}"]
        said += [line.strip() for line in self._stderr_tail.decode(errors="replace").splitlines() if line.strip()][-1:]
        return ", ".join(said)


class _Timeout(Exception):
    pass


class _Died(Exception):
    pass


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _decode(line: bytes) -> dict[str, Any]:
    """The reply, which user code may have spoilt if it looked for our pipe. Raises ValueError."""
    try:
        reply = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(reply, dict) or not ("error" in reply or "result" in reply):
        raise ValueError("neither result nor error")
    return reply
