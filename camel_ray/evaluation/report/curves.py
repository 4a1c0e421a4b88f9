"""Which curves each stage has, four small charts to a row, so that stages can be compared at a glance."""

from __future__ import annotations

from collections.abc import Sequence

from camel_ray.evaluation.record import RunRecord, StageRecord
from camel_ray.evaluation.report.charts import Level, line_chart
from camel_ray.evaluation.report.headline import number
from camel_ray.evaluation.report.markup import Html, element
from camel_ray.evaluation.report.numbers import count, duration, figure, percent, plural
from camel_ray.evaluation.report.series import Series, series

_TRAINED = ("pretrain", "sft", "reward", "dpo")
_PHASES = (
    ("seconds_generate", "generate"),
    ("seconds_score", "score"),
    ("seconds_train", "train"),
    ("seconds_sync", "sync"),
)


def curves(run: RunRecord) -> Html | None:
    """Charts of all stages that reported a curve, in pipeline order, or None."""
    blocks = []
    for stage in run.stages:
        charts = _ppo(run, stage) if stage.kind == "ppo" else _training(stage) if stage.kind in _TRAINED else []
        charts = [c for c in charts if c is not None]
        if charts:
            heading = element(
                "h3", stage.name, element("small", stage.kind), element("span", _facts(stage), class_="facts")
            )
            phases = _phases(stage) if stage.kind == "ppo" else None
            blocks.append(element("div", heading, element("div", charts, class_="charts"), phases, class_="stage"))
    return element("section", element("h2", "Curves"), blocks, id="curves") if blocks else None


def _training(stage: StageRecord) -> list[Html | None]:
    def train(metric: str, name: str = "") -> Series | None:
        return series(stage.events, "train", metric, name)

    def validate(metric: str) -> Series | None:
        return series(stage.events, "validate", metric, "validation", held_out=True)

    longer = number(stage.metrics, "accuracy_longer_wins")
    accuracy = line_chart(
        "Accuracy",
        _some(train("accuracy", "training"), validate("accuracy")),
        unit="%",
        level=None if longer is None else Level("longer wins", longer),
        shown=percent,
    )
    return [
        line_chart(
            "Loss",
            _some(train("loss", "training"), validate("loss")),
            unit="nats",
            wide=accuracy is None,
        ),
        accuracy,
        line_chart("Learning rate", _some(train("learning_rate")), from_zero=True),
        line_chart("Gradient norm", _some(train("grad_norm")), from_zero=True),
    ]


def _ppo(run: RunRecord, stage: StageRecord) -> list[Html | None]:
    def both(metric: str) -> list[Series]:
        return _some(
            series(stage.events, "ppo", metric, "training"),
            series(stage.events, "ppo-evaluate", metric, "held out", held_out=True),
        )

    def one(metric: str) -> list[Series]:
        return _some(series(stage.events, "ppo", metric, ""))

    return [
        line_chart("Reward", both("reward")),
        line_chart("KL to the reference", both("kl"), unit="nats", level=_kl_target(run, stage), from_zero=True),
        line_chart("Response length", both("response_length"), unit="tokens", from_zero=True),
        line_chart("Entropy", one("entropy"), unit="nats", from_zero=True),
        line_chart("Policy loss", one("policy_loss")),
        line_chart("Value loss", one("value_loss"), from_zero=True),
        line_chart("Clipped ratios", one("clip_fraction"), unit="% of tokens", from_zero=True, shown=percent),
        line_chart("KL coefficient", one("kl_coefficient"), from_zero=True),
    ]


def _kl_target(run: RunRecord, stage: StageRecord) -> Level | None:
    """The target, once the stage stated it or, before, from the file; a fixed coefficient has none."""
    kl = run.spec(stage).get("kl") or {}
    if kl.get("controller") in ("fixed", "none"):
        return None
    target = number(stage.metrics, "kl_target")
    target = number(kl, "target") if target is None else target
    return None if target is None else Level("target", target)


def _phases(stage: StageRecord) -> Html | None:
    """Where the seconds of the PPO steps went, as one divided bar."""
    totals = []
    for metric, name in _PHASES:
        line = series(stage.events, "ppo", metric, name)
        totals.append((name, sum(y for _, y in line.finite) if line else 0.0))
    whole = sum(seconds for _, seconds in totals)
    if not whole:
        return None
    parts = [
        element("i", class_=f"part p{k}", style=f"width:{100 * seconds / whole:.1f}%")
        for k, (_, seconds) in enumerate(totals)
    ]
    legend = [
        element("span", element("i", class_=f"key p{k}"), name, element("b", percent(seconds / whole)), class_="entry")
        for k, (name, seconds) in enumerate(totals)
    ]
    return element(
        "div",
        element("span", "Time of a step", class_="title"),
        element("div", parts, class_="divided", aria_hidden="true"),
        element("span", legend, class_="legend"),
        element("span", _traffic(stage), class_="facts"),
        class_="phases",
    )


def _traffic(stage: StageRecord) -> str:
    """What a step costs between processes: calls, moved weights, idle groups."""

    def mean(metric: str) -> float | None:
        line = series(stage.events, "ppo", metric, "")
        return sum(y for _, y in line.finite) / len(line.finite) if line and line.finite else None

    facts = []
    if (calls := mean("remote_calls")) is not None:
        facts.append(f"{count(calls)} calls to processes")
    if moved := mean("sync_bytes"):
        facts.append(f"{count(moved)}B of weights moved in {duration(mean('seconds_sync'))}")
    names = dict.fromkeys(n for e in stage.events for n in e.get("metrics") or {} if n.startswith("idle_"))
    idle = [f"{name.removeprefix('idle_')} {percent(mean(name))}" for name in names]
    if idle:
        facts.append("idle: " + ", ".join(idle))
    return " · ".join(facts)


def _facts(stage: StageRecord) -> str:
    """What a heading says about a stage: size, steps, tokens."""
    facts = []
    parameters, steps, tokens = (number(stage.metrics, n) for n in ("parameters", "steps", "tokens"))
    if parameters is not None:
        facts.append(f"{count(parameters)} parameters")
    if steps is not None:
        facts.append(plural(int(steps), "step"))
    if tokens is not None:
        facts.append(f"{count(tokens)} tokens")
    before, after = number(stage.metrics, "response_length_before"), number(stage.metrics, "response_length_after")
    if before is not None and after is not None:
        facts.append(f"answers {figure(before)} to {figure(after)} tokens long")
    return " · ".join(facts)


def _some(*lines: Series | None) -> list[Series]:
    return [line for line in lines if line is not None]


def not_finite(stages: Sequence[StageRecord]) -> list[tuple[str, str]]:
    """A warning for each training figure that was not a finite number at some step: stage and sentence."""
    found = []
    for stage in stages:
        steps: dict[str, list[int]] = {}
        for event in stage.events:
            metrics = event.get("metrics") if event.get("event") == "update" else None
            for name, value in (metrics or {}).items():
                if value is None:
                    steps.setdefault(f"{event.get('task')} {name}", []).append(int(event.get("done", 0)))
        for name, at in steps.items():
            where = f"step {at[0]}" if len(at) == 1 else f"{len(at)} steps, first at step {at[0]}"
            found.append((stage.name, f"{name} was not a finite number at {where}."))
    return found
