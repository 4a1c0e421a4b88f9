"""Runs the stages of a pipeline one after the other in this process (`camel-ray run`), or one of them (a cluster's
attempt).

Level-triggered: each run looks at what storage holds, skips what is done, and continues what was interrupted. Stages
share one process because importing the training libraries costs more than a small stage does; whatever a stage leaves
behind in the process is that stage's to clean up (docs/decisions/0003).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from camel_ray.api.graph import direct_needs, looked_at, newest, upstream
from camel_ray.api.pipeline import CamelPipeline, Stage
from camel_ray.errors import CamelError, Preempted, SpecError, Stopped
from camel_ray.manifest import write_atomically
from camel_ray.progress import Progress
from camel_ray.runtime.backup import checkpoints_kept
from camel_ray.runtime.digest import stage_digest
from camel_ray.runtime.process import available_cores, known_failures, prepare_process
from camel_ray.runtime.record import ENVIRONMENT, environment, write_report
from camel_ray.runtime.remote import run_stage
from camel_ray.runtime.storage import Storage
from camel_ray.runtime.store import StageStore
from camel_ray.stages.contract import Artifact, StageContext

PlanState = Literal["done", "new", "changed", "interrupted", "upstream"]


@dataclass(frozen=True)
class StagePlan:
    """What a run would do with a stage, and why."""

    name: str
    kind: str
    state: PlanState
    """done: skipped. new: never ran. changed: its spec, inputs or code changed. interrupted: continues an unfinished
    attempt. upstream: waits for a stage before it, then decides."""
    reason: str
    finished_at: float | None = None
    artifact: Path | None = None


@dataclass(frozen=True)
class RunResult:
    """What a run did."""

    report: Path
    ran: tuple[str, ...]
    skipped: tuple[str, ...]


class RunListener(Protocol):
    """Hears what happens during a run; the terminal display is one."""

    def stage_started(self, name: str, kind: str, index: int, total: int, progress_path: Path, attempt: int) -> None:
        """Stage `index` (from 0) of `total` begins; its events appear in `progress_path`."""

    def stage_skipped(self, name: str, kind: str, index: int, total: int, metrics: Mapping[str, Any]) -> None:
        """The stage is done already."""

    def stage_finished(self, name: str, kind: str, seconds: float, metrics: Mapping[str, Any]) -> None:
        """The stage ended with a result."""

    def stage_failed(self, name: str, error: BaseException) -> None:
        """The stage ended without a result."""

    def run_finished(self, report: Path | None, seconds: float) -> None:
        """All stages are done."""


class Runner:
    """One pipeline on this machine."""

    def __init__(
        self,
        pipeline: CamelPipeline,
        *,
        base_dir: Path,
        storage: str | None = None,
        listener: RunListener | None = None,
        first: str | None = None,
        only: str | None = None,
        fresh: bool = False,
        fresh_for: str = "",
        debug: bool = False,
        accept_done: bool = False,
        lock_seconds: float = 0.0,
    ) -> None:
        """`first`: this stage and those that use it run again. `only`: no other stage runs. `fresh`: all run again.
        `fresh_for`: who asks for `fresh`; what was begun for the same one before is not forgotten, but continued.
        `accept_done`: what stages before `only` have finished counts, whatever the version of the code that made it.
        `lock_seconds`: how long to wait for a run that still holds the storage.
        """
        self.pipeline = pipeline
        self.storage = Storage(storage or pipeline.spec.storage, pipeline.metadata.name)
        self._base_dir = base_dir.resolve()
        self._listener = listener
        self._only = only
        self._debug = debug
        self._accept_done = accept_done
        self._fresh_for = fresh_for
        self._lock_seconds = lock_seconds
        self._raw = [stage.wire() for stage in pipeline.spec.stages]
        names = [stage.name for stage in pipeline.spec.stages]
        for option, name in (("--from", first), ("--only", only)):
            if name is not None and name not in names:
                raise SpecError(f"{option} {name}: the pipeline has no such stage; it has {', '.join(names)}")
        self._forget = {
            name
            for i, name in enumerate(names)
            if fresh or (first is not None and (name == first or first in upstream(self._raw, i)))
        }

    def plan(self) -> list[StagePlan]:
        """What `run` would do now, without doing it."""
        plans: list[StagePlan] = []
        artifacts: dict[str, Artifact] = {}
        undone: set[str] = set()
        for index, stage in enumerate(self.pipeline.spec.stages):
            store = StageStore(self.storage, stage.name)
            waits = [n for n in self._used(index) if n in undone]
            if waits:
                undone.add(stage.name)
                plans.append(StagePlan(stage.name, stage.kind, "upstream", f"after {', '.join(waits)}"))
                continue
            state, digest = store.state(), self._digest(index, artifacts)
            if stage.name in self._forget:
                plan = StagePlan(stage.name, stage.kind, "changed", "asked to run again")
            elif state.phase == "new":
                plan = StagePlan(stage.name, stage.kind, "new", "never ran")
            elif state.digest != digest:
                plan = StagePlan(stage.name, stage.kind, "changed", "its spec, inputs or code changed")
            elif state.phase != "done":
                why = state.message or "its last attempt did not finish"
                plan = StagePlan(stage.name, stage.kind, "interrupted", f"attempt {state.attempts}: {why}")
            else:
                made = store.artifacts(contents=False)
                artifacts.update({stage.name: made[0]})
                plan = StagePlan(stage.name, stage.kind, "done", "up to date", state.finished, made[0].path)
            if plan.state != "done":
                undone.add(stage.name)
            plans.append(plan)
        return plans

    def run(self) -> RunResult:
        """Run what is not done. Raises CamelError, or KeyboardInterrupt when the user stops it; finished work is
        kept.
        """
        began = time.monotonic()
        prepare_process(cores=available_cores(), debug=self._debug)
        with self.storage.at_work(seconds=self._lock_seconds):
            for name, value in (("pipeline.json", self.pipeline.wire()), (ENVIRONMENT, environment())):
                write_atomically(self.storage.root / name, json.dumps(value, indent=1) + "\n")
                self.storage.push(self.storage.root / name)
            for name in self._forget:
                store = StageStore(self.storage, name)
                if self._only in (None, name) and not store.was_begun_for(self._fresh_for):
                    store.forget()
            ran, skipped = self._run_stages()
            report = self._report()
        if self._listener:
            self._listener.run_finished(report, time.monotonic() - began)
        return RunResult(report, tuple(ran), tuple(skipped))

    def _run_stages(self) -> tuple[list[str], list[str]]:
        artifacts: dict[str, Artifact] = {}
        ran: list[str] = []
        skipped: list[str] = []
        total = len(self.pipeline.spec.stages)
        for index, stage in enumerate(self.pipeline.spec.stages):
            store = StageStore(self.storage, stage.name)
            state, digest = store.state(), self._digest(index, artifacts)
            accepted = self._accept_done and stage.name != self._only
            if state.phase == "done" and (state.digest == digest or accepted):
                artifacts[stage.name] = store.artifacts(contents=False)[0]
                skipped.append(stage.name)
                if self._listener:
                    self._listener.stage_skipped(stage.name, stage.kind, index, total, artifacts[stage.name].metrics)
            elif self._only in (None, stage.name):
                artifacts[stage.name] = self._attempt(index, stage, store, digest, artifacts)
                ran.append(stage.name)
            elif self._only and stage.name in upstream(self._raw, self._index(self._only)):
                raise SpecError(
                    f"--only {self._only}: stage '{stage.name}', which it uses, is not done; run without --only"
                )
        return ran, skipped

    def _attempt(
        self, index: int, stage: Stage, store: StageStore, digest: str, artifacts: Mapping[str, Artifact]
    ) -> Artifact:
        for name in self._read(index):
            StageStore(self.storage, name).artifacts(contents=True)
        state = store.begin(digest, fresh_for=self._fresh_for)
        began = time.monotonic()
        try:
            if self._listener:
                total = len(self.pipeline.spec.stages)
                self._listener.stage_started(stage.name, stage.kind, index, total, store.progress_path, state.attempts)
            context = self._context(index, stage, store, state.attempts, artifacts)
            current = partial(store.is_current, state)
            with checkpoints_kept(self.storage, store.work, context.progress, current), known_failures(stage.name):
                outputs = run_stage(context)
            seconds = time.monotonic() - began
            made = store.commit(state, outputs, self._input_digests(index, artifacts), seconds)
        except BaseException as error:
            seconds = time.monotonic() - began
            # The disk may be what failed: then the note and the report fail too, and the first error is the one to see.
            with suppress(OSError, CamelError):
                if store.state().phase == "done":
                    pass  # what failed came after it
                elif isinstance(error, KeyboardInterrupt):
                    store.interrupt(state, "stopped on request", seconds)
                elif isinstance(error, Stopped | Preempted):
                    store.interrupt(state, str(error), seconds)
                else:
                    message = str(error) if isinstance(error, CamelError) else type(error).__name__
                    store.fail(state, message, seconds)
                self._report()
            if self._listener:
                self._listener.stage_failed(stage.name, error)
            raise
        if self._listener:
            self._listener.stage_finished(stage.name, stage.kind, seconds, made[0].metrics)
        return made[0]

    def context_of(self, name: str) -> StageContext:
        """What stage `name` was or would be run with: to look into its work. Raises SpecError if a stage it uses is not
        done.
        """
        self.storage.open()
        index = self._index(name)
        artifacts: dict[str, Artifact] = {}
        for above in upstream(self._raw, index):
            store = StageStore(self.storage, above)
            if store.state().phase != "done":
                raise SpecError(f"stage '{above}', which '{name}' uses, is not done; run the pipeline first")
            artifacts[above] = store.artifacts(contents=above in self._read(index))[0]
        stage, store = self.pipeline.spec.stages[index], StageStore(self.storage, name)
        return self._context(index, stage, store, store.state().attempts, artifacts)

    def _context(
        self, index: int, stage: Stage, store: StageStore, attempt: int, artifacts: Mapping[str, Artifact]
    ) -> StageContext:
        above = upstream(self._raw, index)
        mixed = hashlib.sha256(f"{self.pipeline.spec.seed}/{stage.name}".encode()).digest()
        return StageContext(
            pipeline=self.pipeline,
            stage=stage,
            inputs={name: artifacts[name] for name in above if name in artifacts},
            work=store.work,
            base_dir=self._base_dir,
            progress=Progress(store.progress_path),
            attempt=attempt,
            seed=int.from_bytes(mixed[:4], "big") % 2**31,
            workers=stage.workers if isinstance(stage.workers, int) else stage.workers.min,
            cores=available_cores(),
        )

    def _read(self, index: int) -> list[str]:
        """Stages whose artifacts have to be here when this one runs."""
        return list(dict.fromkeys([*self._used(index), *looked_at(self._raw, index)]))

    def _used(self, index: int) -> list[str]:
        """Stages whose artifacts decide what this one makes: those it names or needs, and the newest of each default
        kind. What `looked_at` adds went into these already.
        """
        defaults = [newest(self._raw, index, kind) for kind in ("model", "tokenizer", "reward-model")]
        return list(dict.fromkeys([*direct_needs(self._raw, index), *(n for n in defaults if n)]))

    def _digest(self, index: int, artifacts: Mapping[str, Artifact]) -> str:
        stage = self.pipeline.spec.stages[index]
        return stage_digest(self.pipeline, stage, self._input_digests(index, artifacts), self._base_dir)

    def _input_digests(self, index: int, artifacts: Mapping[str, Artifact]) -> dict[str, str]:
        return {name: artifacts[name].digest for name in self._used(index) if name in artifacts}

    def _index(self, name: str) -> int:
        return next(i for i, s in enumerate(self.pipeline.spec.stages) if s.name == name)

    def _report(self) -> Path:
        path = write_report(self.pipeline, self.storage)
        self.storage.push(path)
        return path
