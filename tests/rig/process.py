"""What every process of the rig has in common: where its executable is, which ports are free, and its life and log."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

HOST = "127.0.0.1"
CACHE = Path(os.environ.get("CAMEL_RAY_CACHE") or "~/.cache/camel-ray").expanduser() / "rig"
"""Where the rig keeps what it builds; tests/rig/build.sh says the same."""
_BUILD = Path(__file__).with_name("build.sh")
_taken: list[int] = []
"""Descriptors of the files by which this process holds its ports."""


class RigError(RuntimeError):
    """A part of the rig is missing or did not do what was waited for."""


def find_tools(*names: str) -> dict[str, Path]:
    """Executables of the rig by name. Raises RigError that names those which are not built, and how to build them."""
    done = subprocess.run(["bash", str(_BUILD), "--find", *names], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RigError(done.stderr.strip())
    return {name: Path(line) / name for name, line in zip(names, done.stdout.splitlines(), strict=True)}


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on. They lie below the range of outgoing connections, so a restart finds its port free.

    They are this process's until it ends: nobody else of this user who asks here gets them.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if _take(port):
            ports.append(port)
    return ports


def _take(port: int) -> bool:
    """Take a port for this process, by a lock that ends with it; False if it is taken, by another or already by us."""
    folder = Path(tempfile.gettempdir()) / f"camel-ray-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = os.open(folder / str(port), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    _taken.append(file)
    return True


class Process:
    """A running process of the rig, which can be ended and started again, and its log."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, group: int, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.expendable = False
        """Whether its death is none to be told of while something else is waited for."""
        self.log = log
        self._command = list(command)
        self._group = group
        self._environment = dict(environment)
        self._popen = self._start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it runs, or is only stopped by SIGSTOP."""
        return self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._popen.poll()

    def start(self) -> None:
        """Start it again after its end, with the same command; the log is continued."""
        if self.alive:
            raise RigError(f"{self.name} runs already")
        self._popen = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                process_group=self._group,
            )

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens if it has ended."""
        self._popen.send_signal(number)

    def wait(self, seconds: float = 120) -> int:
        """Wait for its end, and return the exit status. Raises RigError if it does not come."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise RigError(f"{self.name} did not end within {seconds:g} s; its log:\n{self.log_tail()}") from None

    def stop(self, *, graceful: bool = False) -> None:
        """End it and wait for that: SIGTERM, or SIGKILL, which also ends a process that SIGSTOP stopped."""
        if self.alive:
            self.signal(signal.SIGTERM if graceful else signal.SIGKILL)
            self.wait()  # an apiserver that ends in order gives its watches a minute

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])
