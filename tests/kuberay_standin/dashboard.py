"""The Ray inside a head: which jobs it knows and how they do. It lives and dies with the head's container."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from typing import Protocol

from kuberay_standin.api import Key
from kuberay_standin.job_api import TERMINAL, JobInfo, UnreachableError
from kuberay_standin.processes import LOG_CHARACTERS, MissingError, Process
from kuberay_standin.script import Behaviour, Pace

_EPOCH = time.time() - time.monotonic()
"""When the clock of this process began, in seconds since the epoch: run times are those of a clock that never jumps."""
_STOP_SECONDS = 3.0  # Ray's: between SIGTERM and SIGKILL of a stopped job
_MESSAGES = {
    "PENDING": "Job has not started yet.",
    "RUNNING": "Job is currently running.",
    "STOPPED": "Job was intentionally stopped.",
    "SUCCEEDED": "Job finished successfully.",
}


class Run(Protocol):
    """What an entry point does."""

    def poll(self, now: float) -> int | None:
        """Its exit code, None while it runs."""

    def log(self) -> bytes:
        """What it has written so far."""

    def terminate(self, now: float) -> None:
        """SIGTERM."""

    def kill(self) -> None:
        """SIGKILL."""


class PlayedRun:
    """An entry point as a script tells it."""

    def __init__(self, behaviour: Behaviour, pace: Pace, now: float) -> None:
        self._behaviour = behaviour
        self._end = now + (pace.run if behaviour.seconds is None else behaviour.seconds)

    def poll(self, now: float) -> int | None:
        return self._behaviour.exit_code if now >= self._end else None

    def log(self) -> bytes:
        return self._behaviour.log.encode()

    def terminate(self, now: float) -> None:
        self._end = now

    def kill(self) -> None:
        self._end = 0.0


class RealRun:
    """An entry point as a process."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def poll(self, now: float) -> int | None:
        return self.process.poll()

    def log(self) -> bytes:
        return self.process.log.read_bytes()

    def terminate(self, now: float) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


class RayJob:
    """A job as the dashboard tells it."""

    def __init__(self, launch: Callable[[], Run], behaviour: Behaviour, start: float) -> None:
        """`launch` is called once, at `start`."""
        self._launch, self._behaviour, self._start = launch, behaviour, start
        self._run: Run | None = None
        self.status = "PENDING"
        self.message = _MESSAGES[self.status]
        self.started, self.ended = 0.0, 0.0
        self._stopped = 0.0

    def tick(self, now: float) -> None:
        """Look whether it has ended."""
        if self.status in TERMINAL or now < self._start:
            return
        if self._run is None:
            try:
                self._run, self.started = self._launch(), now
            except MissingError:  # the pod loses what it mounts: it is on its way out
                return
            self.status = "RUNNING"
        if self._stopped and now >= self._stopped + _STOP_SECONDS:
            self._run.kill()
        code = self._run.poll(now)
        if code is None:
            self.message = _MESSAGES[self.status]
            return
        self.ended = now
        self.status = "STOPPED" if self._stopped or self._behaviour.stopped else "FAILED" if code else "SUCCEEDED"
        self.message = _MESSAGES.get(self.status) or (
            f"Job entrypoint command failed with exit code {code}, last available logs (truncated to "
            f"{LOG_CHARACTERS:,} chars):\n{self.log().decode(errors='replace')[-LOG_CHARACTERS:]}"
        )

    def stop(self, now: float) -> None:
        """Ray's stop: SIGTERM, and SIGKILL a little later."""
        if self.status not in TERMINAL and not self._stopped:
            self._stopped = now
            if self._run:
                self._run.terminate(now)

    def kill(self) -> None:
        if self._run:
            self._run.kill()

    def log(self) -> bytes:
        return self._run.log() if self._run else b""


class Dashboard:
    """The jobs of one head."""

    def __init__(self, launch: Callable[[str, str], Run], behaviour: Behaviour, pace: Pace) -> None:
        self._launch, self._behaviour, self._pace = launch, behaviour, pace
        self.jobs: dict[str, RayJob] = {}
        self.reachable = True

    def submit(self, job_id: str, entrypoint: str, now: float) -> None:
        """Start a job. One that is known already is left alone."""
        if job_id not in self.jobs:
            start = now + self._pace.pending
            self.jobs[job_id] = RayJob(lambda: self._launch(job_id, entrypoint), self._behaviour, start)


class Dashboards:
    """Those of all heads, by namespace and RayCluster: a JobApi."""

    def __init__(self) -> None:
        self._open: dict[Key, Dashboard] = {}

    def open(self, cluster: Key, dashboard: Dashboard) -> None:
        self._open[cluster] = dashboard

    def close(self, cluster: Key) -> None:
        """The head is gone, and its jobs with it: no SIGTERM reaches them."""
        if dashboard := self._open.pop(cluster, None):
            for job in dashboard.jobs.values():
                job.kill()

    def find(self, cluster: Key) -> Dashboard | None:
        """A dashboard that answers."""
        dashboard = self._open.get(cluster)
        return dashboard if dashboard and dashboard.reachable else None

    def job(self, cluster: Key, job_id: str) -> JobInfo | None:
        job = self._answering(cluster).jobs.get(job_id)
        if job is None:
            return None
        started, ended = (at + _EPOCH if at else 0.0 for at in (job.started, job.ended))
        return JobInfo(job.status, job.message, started, ended)

    def submit(self, cluster: Key, job_id: str, entrypoint: str) -> None:
        self._answering(cluster).submit(job_id, entrypoint, time.monotonic())

    def stop(self, cluster: Key, job_id: str) -> None:
        if job := self._answering(cluster).jobs.get(job_id):
            job.stop(time.monotonic())

    def _answering(self, cluster: Key) -> Dashboard:
        if dashboard := self.find(cluster):
            return dashboard
        raise UnreachableError(f"the dashboard of {'/'.join(cluster)} does not answer")

    def raw(self, cluster: Key) -> Dashboard | None:
        """A dashboard, whether it answers or not."""
        return self._open.get(cluster)

    def tick(self, now: float) -> None:
        for dashboard in self._open.values():
            for job in dashboard.jobs.values():
                job.tick(now)

    def close_all(self) -> None:
        for cluster in list(self._open):
            self.close(cluster)


def submitted(entrypoint: str) -> str:
    """What of an entry point reaches the head in K8sJobMode.

    KubeRay pastes it unquoted into the submitter's script: what follows an operator of the shell runs in the submitter,
    and `ray job submit` quotes the words before it again.
    """
    lexer = shlex.shlex(entrypoint.split("\n")[0], posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    for word in lexer:
        if word and set(word) <= set(";&|<>()"):
            break
        words.append(word)
    return shlex.join(words)
