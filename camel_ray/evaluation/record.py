"""What the report knows of a run: plain values, filled from storage by the runtime at any moment of the run.

`build_report` is a pure function of a `RunRecord`, so the report of a half-finished run is the same code on fewer
values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

StageState = Literal["done", "running", "failed", "waiting", "skipped"]
"""`skipped`: nothing had to be done, because storage already held the stage's artifacts."""


@dataclass(frozen=True)
class StageRecord:
    """One stage: where it stands, how long it took, its figures and everything it reported."""

    name: str
    kind: str
    needs: Sequence[str] = ()
    """Names of the stages it waits for."""
    state: StageState = "waiting"
    started: float | None = None
    """Epoch seconds of the first attempt."""
    finished: float | None = None
    """Epoch seconds of the end of the last attempt; None while it runs."""
    attempts: int = 0
    message: str = ""
    """Why it failed, in one sentence."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Figures of its artifacts (`Output.metrics`)."""
    events: Sequence[Mapping[str, Any]] = ()
    """Lines of its progress file, in order (see `camel_ray.progress`)."""
    data_report: Mapping[str, Any] | None = None
    """`report.json` of a data set."""
    artifacts: Mapping[str, str] = field(default_factory=dict)
    """Path or URI of each artifact by its kind."""


@dataclass(frozen=True)
class RunRecord:
    """A pipeline and what became of it so far."""

    name: str
    document: Mapping[str, Any]
    """The pipeline as its camelCase mapping, defaults included (`CamelPipeline.wire()`)."""
    yaml: str
    """The pipeline file as the user wrote it."""
    stages: Sequence[StageRecord]
    """In pipeline order."""
    storage: str = ""
    """Path or URI that holds the pipeline's artifacts."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions and machine size, label to value, in the order to show them."""
    evaluation: Mapping[str, Any] | None = None
    """`evaluation.json` of the last finished evaluate stage."""
    samples: Sequence[Mapping[str, Any]] = ()
    """Lines of its `samples.jsonl`."""

    def last(self, *kinds: str) -> StageRecord | None:
        """The last stage of one of these kinds, or None."""
        return next((s for s in reversed(self.stages) if s.kind in kinds), None)

    def spec(self, stage: StageRecord) -> Mapping[str, Any]:
        """What the pipeline file says under the stage's member, camelCase; empty if unknown."""
        for entry in (self.document.get("spec") or {}).get("stages") or ():
            if entry.get("name") == stage.name:
                return entry.get(stage.kind) or {}
        return {}
