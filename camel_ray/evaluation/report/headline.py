"""The verdict: the results that decide whether a run was worth it, each beside what it has to be compared with.

Was the text learned, does the reward model know better than "the longer answer wins", and did PPO raise the reward
within its KL target? All figures come from the stages' metrics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from camel_ray.evaluation.record import RunRecord, StageRecord
from camel_ray.evaluation.report.markup import Html, element
from camel_ray.evaluation.report.numbers import duration, figure, percent, plural, signed
from camel_ray.evaluation.report.timeline import busy_seconds


@dataclass(frozen=True)
class Headline:
    """One result: the figure, what it is, what it is compared with, and the clause it adds to the verdict."""

    value: str
    label: str
    detail: str
    clause: str
    good: bool | None
    """Whether the comparison went the right way; None while there is nothing to compare."""
    gauge: Html | None = None


def headlines(run: RunRecord) -> list[Headline]:
    """The results of the run, in pipeline order; stages the pipeline does not have are left out."""
    found = []
    for kinds, make in ((("pretrain",), _perplexity), (("reward",), _reward), (("ppo",), _ppo)):
        stage = run.last(*kinds)
        if stage is not None:
            found.append(make(run, stage) or _pending(stage))
    wins = _wins(run)
    return [*found, wins] if wins else found


def verdict(run: RunRecord) -> Html:
    """The first lines of the report: a sentence, and the results with their comparisons."""
    results = headlines(run)
    cards = [
        element(
            "div",
            element("dt", r.label),
            element("dd", r.value, class_="value" if r.good is not False else "value bad"),
            element("dd", r.detail, class_="detail"),
            r.gauge,
        )
        for r in results
    ]
    return element(
        "section",
        element("p", _sentence(run, results), class_="lead"),
        element("dl", cards, class_="cards") if cards else None,
        class_="verdict",
        aria_label="Verdict",
    )


def _sentence(run: RunRecord, results: list[Headline]) -> str:
    states = [s.state for s in run.stages]
    done = sum(s in ("done", "skipped") for s in states)
    spent = f" in {duration(busy_seconds(run))}" if busy_seconds(run) else ""
    failed = next((s for s in run.stages if s.state == "failed"), None)
    if not states:
        start = "The pipeline has no stages."
    elif failed:
        start = f"Stage {failed.name} failed; {done} of {plural(len(states), 'stage')} done{spent}."
    elif done < len(states):
        start = f"{done} of {plural(len(states), 'stage')} done{spent}."
    else:
        start = f"{plural(done, 'stage')} done{spent}." if done < 3 else f"All {done} stages done{spent}."
    clauses = [r.clause for r in results if r.clause]
    if not clauses:
        return start
    listed = clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + " and " + clauses[-1]
    return f"{start} {listed[0].upper()}{listed[1:]}."


def _pending(stage: StageRecord) -> Headline:
    labels = {"pretrain": "Perplexity fall", "reward": "Reward accuracy", "ppo": "Reward gained by PPO"}
    return Headline("–", labels[stage.kind], f"stage {stage.name} is {stage.state}", "", None)


def _perplexity(run: RunRecord, stage: StageRecord) -> Headline | None:
    before, after = number(stage.metrics, "perplexity_untrained"), number(stage.metrics, "perplexity")
    if not before or not after:
        return None
    ratio = before / after
    better = ratio > 1
    return Headline(
        value=f"{figure(ratio)}×",
        label="Perplexity fall",
        detail=f"{figure(before)} untrained, {figure(after)} after {stage.name}, on held-out text",
        clause="the model learned the text" if better else "pretraining did not lower perplexity",
        good=better,
    )


def _reward(run: RunRecord, stage: StageRecord) -> Headline | None:
    accuracy, longer = number(stage.metrics, "accuracy"), number(stage.metrics, "accuracy_longer_wins")
    if accuracy is None:
        return None
    if longer is None:
        return Headline(percent(accuracy), "Reward accuracy", "of held-out pairs ranked right", "", None)
    better = accuracy > longer
    return Headline(
        value=percent(accuracy),
        label="Reward accuracy",
        detail=f"of held-out pairs ranked right; “the longer answer wins”: {percent(longer)}",
        clause=f"the reward model {'beats' if better else 'does not beat'} “the longer answer wins”",
        good=better,
        gauge=_gauge(accuracy, longer, 1.0, f"accuracy {percent(accuracy)}, longer wins {percent(longer)}"),
    )


def _ppo(run: RunRecord, stage: StageRecord) -> Headline | None:
    before, after = number(stage.metrics, "reward_before"), number(stage.metrics, "reward_after")
    std, kl, target = (number(stage.metrics, n) for n in ("reward_std_before", "kl", "kl_target"))
    if before is None or after is None:
        return None
    gain = (after - before) / std if std else None
    detail = f"mean reward {figure(before, 2)} to {figure(after, 2)} on held-out prompts"
    clause = "PPO raised the reward" if after > before else "PPO did not raise the reward"
    gauge = None
    if kl is not None and target:
        within = kl <= target
        detail += f"; KL {figure(kl, 2)} of {figure(target, 2)} nats"
        clause += " within its KL target" if within else ", with KL above its target"
        gauge = _gauge(
            kl, target, max(kl, target) * 1.15, f"KL {figure(kl)} nats, target {figure(target)}", bad=not within
        )
    return Headline(
        value=f"{signed(gain, 2)} σ" if gain is not None else signed(after - before),
        label="Reward gained by PPO",
        detail=detail,
        clause=clause,
        good=after > before,
        gauge=gauge,
    )


def _wins(run: RunRecord) -> Headline | None:
    result = (run.evaluation or {}).get("win_rate")
    rate = number(result, "rate") if isinstance(result, Mapping) else None
    if rate is None or not isinstance(result, Mapping):
        return None
    low, high = number(result, "low"), number(result, "high")
    baseline = (run.evaluation or {}).get("baseline")
    interval = f"; 95 % interval {percent(low)} to {percent(high)}" if low is not None and high is not None else ""
    return Headline(
        value=percent(rate),
        label="Wins against the baseline",
        detail=f"judged by the reward model against {baseline or 'the baseline'}{interval}",
        clause="",
        good=None if low is not None and low <= 0.5 else rate > 0.5,
        gauge=_gauge(rate, 0.5, 1.0, f"win rate {percent(rate)}, even is 50 %"),
    )


def number(values: Mapping[str, Any] | None, name: str) -> float | None:
    """A finite number of a mapping, or None."""
    value = (values or {}).get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _gauge(value: float, mark: float, full: float, label: str, *, bad: bool = False) -> Html:
    """A bar filled up to `value` with a tick at `mark`."""
    return element(
        "dd",
        element(
            "i", style=f"width:{100 * min(1.0, max(0.0, value / full)):.1f}%", class_="fill bad" if bad else "fill"
        ),
        element("i", style=f"left:{100 * min(1.0, mark / full):.1f}%", class_="tick"),
        class_="gauge",
        role="img",
        aria_label=label,
    )
