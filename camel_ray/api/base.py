"""What every spec model shares: camelCase on the wire, snake_case in Python, unknown keys refused, frozen."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Spec(BaseModel):
    """Base of all spec models. Frozen: a spec is a value that stages may share and hash by its JSON."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    def wire(self) -> dict[str, object]:
        """The camelCase JSON form, defaults included, from which the same spec can be read again.

        What is None is left out, except where None is not the default (`valueClip: null` turns the clip off).
        """
        document: dict[str, object] = _without_unset(self, self.model_dump(mode="json", by_alias=True))
        return document

    def written(self) -> dict[str, object]:
        """The camelCase JSON form without what has its default, so that an older version, which does not know the
        newest fields, can read it as long as none of them is used; and a newer one finds nothing changed.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _without_unset(value: Any, dumped: Any) -> Any:
    """`dumped`, the JSON form of `value`, without the fields that are None by default."""
    if isinstance(value, Spec):
        found = {}
        for name, info in type(value).model_fields.items():
            key = info.alias or name
            if dumped[key] is not None or info.default is not None:
                found[key] = _without_unset(getattr(value, name), dumped[key])
        return found
    if isinstance(value, list):
        return [_without_unset(item, form) for item, form in zip(value, dumped, strict=True)]
    return dumped
