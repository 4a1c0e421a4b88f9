"""The pipeline as a picture: a layered drawing (Sugiyama et al. 1981) of the stages, and who uses whose artifact.

It is drawn twice, left to right and top to bottom, and the page shows the one that fits the screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from camel_ray.api.graph import PRODUCES, newest, references
from camel_ray.evaluation.record import RunRecord, StageRecord
from camel_ray.evaluation.report.markup import Html, element
from camel_ray.evaluation.report.numbers import count

_MARKS = {"done": "✓", "skipped": "✓", "running": "●", "failed": "✕", "waiting": "○"}
_SWEEPS = 8
_ARROW = 6


@dataclass(frozen=True)
class Size:
    """Measures of a drawing in pixels: a box, and the space between boxes along and across the direction of flow."""

    width: int
    height: int
    along: int
    across: int


_WIDE = Size(width=122, height=62, along=34, across=18)
_TALL = Size(width=108, height=62, along=30, across=10)


def pipeline_diagram(run: RunRecord) -> Html | None:
    """Both drawings of a run, or None for a run without stages."""
    if not run.stages:
        return None
    used = flow(run)
    layers = _ordered(_layers([s.name for s in run.stages], used), used)
    return element(
        "div",
        _draw(run, used, layers, _WIDE, downwards=False),
        _draw(run, used, layers, _TALL, downwards=True),
        class_="diagram",
    )


def flow(run: RunRecord) -> dict[str, list[str]]:
    """For each stage the earlier stages whose artifacts it uses: named in its fields, or taken by default.

    The default order of stages (`needs`) is not drawn where nothing passes along it. A run whose document does not fit
    its stages is drawn by their `needs`.
    """
    stages = (run.document.get("spec") or {}).get("stages") or []
    known = {s.name for s in run.stages}
    if [e.get("name") for e in stages] != [s.name for s in run.stages]:
        return {s.name: [n for n in s.needs if n in known] for s in run.stages}
    return {s.name: _uses(stages, i, s.kind) for i, s in enumerate(run.stages)}


def _uses(stages: Sequence[Mapping[str, Any]], index: int, kind: str) -> list[str]:
    member = stages[index].get(kind) or {}
    earlier = [e["name"] for e in stages[:index]]
    used = [r.value for r in references(kind, member) if r.value in earlier]
    defaults: list[str | None] = []
    if kind in ("pretrain", "sft", "reward", "dpo", "ppo", "evaluate") and member.get("model") is None:
        defaults.append(newest(stages, index, "model"))
    if kind in ("pretrain", "sft", "reward", "dpo") and not any(
        _makes(stages, n) == "model" for n in [*used, *defaults]
    ):
        defaults.append(newest(stages, index, "tokenizer") if member.get("tokenizer") is None else None)
    if kind == "evaluate" and member.get("rewardModel") is None:
        defaults.append(newest(stages, index, "reward-model"))
    return [n for n in earlier if n in {*used, *defaults}]


def _makes(stages: Sequence[Mapping[str, Any]], name: str | None) -> str | None:
    return next((PRODUCES[k] for e in stages if e.get("name") == name for k in PRODUCES if e.get(k) is not None), None)


def _layers(names: Sequence[str], used: Mapping[str, Sequence[str]]) -> list[list[tuple[str, str]]]:
    """Nodes by longest path from the start; an edge over several layers gets a stand-in node in each.

    A node is `(name, name)`, a stand-in `(source, "")`.
    """
    depth: dict[str, int] = {}
    for name in names:
        depth[name] = max((depth[u] + 1 for u in used[name]), default=0)
    # A stage without inputs moves next to the first stage that uses it, so its edge is short.
    for name in names:
        users = [depth[t] for t in names if name in used[t]]
        if not used[name] and users:
            depth[name] = min(users) - 1
    layers: list[list[tuple[str, str]]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in names:
        layers[depth[name]].append((name, name))
        for source in used[name]:
            for between in range(depth[source] + 1, depth[name]):
                # Edges of one source share their way.
                if (source, "") not in layers[between]:
                    layers[between].append((source, ""))
    return layers


def _ordered(layers: list[list[tuple[str, str]]], used: Mapping[str, Sequence[str]]) -> list[list[tuple[str, str]]]:
    """Sort each layer by the mean position of its neighbours, from both sides in turn: most crossings go away."""

    def linked(left: tuple[str, str], right: tuple[str, str]) -> bool:
        if right[1] == "":
            return left[0] == right[0]
        return left[0] in used[right[0]]

    for sweep in range(_SWEEPS):
        steps = range(1, len(layers)) if sweep % 2 == 0 else range(len(layers) - 2, -1, -1)
        for i in steps:
            beside = layers[i - 1] if sweep % 2 == 0 else layers[i + 1]
            keys = {}
            for place, node in enumerate(layers[i]):
                pairs = [(other, node) if sweep % 2 == 0 else (node, other) for other in beside]
                near = [k for k, (a, b) in enumerate(pairs) if linked(a, b)]
                keys[node] = (
                    sum(near) / len(near) / max(1, len(beside) - 1) if near else place / max(1, len(layers[i]) - 1)
                )
            layers[i].sort(key=lambda node: keys[node])
    return layers


def _draw(
    run: RunRecord,
    used: Mapping[str, Sequence[str]],
    layers: list[list[tuple[str, str]]],
    size: Size,
    *,
    downwards: bool,
) -> Html:
    length, breadth = (size.height, size.width) if downwards else (size.width, size.height)
    thin = 14  # room a passing edge takes across the flow

    def extent(layer: list[tuple[str, str]]) -> int:
        return sum(breadth if b else thin for _, b in layer) + size.across * (len(layer) - 1)

    broad = max(map(extent, layers))
    places: dict[tuple[str, str, int], tuple[float, float]] = {}  # node and layer -> start along, middle across
    for depth, layer in enumerate(layers):
        across = (broad - extent(layer)) / 2
        for node in layer:
            room = breadth if node[1] else thin
            places[(*node, depth)] = (1 + depth * (length + size.along), 1 + across + room / 2)
            across += room + size.across
    depth_of = {name: depth for name, other, depth in places if other}

    edges = []
    for target in used:
        for source in used[target]:
            stops = [(source, source, depth_of[source])]
            stops += [(source, "", d) for d in range(depth_of[source] + 1, depth_of[target])]
            stops.append((target, target, depth_of[target]))
            edges.append(element("path", d=_edge([places[s] for s in stops], length, downwards), class_="edge"))
    boxes = []
    for stage in run.stages:
        along, across = places[(stage.name, stage.name, depth_of[stage.name])]
        x, y = (across - breadth / 2, along) if downwards else (along, across - breadth / 2)
        boxes.append(_box(stage, x, y, size))

    total = len(layers) * (length + size.along) - size.along + 2
    width, height = (broad + 2, total) if downwards else (total, broad + 2)
    marker = "arrow-down" if downwards else "arrow-right"
    arrow = element("path", d="M0 0L6 3L0 6Z", class_="head")
    definition = element(
        "marker",
        arrow,
        id=marker,
        markerWidth=_ARROW,
        markerHeight=6,
        refX=1,
        refY=3,
        orient="auto",
        markerUnits="userSpaceOnUse",
    )
    label = "Pipeline: " + "; ".join(f"{t} uses {', '.join(used[t])}" for t in used if used[t])
    return element(
        "svg",
        element("defs", definition),
        element("g", edges, marker_end=f"url(#{marker})"),
        boxes,
        viewBox=f"0 0 {width:g} {height:g}",
        style=f"max-width:{width:g}px;min-width:min({width:g}px,{'280' if downwards else '620'}px)",
        class_="tall" if downwards else "flat",
        role="img",
        aria_label=label,
    )


def _edge(stops: list[tuple[float, float]], length: int, downwards: bool) -> str:
    """A smooth path through the stops, straight where it passes a layer."""

    def at(along: float, across: float) -> str:
        return f"{across:g} {along:g}" if downwards else f"{along:g} {across:g}"

    along, across = stops[0]
    path = "M" + at(along + length, across)
    for number, (next_along, next_across) in enumerate(stops[1:], start=2):
        start, end = along + length, next_along - (_ARROW if number == len(stops) else 0)
        middle = (start + end) / 2
        path += f"C{at(middle, across)} {at(middle, next_across)} {at(end, next_across)}"
        if number < len(stops):
            path += "L" + at(next_along + length, next_across)
        along, across = next_along, next_across
    return path


def _box(stage: StageRecord, x: float, y: float, size: Size) -> Html:
    name = stage.name if len(stage.name) <= 15 else stage.name[:14] + "…"
    return element(
        "g",
        element("title", f"{stage.name} ({stage.kind}): {stage.state}"),
        element("rect", width=size.width, height=size.height, rx=6),
        element("text", _MARKS[stage.state], x=size.width - 9, y=19, class_="mark", text_anchor="end"),
        element("text", name, x=10, y=20, class_="name"),
        element("text", stage.kind, x=10, y=36, class_="kind"),
        element("text", made(stage) or "", x=10, y=52, class_="made"),
        transform=f"translate({x:g} {y:g})",
        class_=f"box {stage.state}",
    )


def made(stage: StageRecord) -> str | None:
    """The artifact of a stage in a few words, once there is one: `4,912 rows`, `1.32M parameters`."""
    metrics = stage.metrics
    for name, noun in (("rows_train", "rows"), ("vocab_size", "tokens"), ("parameters", "parameters")):
        value = metrics.get(name)
        if isinstance(value, int | float):
            short = "params" if noun == "parameters" else noun
            return f"{count(value)} {short}"
    if stage.state in ("done", "skipped"):
        return str(PRODUCES.get(stage.kind, "")) or None
    return None
