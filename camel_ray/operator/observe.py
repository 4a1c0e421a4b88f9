"""Reads one attempt: is it absent, queued, waiting, running, or ended, and if ended, how.

Pure and total: every combination of what KubeRay or the Job controller may write has one answer. KubeRay's states are
read by what they were seen to mean, not by their names: `Complete` is not success, `Running` with a failed job status
is passing, and a job that ended by a lost head keeps `jobStatus: RUNNING` for ever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from camel_ray.api.status import RESULT_MARK, AttemptStatus, FailureClass, Outcome, Result
from camel_ray.errors import OutOfMemory, PermanentError, Preempted, RetryableError, Stopped
from camel_ray.operator.evidence import clean, queue_words, refusal_words, strongest, waiting_words
from camel_ray.operator.model import AttemptView, Object
from camel_ray.operator.names import QUEUE
from camel_ray.operator.progress_report import parse_result

STAGE_CONTAINER = "stage"

State = Literal["absent", "queued", "waiting", "submitted", "running", "ended"]


@dataclass(frozen=True)
class Observation:
    """What an attempt is seen to do."""

    state: State
    """submitted: the cluster is up, but the stage's process was not heard of yet."""
    message: str = ""
    """Why it waits, or how it ended; one sentence."""
    outcome: Outcome | None = None
    """How it ended."""
    reason: str = ""
    """That in one word."""
    result: Result | None = None
    """What the attempt said of its own end."""


def observe(view: AttemptView, current: AttemptStatus, posted: Result | None, now: datetime) -> Observation:
    """What `view` shows of the attempt `current`. `posted`: the result that reached the progress server, of any
    attempt.
    """
    told = posted if posted is not None and posted.attempt == current.number else None
    if view.object is None:
        return Observation("absent")
    if view.object.get("kind") == "RayJob":
        return _rayjob(view, current, told, now)
    return _job(view, current, told, now)


def _rayjob(view: AttemptView, current: AttemptStatus, told: Result | None, now: datetime) -> Observation:
    status: Mapping[str, Any] = (view.object or {}).get("status") or {}
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    reason, text = status.get("reason", ""), str(status.get("message", ""))
    match deployment:
        case "Suspended" | "Suspending":
            return Observation("queued", queue_words(view) or _suspended_words(view))
        case "Running" if job in ("", "PENDING"):
            words = waiting_words(view)
            return Observation("submitted", words or "the Ray cluster is up; its job is being submitted")
        case "Running":  # a terminal job status passes here on its way to Complete or Failed
            return Observation("running")
        case "Complete" if job == "SUCCEEDED":
            return _ended(told or result_in(text, current.number), current, 0, now)
        case "Complete" if job == "STOPPED":
            return Observation("ended", "the Ray job was stopped", "Stopped", "Stopped", told)
        case "ValidationFailed" if told is None:
            words = _validation_words(view) or clean(text) or "KubeRay gives no reason"
            return Observation("ended", f"KubeRay refuses the RayJob: {words}", "UserError", "ValidationFailed")
        case "Complete" | "Failed" | "ValidationFailed":  # what the attempt itself told counts more
            return _rayjob_failed(current, told or result_in(text, current.number), reason or "Failed", text, now)
        case _:  # "", New, Initializing, Waiting, Retrying, and what a later KubeRay may add
            if refused := _refused(view, current):
                return refused
            words = waiting_words(view)
            if not deployment and not words:
                words = "KubeRay has not taken up the RayJob; does its operator run?"
            return Observation("waiting", words or "waits for the pods of its Ray cluster")


def _suspended_words(view: AttemptView) -> str:
    """For an attempt of which Kueue says nothing: it may come to it, or not be there."""
    queue = (view.object or {}).get("metadata", {}).get("labels", {}).get(QUEUE)
    if queue and not view.kueue:
        return (
            f"is suspended and waits for queue '{queue}', but this cluster has no Kueue (Workloads are not served): "
            "install Kueue, or take cluster.queue out"
        )
    return "is suspended, and waits to be admitted"


_RAY_REASONS: Mapping[str, tuple[FailureClass, str]] = {
    "SubmissionFailed": ("Infrastructure", "the Ray head or the submitter was lost"),
    "DeadlineExceeded": ("Error", "the attempt took longer than the stage's timeoutSeconds"),
    "PreRunningDeadlineExceeded": ("Infrastructure", "its pods did not start within cluster.startTimeoutSeconds"),
    "JobStatusCheckTimeoutExceeded": ("Infrastructure", "the Ray head did not answer any more"),
}


def _rayjob_failed(current: AttemptStatus, told: Result | None, reason: str, text: str, now: datetime) -> Observation:
    known = _RAY_REASONS.get(reason)
    if known is not None and (told is None or (reason == "DeadlineExceeded" and told.code == Stopped.exit_code)):
        kind, words = known
        if reason == "PreRunningDeadlineExceeded" and current.message:
            words = f"{words}: {current.message}"
        return _failed(kind, reason, words, current, None, now)
    found = re.search(r"exit code (-?\d+)", text[:500])
    code = int(found[1]) if found else 1
    if told is None and code in (137, -9):  # its container runs on, so no pod ever says OOMKilled
        words = "its process on the head was killed, most likely for memory: raise cluster.head.resources"
        return _failed("OutOfMemory", "OutOfMemory", words, current, None, now)
    return _ended(told, current, code, now)


def _validation_words(view: AttemptView) -> str:
    return next((clean(e.get("message")) for e in reversed(view.events) if "Invalid" in e.get("reason", "")), "")


def _job(view: AttemptView, current: AttemptStatus, told: Result | None, now: datetime) -> Observation:
    job = view.object or {}
    conditions = {c["type"]: c for c in job.get("status", {}).get("conditions", ()) if c["status"] == "True"}
    if "Complete" in conditions:
        return _ended(told or _pod_result(view, current.number), current, 0, now)
    if "Failed" in conditions:
        return _job_failed(view, current, told, conditions["Failed"], now)
    if "Suspended" in conditions or (job.get("spec", {}).get("suspend") and not view.live_pods):
        return Observation("queued", queue_words(view) or _suspended_words(view))
    for pod in view.pods:  # one that has ended shows a moment before the Job says so
        if not pod.get("gone") and pod.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed"):
            return Observation("running")
    if "FailureTarget" in conditions or "SuccessCriteriaMet" in conditions:
        return Observation("running")
    return _refused(view, current) or Observation("waiting", waiting_words(view) or "waits for its pod to start")


def _refused(view: AttemptView, current: AttemptStatus) -> Observation | None:
    """The end of an attempt whose pods will never be taken: they would be tried in vain until the start time-out."""
    words = refusal_words(view) if current.running is None else ""
    if not words:
        return None
    return Observation("ended", clean(f"the API server refuses its pods: {words}"), "UserError", "Refused")


def _job_failed(
    view: AttemptView, current: AttemptStatus, told: Result | None, condition: Object, now: datetime
) -> Observation:
    reason, words = condition.get("reason", ""), condition.get("message", "")
    told = told or _pod_result(view, current.number)
    if reason == "DeadlineExceeded" and (told is None or told.code == Stopped.exit_code):
        return _failed("Error", reason, "the attempt took longer than the stage's timeoutSeconds", current, told, now)
    if "DisruptionTarget" in words and (told is None or told.code == Stopped.exit_code):
        return _failed("Preemption", "Preempted", "its pod was taken away", current, told, now)
    code = _exit_code(view)
    found = re.search(r"exit code (-?\d+)", words)
    if code is None and found:
        code = int(found[1])
    if code is None and told is None:
        return _failed("Infrastructure", reason or "Failed", "its pod was lost before it ended", current, None, now)
    return _ended(told, current, 1 if code is None else code, now)


def _pod_result(view: AttemptView, number: int) -> Result | None:
    """The result in the termination message of the stage's container."""
    for ended in _terminated(view):
        text = str(ended.get("message", ""))
        found = result_in(text, number) or result_in(f"{RESULT_MARK} {text}", number)
        if found is not None:
            return found
    return None


def _exit_code(view: AttemptView) -> int | None:
    return next((int(ended["exitCode"]) for ended in _terminated(view) if "exitCode" in ended), None)


def _terminated(view: AttemptView) -> list[Object]:
    """Ends of the stage's container in pods of this very Job: a deleted pipeline of the same name left others with the
    same labels, and their last words are remembered for a while.
    """
    uid = (view.object or {}).get("metadata", {}).get("uid")
    own = [p for p in view.pods if any(owner["uid"] == uid for owner in p["metadata"].get("ownerReferences", ()))]
    there = [pod for pod in own if not pod.get("gone")]  # a queue may have taken the Job back, and its first pod
    states = [
        container.get("state", {}).get("terminated")
        for pod in there or own
        for container in pod.get("status", {}).get("containerStatuses", ())
        if container["name"] == STAGE_CONTAINER
    ]
    return [state for state in states if state]


def result_in(text: str, number: int) -> Result | None:
    """The result that a stage's process printed as the last line of its log, if it is there and whole."""
    _, mark, rest = text.rpartition(RESULT_MARK)
    if not mark:
        return None
    try:
        result = parse_result(rest.strip().splitlines()[0], attempt=number)
    except (ValueError, IndexError):
        return None
    return result.model_copy(update={"message": clean(result.message)})


def _ended(told: Result | None, current: AttemptStatus, code: int, now: datetime) -> Observation:
    """The end of an attempt whose process returned `code`, or told its own."""
    if told is not None and (code != 0 or told.code == 0):
        code = told.code
    words = told.message if told is not None else ""
    if code == 0:
        return Observation("ended", words, "Succeeded", "Completed", told)
    if code == Stopped.exit_code and current.stop:
        return Observation("ended", words or "stopped after a checkpoint", "Stopped", "Stopped", told)
    if code == Stopped.exit_code:  # its pod got SIGTERM: a drained node, whether or not anybody saw the pod go
        words = f"somebody stopped it: {words}" if words else "somebody stopped it"
        return _failed("Preemption", "StoppedFromOutside", words, current, told, now)
    if code in (137, -9):
        return _failed("Infrastructure", "Killed", words or "its process was killed", current, told, now)
    kind, reason, default = _class_of(code)
    return _failed(kind, reason, words or default, current, told, now)


def _class_of(code: int) -> tuple[FailureClass, str, str]:
    if PermanentError.exit_code <= code < RetryableError.exit_code:
        return "UserError", "UserError", f"the stage ended with exit code {code}; its log says why"
    if code == OutOfMemory.exit_code:
        return "OutOfMemory", "OutOfMemory", "memory ran out"
    if code == Preempted.exit_code:
        return "Preemption", "Preempted", "its machine was taken away"
    if RetryableError.exit_code <= code < OutOfMemory.exit_code:
        return "Infrastructure", "Infrastructure", f"the stage ended with exit code {code}; its log says why"
    return "Error", "Error", f"the stage's process ended with exit code {code}; its log says why"


def _failed(
    kind: FailureClass, reason: str, words: str, current: AttemptStatus, told: Result | None, now: datetime
) -> Observation:
    """A failure in the light of what its pods were seen to die of: that is the cause, a lost worker only follows."""
    seen = strongest(current.evidence, now) if kind in ("Infrastructure", "Error") else None
    if seen is not None:
        kind, cause = seen
        reason = {"Preemption": "Preempted", "OutOfMemory": "OutOfMemory"}.get(kind, reason)
        words = f"{cause} ({words})" if words else cause
    return Observation("ended", clean(words), kind, reason, told)
