"""What containers do: one object per running container, looked at once per pass."""

from __future__ import annotations

from typing import Protocol

from kuberay_standin.api import Key
from kuberay_standin.dashboard import Dashboards, RayJob, submitted
from kuberay_standin.job_api import TERMINAL
from kuberay_standin.processes import Process
from kuberay_standin.script import Behaviour, Pace


class Program(Protocol):
    """A running container."""

    real: bool
    """Whether its grace period is one of real seconds."""

    def poll(self, now: float) -> int | None:
        """Its exit code, None while it runs."""

    def terminate(self, now: float) -> None:
        """SIGTERM."""

    def kill(self) -> None:
        """SIGKILL; it has ended when this returns."""

    def message(self, policy: str) -> str:
        """Its termination message."""

    def log(self) -> bytes:
        """What it has written so far."""


class Played:
    """A container that does nothing until `end`, if there is one."""

    real = False

    def __init__(self, end: float | None = None, code: int = 0, text: str = "", shutdown: float | None = 0.0) -> None:
        self._end, self._code, self._text, self._shutdown = end, code, text, shutdown

    def poll(self, now: float) -> int | None:
        return self._code if self._end is not None and now >= self._end else None

    def terminate(self, now: float) -> None:
        """`shutdown` seconds to its end; None: it ignores the signal."""
        if self._shutdown is not None and self.poll(now) is None:
            self._end, self._code, self._text = now + self._shutdown, 143, ""

    def kill(self) -> None:
        pass

    def message(self, policy: str) -> str:
        return self._text

    def log(self) -> bytes:
        return self._text.encode()


class Submitter(Played):
    """`ray job submit` and `ray job logs --follow`, as KubeRay's script joins them.

    It does not submit a job twice, fails if the head goes away, ends with 0 however the job ended, and ignores SIGTERM.
    """

    def __init__(
        self,
        dashboards: Dashboards,
        cluster: Key,
        job_id: str,
        entrypoint: str,
        behaviour: Behaviour,
        pace: Pace,
        now: float,
    ) -> None:
        super().__init__(shutdown=None)
        self._dashboards, self._cluster, self._job_id, self._entrypoint = dashboards, cluster, job_id, entrypoint
        self._behaviour, self._pace = behaviour, pace
        self._ready = now + pace.submit
        self._tail = pace.tail if behaviour.tail_seconds is None else behaviour.tail_seconds
        self._job: RayJob | None = None
        """The job it follows."""

    def poll(self, now: float) -> int | None:
        if self._end is not None or now < self._ready or not self._behaviour.submits:
            return super().poll(now)
        dashboard = self._dashboards.find(self._cluster)
        if self._job is None:
            if dashboard:
                dashboard.submit(self._job_id, submitted(self._entrypoint), now)
                self._job = dashboard.jobs[self._job_id]
        elif dashboard is None or self._job_id not in dashboard.jobs:
            if self._dashboards.raw(self._cluster) is None or dashboard:  # a silent dashboard does not end the log
                self._end, self._code = now + self._pace.notice, 1
        elif dashboard.jobs[self._job_id].status in TERMINAL:
            self._end = now + self._tail
        return super().poll(now)

    def log(self) -> bytes:
        return self._job.log() if self._job else b""


class Running:
    """A container that is a process of this machine."""

    real = True

    def __init__(self, process: Process) -> None:
        self.process = process

    def poll(self, now: float) -> int | None:
        return self.process.poll()

    def terminate(self, now: float) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()

    def message(self, policy: str) -> str:
        return self.process.message(policy)

    def log(self) -> bytes:
        return self.process.log.read_bytes()
