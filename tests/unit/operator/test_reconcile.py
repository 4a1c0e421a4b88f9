"""What `reconcile` decides in the cases that people will ask about, one by one, with the figures."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from unit.operator.world.api import Obj, merged
from unit.operator.world.operators import SETTINGS, parse

from camel_ray.api.status import AttemptStatus, EndedAttempt, PipelineStatus, Progress, Result, StageStatus
from camel_ray.operator.clock import stamp
from camel_ray.operator.model import AttemptView, Create, Delete, Plan, Snapshot
from camel_ray.operator.names import REQUEST
from camel_ray.operator.reconcile import read_status, reconcile

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SPEC: Obj = {
    "storage": "s3://b/a",
    "cluster": {"image": "trainer:1"},
    "retry": {"maxRetries": 3, "backoffSeconds": 10, "maxBackoffSeconds": 25},
    "stages": [
        {"name": "rows", "data": {"source": "s3://b/rows.jsonl"}},
        {"name": "words", "tokenizer": {"data": "rows"}},
    ],
}


def snapshot(
    *stages: StageStatus, views: tuple[AttemptView, ...] = (), spec: Obj | None = None, request: str = "", **status: Any
) -> Snapshot:
    wanted = merged(SPEC, spec or {})
    pipeline, problem = parse(json.dumps(wanted, sort_keys=True))
    was = PipelineStatus(stages=list(stages), **status)
    metadata: Obj = {"name": "p", "namespace": "ns", "uid": "u1", "resourceVersion": "7", "generation": 1}
    if request:
        metadata["annotations"] = {REQUEST: request}
    obj = {"metadata": metadata, "spec": wanted, "status": was.wire()}
    return Snapshot(obj, pipeline, problem, views, NOW, SETTINGS)


def stage(name: str = "rows", **more: Any) -> StageStatus:
    kind = {"rows": "data", "words": "tokenizer"}[name]
    return StageStatus(name=name, kind=kind, **more)


def running(name: str = "rows", number: int = 1, *, phase: str = "Running", **more: Any) -> StageStatus:
    begun = stamp(NOW - timedelta(hours=1))
    given = {"uid": "o1", "created": begun, "admitted": begun, "submitted": begun, "running": begun} | {
        key: more.pop(key)
        for key in ("uid", "stop", "stop_requested", "running", "evidence", "created", "admitted", "submitted")
        if key in more
    }
    current = AttemptStatus(number=number, name=f"p-{name}-{number}", executor="RayJob", **given)
    more = {"spec_generation": 1, **more}
    return stage(name, phase=phase, attempts=number, started=begun, current=current, **more)


def view(name: str = "rows", number: int = 1, *, pods: tuple[Obj, ...] = (), **status: str) -> AttemptView:
    state = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"} | status
    obj = {"kind": "RayJob", "metadata": {"name": f"p-{name}-{number}", "uid": f"o{number}"}, "status": state}
    return AttemptView(name, number, obj, pods=pods)


def failed(reason: str = "AppFailed") -> dict[str, str]:
    return {"jobDeploymentStatus": "Failed", "reason": reason}


def first(plan: Plan) -> StageStatus:
    return plan.status.stages[0]


def created(plan: Plan) -> list[tuple[str, str]]:
    return [(o.manifest["kind"], o.manifest["metadata"]["name"]) for o in plan.operations if isinstance(o, Create)]


def deleted(plan: Plan) -> list[Delete]:
    """What runs; what only goes with an attempt is no part of it."""
    return [o for o in plan.operations if isinstance(o, Delete) and o.kind in ("RayJob", "Job")]


def test_the_first_attempt_is_named_in_the_plan_that_creates_it() -> None:
    plan = reconcile(snapshot())
    assert created(plan)[-1] == ("RayJob", "p-rows-1")
    assert (first(plan).phase, first(plan).attempts, plan.status.attempts) == ("Starting", 1, 1)
    assert first(plan).current == AttemptStatus(number=1, name="p-rows-1", executor="RayJob", created=stamp(NOW))
    assert (plan.status.phase, plan.status.started_stages) == ("Running", ["rows"])


def test_a_plan_made_twice_is_the_same_plan() -> None:
    assert reconcile(snapshot()) == reconcile(snapshot())


def test_what_was_decided_and_is_not_seen_yet_is_created_again_under_the_same_number() -> None:
    plan = reconcile(snapshot(running(uid=None, phase="Starting")))
    assert created(plan)[-1] == ("RayJob", "p-rows-1")
    assert (first(plan).attempts, plan.requeue_seconds) == (1, 5.0)


@pytest.mark.parametrize(("failures", "seconds"), [(0, 10), (1, 20), (2, 25)])
def test_failures_wait_twice_as_long_each_time_up_to_the_limit(failures: int, seconds: int) -> None:
    plan = reconcile(snapshot(running(failures=failures), views=(view(**failed("SubmissionFailed")),)))
    assert (first(plan).phase, first(plan).failures) == ("Backoff", failures + 1)
    assert first(plan).retry == stamp(NOW + timedelta(seconds=seconds))
    assert plan.requeue_seconds == seconds
    assert [(e.number, e.outcome) for e in first(plan).history] == [(1, "Infrastructure")]


def test_a_backing_off_stage_begins_when_its_time_has_come_and_rings_until_then() -> None:
    waits = stage(phase="Backoff", attempts=1, failures=1, started=stamp(NOW), message="x", retry=stamp(NOW))
    assert created(reconcile(snapshot(waits)))[-1] == ("RayJob", "p-rows-2")
    early = replace(snapshot(waits), now=NOW - timedelta(seconds=7))
    assert (created(reconcile(early)), reconcile(early).requeue_seconds) == ([], 7.0)


def test_the_failure_after_the_last_retry_ends_the_pipeline_with_the_reason() -> None:
    plan = reconcile(snapshot(running(failures=3), views=(view(**failed("SubmissionFailed")),)))
    assert (plan.status.phase, first(plan).phase, first(plan).failures) == ("Failed", "Failed", 4)
    assert "given up after 4 failed attempts (retry.maxRetries 3)" in plan.status.message
    assert plan.requeue_seconds is None


def test_preempted_attempt_is_retried_without_using_the_budget() -> None:
    told = Result(attempt=1, code=24)
    plan = reconcile(snapshot(running(failures=3, result=told), views=(view(**failed()),)))
    assert (first(plan).phase, first(plan).failures, first(plan).preemptions) == ("Backoff", 3, 1)
    assert plan.requeue_seconds == 5.0


def test_a_users_error_ends_the_pipeline_at_once_with_its_sentence() -> None:
    told = Result(attempt=1, code=12, message="rows.jsonl line 7 is no JSON")
    plan = reconcile(snapshot(running(result=told), views=(view(**failed()),)))
    assert (plan.status.phase, first(plan).failures) == ("Failed", 0)
    assert plan.status.message == "stage 'rows' (1 of 2): rows.jsonl line 7 is no JSON"
    assert plan.status.started_stages == []  # its spec may be mended


def test_an_object_that_was_seen_and_is_gone_was_deleted_if_the_api_says_so_too() -> None:
    plan = reconcile(snapshot(running()))
    assert plan.gone == (Delete("RayJob", "p-rows-1", "o1"),)
    assert (first(plan).history[-1].reason, first(plan).failures, first(plan).phase) == ("Deleted", 1, "Backoff")


def test_the_next_attempt_waits_for_pods_of_the_last() -> None:
    pod = {"metadata": {"name": "x"}, "status": {"phase": "Running"}}
    waits = stage(phase="Backoff", attempts=1, failures=1, started=stamp(NOW), message="x", retry=stamp(NOW))
    plan = reconcile(snapshot(waits, views=(view(pods=(pod,), **failed()),)))
    assert (created(plan), first(plan).message) == ([], "waits until the pods of attempt 1 of 'rows' are gone")
    known = [
        EndedAttempt(number=n, name=f"p-rows-{n}", outcome="Stopped", started=stamp(NOW), ended=stamp(NOW))
        for n in (1, 2)
    ]
    waits = waits.model_copy(update={"attempts": 2, "history": known})
    again = reconcile(snapshot(waits, views=(view(**failed()),)))
    last = [o for o in again.operations if isinstance(o, Create)][-1]
    assert "camel-ray.dev/pipeline=p" in last.unless
    assert "camel-ray.dev/stage=rows" in last.unless
    assert last.after == ("p-rows-1", "p-rows-2")


@pytest.mark.parametrize(
    ("pod", "ended_ago", "expected"),
    [
        ({"metadata": {}, "status": {"phase": "Running"}}, 59, []),
        ({"metadata": {}, "status": {"phase": "Running"}}, 60, [Delete("RayJob", "p-rows-1", "o1")]),
        ({"metadata": {}, "status": {"phase": "Succeeded"}}, 3600, []),
        ({"metadata": {"deletionTimestamp": stamp(NOW)}, "status": {"phase": "Running"}}, 3600, []),
    ],
)
@pytest.mark.parametrize("phase", ["Backoff", "Failed"])
def test_a_submitter_that_outlives_its_cluster_goes_with_its_rayjob(
    phase: Any, pod: Obj, ended_ago: int, expected: list[Delete]
) -> None:
    later = stamp(NOW + timedelta(hours=1))
    rests = stage(phase=phase, attempts=1, failures=4, message="x", retry=later)
    end = stamp(NOW - timedelta(seconds=ended_ago))
    plan = reconcile(snapshot(rests, views=(view(pods=(pod,), endTime=end, **failed("DeadlineExceeded")),)))
    assert deleted(plan) == expected
    if ended_ago < 60:
        assert plan.requeue_seconds == 1.0


def test_the_next_stage_begins_in_the_plan_that_notes_the_end_of_the_one_before() -> None:
    done = view(jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    plan = reconcile(snapshot(running(), views=(done,)))
    assert [s.phase for s in plan.status.stages] == ["Succeeded", "Starting"]
    assert (created(plan)[-1], plan.status.progress) == (("RayJob", "p-words-1"), "1/2")
    assert deleted(plan) == []  # the object of a finished attempt is kept, for its log


def test_suspend_asks_an_attempt_that_reports_and_deletes_one_that_does_not() -> None:
    on = {"suspend": True}
    reports = running(progress=Progress(attempt=1, percentage=5))
    asked = reconcile(snapshot(reports, views=(view(),), spec=on))
    assert (first(asked).phase, asked.status.phase, asked.requeue_seconds) == ("Stopping", "Suspending", 300.0)
    assert first(asked).current.stop == "suspend"  # type: ignore[union-attr]
    assert deleted(asked) == []
    late = running(progress=reports.progress, stop="suspend", stop_requested=stamp(NOW - timedelta(seconds=301)))
    for stopped in (late, running()):
        plan = reconcile(snapshot(stopped, views=(view(),), spec=on))
        assert deleted(plan) == [Delete("RayJob", "p-rows-1", "o1")]
        assert (first(plan).history[-1].outcome, first(plan).failures) == ("Stopped", 0)


def test_a_suspended_pipeline_goes_on_with_a_new_attempt() -> None:
    rests = stage(phase="Suspended", attempts=1, failures=2, started=stamp(NOW), message="stopped")
    assert reconcile(snapshot(rests, spec={"suspend": True})).status.phase == "Suspended"
    plan = reconcile(snapshot(rests, phase="Suspended"))
    assert (created(plan)[-1], first(plan).failures) == (("RayJob", "p-rows-2"), 2)


def test_cancel_ends_the_attempt_and_everything_after_it_even_if_it_was_done_first() -> None:
    stopped = reconcile(snapshot(running(), views=(view(),), request="cancel - 1"))
    assert (stopped.status.phase, stopped.status.handled_request) == ("Cancelled", "cancel - 1")
    assert deleted(stopped) == [Delete("RayJob", "p-rows-1", "o1")]
    done = view(jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    late = reconcile(snapshot(running(stop="cancel", stop_requested=stamp(NOW)), views=(done,)))
    assert [s.phase for s in late.status.stages] == ["Succeeded", "Cancelled"]
    assert (late.status.phase, created(late)) == ("Cancelled", [])


def test_a_request_is_carried_out_once() -> None:
    ended = stage(phase="Failed", attempts=4, failures=4, started=stamp(NOW), ended=stamp(NOW), message="x", spec="old")
    again = reconcile(snapshot(ended, request="retry - 1", phase="Failed"))
    assert (first(again).attempts, first(again).failures, again.status.handled_request) == (5, 0, "retry - 1")
    plain = stage(**{**ended.model_dump(exclude={"name", "kind"}), "spec": first(again).spec})
    handled = reconcile(snapshot(plain, request="retry - 1", phase="Failed", handled_request="retry - 1"))
    assert (handled.status.phase, handled.operations) == ("Failed", ())


@pytest.mark.parametrize("end", [{"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, failed()])
def test_a_stage_that_was_asked_for_anew_runs_anew_however_its_attempt_ended(end: dict[str, str]) -> None:
    told = Result(attempt=1, code=0 if "jobStatus" in end else 12)
    stopping = running(stop="retry", stop_requested=stamp(NOW), fresh_from=2, result=told)
    after = first(reconcile(snapshot(stopping, views=(view(**end),))))
    assert (after.phase, after.failures, after.attempts, after.fresh_from) == ("Waiting", 0, 1, 2)


def test_a_failed_attempt_that_was_to_begin_anew_leaves_that_to_the_next() -> None:
    """It may have failed before it came to the storage, which still holds the old result."""
    lost = reconcile(snapshot(running(number=2, uid="o2", fresh_from=2), views=(view(number=2, **failed()),)))
    again = first(reconcile(snapshot(first(lost).model_copy(update={"retry": None}))))
    assert (first(lost).phase, again.phase, again.attempts, again.fresh_from) == ("Backoff", "Starting", 3, 2)


def test_retry_of_a_stage_takes_what_follows_along() -> None:
    done = {"phase": "Succeeded", "attempts": 1, "started": stamp(NOW), "ended": stamp(NOW), "message": "done"}
    plan = reconcile(snapshot(stage(**done), stage("words", **done), request="retry rows 9", phase="Succeeded"))
    assert [(s.phase, s.attempts, s.fresh_from) for s in plan.status.stages] == [("Starting", 2, 2), ("Waiting", 1, 2)]
    assert plan.status.started_stages == ["rows"]


@pytest.mark.parametrize("request_", ["dance", "retry nothing 1", "retry", "cancel", "  "])
def test_any_request_is_answered(request_: str) -> None:
    plan = reconcile(snapshot(running(), views=(view(),), request=request_))
    assert plan.status.handled_request == request_


def test_a_spec_that_cannot_run_fails_before_anything_starts_and_starts_over_when_mended() -> None:
    for bad in ({"storage": "./here"}, {"stages": []}):
        plan = reconcile(snapshot(spec=bad))
        assert (plan.status.phase, plan.operations) == ("Failed", ())
        assert plan.status.message
    mended = reconcile(snapshot(phase="Failed", message="x", ended=stamp(NOW)))
    assert (mended.status.phase, created(mended)[-1]) == ("Running", ("RayJob", "p-rows-1"))


def test_nothing_is_created_for_a_pipeline_that_is_being_deleted() -> None:
    seen = snapshot()
    dying = replace(seen, object=merged(seen.object, {"metadata": {"deletionTimestamp": stamp(NOW)}}))
    assert reconcile(dying) == Plan(PipelineStatus())


def test_an_attempt_that_the_status_does_not_know_yet_means_that_the_status_is_old() -> None:
    plan = reconcile(snapshot(stage(), views=(view(number=1),)))
    assert (plan.operations, plan.requeue_seconds) == ((), 1.0)


def test_leftovers_of_given_up_attempts_are_deleted_and_finished_ones_kept() -> None:
    plan = reconcile(snapshot(running(number=3), views=(view(number=1), view(number=2, **failed()), view(number=3))))
    assert deleted(plan) == [Delete("RayJob", "p-rows-1", "o1")]


def test_waits_that_nobody_else_ends_are_ended_by_our_own_timers() -> None:
    begun = stamp(NOW - timedelta(seconds=301))
    silent = running(running=None, phase="Provisioning")
    silent = silent.model_copy(update={"current": silent.current.model_copy(update={"submitted": begun})})  # type: ignore[union-attr]
    plan = reconcile(snapshot(silent, views=(view(jobStatus=""),)))
    assert (first(plan).history[-1].reason, first(plan).history[-1].outcome) == ("NotSubmitted", "Infrastructure")
    assert deleted(plan) == [Delete("RayJob", "p-rows-1", "o1")]
    stuck = running(running=None, phase="Provisioning")
    hour = replace(snapshot(stuck, views=(view(jobDeploymentStatus="Initializing"),)), now=NOW)
    assert first(reconcile(hour)).history[-1].reason == "StartTimeout"  # 3600 s > startTimeoutSeconds 1800 + 60
    early = reconcile(replace(hour, now=NOW - timedelta(seconds=1800)))
    assert (first(early).phase, early.requeue_seconds) == ("Provisioning", 60.0)


def test_a_finished_pipeline_is_deleted_when_its_time_has_passed() -> None:
    done = {"phase": "Succeeded", "attempts": 1, "started": stamp(NOW), "ended": stamp(NOW), "message": "done"}
    both = stage(**done), stage("words", **done)
    keep = {"ttlSecondsAfterFinished": 100}
    for ended, expected in ((40, (False, 60.0)), (100, (True, None))):
        past = stamp(NOW - timedelta(seconds=ended))
        plan = reconcile(snapshot(*both, spec=keep, phase="Succeeded", message="x", ended=past))
        assert (plan.delete_self, plan.requeue_seconds) == expected


def test_the_end_of_a_pipeline_is_written_before_it_is_deleted() -> None:
    done = {"phase": "Succeeded", "attempts": 1, "started": stamp(NOW), "ended": stamp(NOW), "message": "done"}
    told = Result(attempt=1, code=0)
    last = running("words", uid="o1", result=told)
    ends = snapshot(
        stage(**done),
        last,
        views=(view("words", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED"),),
        spec={"ttlSecondsAfterFinished": 0},
        phase="Running",
    )
    plan = reconcile(ends)
    assert (plan.status.phase, plan.delete_self) == ("Succeeded", False)
    again = reconcile(replace(ends, object={**ends.object, "status": plan.status.wire()}))
    assert again.delete_self is True


def test_a_failed_stage_may_be_renamed_or_taken_out_and_comes_back_with_the_next_number() -> None:
    failed_ = stage(phase="Failed", attempts=2, failures=1, ended=stamp(NOW), message="x", spec_generation=1)
    views = (view(**failed()), view(number=2, **failed()))
    renamed = {"stages": [{"name": "lines", "data": {"source": "s3://b/rows.jsonl"}}]}
    plan = reconcile(snapshot(failed_, views=views, spec=renamed, phase="Failed"))
    assert (plan.status.retired, plan.status.phase) == ({"rows": 2}, "Running")
    assert created(plan)[-1] == ("RayJob", "p-lines-1")
    lines = StageStatus(name="lines", kind="data", phase="Failed", attempts=1, ended=stamp(NOW), message="x")
    back = reconcile(snapshot(lines, views=views, retired={"rows": 2}, phase="Failed"))
    assert created(back)[-1] == ("RayJob", "p-rows-3")
    assert [o.after for o in back.operations if isinstance(o, Create)][-1] == ("p-rows-2",)
    assert (first(back).attempts, back.status.retired) == (3, {"lines": 1})
    old = reconcile(snapshot(stage(), views=views))  # but a status that does not know them is an old one
    assert (old.operations, old.requeue_seconds) == ((), 1.0)


def test_what_an_attempt_was_told_last_counts_when_it_fails() -> None:
    waiting = running(phase="Starting", uid=None, admitted=None, submitted=None, running=None, created=stamp(NOW))
    switched = replace(snapshot(waiting, spec={"cluster": {"executor": "Job"}}), trouble="no KubeRay")
    newer = {**switched.object, "metadata": {**switched.object["metadata"], "generation": 2}}
    told = first(reconcile(replace(switched, object=newer)))
    assert (told.spec_generation, bool(told.spec)) == (2, True)
    assert told.current is not None
    job = {"kind": "Job", "metadata": {"name": "p-rows-1", "uid": "o1"}, "spec": {}, "status": {"conditions": []}}
    job["status"] = {"conditions": [{"type": "Failed", "status": "True", "reason": "x", "message": "exit code 12"}]}
    ended = told.model_copy(update={"result": Result(attempt=1, code=12, message="no such column")})
    seen = replace(
        snapshot(ended, views=(AttemptView("rows", 1, job),), spec={"cluster": {"executor": "Job"}}), problem=""
    )
    after = reconcile(replace(seen, object={**seen.object, "metadata": newer["metadata"]}))
    assert (first(after).phase, first(after).attempts) == ("Failed", 1)
    again = replace(seen, object={**seen.object, "metadata": newer["metadata"], "status": after.status.wire()})
    assert first(reconcile(again)).phase == "Failed"


@pytest.mark.parametrize(("generation", "phase"), [(1, "Failed"), (2, "Starting")])
def test_another_version_of_the_operator_restarts_nothing_and_an_edit_does(generation: int, phase: str) -> None:
    """Both may change the digest of what a stage is told."""
    gave_up = stage(phase="Failed", attempts=1, ended=stamp(NOW), message="x", spec="of-another", spec_generation=1)
    seen = snapshot(gave_up, phase="Failed")
    seen = replace(seen, object={**seen.object, "metadata": {**seen.object["metadata"], "generation": generation}})
    assert first(reconcile(seen)).phase == phase


def test_a_stage_that_was_edited_while_it_ran_does_not_fail_with_its_old_spec() -> None:
    last = running(failures=3, spec="old", spec_generation=1)
    seen = snapshot(last, views=(view(**failed("SubmissionFailed")),))
    edited = replace(seen, object={**seen.object, "metadata": {**seen.object["metadata"], "generation": 2}})
    assert (first(reconcile(edited)).phase, [n.reason for n in reconcile(edited).notes]) == ("Waiting", ["SpecChanged"])
    assert first(reconcile(seen)).phase == "Failed"
    gave_up = stage(phase="Failed", attempts=1, ended=stamp(NOW), message="x", spec="old", spec_generation=1)
    cancelled = snapshot(gave_up, phase="Failed", request="cancel - 1")
    cancelled = replace(cancelled, object={**edited.object, **{k: cancelled.object[k] for k in ("status",)}})
    cancelled.object["metadata"]["annotations"] = {REQUEST: "cancel - 1"}
    assert first(reconcile(cancelled)).phase == "Failed"


def test_nothing_is_done_on_a_status_that_nobody_can_read() -> None:
    seen = snapshot(running(), views=(view(),))
    for status in ({"stages": "none", "phase": 7}, {**seen.object["status"], "phase": "APhaseOfNextYear"}):
        plan = reconcile(replace(seen, object={**seen.object, "status": status}))
        assert (plan.operations, plan.delete_self, plan.requeue_seconds) == ((), False, 60.0)
        assert [(note.type, note.reason) for note in plan.notes] == [("Warning", "StatusUnreadable")]
        assert plan.status == read_status({"status": status}), "so that nothing is written"


def test_a_spec_that_becomes_impossible_lets_the_attempt_end_and_refuses_the_next_stage() -> None:
    plan = reconcile(replace(snapshot(running(), views=(view(),)), problem="spec.storage: no"))
    assert (plan.status.phase, first(plan).phase) == ("Running", "Running")
    done = stage(phase="Succeeded", attempts=1, started=stamp(NOW))
    plan = reconcile(replace(snapshot(done), problem="spec.storage: no"))
    assert [(s.phase, s.attempts) for s in plan.status.stages] == [("Succeeded", 1), ("Failed", 0)]
    assert (plan.status.phase, "spec.storage: no" in plan.status.message, plan.operations) == ("Failed", True, ())
    again = reconcile(replace(snapshot(done, plan.status.stages[1]), problem="spec.storage: no"))
    assert again.status.stages[1] == plan.status.stages[1]
    mended = reconcile(snapshot(done, plan.status.stages[1], spec={"seed": 7}))
    assert mended.status.stages[1].phase == "Starting"


def test_what_the_configuration_refused_goes_on_when_it_refuses_no_more() -> None:
    done = stage(phase="Succeeded", attempts=1, started=stamp(NOW))
    refused = reconcile(replace(snapshot(done), problem="policy says no")).status.stages[1]
    assert refused.phase == "Failed"
    plan = reconcile(snapshot(done, refused))
    assert plan.status.stages[1].phase == "Starting"
    assert next(note.reason for note in plan.notes) == "Allowed"
    own_fault = refused.model_copy(update={"spec": refused.spec.removeprefix("refused-")})
    assert reconcile(snapshot(done, own_fault)).status.stages[1].phase == "Failed"


def test_a_run_that_the_queue_took_back_leaves_no_result() -> None:
    told = Result(attempt=1, code=25, message="stopped on request")
    suspended = view(jobDeploymentStatus="Suspended", jobStatus="")
    plan = reconcile(snapshot(running(result=told), views=(suspended,)))
    assert (first(plan).phase, first(plan).result) == ("Queued", None)
    assert first(reconcile(snapshot(running(result=told), views=(view(),)))).result == told


def test_an_executor_that_is_changed_while_nothing_could_be_created_counts_for_the_attempt() -> None:
    waiting = running(phase="Starting", uid=None, admitted=None, submitted=None, running=None, created=stamp(NOW))
    plan = reconcile(replace(snapshot(waiting, spec={"cluster": {"executor": "Job"}}), trouble="no KubeRay"))
    current = first(plan).current
    assert current is not None and (current.executor, current.number) == ("Job", 1)
    assert created(plan)[-1] == ("Job", "p-rows-1")
    assert plan.gone == (Delete("RayJob", "p-rows-1"),)


def test_an_attempt_whose_name_is_taken_gets_the_next_number() -> None:
    waiting = running(phase="Starting", uid=None, admitted=None, submitted=None, running=None, created=stamp(NOW))
    refused = replace(snapshot(waiting), trouble="RayJob p-rows-1 belongs to somebody else", taken="p-rows-1")
    plan = reconcile(refused)
    current = first(plan).current
    assert current is not None and (current.number, current.name, current.uid) == (2, "p-rows-2", None)
    assert (first(plan).phase, first(plan).attempts, first(plan).failures) == ("Starting", 2, 0)
    assert created(plan)[-1] == ("RayJob", "p-rows-2")
    assert [note.reason for note in plan.notes] == ["NameTaken"]
    again = reconcile(replace(refused, object={**refused.object, "status": plan.status.wire()}))
    assert (first(again).current, again.notes) == (current, ())


def test_a_stage_does_not_wait_for_the_pods_of_one_that_is_done() -> None:
    done = stage(phase="Succeeded", attempts=1, started=stamp(NOW))
    cluster: Obj = {"metadata": {"name": "p-rows-1-abcde"}}
    left = AttemptView(
        "rows", 1, view(jobDeploymentStatus="Complete", jobStatus="SUCCEEDED").object, clusters=(cluster,)
    )
    assert reconcile(snapshot(done, views=(left,))).status.stages[1].phase == "Starting"


def test_a_clock_that_went_back_ends_nothing_and_a_broken_stamp_waits_for_nothing() -> None:
    later = stamp(NOW + timedelta(hours=2))
    waiting = running(phase="Provisioning", created=later, admitted=later, submitted=later, running=None)
    plan = reconcile(snapshot(waiting, views=(view(jobDeploymentStatus="Initializing", jobStatus=""),)))
    assert first(plan).phase == "Provisioning"
    held = stage(phase="Backoff", attempts=1, failures=1, retry="no time")
    assert reconcile(snapshot(held)).status.stages[0].phase == "Starting"
