"""What must hold whatever happens: looked at in the real world, at each write of an operator and when all is quiet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set

from unit.operator.world.api import Api, Obj, is_finished, is_live_pod, owner
from unit.operator.world.cluster import PIPELINE_NAME, Cluster

from camel_ray.api.status import HISTORY, TERMINAL, EndedAttempt, PipelineStatus, StageStatus
from camel_ray.operator.model import Plan
from camel_ray.operator.names import ATTEMPT, STAGE, attempt_name

BUDGET = frozenset({"Infrastructure", "OutOfMemory", "Error"})
ACTIVE = frozenset({"Starting", "Queued", "Provisioning", "Running", "Stopping"})
_ANY = frozenset({"Error", "Infrastructure", "OutOfMemory", "Preemption"})
CLASS: dict[int, Set[str]] = {
    0: {"Succeeded"},
    10: {"UserError"},
    12: {"UserError"},
    **dict.fromkeys((1, 20, 22, 137, 143), _ANY),  # by what its pods were seen to die of
    23: {"OutOfMemory"},
    24: {"Preemption"},
    25: {"Infrastructure", "Preemption"},  # nobody asked it to stop: somebody else did, or took its machine
    -15: {"Infrastructure"},
}
"""What an attempt that nobody stopped may be said to have ended as, by what its process really returned."""
OURS = frozenset({"Deleted", "DeadlineExceeded", "StartTimeout", "NotSubmitted"})
"""Reasons of ends that the operator decides without asking the process."""
FROM_OUTSIDE = frozenset(
    {"PreRunningDeadlineExceeded", "SubmissionFailed", "JobStatusCheckTimeoutExceeded", "ValidationFailed"}
)
"""Reasons of ends that KubeRay decides without asking the process."""


class Violation(AssertionError):
    """Something that must never happen happened."""


class Checks:
    """The rules, and what has to be remembered to check them."""

    def __init__(self, api: Api, cluster: Cluster, max_retries: int) -> None:
        self.api, self.cluster, self.max_retries = api, cluster, max_retries
        self.forget()

    def forget(self) -> None:
        """The pipeline is a new one."""
        self.ended: defaultdict[str, dict[int, str]] = defaultdict(dict)
        """Outcomes by stage and number, as they were written."""
        self.created: set[tuple[str, int]] = set()
        self.cancelled = False
        self.asked_again: dict[str, int] = {}
        """Stages that their user wants to run once more, and the number of their attempts at that moment."""

    def status(self) -> PipelineStatus:
        """The status as it is now."""
        pipeline = self.api.get("CamelPipeline", PIPELINE_NAME)
        return PipelineStatus.model_validate((pipeline or {}).get("status", {}))

    # Before an attempt's object is created

    def before_create(self, manifest: Obj) -> None:
        labels = manifest["metadata"]["labels"]
        name, number = labels[STAGE], int(labels[ATTEMPT])
        where = f"creation of attempt {number} of '{name}'"
        require(not self.cancelled, f"{where}: it was cancelled")
        status = self.status()
        stage = status.stage_named(name)
        require(stage is not None and stage.current is not None, f"{where}: the status names no attempt of it")
        assert stage and stage.current
        require(stage.current.number == number == stage.attempts, f"{where}: the status names {stage.current.number}")
        wanted = attempt_name(PIPELINE_NAME, name, number)
        require(stage.current.name == manifest["metadata"]["name"] == wanted, f"{where}: another name")
        require((name, number) not in self.created, f"{where}: it was created before")
        earlier = status.stages[: status.stages.index(stage)]
        require(all(s.phase == "Succeeded" for s in earlier), f"{where}: an earlier stage is not done")
        self.created.add((name, number))
        ours = owner(manifest)  # what a deleted namesake left is the garbage collector's, and waited for as far as seen
        live = [o for o in (*self.live_objects(name), *self.live_pods(name)) if self._pipeline_of(o) == ours]
        require(not live, f"{where}: of another attempt there is still {[o['metadata']['name'] for o in live]}")

    def live_objects(self, stage: str | None = None) -> list[Obj]:
        """Attempt objects and RayClusters that may still do something."""
        found = [o for kind in ("RayJob", "Job") for o in self.api.all(kind) if not is_finished(o)]
        return [o for o in found + self.api.all("RayCluster") if stage in (None, o["metadata"]["labels"][STAGE])]

    def _pipeline_of(self, obj: Obj) -> str:
        own = owner(obj) if obj["kind"] == "RayCluster" else obj["metadata"]["uid"]
        return self.cluster.runs[obj["metadata"]["labels"].get("run") or own or ""].pipeline

    def live_pods(self, stage: str | None = None) -> list[Obj]:
        return [p for p in self.api.all("Pod") if is_live_pod(p) and stage in (None, p["metadata"]["labels"][STAGE])]

    # After each write of a status

    def after_write(self, before: Obj, plan: Plan) -> None:
        old, new = PipelineStatus.model_validate(before.get("status", {})), plan.status
        self._pipeline(before, old, new)
        if new.handled_request != old.handled_request:
            self._heard(old, new, *new.handled_request.split())
        for stage in new.stages:
            counted = old.retired.get(stage.name, 0)
            was = old.stage_named(stage.name) or StageStatus(name=stage.name, kind=stage.kind, attempts=counted)
            asked = new.handled_request != old.handled_request
            mended = was.phase == "Failed" and old.observed_generation != new.observed_generation
            # or while its last attempt ran, which then only failed with the old spec
            edited = (new.observed_generation or 0) > was.spec_generation
            mended |= was.current is not None and stage.phase == "Waiting" and edited
            self._stage(was, stage, asked=asked or mended, suspended=bool(before["spec"].get("suspend")))
            self._phase(stage)

    def _heard(self, old: PipelineStatus, new: PipelineStatus, verb: str, target: str, token: str = "") -> None:
        """A request was carried out; what follows from it is checked later."""
        if verb == "cancel":
            self.cancelled = new.phase not in ("Succeeded", "Failed")
        elif verb == "retry":
            self.cancelled = False
            names = [stage.name for stage in old.stages]
            later = old.stages[names.index(target) :] if target in names else []
            self.asked_again |= {stage.name: stage.attempts for stage in later}

    def _pipeline(self, before: Obj, old: PipelineStatus, new: PipelineStatus) -> None:
        require(bool(new.message), f"phase {new.phase} without a message")
        require(sum(s.current is not None for s in new.stages) <= 1, "two stages at a time")
        if old.phase in TERMINAL and new.phase != old.phase:
            reasons = new.handled_request != old.handled_request, new.observed_generation != old.observed_generation
            require(any(reasons), f"left {old.phase} for {new.phase} although nobody asked")
        require((new.ended is not None) == (new.phase in TERMINAL), f"phase {new.phase} with ended={new.ended}")
        require(new.attempts == sum(s.attempts for s in new.stages), "attempts do not add up")
        wanted = [s.name for s in new.stages if s.started and s.phase not in ("Failed", "Cancelled")]
        require(new.started_stages == wanted, f"startedStages {new.started_stages}, started are {wanted}")
        kinds = [c.type for c in new.conditions]
        require(kinds == ["Progressing", "Suspended", "Succeeded", "Failed"], f"conditions {kinds}")
        past = {c.type: c for c in old.conditions}
        for c in new.conditions:
            was = past.get(c.type)
            moved = was is not None and was.last_transition_time != c.last_transition_time
            require(not moved or (was is not None and was.status != c.status), f"{c.type}: time moved, status did not")
            require(bool(c.reason), f"{c.type} without a reason")

    def _stage(self, old: StageStatus, new: StageStatus, *, asked: bool, suspended: bool) -> None:
        where = f"stage '{new.name}'"
        require(new.attempts - old.attempts in (0, 1), f"{where}: attempts {old.attempts} -> {new.attempts}")
        if new.attempts > old.attempts:
            require(new.current is not None and new.current.number == new.attempts, f"{where}: counted, not named")
        if old.current and (new.current is None or new.current.number != old.current.number):
            number = old.current.number
            last = new.history[-1] if new.history else None
            require(last is not None and last.number == number, f"{where}: attempt {number} was lost")
            assert last is not None
            require(number not in self.ended[new.name], f"{where}: attempt {number} ended twice")
            self.ended[new.name][number] = last.outcome
            if last.outcome == "Stopped":
                require(bool(old.current.stop) or asked or suspended, f"{where}: stopped, but nobody asked")
            self._truth(new, last)
        elif [e.number for e in old.history] != [e.number for e in new.history]:
            raise Violation(f"{where}: history changed from nothing")
        known = set(self.ended[new.name]) | ({new.current.number} if new.current else set())
        require(
            known == set(range(1, new.attempts + 1)), f"{where}: {new.attempts} attempts, known are {sorted(known)}"
        )
        require(len(new.history) <= HISTORY, f"{where}: history of {len(new.history)}")
        self._budget(old, new, asked=asked)

    def _budget(self, old: StageStatus, new: StageStatus, *, asked: bool) -> None:
        where, gone = f"stage '{new.name}'", bool(old.current and not new.current)
        outcome = new.history[-1].outcome if gone else ""
        expected = {old.failures + (outcome in BUDGET)}
        stopped = old.current and old.current.stop == "retry"
        if asked or (stopped and gone):
            expected.add(0)
        elif outcome == "UserError":
            require(new.phase == "Failed", f"{where} is {new.phase} after the user's error")
        elif outcome in BUDGET or outcome == "Preemption":
            wanted = "Failed" if new.failures > self.max_retries else "Backoff"
            require(new.phase == wanted, f"{where} is {new.phase} after '{outcome}' and {new.failures} failures")
        require(new.failures in expected, f"{where}: failures {old.failures} -> {new.failures} after '{outcome}'")
        require(new.failures <= self.max_retries + 1, f"{where}: {new.failures} failures")
        if new.phase == "Backoff":
            require(new.failures <= self.max_retries, f"{where}: tries again after {new.failures} failures")
        free = old.preemptions + (outcome == "Preemption")
        require(new.preemptions == free, f"{where}: preemptions {old.preemptions} -> {new.preemptions}")

    def _truth(self, stage: StageStatus, ended: EndedAttempt) -> None:
        """What is said of an attempt's end against what really happened."""
        number, name, outcome, reason = ended.number, ended.name, ended.outcome, ended.reason
        where = f"attempt {number} of '{stage.name}' is said to be {outcome} ({reason})"
        pipeline = self.api.get("CamelPipeline", PIPELINE_NAME)
        uid = pipeline["metadata"]["uid"] if pipeline else ""
        runs = [r for r in self.cluster.runs.values() if r.name == name and r.pipeline == uid]
        codes = [code for r in runs for code in (r.code, *r.before)]
        if outcome == "Succeeded":
            require(0 in codes, f"{where}, but it returned {codes}")
        if outcome == "UserError":
            refused = reason == "ValidationFailed" or (reason == "Refused" and any(r.refused for r in runs))
            require(refused or any(c in (10, 12) for c in codes), f"{where}, but it returned {codes}")
        if reason == "Deleted":
            by = [r.deleted_by for r in runs]
            require("user" in by, f"{where}, but it was deleted by {by}")
        if outcome == "Stopped":
            return
        if stage.result and stage.result.attempt == number and reason not in OURS:
            require(outcome in CLASS[stage.result.code], f"{where}, but it told {stage.result.code}")
        elif runs and runs[-1].code in CLASS and not runs[-1].head_lost and reason not in (*OURS, *FROM_OUTSIDE):
            require(outcome in CLASS[runs[-1].code], f"{where}, but it returned {runs[-1].code}")

    def _phase(self, stage: StageStatus) -> None:
        where = f"stage '{stage.name}' is {stage.phase}"
        require((stage.current is not None) == (stage.phase in ACTIVE), f"{where} with current={stage.current}")
        plain = stage.phase in ("Waiting", "Running", "Succeeded")
        require(plain or bool(stage.message), f"{where} and does not say why")
        require((stage.retry is not None) == (stage.phase == "Backoff"), f"{where} with retry={stage.retry}")
        if stage.phase in ("Succeeded", "Failed", "Cancelled"):
            require(stage.ended is not None, f"{where} and has not ended")

    # When nothing moves any more

    def at_rest(self, suspended: bool) -> None:
        status = self.status()
        if any(stage.phase == "Queued" for stage in status.stages):
            return  # Kueue may let it wait for ever
        done = status.phase in TERMINAL or (suspended and status.phase == "Suspended")
        require(done, f"all is quiet, but the pipeline is {status.phase}: {status.message}")
        left = [*self.live_objects(), *self.live_pods()]
        require(not left, f"{status.phase}, but there is still {[o['metadata']['name'] for o in left]}")
        for run in self.cluster.runs.values():
            twice = run.entered > 1 and not run.requeued
            require(not twice, f"the process of {run.name} was started {run.entered} times")
        for stage in status.stages:
            if stage.phase == "Succeeded" and stage.name in self.asked_again:
                again = stage.attempts > self.asked_again[stage.name]
                require(again, f"'{stage.name}' did not run again although its user asked for it")
            made = {number for name, number in self.created if name == stage.name}
            require(made <= set(range(1, stage.attempts + 1)), f"'{stage.name}' counts {stage.attempts}, made {made}")
            refused = stage.message.startswith("spec.")  # its user made it impossible on a cluster
            if stage.phase == "Failed" and not refused and stage.history and stage.history[-1].outcome != "UserError":
                require(stage.failures == self.max_retries + 1, f"given up after {stage.failures} failures")


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)
