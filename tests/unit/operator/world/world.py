"""One pipeline, its cluster, two operators and a user, all taking steps in any order."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from typing import Any

from unit.operator.world.api import Api, Obj
from unit.operator.world.checks import Checks, Violation, require
from unit.operator.world.cluster import PIPELINE_NAME, Cluster, Move
from unit.operator.world.operators import Fault, Operator

from camel_ray.operator.model import Plan
from camel_ray.operator.names import REQUEST

STAGES = (
    {"name": "rows", "data": {"source": "s3://b/rows.jsonl"}},
    {"name": "words", "tokenizer": {"data": "rows"}},
)
ROUNDS = 600
"""Steps of fair play within which everything must have come to rest."""


def explained(step: Callable[..., None]) -> Callable[..., None]:
    """A step whose errors carry the trace."""

    @wraps(step)
    def told(self: World, *args: Any, **kwargs: Any) -> None:
        try:
            step(self, *args, **kwargs)
        except Exception as error:
            if not getattr(error, "__notes__", None):
                error.add_note("\n".join(self.trace[-120:]))
            raise

    return told


class World:
    """Everything there is. `trace` tells what was done, for whoever has to understand a violation."""

    def __init__(self, *, executor: str = "RayJob", queue: str | None = None, max_retries: int = 1) -> None:
        self.api = Api()
        self.cluster = Cluster(self.api)
        self.checks = Checks(self.api, self.cluster, max_retries)
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.trace: list[str] = []
        self._tokens = 0
        cluster = {"image": "trainer:1", "executor": executor} | ({"queue": queue} if queue else {})
        spec = {
            "storage": "s3://b/a",
            "cluster": cluster,
            "retry": {"maxRetries": max_retries, "backoffSeconds": 10},
            "stages": list(STAGES),
        }
        kind = {"apiVersion": "camel-ray.dev/v1alpha1", "kind": "CamelPipeline"}
        self._file = {**kind, "metadata": {"name": PIPELINE_NAME, "namespace": "ns"}, "spec": spec}
        self.api.create(self._file)
        self.operators = [self._operator("a"), self._operator("b")]

    @property
    def pipeline(self) -> Obj:
        found = self.api.get("CamelPipeline", PIPELINE_NAME)
        assert found is not None
        return found

    def _operator(self, name: str) -> Operator:
        return Operator(
            self.api,
            name,
            after_write=self._after_write,
            before_create=self.checks.before_create,
            created=self.cluster.appeared,
            deleted=lambda obj: self._gone(obj, "operator"),
        )

    def _after_write(self, before: Obj, plan: Plan) -> None:
        status = self.checks.status()
        self.trace.append(
            f"    status: {status.phase}: {status.message} | "
            + ", ".join(f"{s.name} {s.phase} n={s.attempts} f={s.failures}" for s in status.stages)
        )
        self.checks.after_write(before, plan)

    def _gone(self, obj: Obj, by: str) -> None:
        run = self.cluster.runs[obj["metadata"]["uid"]]
        run.deleted_by = run.deleted_by or by

    # Steps

    def advance(self, seconds: float) -> None:
        self.trace.append(f"{seconds:g} s pass")
        self.now += timedelta(seconds=seconds)

    @explained
    def take(self, move: Move) -> None:
        self.trace.append(move.label)
        move.act()

    @explained
    def decide(self, operator: Operator) -> None:
        operator.decide(self.now)
        plan = operator.plan[1] if operator.plan else None
        done = [f"{type(o).__name__}" for o in plan.operations] if plan else []
        self.trace.append(f"{operator.name} decides: {done} again in {plan.requeue_seconds if plan else None}")
        require(plan is None or plan.requeue_seconds is None or plan.requeue_seconds > 0, "requeue at once, for ever")

    @explained
    def carry_out(self, operator: Operator, fault: Fault | None = None) -> None:
        self.trace.append(f"{operator.name} carries out, {fault}")
        self.trace.append(f"    {operator.carry_out(self.now, fault)}")

    def turn(self, operator: Operator, fault: Fault | None = None) -> None:
        self.decide(operator)
        self.carry_out(operator, fault)

    def restart(self, operator: Operator) -> None:
        self.trace.append(f"{operator.name} restarts")
        operator.restart()

    def hang(self, operator: Operator, kind: str) -> None:
        """A watch hears nothing any more, until its operator restarts."""
        self.trace.append(f"{operator.name} hears no more of {kind}")
        operator.deaf.add(kind)

    def go_on(self, count: int) -> None:
        """The first operator knows everything, and the cluster does what it should."""
        operator = self.operators[0]
        for _ in range(count):
            operator.hear_all()
            self.turn(operator)
            moves = self.cluster.fair_moves()
            if moves:
                self.take(moves[0])
            self.advance(2)

    # The user

    def wishes(self) -> list[Move]:
        """What the user may do now."""
        pipeline, status = self.pipeline, self.checks.status()
        suspended = pipeline["spec"].get("suspend", False)

        def ask(request: str) -> Move:
            return Move(f"user asks: {request}", partial(self._ask, request), False)

        found = [
            Move(f"user sets suspend={not suspended}", partial(self._edit, {"suspend": not suspended}), False),
            ask("retry -"),
            ask("cancel -"),
            *(ask(f"retry {stage['name']}") for stage in STAGES),
            ask("dance"),
            Move("user deletes the pipeline and applies it again", self._begin_anew, False),
        ]
        if not status.started_stages:
            storage = "s3://b/a" if pipeline["spec"]["storage"].startswith(".") else "./here"
            found.append(Move(f"user sets storage {storage}", partial(self._edit, {"storage": storage}), False))
        executor = "Job" if pipeline["spec"]["cluster"]["executor"] == "RayJob" else "RayJob"
        change = partial(self._edit, {"cluster": {"executor": executor}})
        found.append(Move(f"user sets executor {executor}", change, False))
        rows, last = pipeline["spec"]["stages"]
        if last["name"] not in status.started_stages:
            other = "tokens" if last["name"] == "words" else "words"
            change = partial(self._rename, [rows, {**last, "name": other}])
            found.append(Move(f"user calls stage {last['name']} {other}", change, False))
        noted = {stage.current.uid for stage in status.stages if stage.current}
        for kind in ("RayJob", "Job"):
            for obj in self.api.all(kind):
                if obj["metadata"]["uid"] in noted and "deletionTimestamp" not in obj["metadata"]:
                    found.append(Move(f"user deletes {obj['metadata']['name']}", partial(self._delete, obj), False))
        return found

    def _ask(self, request: str) -> None:
        self._tokens += 1
        value = f"{request} {self._tokens}"
        self.api.update("CamelPipeline", PIPELINE_NAME, {"metadata": {"annotations": {REQUEST: value}}})

    def _begin_anew(self) -> None:
        self.api.drop("CamelPipeline", PIPELINE_NAME)
        self.api.create(self._file)
        self.checks.forget()

    def _edit(self, spec: Obj) -> None:
        self.api.update("CamelPipeline", PIPELINE_NAME, {"spec": spec})

    def _rename(self, stages: list[Obj]) -> None:
        self._edit({"stages": stages})
        self.checks.cancelled = False  # of that stage nobody has said anything

    def _delete(self, obj: Obj) -> None:
        self._gone(obj, "user")
        self.api.delete(obj["kind"], obj["metadata"]["name"])

    # The end

    @explained
    def settle(self) -> None:
        """From now on nothing goes wrong. One operator is left, and it looks only when something has changed or its
        timer rings, as the real queue does. All must come to rest.
        """
        self.trace.append("--- from here on all is well")
        operator, _ = self.operators
        operator.plan, operator.deaf = None, set()
        operator.dirty = True  # what it was about has to come back: a failed plan is tried again
        for _ in range(ROUNDS):
            operator.hear_all()
            if operator.dirty or (operator.due is not None and operator.due <= self.now):
                self.turn(operator)
                continue
            fair = self.cluster.fair_moves()
            if fair:
                self.take(fair[0])
            elif operator.due is not None:
                self.trace.append(f"time passes until {operator.due}")
                self.now = max(self.now, operator.due)
            else:
                return self.checks.at_rest(bool(self.pipeline["spec"].get("suspend")))
        status = self.checks.status()
        raise Violation(f"never comes to rest: {status.phase}: {status.message}")
