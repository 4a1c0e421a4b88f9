"""Talks with a user's environment class, which runs in processes of its own (see `process.py`).

Every conversation has a process, forked from one that has loaded the file. So a `reset` or `step` that raises, hangs or
dies ends its own conversation and no other, a slow one holds nobody up, no conversation sees what another one left in a
global, and the random numbers of each are those of its seed, whatever else runs.

A conversation that failed is not taken up again; the driver treats it as a failed reward. When many calls in a row hang
with no reply between them, it is the class that hangs and not a conversation: the calls that have not begun fail as
`not tried`, so a round ends after a few time limits.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from camel_ray.errors import RewardError
from camel_ray.ppo.environment import process as server
from camel_ray.ppo.rewards.score import NOT_TRIED, TIMED_OUT, Failure, as_score
from camel_ray.ppo.settings import EnvironmentSettings

_SIDE_BY_SIDE = max(8, os.cpu_count() or 1)
"""Calls that run at the same time. More would slow each other down on few cores, and run into the time limit."""
_FORK_SECONDS = 60.0
"""Time for a fork or a kill, which takes milliseconds unless the machine is swapping."""


@dataclass(frozen=True)
class Opening:
    """How a conversation begins."""

    prompt: str
    """Text of the last user message of the prompt."""
    row: str
    """JSON object with the other columns of the prompt's row."""
    seed: int
    """Fixes what `random`, numpy and torch draw in the conversation."""


@dataclass(frozen=True)
class Turn:
    """What the environment says to an answer."""

    message: str
    """The next user message; empty after the last turn."""
    reward: float
    done: bool


@dataclass
class _Call:
    """A request on its way to one conversation."""

    channel: socket.socket
    unsent: memoryview
    deadline: float
    received: bytearray = field(default_factory=bytearray)


class Environments:
    """All conversations of a rollout host. Use as a context manager, or call `close`.

    Raises RewardError if the file cannot be loaded or has no such class.
    """

    def __init__(self, settings: EnvironmentSettings) -> None:
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._open: dict[int, tuple[socket.socket, int]] = {}  # conversation -> its socket and process
        self._start()

    def reset(self, openings: Sequence[Opening]) -> list[str | Failure]:
        """Begin conversations 0, 1, ...; the first user message of each. Ends those of the call before."""
        self.end()
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._start()
        failed: dict[int, Failure] = {}
        for number in range(len(openings)):
            problem = self._fork(number)
            if problem is not None:
                failed[number] = problem
        requests = {
            number: {"reset": o.prompt, "row": o.row, "seed": o.seed}
            for number, o in enumerate(openings)
            if number not in failed
        }
        replies = {**failed, **self._exchange(requests)}
        return [self._message(number, replies[number]) for number in range(len(openings))]

    def step(self, answers: Mapping[int, str]) -> dict[int, Turn | Failure]:
        """What the environment says to an answer, by conversation. Conversations that failed or are done end here.

        Raises ValueError for a conversation that is not open.
        """
        closed = [number for number in answers if number not in self._open]
        if closed:
            raise ValueError(f"conversation {closed[0]} is not open")
        replies = self._exchange({number: {"step": answer} for number, answer in answers.items()})
        return {number: self._turn(number, replies[number]) for number in answers}

    def end(self) -> None:
        """End all conversations."""
        for number in list(self._open):
            self._end(number)

    def close(self) -> None:
        """End all conversations and the process they came from."""
        self.end()
        child, self._process = self._process, None
        if self._control is not None:
            self._control.close()  # the process ends by itself, and what it forked before it
            self._control = None
        if child is None:
            return
        try:
            child.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        settings = self.settings
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P: what lies beside process.py must not hide modules that user code imports.
                [sys.executable, "-P", str(server.__file__), str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C does not reach it before us
                env={**os.environ, "PYTHONHASHSEED": "0"},  # the order of sets is the same in every run
            )
        self._control = ours
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(json.dumps({"source": settings.source, "path": settings.path, "name": settings.name}).encode())
        ours.settimeout(settings.timeout_seconds)
        reason = ""
        try:
            with ours.makefile("rb") as replies:
                line = replies.readline()
            reply = json.loads(line) if line else {"error": "it ended the process"}
            reason = ": ".join(reply[part] for part in ("error", "detail") if reply.get(part))
        except TimeoutError:
            reason = f"it takes longer than {settings.timeout_seconds:g} s (environment.timeoutSeconds)"
        if reason:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self.close()
            raise RewardError(f"{settings.path}: the environment cannot be loaded: {reason}; fix the file")
        ours.settimeout(_FORK_SECONDS)

    def _request(self, operation: bytes, number: int, descriptor: int | None = None) -> int:
        """Ask the first process, which does nothing but answer. Raises OSError if it is gone."""
        assert self._control is not None
        message = server.REQUEST.pack(operation, number)
        socket.send_fds(self._control, [message], [] if descriptor is None else [descriptor])
        reply = self._control.recv(server.REPLY.size, socket.MSG_WAITALL)
        if len(reply) < server.REPLY.size:
            raise ConnectionError("the process of the environment is gone")
        return int(server.REPLY.unpack(reply)[0])

    def _fork(self, number: int) -> Failure | None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                child = self._request(b"F", 0, theirs.fileno())
            except OSError:
                child = -1
        if child < 0:
            ours.close()
            return Failure("no process", "this node refuses to start another one")
        ours.setblocking(False)
        self._open[number] = (ours, child)
        return None

    def _end(self, number: int) -> int:
        """End a conversation and its process; returns its exit code, or minus the signal that ended it."""
        channel, child = self._open.pop(number)
        channel.close()
        try:
            return self._request(b"K", child)
        except OSError:  # without the first process nobody else ends its children
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            return -signal.SIGKILL

    def _exchange(self, requests: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any] | Failure]:
        """A reply or failure for each request, `_SIDE_BY_SIDE` of them at a time, each within the time limit."""
        waiting = deque(requests.items())
        running: dict[int, _Call] = {}
        replies: dict[int, dict[str, Any] | Failure] = {}
        limit, hung_in_a_row = self.settings.timeout_seconds, 0
        with selectors.DefaultSelector() as selector:
            while waiting or running:
                while waiting and len(running) < _SIDE_BY_SIDE:
                    number, request = waiting.popleft()
                    line = json.dumps(request).encode() + b"\n"
                    running[number] = _Call(self._open[number][0], memoryview(line), time.monotonic() + limit)
                    selector.register(
                        running[number].channel, selectors.EVENT_WRITE | selectors.EVENT_READ, data=number
                    )
                nearest = min(call.deadline for call in running.values())
                for key, _ in selector.select(max(nearest - time.monotonic(), 0.0)):
                    reply = self._advance(selector, key.data, running[key.data])
                    if reply is not None:
                        replies[key.data] = reply
                now = time.monotonic()
                for number in list(running):
                    if number not in replies and running[number].deadline <= now:
                        replies[number] = Failure(
                            TIMED_OUT, f"no reply within {limit:g} s (environment.timeoutSeconds)"
                        )
                    if number in replies:
                        selector.unregister(running.pop(number).channel)
                        replies[number] = reply = self._settled(number, replies[number])
                        hung = isinstance(reply, Failure) and reply.reason == TIMED_OUT
                        hung_in_a_row = hung_in_a_row + 1 if hung else 0
                if hung_in_a_row >= 2 * _SIDE_BY_SIDE:  # it is not a conversation that hangs, but the class
                    for number, _ in waiting:
                        replies[number] = self._settled(number, Failure(NOT_TRIED, "others took too long"))
                    waiting.clear()
        return replies

    def _advance(self, selector: selectors.BaseSelector, number: int, call: _Call) -> dict[str, Any] | Failure | None:
        """Send and receive what can be without waiting; None while the reply is not complete."""
        try:
            if call.unsent:
                call.unsent = call.unsent[call.channel.send(call.unsent) :]
                if not call.unsent:
                    selector.modify(call.channel, selectors.EVENT_READ, data=number)
                return None
            chunk = call.channel.recv(1 << 16)
        except BlockingIOError:
            return None
        except OSError:
            return _DEAD
        if not chunk:
            return _DEAD
        call.received += chunk
        if not chunk.endswith(b"\n"):
            return None
        reply: dict[str, Any] = json.loads(call.received)
        return Failure(f"raised {reply['error']}", reply["detail"]) if "error" in reply else reply

    def _settled(self, number: int, reply: dict[str, Any] | Failure) -> dict[str, Any] | Failure:
        """The reply; a conversation that failed is ended, and one whose process died says how."""
        if not isinstance(reply, Failure):
            return reply
        code = self._end(number)
        return Failure(_DEAD.reason, f"exit code {code}") if reply is _DEAD else reply

    def _message(self, number: int, reply: dict[str, Any] | Failure) -> str | Failure:
        if isinstance(reply, Failure):
            return reply
        problem = _unusable(reply["message"])
        if problem is not None:
            self._end(number)
        return problem or str(reply["message"])

    def _turn(self, number: int, reply: dict[str, Any] | Failure) -> Turn | Failure:
        if isinstance(reply, Failure):
            return reply
        reward, done = as_score(reply["reward"]), bool(reply["done"])
        problem = reward if isinstance(reward, Failure) else None if done else _unusable(reply["message"])
        if problem is not None or done:
            self._end(number)
        return problem or Turn("" if done else str(reply["message"]), float(reply["reward"]), done)


_DEAD = Failure("process died")
_MESSAGE = "unusable message"


def _unusable(message: object) -> Failure | None:
    """What is wrong with a user message, or None."""
    if not isinstance(message, str):
        return Failure(_MESSAGE, f"returned {'null' if message is None else type(message).__name__} instead of text")
    if not message.strip():
        return Failure(_MESSAGE, "returned an empty text")
    if any("\ud800" <= character <= "\udfff" for character in message):
        return Failure(_MESSAGE, "returned half of a surrogate pair")
    return None
