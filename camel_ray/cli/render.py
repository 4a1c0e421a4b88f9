"""`camel-ray render`: what the operator would create for a file, without a cluster.

For reading, reviews and policy checks. Nobody has to apply it: the operator makes the same from the pipeline alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.cli.console import DebugOption, PipelineFile, read_pipeline
from camel_ray.errors import SpecError

UNKNOWN_UID = "00000000-0000-0000-0000-000000000000"
_HEADER = f"""\
# What the operator creates for the first attempt of each stage; it does so itself, one stage after the other. Not known
# before the pipeline is on a cluster, and written as {UNKNOWN_UID}: the pipeline's uid.
"""


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(render)


def render(
    file: PipelineFile,
    stage: Annotated[str | None, typer.Option("--stage", metavar="NAME", help="Only this stage.")] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NS", help="Default: the file's, else `default`.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="The operator's configuration. Default: its defaults."),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Print the manifests the operator makes of a file, as YAML. Asks no cluster and creates nothing."""
    from camel_ray.api.operator_config import load_operator_config
    from camel_ray.operator.children import cluster_problems
    from camel_ray.operator.model import Settings

    pipeline, _ = read_pipeline(file)
    known = [s.name for s in pipeline.spec.stages]
    if stage is not None and stage not in known:
        raise typer.BadParameter(f"--stage: the file has no stage '{stage}'; it has {', '.join(known)}")
    settings = Settings() if config is None else Settings(config=load_operator_config(config))
    where = namespace or pipeline.metadata.namespace or "default"
    manifests = [_as_written(pipeline, where), *_children(pipeline, where, settings, stage)]
    print(_HEADER + yaml.dump_all(manifests, Dumper=_Plain, sort_keys=False, width=120), end="")
    if problems := cluster_problems(pipeline, settings):
        raise SpecError(*problems)


def _as_written(pipeline: CamelPipeline, namespace: str) -> dict[str, Any]:
    document = pipeline.model_dump(mode="json", by_alias=True, exclude_unset=True)
    metadata = {**document["metadata"], "namespace": namespace}
    return {"apiVersion": pipeline.api_version, "kind": pipeline.kind, **document, "metadata": metadata}


def _children(pipeline: CamelPipeline, namespace: str, settings: Any, only: str | None) -> Iterator[Mapping[str, Any]]:
    """The objects of all stages; the ConfigMap they share comes once."""
    from camel_ray.operator.children import children_for
    from camel_ray.operator.model import Attempt

    seen = set()
    for stage in pipeline.spec.stages:
        if only in (None, stage.name):
            attempt = Attempt(pipeline, namespace, UNKNOWN_UID, stage, number=1, settings=settings)
            for child in children_for(attempt):
                key = (child["kind"], child["metadata"]["name"])
                if key not in seen:
                    seen.add(key)
                    yield child


class _Plain(yaml.SafeDumper):
    """YAML without anchors: readers of manifests do not expect them. Texts of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Plain.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)
