"""What to do about a pipeline now: `reconcile(snapshot) -> Plan`. Pure and total, no clock, no I/O.

    read the status -> check the spec -> carry out the user's request -> step the stage that is under way, or begin the
    next -> clear away what was given up -> say where it stands

Level-triggered: everything is decided from what is there now, so a lost event, a restart or a second operator changes
nothing. The steps of one stage are in `stage.py`, the reading of attempts in `observe.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from camel_ray.api.status import TERMINAL, PipelinePhase, PipelineStatus, StageStatus, StopReason
from camel_ray.operator.clock import seconds_since, stamp
from camel_ray.operator.model import Note, Plan, Snapshot
from camel_ray.operator.names import REQUEST
from camel_ray.operator.stage import REFUSED, Work, begin, clear_away, follow, is_edited, mended, refuse, reset
from camel_ray.operator.summary import conditions, metrics_text, progress_text

STALE_SECONDS = 1.0
"""How soon to look again when a cache is seen to lag behind another."""
UNREADABLE_SECONDS = 60.0
"""How soon to say again that a status cannot be read."""


def reconcile(snapshot: Snapshot) -> Plan:
    """The plan for one pipeline."""
    before = _status(snapshot.object)
    if before is None:  # taken for empty, everything would start again, beside what runs
        words = "its status is not one that this version of the operator knows; install the newer one again"
        note = Note("Warning", "StatusUnreadable", words)
        return Plan(PipelineStatus(), notes=(note,), requeue_seconds=UNREADABLE_SECONDS)
    if snapshot.object["metadata"].get("deletionTimestamp"):
        return Plan(before)
    work = Work(snapshot)
    stages, work.retired = _stages(snapshot, before)
    if _is_stale(snapshot, work.retired | {stage.name: stage.attempts for stage in stages}):
        return Plan(before, requeue_seconds=STALE_SECONDS)
    problem = snapshot.problem
    if problem and not any(stage.started for stage in stages):
        return _plan(work, before, stages, "Failed", problem, handled=_request(snapshot))
    if snapshot.pipeline is None:
        # Cannot happen through the API server, which guards what has started; an older object may still be like that.
        return _plan(work, before, stages, before.phase, f"the spec is not valid any more: {problem}", handled=None)
    handled = _carry_out(work, before, stages)
    _mend(work, stages)
    _step(work, stages)
    clear_away(work, stages)
    phase, message = _where(work, stages)
    return _plan(work, before, stages, phase, message, handled=handled)


def read_status(pipeline: Mapping[str, object]) -> PipelineStatus:
    """The status of a pipeline object; an empty one where there is none or it cannot be read."""
    return _status(pipeline) or PipelineStatus()


def _status(pipeline: Mapping[str, object]) -> PipelineStatus | None:
    """None where it cannot be read."""
    try:
        return PipelineStatus.model_validate(pipeline.get("status") or {})
    except ValidationError:
        return None


def _stages(snapshot: Snapshot, before: PipelineStatus) -> tuple[list[StageStatus], dict[str, int]]:
    """A status per stage of the spec, in its order; what is known is kept. Beside them the counters of stages that are
    in it no more: names of attempts are never used twice, whatever becomes of their stage.
    """
    if snapshot.pipeline is None:
        return list(before.stages), before.retired
    counted = before.retired | {stage.name: stage.attempts for stage in before.stages if stage.attempts}
    made = []
    for stage in snapshot.pipeline.spec.stages:
        known, attempts = before.stage_named(stage.name), counted.pop(stage.name, 0)
        same = known is not None and known.kind == stage.kind
        made.append(known if known and same else StageStatus(name=stage.name, kind=stage.kind, attempts=attempts))
    return made, counted


def _is_stale(snapshot: Snapshot, counted: Mapping[str, int]) -> bool:
    """Whether an attempt exists that the status does not name yet: then the status is an old copy, and deciding on it
    would lose that attempt.
    """
    return any(v.object is not None and v.number > counted.get(v.stage, 0) for v in snapshot.attempts)


def _request(snapshot: Snapshot) -> str:
    return str((snapshot.object["metadata"].get("annotations") or {}).get(REQUEST, ""))


def _carry_out(work: Work, before: PipelineStatus, stages: list[StageStatus]) -> str | None:
    """Carry out the user's request if it is a new one; returns its value."""
    request = _request(work.snapshot)
    if not request or request == before.handled_request:
        return None
    verb, _, rest = request.partition(" ")
    target = rest.partition(" ")[0] or "-"
    names = [stage.name for stage in stages]
    if verb == "cancel":
        _cancel(work, stages)
        work.notes.append(Note("Normal", "Cancelled", "cancelled on request"))
    elif verb == "retry" and target == "-":
        for i, stage in enumerate(stages):
            if stage.phase in ("Failed", "Cancelled", "Backoff"):
                stages[i] = reset(stage)
            elif stage.current and stage.current.stop == "cancel":
                stages[i] = stage.model_copy(update={"current": stage.current.model_copy(update={"stop": "retry"})})
        work.notes.append(Note("Normal", "Retried", "what failed runs again on request"))
    elif verb == "retry" and target in names:
        for i in range(names.index(target), len(stages)):
            stages[i] = _asked_again(work, stages[i])
        work.notes.append(Note("Normal", "Retried", f"stage '{target}' and what follows run again on request"))
    else:
        words = f"cannot carry out '{request[:80]}': write 'retry STAGE TOKEN', 'retry - TOKEN' or 'cancel - TOKEN'"
        work.notes.append(Note("Warning", "UnknownRequest", words))
    return request


def _cancel(work: Work, stages: list[StageStatus]) -> None:
    for i, stage in enumerate(stages):
        if stage.current:
            current = stage.current.model_copy(update={"stop": "cancel", "stop_requested": stamp(work.now)})
            stages[i] = stage.model_copy(update={"current": current})
            return
    for i, stage in enumerate(stages):
        if stage.phase in ("Failed", "Cancelled"):  # and what was edited until now does not make it run again
            generation = work.snapshot.object["metadata"].get("generation", 0)
            stages[i] = stage.model_copy(update={"spec_generation": generation})
            return
        if stage.phase != "Succeeded":
            ended = {"phase": "Cancelled", "message": "cancelled on request", "retry": None, "ended": stamp(work.now)}
            stages[i] = stage.model_copy(update=ended)
            return


def _asked_again(work: Work, stage: StageStatus) -> StageStatus:
    if stage.current:
        current = stage.current.model_copy(update={"stop": "retry", "stop_requested": stamp(work.now)})
        return stage.model_copy(update={"current": current, "fresh_from": stage.attempts + 1})
    return reset(stage, fresh_from=stage.attempts + 1)


def _mend(work: Work, stages: list[StageStatus]) -> None:
    """Let a failed stage run again when its user has changed what it does, or when nothing refuses it any more: the
    file was mended and applied, or the operator's configuration.
    """
    pipeline = work.snapshot.pipeline
    assert pipeline is not None
    for i, stage in enumerate(stages):
        if stage.phase != "Failed":
            continue
        if is_edited(work, pipeline.spec.stages[i], stage):
            stages[i] = mended(work, stage)
        elif stage.spec.startswith(REFUSED) and not work.snapshot.problem:
            work.notes.append(Note("Normal", "Allowed", f"stage '{stage.name}' goes on: nothing refuses it any more"))
            stages[i] = reset(stage)


def _step(work: Work, stages: list[StageStatus]) -> None:
    """Step the attempt that is under way; where there is none, begin the first stage that is not done."""
    pipeline = work.snapshot.pipeline
    assert pipeline is not None
    suspend: StopReason | None = "suspend" if pipeline.spec.suspend else None
    for i, stage in enumerate(stages):
        if stage.current:
            asked = stage.current.stop
            stages[i] = follow(work, pipeline.spec.stages[i], stage, asked or suspend)
            if stages[i].current or stages[i].phase != "Succeeded":
                return
            if asked == "cancel":  # it was done before it could be stopped; what follows is not begun
                _cancel(work, stages)
    work.done = frozenset(stage.name for stage in stages if stage.phase == "Succeeded")
    for i, stage in enumerate(stages):
        if stage.phase in ("Failed", "Cancelled"):
            return
        if stage.phase != "Succeeded":
            if suspend:
                stages[i] = _rest(work, stage)
            elif work.snapshot.problem:
                stages[i] = refuse(work, pipeline.spec.stages[i], stage, work.snapshot.problem)
            else:
                stages[i] = begin(work, pipeline.spec.stages[i], stage)
            return


def _rest(work: Work, stage: StageStatus) -> StageStatus:
    """A stage that must not run now."""
    busy = any(not view.over for view in work.views(stage.name))
    message = "waits until its pods are gone" if busy else "stopped; it continues when spec.suspend is false"
    # A wait that was on when the pipeline was suspended is over by the time it goes on.
    return stage.model_copy(update={"phase": "Suspended", "message": message, "retry": None})


def _where(work: Work, stages: list[StageStatus]) -> tuple[PipelinePhase, str]:
    """The phase of the pipeline, and why."""
    pipeline = work.snapshot.pipeline
    assert pipeline is not None
    total = len(stages)
    for i, stage in enumerate(stages):
        if stage.phase in ("Failed", "Cancelled"):
            return stage.phase, f"stage '{stage.name}' ({i + 1} of {total}): {stage.message}"
    open_stages = [(i, stage) for i, stage in enumerate(stages) if stage.phase != "Succeeded"]
    if not open_stages:
        return "Succeeded", f"all {total} stages are done"
    i, stage = next(((i, s) for i, s in open_stages if s.current), open_stages[0])
    words = f"stage '{stage.name}' ({i + 1} of {total}): {stage.message or stage.phase.lower()}"
    if pipeline.spec.suspend:
        busy = stage.current or any(not view.over for view in work.snapshot.attempts)
        return ("Suspending" if busy else "Suspended"), words
    return ("Running" if any(s.started for s in stages) else "Pending"), words


def _plan(
    work: Work,
    before: PipelineStatus,
    stages: list[StageStatus],
    phase: PipelinePhase,
    message: str,
    *,
    handled: str | None,
) -> Plan:
    snapshot = work.snapshot
    generation = snapshot.object["metadata"].get("generation")
    active = next((s for s in stages if s.current), None) or next((s for s in stages if s.phase != "Succeeded"), None)
    ended = None
    if phase in TERMINAL:
        ended = before.ended if before.phase == phase and before.ended else stamp(work.now)
    if phase != before.phase:
        _tell(work, before.phase, phase, message)
    status = PipelineStatus(
        observed_generation=generation,
        phase=phase,
        message=message,
        stage=active.name if active else "",
        progress=progress_text(stages),
        metrics=metrics_text(stages),
        attempts=sum(stage.attempts for stage in stages),
        started_stages=[s.name for s in stages if s.started and s.phase not in ("Failed", "Cancelled")],
        started=min((s.started for s in stages if s.started), default=None),
        ended=ended,
        handled_request=before.handled_request if handled is None else handled,
        conditions=before.conditions,
        stages=stages,
        retired=work.retired,
    )
    status = status.model_copy(update={"conditions": conditions(status, generation, work.now)})
    expired = _expired(work, status) and ended == before.ended  # else the end is to be written first, and told
    return Plan(
        status=status,
        gone=tuple(work.gone),
        operations=tuple(work.operations),
        notes=tuple(work.notes),
        requeue_seconds=work.wake,
        delete_self=expired,
        fields={"stage": active.name, "attempt": active.attempts} if active else {},
    )


def _tell(work: Work, old: PipelinePhase, new: PipelinePhase, message: str) -> None:
    if new in ("Succeeded", "Suspended"):
        work.notes.append(Note("Normal", new, message))
    elif new == "Failed":
        work.notes.append(Note("Warning", new, message))
    elif old in ("Suspended", "Suspending") and new == "Running":
        work.notes.append(Note("Normal", "Resumed", message))


def _expired(work: Work, status: PipelineStatus) -> bool:
    """Whether the time that a finished pipeline is kept has passed."""
    pipeline = work.snapshot.pipeline
    keep = pipeline.spec.ttl_seconds_after_finished if pipeline else None
    if keep is None or status.phase not in TERMINAL or status.ended is None:
        return False
    left = keep - seconds_since(status.ended, work.now)
    if left > 0:
        work.wake_in(left)
        return False
    return True
