"""`python -m camel_ray.runtime.attempt`: one stage of a pipeline, as the operator starts it in a pod.

What to run comes from the environment (`CAMEL_RAY_PIPELINE_FILE`, `_STAGE`, `_ATTEMPT`), because KubeRay pastes
commands into a shell. Storage decides what is left to do, so an attempt of a finished stage ends at once and one that
was interrupted continues. The end is told three ways, since each may be lost: a report to the operator's progress
server, a last line `camel-ray-result: {...}` on standard output (KubeRay copies the log's end into the RayJob's status)
and the same JSON in the pod's termination log. The exit code is the class of the error (`camel_ray/errors.py`).

SIGTERM, SIGINT and the server's word ask the stage to stop: one with checkpoints writes one, others are interrupted.
A second signal ends the process where it stands, which is safe too: nothing counts before its manifest is written.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from camel_ray.api.load import load_pipeline
from camel_ray.api.pipeline import CamelPipeline
from camel_ray.api.status import RESULT_MARK
from camel_ray.errors import CamelError, SpecError, Stopped, WorkerLost
from camel_ray.ray_session import shut_down_ray
from camel_ray.runtime.reporting import Endpoint, Reporter
from camel_ray.runtime.runner import Runner
from camel_ray.runtime.store import StageStore
from camel_ray.stop import StopRequest, stop_requests_are_heeded

TERMINATION_LOG = Path("/dev/termination-log")
_TERMINATION_BYTES = 4096
"""Kubernetes keeps no more."""
_LOCK_SECONDS = 180.0
"""How long the storage of a killed attempt may stay locked: network file systems give up the locks of a machine that
is gone only after their lease (90 s with NFS)."""
_MESSAGE = 1000
_METRICS = 30
_SECRET_NAMES = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|(API|ACCESS|ACCOUNT|STORAGE|PRIVATE)_?KEY|CONNECTION_?STRING",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_PLAIN_VALUES = re.compile(r"token|true|false|disabled", re.IGNORECASE)
"""Values of variables with such names that are no secrets: switches. Neither is the path of a file that is there."""


@dataclass(frozen=True)
class Assignment:
    """What this process was started for."""

    pipeline: CamelPipeline
    stage: str
    number: int
    """1 for the stage's first attempt, as the operator counts."""
    fresh_from: int = 0
    """The attempt from which on nothing counts that storage held before (`CAMEL_RAY_FRESH`). The first one that gets to
    it forgets that; it continues with what it has made itself when its pods are replaced or its queue took it back, and
    so do those after it. 0: all counts.
    """
    pipeline_uid: str = ""
    """Of the object on the cluster: a later pipeline of the same name numbers its attempts from 1 again."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Assignment:
        """Read it. Raises SpecError if a variable or the file is not what it should be."""
        names = [f"CAMEL_RAY_{name}" for name in ("PIPELINE_FILE", "STAGE", "ATTEMPT")]
        missing = [name for name in names if not environment.get(name)]
        if missing:
            raise SpecError(f"{', '.join(missing)} not set; only the operator starts this command")
        file, stage, number = (environment[name] for name in names)
        if not re.fullmatch(r"[1-9]\d{0,8}", number):
            raise SpecError(f"CAMEL_RAY_ATTEMPT is '{number}', not a number from 1; only the operator sets it")
        fresh_from = environment.get("CAMEL_RAY_FRESH", "0")
        if not re.fullmatch(r"\d{1,9}", fresh_from):
            raise SpecError(f"CAMEL_RAY_FRESH is '{fresh_from}', not a number; only the operator sets it")
        uid = environment.get("CAMEL_RAY_PIPELINE_UID", "")
        return cls(load_pipeline(file), stage, int(number), fresh_from=int(fresh_from), pipeline_uid=uid)


@dataclass(frozen=True)
class Result:
    """How the attempt ended."""

    code: int
    message: str
    artifacts: list[dict[str, str]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def wire(self) -> dict[str, Any]:
        """As JSON values."""
        return {"code": self.code, "message": self.message, "artifacts": self.artifacts, "metrics": self.metrics}


class AttemptLog:
    """The attempt's log: plain lines with the time in UTC. Listens to the runner and points the reporter to the stage's
    progress.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def stage_started(self, name: str, kind: str, index: int, total: int, progress_path: Path, attempt: int) -> None:
        """The stage begins."""
        say(f"stage {name} ({kind}) started" + (f", attempt {attempt} in this storage" if attempt > 1 else ""))
        self._reporter.follow(progress_path)

    def stage_skipped(self, name: str, kind: str, index: int, total: int, metrics: Mapping[str, Any]) -> None:
        """The stage is done already."""
        say(f"stage {name} ({kind}) is up to date")

    def stage_finished(self, name: str, kind: str, seconds: float, metrics: Mapping[str, Any]) -> None:
        """The stage ended with a result."""
        say(f"stage {name} ({kind}) done in {seconds:.1f} s")

    def stage_failed(self, name: str, error: BaseException) -> None:
        """The stage ended without one; why is in the attempt's result."""
        say(f"stage {name} ended without a result")

    def run_finished(self, report: Path | None, seconds: float) -> None:
        """Nothing more to say."""


class StopSignals:
    """Turns signals into requests to stop."""

    def __init__(self) -> None:
        self.request: StopRequest | None = None
        """Of the stage that runs."""
        self.over = False
        """The stage has ended: there is nothing left to stop."""
        self._count = 0

    def install(self) -> None:
        """Handle SIGTERM and SIGINT from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_word)

    def ask(self) -> None:
        """Ask from another thread. By a signal, because only the main thread can be interrupted, and only by one."""
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 1 and not self.over:
            say("a second signal: ending at once")
            os._exit(Stopped.exit_code)
        self._stop(signal.Signals(number).name)

    def _on_word(self, number: int, frame: FrameType | None) -> None:
        self._stop("the operator")

    def _stop(self, who: str) -> None:
        if self.over:
            return
        if stop_requests_are_heeded() and self.request is not None:
            say(f"stopping, {who} asks for it: the stage saves its state first")
            self.request.ask()
        else:
            say(f"stopping, {who} asks for it")
            raise KeyboardInterrupt


def main() -> NoReturn:
    """Run the attempt and end the process."""
    code = attempt(os.environ)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    # Everything is told. The libraries' native threads do not always survive the end of an interpreter that used all of
    # them, and their death would hide the exit code.
    os._exit(code)


def attempt(environment: Mapping[str, str], *, termination_log: Path = TERMINATION_LOG) -> int:
    """Run the attempt that `environment` describes and tell its end. Returns the exit code."""
    signals = StopSignals()
    signals.install()
    reporter = Reporter(Endpoint.of(environment), log=say, stop=signals.ask)
    try:
        assignment = Assignment.of(environment)
        result = _run(assignment, signals, AttemptLog(reporter))
    except BaseException as error:
        result = _failure(error)
    signals.over = True
    with suppress(Exception):
        if "ray" in sys.modules:
            shut_down_ray()
    wire = {**result.wire(), "message": _without_secrets(result.message)[:_MESSAGE]}
    say(wire["message"])
    reporter.close(wire)
    _write_termination_log(termination_log, wire)
    print(f"{RESULT_MARK} {json.dumps(wire, allow_nan=False)}", flush=True)
    return result.code


def say(text: str) -> None:
    """A line for the attempt's log. Not by `print`, which breaks when a signal handler uses it inside itself."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    lines = "".join(f"{now} {line}\n" for line in _without_secrets(text).splitlines())
    with suppress(OSError):
        os.write(1, lines.encode("utf-8", "replace"))


def _run(assignment: Assignment, signals: StopSignals, log: AttemptLog) -> Result:
    # Finished stages are the operator's to judge: their part of the spec cannot have changed, and a new version of the
    # image in the middle of a pipeline is no reason to make them again.
    runner = Runner(
        assignment.pipeline,
        base_dir=Path.cwd(),
        listener=log,
        only=assignment.stage,
        fresh=assignment.fresh_from > 0,
        fresh_for=f"{assignment.pipeline_uid}/{assignment.fresh_from}" if assignment.fresh_from else "",
        accept_done=True,
        lock_seconds=_LOCK_SECONDS,
    )
    store = StageStore(runner.storage, assignment.stage)
    signals.request = StopRequest(store.work)
    say(f"attempt {assignment.number} of stage {assignment.stage}, pipeline {assignment.pipeline.metadata.name}")
    ran = runner.run().ran
    signals.over = True
    artifacts = store.artifacts(contents=False)
    metrics = {name: value for artifact in artifacts for name, value in artifact.metrics.items()}
    numbers = {n: float(v) for n, v in metrics.items() if type(v) in (int, float) and math.isfinite(v)}
    base = f"{runner.storage.uri.rstrip('/')}/{assignment.pipeline.metadata.name}/stages/{assignment.stage}"
    return Result(
        0,
        f"stage '{assignment.stage}' is done" if ran else f"stage '{assignment.stage}' was done already",
        [{"kind": a.kind.value, "uri": f"{base}/{a.kind.value}", "digest": a.digest} for a in artifacts],
        dict(list(numbers.items())[:_METRICS]),
    )


def _failure(error: BaseException) -> Result:
    """What the attempt's end means; a bug also leaves its traceback on standard error."""
    if isinstance(error, CamelError):
        return Result(error.exit_code, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Result(Stopped.exit_code, "stopped on request; the next attempt continues with what is saved")
    if _cluster_failed(error):
        return Result(
            WorkerLost.exit_code, f"the Ray cluster failed ({type(error).__name__}: {_short(error)}); it is tried again"
        )
    text = "".join(traceback.format_exception(error, limit=-12))
    print(_without_secrets(text)[-8000:], file=sys.stderr, flush=True)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return Result(
        CamelError.exit_code,
        f"bug in camel-ray: {type(error).__name__}{where}: {_short(error)}; please report the traceback in the log",
    )


def _cluster_failed(error: BaseException) -> bool:
    """Whether Ray itself failed, and not a function that it ran."""
    exceptions = sys.modules.get("ray.exceptions")
    return (
        exceptions is not None
        and isinstance(error, exceptions.RayError)
        and not isinstance(error, exceptions.RayTaskError)
    )


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _write_termination_log(path: Path, wire: Mapping[str, Any]) -> None:
    """Leave the result where the kubelet looks for it. A file that is not there is not made: no pod, no kubelet."""
    for smaller in (
        wire,
        {**wire, "metrics": {}},
        {**wire, "metrics": {}, "artifacts": [], "message": wire["message"][:500]},
    ):
        data = json.dumps(smaller, allow_nan=False).encode()
        if len(data) <= _TERMINATION_BYTES:
            break
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


def _without_secrets(text: str) -> str:
    """Text without the values of variables that sound like secrets, and without passwords in URLs."""
    for name, value in os.environ.items():
        is_file = value.startswith("/") and os.access(value, os.F_OK)
        plain = len(value) < 8 or is_file or _PLAIN_VALUES.fullmatch(value)
        if _SECRET_NAMES.search(name) and not plain:
            text = text.replace(value, "***")
    return _URL_PASSWORD.sub("***", text)


if __name__ == "__main__":
    main()
