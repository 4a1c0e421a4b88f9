"""Calls a user's reward function in a process of its own that is killed when it takes too long.

User code may hang, exit, print, or load a model: none of that may touch the run. The process is started once and
kept; after a kill the next call starts a new one.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from camel_ray.api.stages.ppo import RewardFunctionSpec
from camel_ray.errors import RewardError
from camel_ray.ppo import reward_process


@dataclass(frozen=True)
class Failure:
    """Why an answer has no score, as the end of a sentence about the function."""

    reason: str


class RewardFunction:
    """`reward(prompts, answers, rows)` of a Python file. Use as a context manager, or call `close`."""

    def __init__(self, spec: RewardFunctionSpec, *, base_dir: Path) -> None:
        self.path = (base_dir / spec.path).resolve()
        self.name, self.timeout_seconds = spec.name, spec.timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        if not self.path.is_file():
            raise RewardError(f"reward.function.path: there is no file {self.path}; check the path")
        problem = self._start()
        if problem is not None:
            raise RewardError(f"{self.path}: the reward function cannot be loaded: {problem.reason}; fix the file")

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> list[float | Failure]:
        """A score or a failure for each answer.

        When the function raises for all together, each answer is tried alone, so that one bad answer costs one score. A
        function that hangs or dies is not tried again: the whole call has failed.
        """
        if not answers:
            return []
        scores = self._ask(prompts, answers, rows)
        if isinstance(scores, _Raised) and len(answers) > 1:
            return [
                score
                for prompt, answer, row in zip(prompts, answers, rows, strict=True)
                for score in self([prompt], [answer], [row])
            ]
        if isinstance(scores, Failure):
            return [scores] * len(answers)
        if len(scores) != len(answers):
            return [Failure(f"returned {len(scores)} scores for {len(answers)} answers")] * len(answers)
        return [
            score if score is not None and math.isfinite(score) else Failure(f"returned {_number(score)} for an answer")
            for score in scores
        ]

    def _ask(
        self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> list[float | None] | Failure:
        if self._process is None and (problem := self._start()) is not None:
            return problem
        request = json.dumps({"prompts": list(prompts), "answers": list(answers), "rows": [dict(row) for row in rows]})
        reply = self._exchange(request.encode() + b"\n")
        if isinstance(reply, Failure):
            return reply
        if "error" in reply:
            return _Raised(f"raised {reply['error']}")
        return list(reply["scores"])

    def _start(self) -> Failure | None:
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, str(reward_process.__file__), str(self.path), self.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a kill reaches its children, and Ctrl-C does not reach it before us
        )
        reply = self._exchange(b"")
        if isinstance(reply, Failure):
            return reply
        if "error" in reply:
            self.close()
            return Failure(str(reply["error"]))
        return None

    def _exchange(self, request: bytes) -> dict[str, Any] | Failure:
        """Send a request, read one line of reply within the time limit; kill the process if it gives none."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        # A thread, because a process that hangs does not read either, and a pipe holds only 64 KiB.
        threading.Thread(target=_send, args=(process.stdin.fileno(), request), daemon=True).start()
        deadline = time.monotonic() + self.timeout_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(deadline - time.monotonic(), 0.0)):
                    self.close()
                    return Failure(f"did not return within {self.timeout_seconds:g} s (reward.function.timeoutSeconds)")
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    code = process.wait()
                    self.close()
                    return Failure(f"ended its process (exit code {code})")
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """Kill the process and everything it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Raised(Failure):
    """The function raised an exception: unlike after a hang, another call is cheap."""


def _send(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError:
        pass  # the process is gone; whoever reads its replies reports it


def _number(score: float | None) -> str:
    return "None" if score is None else str(score)
