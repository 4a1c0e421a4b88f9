"""Puts pydantic's errors into one plain sentence per mistake.

Pydantic reports every member of a union that did not fit, in its own words. Here the errors of one place become one
sentence that is written from the schema: what stands there, what should, and the nearest word that would have been
right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from camel_ray.api import hf_arguments
from camel_ray.api.base import Spec
from camel_ray.api.fields import choices, expected, fields, is_required, locate, models
from camel_ray.api.pipeline import STAGE_KINDS, CamelPipeline, PipelineSpec, Stage
from camel_ray.api.rules import TRAINING, nearest
from camel_ray.api.yaml_source import FieldPath, Problem, Source

_MISSING = object()
_ELSEWHERE = "see docs/reference/operator.md"
"""Where the fields of other files than pipelines are described: that of the operator's configuration."""


def schema_problems(error: ValidationError, source: Source, root: type[Spec] = CamelPipeline) -> list[Problem]:
    """One problem per place that does not fit the schema of `root`. Rules over several fields (errors of the root) are
    left out.
    """
    kinds: dict[FieldPath, str] = {}
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        path = _real_path(item["loc"], source.value, root)
        if path:
            kinds.setdefault(path, item["type"])
    found = []
    for path, kind in kinds.items():
        # a union whose mapping member fits in shape but not inside: the errors inside say it all
        if any(len(other) > len(path) and other[: len(path)] == path for other in kinds):
            continue
        # a missing field stands nowhere: its line is that of the mapping it is missing from
        found.append(Problem(source.line(path), path, _sentence(path, kind, source.value, root)))
    return found


def _real_path(location: tuple[str | int, ...], document: Any, root: type[Spec]) -> FieldPath:
    """A pydantic location without the names of union members, which stand between keys."""
    path: list[str | int] = []
    value = document
    for i, part in enumerate(location):
        inside = (isinstance(value, Mapping) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        )
        if inside:
            value = value[part]
            path.append(part)
        elif i == len(location) - 1 and isinstance(value, Mapping) and _names_field(path, part, root):
            path.append(part)
    return tuple(path)


def _names_field(path: list[str | int], part: str | int, root: type[Spec]) -> bool:
    place = locate(root, path)
    return place is not None and any(part in fields(model) for model in models(place[0]))


def _sentence(path: FieldPath, kind: str, document: Any, root: type[Spec]) -> str:
    if kind == "extra_forbidden":
        return _unknown(path, document, root)
    value = _value(document, path)
    place = locate(root, path)
    if place is None:
        return "does not fit the schema"
    annotation, metadata = place
    wanted = expected(annotation, metadata)
    if value is _MISSING:
        return f"is required: {wanted}; {_explain(path, root)}"
    if value is None:
        return f"is empty; it should be {wanted}, so give it a value or delete the line"
    hint = ""
    allowed = choices(annotation)
    if isinstance(value, str) and allowed:
        hint = nearest(value, [str(c) for c in allowed])
    elif isinstance(value, str) and _numeric(value) and "number" in wanted:
        hint = " Write it without quotes."
    elif isinstance(value, bool | int | float) and "text" in wanted:
        hint = " Put it in quotes."
    return (
        f"should be {wanted}, not {show(value)}.{hint}"
        if hint
        else f"should be {wanted}, not {show(value)}; {_explain(path, root)}"
    )


def _explain(path: FieldPath, root: type[Spec]) -> str:
    """The remedy that always works: where the field is described; the keys of a free mapping have no description."""
    if root is not CamelPipeline:
        return _ELSEWHERE
    place = locate(CamelPipeline, path[:-1])
    if place is not None and isinstance(path[-1], str) and not models(place[0]):
        path = path[:-1]
    return f"see `camel-ray explain {explain_path(path)}`"


def explain_path(path: FieldPath) -> str:
    """The short path that `camel-ray explain` takes: stages begin with their kind."""
    keys = [p for p in path if isinstance(p, str)]
    if keys[:2] == ["spec", "stages"] and len(keys) > 2 and keys[2] in STAGE_KINDS:
        keys = keys[2:]
    return ".".join(keys)


def show(value: Any) -> str:
    """A value as a user wrote it, cut to a few words."""
    if isinstance(value, Mapping | list):
        text = json.dumps(value, ensure_ascii=False, default=str).replace('"', "")
        return text if len(text) <= 40 else "a mapping" if isinstance(value, Mapping) else f"a list of {len(value)}"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"'{value[:40]}...'" if len(value) > 43 else f"'{value}'"
    return str(value)


def _unknown(path: FieldPath, document: Any, root: type[Spec]) -> str:
    """Why a key is not known: the other spelling, the place it belongs to, or the nearest known key."""
    *parent, key = path
    assert isinstance(key, str)
    place = locate(root, parent)
    owners = models(place[0]) if place else []
    known = {name: info for model in owners for name, info in fields(model).items()}
    camel = _camel(key)
    if camel in known:
        return f"is not known in this spelling; fields are written in camelCase, so write `{camel}`"
    present = _value(document, tuple(parent))
    missing = [name for name in known if not isinstance(present, Mapping) or name not in present]
    home = _belongs(camel, tuple(parent)) if root is CamelPipeline else ""
    reasons = [reason for reason in (home, nearest(key, missing).strip()) if reason]
    if reasons:
        return (
            f"is not known here{'; ' if reasons[0][0].islower() else '. '}{'. '.join(r.rstrip('.') for r in reasons)}"
        )
    if not missing:
        return "is not known here; delete the line"
    if len(missing) <= 12:
        return f"is not known here; the keys left to use are {', '.join(sorted(missing))}"
    if root is not CamelPipeline:
        return f"is not known here; {_ELSEWHERE}"
    required = [name for name, info in known.items() if is_required(info) and name in missing]
    more = f" ({', '.join(required)} must be set)" if required else ""
    return f"is not known here{more}; `camel-ray explain {explain_path(tuple(parent))}` lists the fields"


def _belongs(key: str, parent: FieldPath) -> str:
    """Where a key that is misplaced belongs to, or the empty string."""
    keys = [p for p in parent if isinstance(p, str)]
    if keys[:2] == ["spec", "stages"]:
        kind = keys[2] if len(keys) > 2 else ""
        if len(keys) == 3 and key in fields(Stage) and key not in STAGE_KINDS:
            return f"it belongs to the stage itself: write it beside `{kind}:`, not under it"
        if kind in TRAINING and len(keys) == 3 and (remedy := hf_arguments.remedy(kind, _snake(key))):
            return remedy
        homes = [k for k in STAGE_KINDS if k != kind and key in fields(_member(k))]
        if homes:
            where = "the member" if not kind else "stages of another kind"
            return f"it belongs to {where}: {', '.join(f'`{home}:`' for home in homes)}"
        return ""
    if key in fields(PipelineSpec):
        return "it belongs under `spec:`" if keys[:1] != ["spec"] else "it belongs directly under `spec:`"
    return ""


def _member(kind: str) -> type[Spec]:
    return models(Stage.model_fields[kind].annotation)[0]


def _value(document: Any, path: FieldPath) -> Any:
    value = document
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return _MISSING
    return value


def _numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _camel(key: str) -> str:
    head, *rest = key.replace("-", "_").split("_")
    return head + "".join(word[:1].upper() + word[1:] for word in rest)


def _snake(key: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in key)
