"""JSON schemas of the Kubernetes API for kubeconform, from the OpenAPI file that each release ships.

kubeconform would fetch ready-made ones from the internet. Ours are strict: a key that the API does not know is a
mistake.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rig.process import find_tools

LAYOUT = "{{ .ResourceKind }}{{ .KindSuffix }}.json"
"""Names of the files, in kubeconform's template."""
_SHARED = "_definitions.json"


def write_schemas(release: str, directory: Path) -> None:
    """Write one schema per kind of a Kubernetes release (`1.36`) into a directory."""
    tool = f"openapi-{release}"
    definitions = json.loads(find_tools(tool)[tool].read_text())["definitions"]
    (directory / _SHARED).write_text(json.dumps({"definitions": {n: _strict(d) for n, d in definitions.items()}}))
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", ()):
            group = f"{kind['group'].partition('.')[0]}-" if kind["group"] else ""
            file = directory / f"{kind['kind'].lower()}-{group}{kind['version']}.json"
            if not kind["kind"].endswith(("List", "Options")):
                file.write_text(json.dumps({"$ref": f"{_SHARED}#/definitions/{name}"}))


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("format") == "int-or-string":
        return {"type": ["string", "integer"]}
    strict: dict[str, Any] = {key: schema[key] for key in ("$ref", "type", "required", "enum") if key in schema}
    if "properties" in schema:
        strict["properties"] = {name: _strict(inner) for name, inner in schema["properties"].items()}
        strict["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if key in schema:
            strict[key] = _strict(schema[key])
    if "$ref" in strict:
        strict["$ref"] = f"{_SHARED}{strict['$ref']}"
    return strict
