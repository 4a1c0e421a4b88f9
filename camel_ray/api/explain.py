"""What a field means: the text behind `camel-ray explain ppo.roles` and the tables of the reference.

Everything comes from the schema itself (types, defaults, docstrings), so there is no second description to keep up to
date.
"""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from camel_ray.api.base import Spec
from camel_ray.api.fields import default, expected, fields, is_required, models
from camel_ray.api.pipeline import STAGE_KINDS, CamelPipeline, PipelineSpec, Stage
from camel_ray.api.rules import nearest
from camel_ray.errors import SpecError

_ROOTS: tuple[tuple[str, type[Spec]], ...] = (("", CamelPipeline), ("spec", PipelineSpec), ("spec.stages", Stage))
"""Where a path may start: at the file's top, or for short inside `spec` or inside a stage."""


@dataclass(frozen=True)
class FieldHelp:
    """All that is known about a field of the schema."""

    name: str
    path: str
    """Full path from the top of the file, `spec.stages.ppo.roles`; lists have no index."""
    wanted: str
    """What a value should be, in words."""
    required: bool
    default: str | None
    """Default as YAML, or None where there is none or the description tells it."""
    description: str
    model: type[Spec] | None
    """Schema of the mapping (or of the items) below the field."""

    @property
    def fields(self) -> tuple[FieldHelp, ...]:
        """The fields below this one."""
        return model_help(self.model, self.path) if self.model else ()


def model_help(model: type[Spec], path: str) -> tuple[FieldHelp, ...]:
    """Help on each field of a spec model that stands at `path`, the required ones first."""
    found = [_field_help(name, info, f"{path}.{name}".lstrip(".")) for name, info in fields(model).items()]
    return tuple(sorted(found, key=lambda f: not f.required))


def field_help(path: str) -> FieldHelp:
    """Help on a field given by its full path, or a short one that starts inside `spec` or with the kind of a stage.

    Raises SpecError with the nearest name if there is no such field.
    """
    parts = [p for p in re.sub(r"\[\d*\]", "", path.strip()).strip(".").split(".") if p]
    here = FieldHelp("CamelPipeline", "", "a mapping", True, None, _docstring(CamelPipeline), CamelPipeline)
    if not parts or parts == ["CamelPipeline"]:
        return here
    start, root = _root(parts[0])
    level = model_help(root, start)
    for i, part in enumerate(parts):
        names = {f.name: f for f in level}
        found = names.get(part) or names.get(_camel(part))
        if found is None:
            inside = ".".join(parts[:i]) or "a pipeline"
            known = _all_roots() if i == 0 else list(names)
            hint = nearest(part, known) or (f" It has {', '.join(names)}." if 0 < len(names) <= 12 and i else "")
            raise SpecError(
                f"there is no field '{part}' in {inside}.{hint or ' Plain `camel-ray explain` starts at the top.'}"
            )
        here, level = found, found.fields
    return here


def explain(path: str, *, width: int = 100) -> str:
    """The help on a field as text for a terminal of `width` columns. Raises SpecError like `field_help`."""
    help_ = field_help(path)
    lines = [help_.path or help_.name, ""]
    facts = [("Type", help_.wanted + (", required" if help_.required and help_.path else ""))]
    if help_.default is not None:
        facts.append(("Default", help_.default))
    for label, text in facts:
        lines += textwrap.wrap(text, width, initial_indent=f"{label + ':':<10}", subsequent_indent=" " * 10)
    lines += ["", *textwrap.wrap(help_.description, width)]
    if help_.fields:
        lines += ["", "Fields:" if "list of mappings" not in help_.wanted else "Fields of each item:"]
        column = max(len(f.name) for f in help_.fields) + 2
        for field in help_.fields:
            first, *more = textwrap.wrap(_summary(field), max(40, width - column - 2))
            lines.append(f"  {field.name:<{column}}{first}")
            lines += [" " * (column + 2) + line for line in more]
    return "\n".join(lines)


def yaml_value(value: Any) -> str:
    """A value in YAML's flow style, as it may stand after a key."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {yaml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(yaml_value(v) for v in value) + "]"
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w./][\w./ -]*", value) else json.dumps(value)
    return json.dumps(value)


def _field_help(name: str, info: FieldInfo, path: str) -> FieldHelp:
    below = models(info.annotation)
    required = is_required(info)
    shown = None if required else default(info)
    # none, {} and [] say nothing: the description tells what happens then
    text = None if shown is None or shown == {} or shown == [] else yaml_value(shown)
    return FieldHelp(
        name=name,
        path=path,
        wanted=expected(info.annotation, info.metadata),
        required=required,
        default=text,
        description=" ".join((info.description or "").split()),
        model=below[0] if below else None,
    )


def _summary(field: FieldHelp) -> str:
    extra = " (required)" if field.required else f" (default {field.default})" if field.default is not None else ""
    return f"{field.description.split('. ')[0].rstrip('.')}. {field.wanted[0].upper()}{field.wanted[1:]}{extra}."


def _root(first: str) -> tuple[str, type[Spec]]:
    """Where a path that begins with `first` starts; a stage's kind before a field of `spec`, because it is asked for
    more.
    """
    if first in STAGE_KINDS:
        return _ROOTS[2]
    for start, model in _ROOTS:
        if first in fields(model) or _camel(first) in fields(model):
            return start, model
    return _ROOTS[0]


def _all_roots() -> list[str]:
    return list(dict.fromkeys(name for _, model in _ROOTS for name in fields(model)))


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word[:1].upper() + word[1:] for word in rest)


def _docstring(model: type[Spec]) -> str:
    return " ".join((model.__doc__ or "").split())
