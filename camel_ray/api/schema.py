"""The JSON schema of a pipeline file, for editors (completion, hover texts, red underlines while typing).

Draft 2020-12, which pydantic writes. Editors stop at what JSON schema can say; rules over several fields are
`camel-ray validate`'s.
"""

from __future__ import annotations

import json
from typing import Any

from camel_ray.api.pipeline import STAGE_KINDS, CamelPipeline

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema of a CamelPipeline, with descriptions and without pydantic's titles, which editors show as noise."""
    schema = CamelPipeline.model_json_schema(by_alias=True)
    schema["required"] = ["apiVersion", "kind", *schema["required"]]
    stage = schema["$defs"]["Stage"]
    stage["oneOf"] = [{"required": [kind]} for kind in STAGE_KINDS]
    return {"$schema": DIALECT, "title": "CamelPipeline", **without_titles(schema)}


def schema_text() -> str:
    """The schema as indented JSON."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def without_titles(node: Any) -> Any:
    """A schema without the titles that pydantic makes of names: editors show them as noise."""
    if isinstance(node, dict):
        # a `title` whose value is a mapping is a property of that name, not an annotation
        return {k: without_titles(v) for k, v in node.items() if k != "title" or not isinstance(v, str)}
    return [without_titles(item) for item in node] if isinstance(node, list) else node
