"""Writes the files that are generated from the schema, the installed trainers and the first example, or checks that
they are in sync.

    python -m camel_ray.api.generate            write
    python -m camel_ray.api.generate --check    exit with 1 and name the files that are out of date

Run it after changing a field of the schema, or the pinned version of transformers or TRL (which must be installed).
"""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

from camel_ray.api import chart, hf_arguments
from camel_ray.api.crd import crd_text
from camel_ray.api.reference import operator_markdown, reference_markdown
from camel_ray.api.schema import schema_text

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
EXAMPLE = ROOT / "examples" / "01-quickstart.yaml"
CRD = ROOT / "manifests" / "crd.yaml"
CHART = ROOT / "charts" / "camel-ray"
STARTER = ROOT / "camel_ray" / "cli" / "starters" / "quickstart.yaml"


def generated() -> dict[Path, str]:
    """Path and content of every generated file."""
    return {
        hf_arguments.FILE: hf_arguments_text(),
        REFERENCE / "pipeline.schema.json": schema_text(),
        REFERENCE / "pipeline.md": reference_markdown(),
        REFERENCE / "operator.md": operator_markdown(),
        CRD: crd_text(),
        CHART / "files" / "crd.yaml": crd_text(),
        CHART / "values.yaml": chart.values_yaml(),
        CHART / "values.schema.json": chart.values_schema_text(),
        CHART / "README.md": chart.readme(),
        STARTER: starter_text(),
    }


def starter_text() -> str:
    """The first example, as `camel-ray init` writes it: an installed package has no examples folder."""
    return EXAMPLE.read_text(encoding="utf-8").replace("examples/01-quickstart.yaml", "pipeline.yaml")


def hf_arguments_text() -> str:
    """The content of `hf_arguments.json` for the installed transformers and TRL.

    The TRL classes extend TrainingArguments; only what they add or change is listed under their names.
    """
    import transformers
    import trl

    base = _arguments(transformers.TrainingArguments)
    table = {"TrainingArguments": base}
    for name in ("SFTConfig", "RewardConfig", "DPOConfig"):
        arguments = _arguments(getattr(trl, name))
        table[name] = {argument: names for argument, names in arguments.items() if base.get(argument) != names}
    blocks = [
        f' "{name}": {{\n' + ",\n".join(f'  "{k}": {json.dumps(v)}' for k, v in sorted(arguments.items())) + "\n }"
        for name, arguments in table.items()
    ]
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def _arguments(dataclass: type[Any]) -> dict[str, list[str]]:
    hints = typing.get_type_hints(dataclass)
    return {f.name: sorted(_names(hints[f.name])) for f in dataclasses.fields(dataclass) if f.init}


def _names(hint: Any) -> set[str]:
    """Simple type names of an annotation, as YAML can write them; enums are written as text, other classes cannot
    be.
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_names(member) for member in typing.get_args(hint)))
    if origin is typing.Literal:
        return {type(value).__name__ for value in typing.get_args(hint)}
    plain = origin or hint
    if plain is type(None):
        return {"null"}
    if isinstance(plain, type) and issubclass(plain, enum.Enum):
        return {"str"}
    return {plain.__name__} if plain in (bool, int, float, str, list, dict) else set()


def main(arguments: list[str]) -> int:
    """Write the files, or with `--check` compare them; returns the exit code."""
    stale = {
        path: text
        for path, text in generated().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    for path, text in stale.items():
        if "--check" in arguments:
            print(f"{path.name} is out of date; run `python -m camel_ray.api.generate`")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.name}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
