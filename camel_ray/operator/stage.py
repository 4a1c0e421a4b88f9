"""One stage's next step: start an attempt, follow it, decide how it ended, wait, try again.

The rules that hold whatever happens in between:
- An attempt's number is in the status before its object is created, and a number is never used twice.
- An end is decided once, in the status, before anything of the attempt is deleted; the budget is counted in that write.
- A further attempt starts only when nothing of the earlier ones can work any more.

Pure; called by `reconcile`, which owns the order of the stages.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from camel_ray.api.pipeline import CamelPipeline, Stage
from camel_ray.api.status import (
    HISTORY,
    AttemptStatus,
    EndedAttempt,
    FailureClass,
    Outcome,
    StageStatus,
    Status,
    StopReason,
)
from camel_ray.operator.children import budget_for, children_for
from camel_ray.operator.clock import moment, seconds_since, stamp
from camel_ray.operator.evidence import invalid_words, new_evidence
from camel_ray.operator.model import Attempt, AttemptView, Create, Delete, Note, Snapshot
from camel_ray.operator.names import MANAGED_BY, MANAGER, PIPELINE, STAGE, attempt_name
from camel_ray.operator.observe import Observation, observe

M = TypeVar("M", bound=Status)

REFUSED = "refused-"
"""Before the digest of a stage that was not even begun: it is tried again when the reason is gone."""

LINGER_SECONDS = 60.0
"""How long a submitter may go on after the end of its RayJob: it reads the last lines of the log meanwhile."""
PREEMPTED_WAIT_SECONDS = 5.0
"""Wait after a preemption: free, but not so fast that a sick node is tried a hundred times a minute."""


@dataclass
class Work:
    """What one reconciliation collects."""

    snapshot: Snapshot
    gone: list[Delete] = field(default_factory=list)
    operations: list[Create | Delete] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    wake: float | None = None
    done: frozenset[str] = frozenset()
    """Stages that are done: what is left of their attempts is in nobody's way."""
    retired: dict[str, int] = field(default_factory=dict)
    """Attempts of stages that are in the spec no more."""

    @property
    def now(self) -> datetime:
        """The moment of the decision."""
        return self.snapshot.now

    def wake_in(self, seconds: float) -> None:
        """Look again in `seconds` at the latest."""
        seconds = max(0.1, seconds)
        self.wake = seconds if self.wake is None else min(self.wake, seconds)

    def views(self, stage: str) -> list[AttemptView]:
        """Everything there is of a stage's attempts."""
        return [view for view in self.snapshot.attempts if view.stage == stage]


def follow(work: Work, stage: Stage, status: StageStatus, stop: StopReason | None) -> StageStatus:
    """The next step of the stage's current attempt. `stop`: why it should end, if it should."""
    current = status.current
    assert current is not None
    view = next((v for v in work.views(stage.name) if v.number == current.number), None)
    view = view or AttemptView(stage.name, current.number)
    if not current.stop:
        current = _changed(current, evidence=new_evidence(view, current.evidence, work.now))
    seen = observe(view, current, status.result, work.now)
    if seen.state == "absent":
        return _absent(work, stage, status, current, stop)
    if current.uid is None and view.object is not None:
        current = _changed(current, uid=view.object["metadata"]["uid"])
    if stop and not current.stop:
        current = _changed(current, stop=stop, stop_requested=stamp(work.now))
    if seen.state != "ended":
        seen = _overdue(work, stage, current, seen) or seen
    if seen.state == "ended":
        return _end(work, stage, status, current, seen)
    current = _moved_on(current, seen, work.now)
    if seen.state == "queued" and status.result and status.result.attempt == current.number:
        status = _changed(status, result=None)  # of a run that the queue took back; the attempt runs again
    status = _changed(status, current=current, phase=_PHASES[seen.state], message=seen.message)
    if current.stop:
        return _stopping(work, stage, status, current)
    return status


_PHASES = {
    "queued": "Queued",
    "waiting": "Provisioning",
    "submitted": "Provisioning",
    "running": "Running",
}


def begin(work: Work, stage: Stage, status: StageStatus) -> StageStatus:
    """The first step towards the next attempt: wait for the old one to be over, or start it."""
    if status.retry and (left := (moment(status.retry) - work.now).total_seconds()) > 0:
        work.wake_in(left)
        return status
    left_over = [view for view in work.snapshot.attempts if not view.over and view.stage not in work.done]
    if left_over:
        names = " and ".join(f"{view.number} of '{view.stage}'" for view in left_over)
        return _changed(status, message=f"waits until the pods of attempt {names} are gone")
    number = status.attempts + 1
    name = attempt_name(work.snapshot.object["metadata"]["name"], stage.name, number)
    for view in work.views(stage.name):
        if view.number <= number - HISTORY and view.object is not None:
            _delete(work, view)
    assert work.snapshot.pipeline is not None
    executor = work.snapshot.pipeline.spec.cluster.executor
    current = AttemptStatus(number=number, name=name, executor=executor, created=stamp(work.now))
    _create(work, stage, status, current, alone=number > 1)
    work.notes.append(Note("Normal", "AttemptStarted", f"stage '{stage.name}': attempt {number} is {executor} {name}"))
    return _changed(
        status,
        phase="Starting",
        message=f"creates {executor} {name}",
        attempts=number,
        started=status.started or stamp(work.now),
        retry=None,
        current=current,
        **_told(work, stage),
        progress=None,
        result=None,
    )


def refuse(work: Work, stage: Stage, status: StageStatus, problem: str) -> StageStatus:
    """Give a stage up whose spec was changed to something that cannot run on a cluster; changed again, it is tried."""
    told = _told(work, stage)
    return _changed(_given_up(work, stage, status, problem), **{**told, "spec": f"{REFUSED}{told['spec']}"}, retry=None)


def _told(work: Work, stage: Stage) -> dict[str, Any]:
    """What an attempt that is made now is told to do."""
    assert work.snapshot.pipeline is not None
    generation = work.snapshot.object["metadata"].get("generation", 0)
    return {"spec": spec_digest(work.snapshot.pipeline, stage), "spec_generation": generation}


def spec_digest(pipeline: CamelPipeline, stage: Stage) -> str:
    """Digest of everything in the spec that an attempt of the stage depends on."""
    spec = pipeline.spec
    parts = [stage.written(), spec.cluster.written(), spec.storage, spec.seed, spec.written().get("model")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def clear_away(work: Work, stages: list[StageStatus]) -> None:
    """Delete objects of attempts that were given up while they still worked: stopped, overdue, or deleted half. Those
    of finished attempts are kept for their logs, but not with a submitter that waits for its cluster for ever.
    """
    current = {(s.name, s.current.number) for s in stages if s.current}
    for view in work.snapshot.attempts:
        if view.object is None or (view.stage, view.number) in current:
            continue
        if not view.finished:
            _delete(work, view)
        elif lingers(view):
            left = LINGER_SECONDS - seconds_since(view.object["status"]["endTime"], work.now)
            if left > 0:
                work.wake_in(left)
            else:
                _delete(work, view)


def lingers(view: AttemptView) -> bool:
    """Whether a RayJob and its cluster are done with, and a pod goes on that nobody has asked to stop."""
    assert view.object is not None
    ended = "endTime" in view.object.get("status", {})
    unasked = any("deletionTimestamp" not in pod["metadata"] for pod in view.live_pods)
    return ended and unasked and not view.clusters


def _absent(
    work: Work, stage: Stage, status: StageStatus, current: AttemptStatus, stop: StopReason | None
) -> StageStatus:
    stop = current.stop or stop
    if current.uid is None and not stop:
        return _not_seen(work, stage, status, current)
    work.gone.append(Delete(current.executor, current.name, current.uid))
    words = "stopped before it ran" if stop else f"somebody deleted {current.executor} {current.name}"
    outcome: Outcome = "Stopped" if stop else "Infrastructure"
    current = _changed(current, stop=stop)
    return _end(work, stage, status, current, Observation("ended", words, outcome, "Stopped" if stop else "Deleted"))


def _not_seen(work: Work, stage: Stage, status: StageStatus, current: AttemptStatus) -> StageStatus:
    """Decided, and not seen yet: the creation failed, is under way, or its echo has not arrived. Once more is
    harmless.
    """
    if current.name == work.snapshot.taken:
        return _under_another_name(work, stage, status, current)
    trouble = work.snapshot.trouble
    assert work.snapshot.pipeline is not None
    refused = invalid_words(trouble, current.name)
    if refused and status.spec == spec_digest(work.snapshot.pipeline, stage):  # else it was mended meanwhile
        work.gone.append(Delete(current.executor, current.name))
        words = f"the API server refuses the {current.executor}: {refused}"
        return _end(work, stage, status, current, Observation("ended", words, "UserError", "Refused"))
    limit = work.snapshot.pipeline.spec.cluster.start_timeout_seconds
    if trouble and seconds_since(current.created, work.now) > limit:
        work.gone.append(Delete(current.executor, current.name))
        words = f"{current.executor} {current.name} could not be created within {limit} s: {trouble}"
        return _end(work, stage, status, current, Observation("ended", words, "Infrastructure", "NotCreated"))
    # Without trouble it may be there by now, and do what it was told at first.
    told = _told(work, stage) if trouble else {}
    wanted = work.snapshot.pipeline.spec.cluster.executor
    if wanted != current.executor:  # changed while nothing could be created, as the status may have advised
        told = _told(work, stage)
        work.gone.append(Delete(current.executor, current.name))
        current = _changed(current, executor=wanted)
        status = _changed(status, current=current)
    _create(work, stage, status, current, alone=True)
    work.wake_in(5.0)
    words = f"cannot create {current.executor} {current.name}: {trouble}" if trouble else status.message
    return _changed(status, message=words, **told)


def _under_another_name(work: Work, stage: Stage, status: StageStatus, current: AttemptStatus) -> StageStatus:
    """Take the next number: pipeline `a-b` with a stage `c` has the names of pipeline `a` with a stage `b-c`."""
    _remove_budget(work, stage, current)
    number = status.attempts + 1
    name = attempt_name(work.snapshot.object["metadata"]["name"], stage.name, number)
    words = f"stage '{stage.name}': the name {current.name} belongs to somebody else; attempt {number} is {name}"
    work.notes.append(Note("Warning", "NameTaken", words))
    current = _changed(current, number=number, name=name, created=stamp(work.now))
    _create(work, stage, status, current, alone=True)
    words = f"creates {current.executor} {name}"
    return _changed(status, message=words, attempts=number, current=current, **_told(work, stage))


def _overdue(work: Work, stage: Stage, current: AttemptStatus, seen: Observation) -> Observation | None:
    """An end by our own timers, for waits that nobody else ends."""
    pipeline, settings = work.snapshot.pipeline, work.snapshot.settings
    assert pipeline is not None
    limits: list[tuple[str, float, FailureClass, str, str]] = []
    if seen.state != "queued":
        words = f"took longer than timeoutSeconds {stage.timeout_seconds}"
        span = stage.timeout_seconds + settings.start_margin_seconds
        limits.append((current.admitted or stamp(work.now), span, "Error", "DeadlineExceeded", words))
    if seen.state == "waiting":
        start = pipeline.spec.cluster.start_timeout_seconds
        words = f"did not start within cluster.startTimeoutSeconds {start}: {seen.message}"
        span = start + (settings.start_margin_seconds if current.executor == "RayJob" else 0.0)
        limits.append((current.admitted or stamp(work.now), span, "Infrastructure", "StartTimeout", words))
    if seen.state == "submitted":
        words = f"its job was not submitted within {settings.silent_seconds:.0f} s: {seen.message}"
        since = current.submitted or stamp(work.now)
        limits.append((since, settings.silent_seconds, "Infrastructure", "NotSubmitted", words))
    for since, span, kind, reason, words in limits:
        left = span - seconds_since(since, work.now)
        if left <= 0:
            return Observation("ended", words, kind, reason)
        work.wake_in(left)
    return None


def _moved_on(current: AttemptStatus, seen: Observation, now: datetime) -> AttemptStatus:
    """The attempt with the times of what is seen for the first time."""
    reached: dict[str, Any] = {}
    if seen.state == "queued":  # also again, when Kueue takes its place away: then all waits begin anew
        return _changed(current, message=seen.message, admitted=None, submitted=None)
    if not current.admitted:
        reached["admitted"] = stamp(now)
    if seen.state in ("submitted", "running") and not current.submitted:
        reached["submitted"] = stamp(now)
    if seen.state == "running" and not current.running:
        reached["running"] = stamp(now)
    return _changed(current, message=seen.message, **reached)


def _stopping(work: Work, stage: Stage, status: StageStatus, current: AttemptStatus) -> StageStatus:
    """Wait for an attempt that was asked to stop, or end it.

    Deleting a Job sends SIGTERM to the stage's process, which writes its checkpoint within the pod's grace period. A
    Ray head that is deleted takes the process with it, so a RayJob that reports progress is told in the answer to a
    report, and gets the time to end by itself.
    """
    reports = status.progress is not None and status.progress.attempt == current.number
    asked = current.stop_requested or stamp(work.now)
    left = work.snapshot.settings.stop_seconds - seconds_since(asked, work.now)
    if current.executor == "RayJob" and status.phase == "Running" and reports and left > 0:
        work.wake_in(left)
        return _changed(status, phase="Stopping", message="was asked to write a checkpoint and stop")
    return _end(work, stage, status, current, Observation("ended", "stopped on request", "Stopped", "Stopped"))


def _end(work: Work, stage: Stage, status: StageStatus, current: AttemptStatus, seen: Observation) -> StageStatus:
    """Note how the attempt ended, and what follows from it."""
    outcome = seen.outcome
    assert outcome is not None
    reason, words = seen.reason, seen.message
    if outcome == "Stopped" and not current.stop:  # the Ray job, by its own interface
        outcome, reason = "Infrastructure", "StoppedFromOutside"
        words = f"somebody stopped it: {words}" if words else "somebody stopped it"
    elif current.stop and outcome not in ("Succeeded", "UserError"):
        outcome = "Stopped"  # what we ended ourselves is no failure, whatever it looked like from inside
    ended = EndedAttempt(
        number=current.number,
        name=current.name,
        outcome=outcome,
        reason=reason,
        message=words,
        started=current.created,
        ended=stamp(work.now),
    )
    status = _changed(
        status,
        current=None,
        history=[*status.history, ended][-HISTORY:],
        result=seen.result or status.result,
        message=words,
    )
    _remove_budget(work, stage, current)
    if current.stop == "retry":  # however it ended: it was asked for anew
        return reset(status)
    match outcome:
        case "Succeeded":
            return _changed(status, phase="Succeeded", message=words or "done", ended=stamp(work.now))
        case "Stopped":
            return _stopped(work, status, current.stop)
        case "UserError":
            return _failed(work, stage, status, words)
        case "Preemption":
            status = _changed(status, preemptions=status.preemptions + 1)
            return _again(work, stage, status, PREEMPTED_WAIT_SECONDS)
    assert work.snapshot.pipeline is not None
    retry = work.snapshot.pipeline.spec.retry
    status = _changed(status, failures=status.failures + 1)
    if status.failures > retry.max_retries:
        tries = f"after {status.failures} failed attempts (retry.maxRetries {retry.max_retries})"
        return _failed(work, stage, status, f"{words}; given up {tries}")
    # 2.0 ** 60 seconds is beyond any limit; without the cap a large budget overflows.
    wait = min(retry.max_backoff_seconds, retry.backoff_seconds * 2.0 ** min(60, status.failures - 1))
    return _again(work, stage, status, wait)


def _stopped(work: Work, status: StageStatus, stop: StopReason | None) -> StageStatus:
    if stop == "cancel":
        return _changed(status, phase="Cancelled", message="cancelled on request", ended=stamp(work.now))
    return _changed(status, phase="Suspended", message="stopped; it continues when spec.suspend is false")


def _failed(work: Work, stage: Stage, status: StageStatus, words: str) -> StageStatus:
    """No attempt like the last one would do better; one with a spec that was mended meanwhile may."""
    return mended(work, status) if is_edited(work, stage, status) else _given_up(work, stage, status, words)


def mended(work: Work, status: StageStatus) -> StageStatus:
    """A failed stage, to run again because its user has changed what it does."""
    work.notes.append(Note("Normal", "SpecChanged", f"stage '{status.name}' runs again with its new spec"))
    return reset(status)


def is_edited(work: Work, stage: Stage, status: StageStatus) -> bool:
    """Whether an attempt would be told something else by now than the stage's last one was."""
    told = _told(work, stage)
    newer: bool = told["spec_generation"] > status.spec_generation
    return newer and told["spec"] != status.spec.removeprefix(REFUSED)


def _given_up(work: Work, stage: Stage, status: StageStatus, words: str) -> StageStatus:
    work.notes.append(Note("Warning", "StageFailed", f"stage '{stage.name}': {words}"))
    return _changed(status, phase="Failed", message=words, ended=stamp(work.now))


def _again(work: Work, stage: Stage, status: StageStatus, wait: float) -> StageStatus:
    ended = status.history[-1]
    words = f"attempt {ended.number} ended ({ended.outcome}): {ended.message}"
    work.notes.append(Note("Warning", "AttemptFailed", f"stage '{stage.name}': {words}"))
    work.wake_in(wait)
    at = work.now + timedelta(seconds=wait)
    # Whole seconds: rounded up, so that a wait is never shorter than it says.
    return _changed(status, phase="Backoff", message=words, retry=stamp(at + timedelta(microseconds=999_999)))


def reset(status: StageStatus, *, fresh_from: int = 0) -> StageStatus:
    """The stage as if it had not run. Its counter of attempts goes on: names of attempts are never used twice."""
    return StageStatus(
        name=status.name,
        kind=status.kind,
        attempts=status.attempts,
        preemptions=status.preemptions,
        history=status.history,
        fresh_from=fresh_from or status.fresh_from,
    )


def _remove_budget(work: Work, stage: Stage, current: AttemptStatus) -> None:
    """Its pods are on their way out; budgets that stayed would be more with each attempt."""
    if budget := budget_for(_attempt(work, stage, current)):
        work.operations.append(Delete(budget["kind"], budget["metadata"]["name"]))


def _create(work: Work, stage: Stage, status: StageStatus, current: AttemptStatus, *, alone: bool) -> None:
    attempt = _attempt(work, stage, current, status.fresh_from)
    pipeline = work.snapshot.object["metadata"]["name"]
    unless = f"{MANAGED_BY}={MANAGER},{PIPELINE}={pipeline},{STAGE}={stage.name}" if alone else ""
    # All that is remembered: the last may never have been made, and say nothing of the one before it. A stage that was
    # taken out and came back remembers no more than its number.
    last = [attempt_name(pipeline, stage.name, current.number - 1)] if current.number > 1 else []
    after = tuple(dict.fromkeys([*(ended.name for ended in status.history), *last]))
    *others, main = children_for(attempt)
    work.operations.extend(Create(manifest) for manifest in others)
    work.operations.append(Create(main, unless, after))


def _attempt(work: Work, stage: Stage, current: AttemptStatus, fresh_from: int = 0) -> Attempt:
    metadata, pipeline = work.snapshot.object["metadata"], work.snapshot.pipeline
    assert pipeline is not None
    return Attempt(
        pipeline=pipeline,
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        stage=stage,
        number=current.number,
        settings=work.snapshot.settings,
        fresh_from=fresh_from,
    )


def _delete(work: Work, view: AttemptView) -> None:
    assert view.object is not None
    metadata = view.object["metadata"]
    if "deletionTimestamp" not in metadata:
        work.operations.append(Delete(view.object["kind"], metadata["name"], metadata["uid"]))


def _changed(model: M, **changes: Any) -> M:
    return model.model_copy(update=changes)
