"""What went into the run: rows read, kept and rejected; warnings; every figure; the configuration; the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from camel_ray.evaluation.record import RunRecord, StageRecord
from camel_ray.evaluation.report.curves import not_finite
from camel_ray.evaluation.report.headline import number
from camel_ray.evaluation.report.markup import Html, element
from camel_ray.evaluation.report.numbers import figure, percent, plural

_EXAMPLES = 20


def data(run: RunRecord) -> Html | None:
    """Rows read, kept and rejected by reason for every data set, with examples of rejected rows."""
    sets = [(s, r) for s in run.stages if (r := _counts(s))]
    dropped = [(s, d) for s in run.stages if isinstance(d := s.metrics.get("dropped"), Mapping) and any(d.values())]
    if not sets and not dropped:
        return None
    rows = [_data_row(stage, counts) for stage, counts in sets]
    names = ("Data set", "Read", "Training", "Validation", "Rejected", "Why")
    classes = (None, "num", "num", "num", "num", "why")
    head = element("tr", [element("th", n, scope="col", class_=c) for n, c in zip(names, classes, strict=True)])
    return element(
        "section",
        element("h2", "Data"),
        element(
            "div", element("table", element("thead", head), element("tbody", rows), class_="figures"), class_="scroll"
        )
        if rows
        else None,
        [element("p", element("b", s.name), " left out ", _reasons(d), ".", class_="note") for s, d in dropped],
        [_examples(stage, counts) for stage, counts in sets],
        id="data",
    )


def _counts(stage: StageRecord) -> Mapping[str, Any] | None:
    if stage.data_report:
        return stage.data_report
    return stage.metrics if stage.kind == "data" and "rows_read" in stage.metrics else None


def _data_row(stage: StageRecord, counts: Mapping[str, Any]) -> Html:
    read, train, validation = (number(counts, n) for n in ("rows_read", "rows_train", "rows_validation"))
    rejected = counts.get("rejected") or {}
    total = sum(rejected.values())
    share = f" ({percent(total / read)})" if read and total else ""
    beyond = (read or 0) - (train or 0) - (validation or 0) - total
    return element(
        "tr",
        element("th", stage.name, element("small", counts.get("format")), scope="row"),
        [element("td", figure(n), class_="num") for n in (read, train, validation)],
        element("td", f"{figure(total)}{share}", class_="num"),
        element("td", _why(rejected, beyond), class_="why"),
    )


def _why(rejected: Mapping[str, Any], beyond: float) -> str:
    """Reasons of rejected rows, and how many good ones the data set's `limit` left unused."""
    unused = [f"{figure(beyond)} more than its limit"] if beyond > 0 else []
    return "; ".join([*filter(None, [_reasons(rejected)]), *unused])


def _reasons(counts: Mapping[str, Any]) -> str:
    ordered = sorted(((n, r) for r, n in counts.items() if n), key=lambda pair: (-pair[0], str(pair[1])))
    return ", ".join(f"{figure(n)} {reason}" for n, reason in ordered)


def _examples(stage: StageRecord, counts: Mapping[str, Any]) -> Html | None:
    examples = counts.get("examples") or []
    if not examples:
        return None
    rows = [
        element(
            "tr",
            element("td", f"{e.get('file', '')}:{e.get('line', '')}", class_="place"),
            element("td", e.get("reason")),
            element("td", e.get("detail"), class_="detail", dir="auto"),
        )
        for e in examples[:_EXAMPLES]
        if isinstance(e, Mapping)
    ]
    return element(
        "details",
        element("summary", f"Rejected rows of {stage.name} ({plural(len(rows), 'example')})"),
        element("div", element("table", element("tbody", rows), class_="examples"), class_="scroll"),
    )


def warnings(run: RunRecord) -> Html | None:
    """Failures, warnings of the stages and figures that were not finite; each once, with how often."""
    found: dict[tuple[str, str], int] = {}
    for stage in run.stages:
        if stage.state == "failed":
            found[(stage.name, stage.message or "failed")] = 1
        for event in stage.events:
            if event.get("event") == "note" and event.get("level") == "warning":
                key = (stage.name, str(event.get("message")))
                found[key] = found.get(key, 0) + 1
    for key in not_finite(run.stages):
        found[key] = 1
    if not found:
        return None
    items = [
        element("li", element("b", stage), " ", message, f" ({times} times)" if times > 1 else None)
        for (stage, message), times in found.items()
    ]
    return element("section", element("h2", "Warnings"), element("ul", items), class_="warnings", id="warnings")


def all_figures(run: RunRecord) -> Html | None:
    """Every metric of every stage, folded away."""
    rows = []
    for stage in run.stages:
        pairs = list(_flat(stage.metrics))
        for i, (name, value) in enumerate(pairs):
            owner = element("th", stage.name, scope="rowgroup", rowspan=len(pairs)) if i == 0 else None
            rows.append(element("tr", owner, element("td", name), element("td", value, class_="num")))
    if not rows:
        return None
    table = element("div", element("table", element("tbody", rows), class_="examples"), class_="scroll")
    return element("details", element("summary", "Every figure of every stage"), table)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            yield f"{prefix}{name}", str(value)
        else:
            yield f"{prefix}{name}", figure(value, 5)


def configuration(run: RunRecord) -> Html:
    """The pipeline file as it was written, the artifacts, and the machine."""
    places = [(f"{s.name} ({kind})", path) for s in run.stages for kind, path in s.artifacts.items()]
    environment = [*run.environment.items(), *([("storage", run.storage)] if run.storage else [])]
    return element(
        "section",
        element("h2", "Configuration"),
        element("details", element("summary", "Pipeline file"), element("pre", run.yaml, class_="yaml"))
        if run.yaml
        else None,
        all_figures(run),
        element("details", element("summary", "Artifacts"), _pairs(places)) if places else None,
        element("details", element("summary", "Environment"), _pairs(environment), open=True) if environment else None,
        id="configuration",
    )


def _pairs(pairs: list[tuple[str, str]]) -> Html:
    return element("dl", [element("div", element("dt", k), element("dd", v)) for k, v in pairs], class_="pairs")
