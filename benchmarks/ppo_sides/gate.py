"""How a side and the benchmark talk: the side stops after each round's steps until it is told to go on.

JSON lines. The benchmark writes `{"steps": N}`; the side runs N steps of PPO and answers `{"steps": [{phase: seconds,
...}, ...]}`. What libraries print goes to the log.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


class Gate:
    """The side's end. Make it before anything prints."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._left = 0
        self._steps: list[dict[str, float]] = []
        self._since = 0.0

    def ready(self, **facts: Any) -> None:
        """The next thing is the first step. Returns when it is asked for."""
        self._say({"ready": facts})
        self._wait()

    def done(self, phases: dict[str, float]) -> None:
        """A step is over; its wall time is added as `total`. Returns when the next one is asked for."""
        now = time.perf_counter()
        self._steps.append({**phases, "total": now - self._since})
        self._since = now
        self._left -= 1
        if self._left == 0:
            self._say({"steps": self._steps})
            self._steps = []
            self._wait()

    def _say(self, message: dict[str, Any]) -> None:
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        self._left = int(json.loads(line)["steps"])
        self._since = time.perf_counter()
