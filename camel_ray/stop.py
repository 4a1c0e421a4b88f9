"""How a running stage is asked to end, so that it can save what it has first.

The request is a file in the stage's work directory: the one place that all processes of a stage share, on one machine
or on many, because checkpoints go there. `runtime/attempt.py` writes it (SIGTERM, or the operator's word); training
looks at it after every step and PPO after every round, they save their state and raise `Stopped`. Stages without
checkpoints do not look: they are interrupted where they stand, and start again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_heeded = 0


@dataclass(frozen=True)
class StopRequest:
    """The request to stop the stage that works in `work`. Travels to workers: it holds a path and nothing else."""

    work: Path

    @property
    def asked(self) -> bool:
        """Whether somebody asked. On network storage another machine's request may show some seconds late."""
        return self._path.exists()

    def ask(self) -> None:
        """Ask. Harmless to repeat."""
        self.work.mkdir(parents=True, exist_ok=True)
        self._path.touch()

    def clear(self) -> None:
        """Forget a request: it was for an earlier attempt."""
        self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self.work / "stop"


@contextmanager
def heeding_stop_requests() -> Iterator[None]:
    """Within it the stage looks for a request by itself and ends where its state is safe."""
    global _heeded
    _heeded += 1
    try:
        yield
    finally:
        _heeded -= 1


def stop_requests_are_heeded() -> bool:
    """Whether the stage of this process looks for a request by itself. If not, nothing is lost by interrupting it."""
    return _heeded > 0
