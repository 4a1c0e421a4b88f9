"""`camel-ray get`: pipelines of a cluster as a table, or as kubectl prints them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from camel_ray.cli.cluster.connection import Object, Reach, add_command, status_of
from camel_ray.cli.cluster.view import age, one_line
from camel_ray.cli.console import print_error


class Output(StrEnum):
    """Forms of `-o`."""

    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    add_command(app, get)


def get(
    reach: Reach,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One pipeline. Default: all.")] = None,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")] = False,
    output: Annotated[Output | None, typer.Option("--output", "-o", help="wide adds figures and message.")] = None,
) -> None:
    """List the pipelines of a cluster."""
    from camel_ray.operator.kinds import CAMEL_PIPELINE

    if name and everywhere:
        raise typer.BadParameter("give either a NAME or -A; names are unique only within a namespace")
    with reach.connect() as cluster:
        if name:
            found: Sequence[Object] = [cluster.pipeline(name)]
        else:
            found, _ = cluster.client.list(CAMEL_PIPELINE, None if everywhere else cluster.namespace)
        where = cluster.namespace
    found = sorted(found, key=lambda o: (o["metadata"]["namespace"], o["metadata"]["name"]))
    if output in (Output.JSON, Output.YAML):
        print(_document(found, single=name is not None, output=output))
    elif output == Output.NAME:
        for pipeline in found:
            print(f"camelpipeline.camel-ray.dev/{pipeline['metadata']['name']}")
    elif found:
        for line in table(found, namespaces=everywhere, wide=output == Output.WIDE, now=datetime.now(UTC)):
            print(line)
    else:
        print_error("there are no pipelines" + ("" if everywhere else f" in namespace '{where}'"))


def table(pipelines: Sequence[Object], *, namespaces: bool, wide: bool, now: datetime) -> list[str]:
    """The lines of the table; the columns are those of `kubectl get camel`."""
    heading = [*(["NAMESPACE"] if namespaces else []), "NAME", "PHASE", "STAGE", "PROGRESS", "ATTEMPTS", "AGE"]
    rows = [heading + (["METRICS", "MESSAGE"] if wide else [])]
    for pipeline in pipelines:
        metadata, status = pipeline["metadata"], status_of(pipeline)
        row = [*([metadata["namespace"]] if namespaces else []), metadata["name"], status.phase, status.stage]
        row += [status.progress, str(status.attempts), age(metadata["creationTimestamp"], now)]
        rows.append(row + ([status.metrics, one_line(status.message)] if wide else []))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _document(pipelines: Sequence[Object], *, single: bool, output: Output) -> str:
    import yaml

    plain = [_without_managed_fields(pipeline) for pipeline in pipelines]
    document: Any = plain[0] if single else {"apiVersion": "v1", "kind": "List", "items": plain}
    if output == Output.JSON:
        return json.dumps(document, indent=2, ensure_ascii=False)
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return text.rstrip("\n")


def _without_managed_fields(pipeline: Object) -> dict[str, Any]:
    metadata = {key: value for key, value in pipeline["metadata"].items() if key != "managedFields"}
    return {**pipeline, "metadata": metadata}
