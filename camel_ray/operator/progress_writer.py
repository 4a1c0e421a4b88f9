"""Writes what attempts report into the status of their pipelines, in a thread of its own.

Reports of one attempt replace each other while they wait, and an attempt's progress is written at most every ten
seconds. How an attempt ended is written at once and tried again. Each write is a JSON patch that holds only while the
same attempt is the current one: the controller, which owns the rest of the status, never has its decisions undone.
Reports of an attempt come to any replica, so what has waited in one may be older than what another has written.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pydantic import ValidationError

from camel_ray.api.status import PipelineStatus, Progress, Result, StageStatus
from camel_ray.operator.clock import moment
from camel_ray.operator.model import Object
from camel_ray.operator.summary import metrics_text, progress_text

PROGRESS_SECONDS = 10.0
"""Least time between two writes of an attempt's progress."""
_TRY_SECONDS = 2.0
"""Before the end of an attempt is tried again."""
_TRIES = 5
_WAITING = 10_000
"""Attempts whose reports may wait at a time."""
log = logging.getLogger(__name__)


class Key(NamedTuple):
    """An attempt."""

    namespace: str
    pipeline: str
    stage: str
    number: int


@dataclass(frozen=True)
class Write:
    """What waits to be written of an attempt."""

    progress: Progress | None
    result: Result | None
    due: float = 0.0
    tries: int = 0


class ProgressWriter:
    """Runs from the moment it is made until `close`. `find` and `write`: see `ProgressServer`."""

    def __init__(
        self,
        find: Callable[[str, str], Object | None],
        write: Callable[[str, str, list[dict[str, Any]]], Any],
    ) -> None:
        self._find, self._write = find, write
        self._waiting: dict[Key, Write] = {}
        self._written: dict[Key, tuple[float, Write]] = {}
        self._news = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="progress-writer", daemon=True)
        self._thread.start()

    def put(self, key: Key, report: Write) -> bool:
        """Take a report; False if too many wait already. Never blocks."""
        with self._news:
            old = self._waiting.get(key)
            if old is None and len(self._waiting) >= _WAITING:
                return False
            at, last = self._written.get(key, (-PROGRESS_SECONDS, None))
            if report.result is None and old is None and last is not None and _says_the_same(last, report):
                return True
            self._waiting[key] = Write(
                report.progress or (old.progress if old else None),
                report.result or (old.result if old else None),
                due=0.0 if report.result else old.due if old else at + PROGRESS_SECONDS,
            )
            self._news.notify()
            return True

    def close(self) -> None:
        """Write the results that wait, and end. Progress that waits is dropped: the next replica hears newer one."""
        with self._news:
            self._closing = True
            self._waiting = {key: w for key, w in self._waiting.items() if w.result is not None}
            self._news.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._news:
                taken = self._next()
                if taken is None:
                    return
            key, write = taken
            try:
                self._carry_out(key, write)
            except Exception as error:  # whatever the client raises, the thread lives on
                log.warning("the progress of %s/%s cannot be written: %s", key.namespace, key.pipeline, error)
                self._again(key, write)

    def _next(self) -> tuple[Key, Write] | None:
        """Wait for what is due; None when it is time to end."""
        while True:
            now = time.monotonic()
            if self._waiting:
                key = min(self._waiting, key=lambda waiting: self._waiting[waiting].due)
                if self._closing or self._waiting[key].due <= now:
                    return key, self._waiting.pop(key)
                self._news.wait(self._waiting[key].due - now)
            elif self._closing:
                return None
            else:
                self._news.wait()

    def _carry_out(self, key: Key, write: Write) -> None:
        patch = status_patch(self._find(key.namespace, key.pipeline), key, write)
        if patch:
            self._write(key.namespace, key.pipeline, patch)
        with self._news:
            self._written.pop(key, None)
            if write.result is None and patch:
                self._written[key] = (time.monotonic(), write)
            if len(self._written) > _WAITING:
                del self._written[next(iter(self._written))]

    def _again(self, key: Key, write: Write) -> None:
        """Results are tried again, progress is not: there will be newer one."""
        with self._news:
            if write.result is None:
                self._written[key] = (time.monotonic(), Write(None, None))
            elif not self._closing and write.tries + 1 < _TRIES and key not in self._waiting:
                due = time.monotonic() + _TRY_SECONDS
                self._waiting[key] = replace(write, due=due, tries=write.tries + 1)


def status_patch(pipeline: Object | None, key: Key, write: Write) -> list[dict[str, Any]]:
    """The JSON patch for a report; empty if its attempt is not the current one any more, or if it is old news."""
    if pipeline is None:
        return []
    try:
        stages = PipelineStatus.model_validate(pipeline.get("status") or {}).stages
    except ValidationError:
        return []
    index = next((i for i, stage in enumerate(stages) if stage.name == key.stage), None)
    if index is None:
        return []
    current = stages[index].current
    if current is None or current.number != key.number or _is_old(stages[index], key, write):
        return []
    base = f"/status/stages/{index}"
    patch: list[dict[str, Any]] = [
        {"op": "test", "path": f"{base}/name", "value": key.stage},
        {"op": "test", "path": f"{base}/current/number", "value": key.number},
    ]
    if write.result is not None:
        patch.append({"op": "add", "path": f"{base}/result", "value": write.result.wire()})
    if write.progress is not None:
        told: list[StageStatus] = [
            stage.model_copy(update={"progress": write.progress}) if stage.name == key.stage else stage
            for stage in stages
        ]
        patch += [
            {"op": "add", "path": f"{base}/progress", "value": write.progress.wire()},
            {"op": "add", "path": "/status/progress", "value": progress_text(told)},
            {"op": "add", "path": "/status/metrics", "value": metrics_text(told)},
        ]
    return patch


def _is_old(stage: StageStatus, key: Key, write: Write) -> bool:
    """Whether the status has the attempt's end, or later progress of it, and `write` has no end."""
    if write.result is not None or write.progress is None:
        return False
    ended = stage.result is not None and stage.result.attempt == key.number
    told = stage.progress
    newer = told is not None and told.attempt == key.number and moment(told.updated) > moment(write.progress.updated)
    return ended or newer


def _says_the_same(last: Write, report: Write) -> bool:
    """Whether a report differs from the last one written in nothing but its time."""
    if last.progress is None or report.progress is None:
        return False
    return last.progress.model_copy(update={"updated": report.progress.updated}) == report.progress
