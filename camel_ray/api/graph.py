"""Which stages a stage uses: by name in its fields, by `needs`, and by default.

Pure functions over the camelCase mapping of a stage, because the rules run on files whose models do not validate yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PRODUCES: Mapping[str, str] = {
    "data": "dataset",
    "tokenizer": "tokenizer",
    "pretrain": "model",
    "sft": "model",
    "reward": "reward-model",
    "dpo": "model",
    "ppo": "model",
    "evaluate": "report",
}
"""Kind of stage to the kind of artifact it makes."""


@dataclass(frozen=True)
class Reference:
    """A field that names another stage, or could."""

    field: str
    """Dotted path of the field inside the stage's member, for example `reward.model`."""
    value: str
    wants: tuple[str, ...]
    """Artifact kinds that fit."""
    only_stages: bool
    """True where the value can be nothing but a stage name (data references)."""


_DATA = (("dataset",), True)
_MODEL = (("model",), False)
_FIELDS: Mapping[str, Sequence[tuple[str, tuple[tuple[str, ...], bool]]]] = {
    "tokenizer": (("data", _DATA),),
    "pretrain": (("data", _DATA), ("model", _MODEL), ("tokenizer", (("tokenizer",), False))),
    "sft": (("data", _DATA), ("model", _MODEL), ("tokenizer", (("tokenizer",), False))),
    "reward": (("data", _DATA), ("model", _MODEL), ("tokenizer", (("tokenizer",), False))),
    "dpo": (
        ("data", _DATA),
        ("model", _MODEL),
        ("reference", _MODEL),
        ("tokenizer", (("tokenizer",), False)),
    ),
    "ppo": (
        ("prompts", _DATA),
        ("ptx.data", _DATA),
        ("model", _MODEL),
        ("critic", (("model", "reward-model"), False)),
        ("reward.model", (("reward-model",), False)),
    ),
    "evaluate": (
        ("data", _DATA),
        ("text", _DATA),
        ("model", _MODEL),
        ("baseline", _MODEL),
        ("rewardModel", (("reward-model",), False)),
    ),
}


def members(stage: Mapping[str, Any]) -> list[str]:
    """The kinds a stage mapping declares; a valid stage has exactly one."""
    return [kind for kind in PRODUCES if stage.get(kind) is not None]


def references(kind: str, member: Any) -> Iterator[Reference]:
    """All fields of a member that name a stage or could; values of other types are left to the schema."""
    for field, (wants, only_stages) in _FIELDS.get(kind, ()):
        value: Any = member
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping) and not only_stages:
                item = item.get("source")
            if isinstance(item, str):
                yield Reference(field, item, wants, only_stages)


def direct_needs(stages: Sequence[Mapping[str, Any]], index: int) -> list[str]:
    """Names of the stages that stage `index` uses directly: its `needs` (default: the one before) and those it
    names.
    """
    stage = stages[index]
    needs = stage.get("needs")
    if not isinstance(needs, list):
        needs = [stages[index - 1].get("name")] if index else []
    earlier = [s.get("name") for s in stages[:index]]
    named = [r.value for kind in members(stage) for r in references(kind, stage[kind]) if r.value in earlier]
    return list(dict.fromkeys(n for n in [*needs, *named] if isinstance(n, str)))


def upstream(stages: Sequence[Mapping[str, Any]], index: int) -> list[str]:
    """Names of all stages that stage `index` uses directly or through others, in pipeline order."""
    position = {s.get("name"): i for i, s in enumerate(stages)}
    seen: set[str] = set()
    open_names = direct_needs(stages, index)
    while open_names:
        name = open_names.pop()
        at = position.get(name)
        if name not in seen and at is not None and at < index:
            seen.add(name)
            open_names.extend(direct_needs(stages, at))
    return [s["name"] for s in stages[:index] if s.get("name") in seen]


def newest(stages: Sequence[Mapping[str, Any]], index: int, artifact: str) -> str | None:
    """Name of the last stage upstream of stage `index` that makes an `artifact`, or None."""
    names = set(upstream(stages, index))
    for stage in reversed(stages[:index]):
        if stage.get("name") in names and any(PRODUCES[k] == artifact for k in members(stage)):
            return str(stage["name"])
    return None


def looked_at(stages: Sequence[Mapping[str, Any]], index: int) -> list[str]:
    """Names of further stages whose artifacts an `evaluate` stage reads by default: the text of the newest pretrain
    stage, and the model that the one it measures started from.
    """
    member = stages[index].get("evaluate")
    if not isinstance(member, Mapping):
        return []
    names = set(upstream(stages, index))
    above = {s.get("name"): i for i, s in enumerate(stages[:index]) if s.get("name") in names}
    found: list[Any] = []
    if member.get("text") is None:
        trained = [stages[i]["pretrain"] for i in above.values() if isinstance(stages[i].get("pretrain"), Mapping)]
        found += [trained[-1].get("data")] if trained else []
    if member.get("baseline") is None:
        at = above.get(_source(member.get("model")) or newest(stages, index, "model"))
        if at is not None:
            own = [
                stages[at][kind].get("model") for kind in members(stages[at]) if isinstance(stages[at][kind], Mapping)
            ]
            found.append(next(map(_source, own), None) or newest(stages, at, "model"))
    return [name for name in found if isinstance(name, str) and name in above]


def _source(model: Any) -> str | None:
    """The stage, path or hub id that a model field names."""
    source = model.get("source") if isinstance(model, Mapping) else model
    return source if isinstance(source, str) else None
