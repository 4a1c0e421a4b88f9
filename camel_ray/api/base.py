"""What every spec model shares: camelCase on the wire, snake_case in Python, unknown keys refused, frozen."""

from __future__ import annotations

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
        """The camelCase JSON form without unset defaults, as a user would write it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
