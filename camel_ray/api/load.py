"""Reads a pipeline file and reports everything that is wrong with it at once, one sentence per mistake, by line.

Three checks look at the same values: the YAML itself (`yaml_source`), the schema (pydantic, put into plain words by
`problems`) and the rules that span fields (`rules`). One mistake can upset more than one of them, so this module also
decides which sentence is the cause and which only its consequence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from camel_ray.api.fields import locate
from camel_ray.api.pipeline import API_VERSION, KIND, STAGE_KINDS, CamelPipeline
from camel_ray.api.problems import schema_problems
from camel_ray.api.rules import check_rules, nearest
from camel_ray.api.yaml_source import MAX_BYTES, FieldPath, Problem, Source, read_source
from camel_ray.errors import SpecError


def load_pipeline(path: Path | str) -> CamelPipeline:
    """Read and check a pipeline file.

    Raises SpecError with one sentence per mistake, `file:line: field: what is wrong and what to do`, in line order.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        similar = nearest(file.name, [p.name for p in file.parent.glob("*.y*ml")]) if file.parent.is_dir() else ""
        raise SpecError(f"{file}: there is no such file; give the path of a pipeline's YAML.{similar}") from None
    except IsADirectoryError:
        raise SpecError(f"{file}: is a directory; give the path of a pipeline's YAML in it") from None
    except OSError as error:
        raise SpecError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    return _load(data, str(file))


def load_pipeline_text(text: str, name: str) -> CamelPipeline:
    """Check a pipeline given as text; `name` stands for the file in messages. Raises SpecError like `load_pipeline`."""
    return _load(text.encode("utf-8", "surrogateescape"), name)


def _load(data: bytes, name: str) -> CamelPipeline:
    source = read_source(data, name)
    problems = [*source.problems, *_envelope(source)]
    pipeline: CamelPipeline | None = None
    if _is_pipeline(source.value):
        found, pipeline = _schema(source)
        known = {p.path for p in problems}
        problems += [p for p in found if p.path not in known]
        problems += _rules(source, problems)
    if problems or pipeline is None:
        ordered = sorted(problems, key=lambda p: p.line)
        raise SpecError(*dict.fromkeys(p.sentence(name) for p in ordered))
    return pipeline


def _envelope(source: Source) -> list[Problem]:
    """What is wrong with the header, apiVersion and kind."""
    document = source.value
    if not isinstance(document, Mapping):
        kind = "a list" if isinstance(document, list) else "a single value"
        message = f"the file holds {kind} where a mapping with apiVersion, kind, metadata and spec should be"
        return [Problem(source.line(()), (), message)]
    problems = []
    for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if key not in document:
            problems.append(Problem(source.line(()), (key,), f"is required; write `{key}: {wanted}`"))
        elif document[key] != wanted:
            problems.append(Problem(source.line((key,)), (key,), f"should be {wanted}, not '{document[key]}'"))
    return problems


def _is_pipeline(document: Any) -> bool:
    """Whether one of the two header fields says that a pipeline is meant, so that its fields are worth checking."""
    if not isinstance(document, Mapping):
        return False
    version, kind = str(document.get("apiVersion", API_VERSION)), str(document.get("kind", KIND))
    return kind == KIND or (version.startswith(API_VERSION.partition("/")[0]) and bool(nearest(kind, [KIND])))


def _schema(source: Source) -> tuple[list[Problem], CamelPipeline | None]:
    try:
        # JSON, because a YAML list then fits a tuple although the check is strict; strict, because Kubernetes is
        text = json.dumps(source.value)
        return [], CamelPipeline.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        return schema_problems(error, source), None


def _rules(source: Source, known: list[Problem]) -> list[Problem]:
    """Rules that do not hold, without those that only repeat or follow from a problem that is known already."""
    violations = check_rules(source.value)
    reported = {p.path for p in known}
    causes = reported | {v.path for v in violations if v.follows != "stages"}
    return [
        Problem(source.line(v.path), v.path, v.message)
        for v in violations
        if v.path not in reported
        and not (v.follows == "keys" and any(_is_bad_entry(path, v.path) for path in reported))
        and not (v.follows == "stages" and any(_may_cause(cause, v.path) for cause in causes))
    ]


def _is_unknown(path: FieldPath) -> bool:
    return locate(CamelPipeline, path) is None


def _is_bad_entry(path: FieldPath, around: FieldPath) -> bool:
    """Whether `path` is an unknown key of the mapping `around`, or a bad item of that list."""
    inside = path[len(around) :] if path[: len(around)] == around else ()
    return (len(inside) == 1 and _is_unknown(path)) or (bool(inside) and all(isinstance(p, int) for p in inside))


def _may_cause(cause: FieldPath, path: FieldPath) -> bool:
    """Whether mending `cause` may also give the stage at `path` a model or tokenizer.

    What a stage finds depends on the names, needs and members of the stages up to it, its own fields, and `spec.model`.
    """
    if cause[:2] != ("spec", "stages"):
        return cause[:2] == ("spec", "model") or (len(cause) <= 2 and _is_unknown(cause))
    if len(cause) == 2:
        return True
    stage, own = cause[2], path[2]
    assert isinstance(stage, int) and isinstance(own, int)
    if len(cause) <= 4 or cause[3] == "needs":
        about_graph = len(cause) == 3 or cause[3] in ("name", "needs", *STAGE_KINDS) or _is_unknown(cause)
        return about_graph and stage <= own
    return stage == own and (cause[4] in ("model", "tokenizer") or _is_unknown(cause[:5]))
