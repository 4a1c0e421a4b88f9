"""`camel-ray submit`: checks a pipeline file and gives it to the cluster."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.cli.cluster.connection import Cluster, Reach, add_command
from camel_ray.cli.cluster.status import show_until_the_end
from camel_ray.cli.console import PipelineFile, print_error, read_pipeline
from camel_ray.errors import PermanentError, SpecError


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    add_command(app, submit)


def submit(
    reach: Reach,
    file: PipelineFile,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end, as `status -w` does.")] = False,
) -> None:
    """Check a pipeline file and apply it to a cluster."""
    from camel_ray.operator.problems import cluster_problems

    pipeline, _ = read_pipeline(file)
    if problems := cluster_problems(pipeline, None):
        raise SpecError(*problems)
    named = pipeline.metadata.namespace
    if named and reach.namespace and named != reach.namespace:
        raise PermanentError(
            f"{file} says `namespace: {named}` and the command says --namespace {reach.namespace}; "
            "leave one of them out"
        )
    with reach.connect(named) as cluster:
        print(f"camelpipeline {pipeline.metadata.name} {_apply(cluster, pipeline)}", flush=True)
        if watch:
            raise typer.Exit(show_until_the_end(cluster, pipeline.metadata.name))


def _apply(cluster: Cluster, pipeline: CamelPipeline) -> str:
    """Apply the file and say what that did: created, configured or unchanged."""
    from camel_ray.operator.kinds import CAMEL_PIPELINE
    from camel_ray.operator.kube.errors import NotFound

    try:
        before = cluster.client.get(CAMEL_PIPELINE, pipeline.metadata.name, cluster.namespace)
    except NotFound:
        before = None
    after = cluster.client.apply(CAMEL_PIPELINE, manifest(pipeline, cluster.namespace))
    if after.get("spec", {}).get("suspend") and not pipeline.spec.suspend:
        print_error(f"it is suspended; `camel-ray resume {pipeline.metadata.name}` lets it go on")
    if before is None:
        return "created"
    same = before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]
    return "unchanged" if same else "configured"


def manifest(pipeline: CamelPipeline, namespace: str) -> dict[str, Any]:
    """What is applied: the fields that the file sets, and no defaults, which others may set."""
    written = pipeline.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    return {**written, "metadata": {**written["metadata"], "namespace": namespace}}
