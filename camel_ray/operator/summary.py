"""The lines of a status that people read: what `kubectl get camel` shows in its columns, and the conditions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from camel_ray.api.status import TERMINAL, Condition, PipelineStatus, StageStatus
from camel_ray.operator.clock import stamp

_SHOWN = (("loss", "loss"), ("reward", "reward"), ("kl", "kl"), ("accuracy", "accuracy"), ("perplexity", "perplexity"))
_RATE = "tokens_per_second"


def progress_text(stages: list[StageStatus]) -> str:
    """Finished stages and the share of the running one: `2/6, 40%`."""
    done = sum(stage.phase == "Succeeded" for stage in stages)
    text = f"{done}/{len(stages)}"
    for stage in stages:
        told = stage.progress
        if stage.current and told and told.attempt == stage.current.number and told.percentage is not None:
            return f"{text}, {told.percentage}%"
    return text


def metrics_text(stages: list[StageStatus]) -> str:
    """Newest figures of the running stage: `loss 2.1, 5.3k tokens/s`; empty if none runs or it told none."""
    for stage in stages:
        told = stage.progress
        if stage.current and told and told.attempt == stage.current.number:
            shown = [f"{label} {told.metrics[name]:.4g}" for name, label in _SHOWN if name in told.metrics][:3]
            if _RATE in told.metrics:
                shown.append(f"{_short(told.metrics[_RATE])} tokens/s")
            return ", ".join(shown)
    return ""


def conditions(status: PipelineStatus, generation: int | None, now: datetime) -> list[Condition]:
    """The conditions that fit the phase; `lastTransitionTime` moves only with `status`."""
    phase = status.phase
    held = any(stage.phase in ("Backoff", "Queued") for stage in status.stages)
    wanted = {
        "Progressing": phase in ("Pending", "Running") and not held,
        "Suspended": phase == "Suspended",
        "Succeeded": phase == "Succeeded",
        "Failed": phase in ("Failed", "Cancelled"),
    }
    before: Mapping[str, Condition] = {condition.type: condition for condition in status.conditions}
    made = []
    for kind, holds in wanted.items():
        old, word = before.get(kind), "True" if holds else "False"
        made.append(
            Condition(
                type=kind,
                status="True" if holds else "False",
                reason=phase,
                message=status.message if holds or phase in TERMINAL else "",
                last_transition_time=old.last_transition_time if old and old.status == word else stamp(now),
                observed_generation=generation,
            )
        )
    return made


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
