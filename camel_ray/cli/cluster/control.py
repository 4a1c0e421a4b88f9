"""`camel-ray suspend | resume | cancel | retry`: what a user may ask of a pipeline that runs, or has run.

Suspend is a field of the spec. Cancel and retry are an annotation with a fresh token, which the operator carries out
once (`camel_ray/operator/names.py`). What makes no sense in the pipeline's state is refused here, with the reason.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camel_ray.cli.cluster.connection import Cluster, Object, PipelineName, Reach, add_command, status_of
from camel_ray.cli.cluster.status import over
from camel_ray.cli.cluster.watching import follow
from camel_ray.cli.console import print_error
from camel_ray.errors import PermanentError

if TYPE_CHECKING:
    from camel_ray.api.status import PipelineStatus

WaitOption = Annotated[bool, typer.Option("--wait", help="Come back only when the operator has done it.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    add_command(app, suspend)
    add_command(app, resume)
    add_command(app, cancel)
    add_command(app, retry)


def suspend(
    reach: Reach,
    name: PipelineName,
    wait: WaitOption = False,
) -> None:
    """Stop a pipeline after the running attempt's checkpoint and free its machines, until `resume`."""
    with reach.connect() as cluster:
        pipeline = cluster.pipeline(name)
        told = status_of(pipeline)
        if over(pipeline, told):
            raise PermanentError(f"pipeline '{name}' has ended ({told.phase}): there is nothing to suspend")
        if _suspended(pipeline):
            _say(name, "is suspended already")
        else:
            _patch(cluster, name, {"spec": {"suspend": True}})
            _say(name, "stops after its checkpoint")
        if wait:
            _wait(cluster, name, lambda pipeline, told: told.phase == "Suspended" or over(pipeline, told))


def resume(
    reach: Reach,
    name: PipelineName,
    wait: WaitOption = False,
) -> None:
    """Let a suspended pipeline go on where it stopped."""
    with reach.connect() as cluster:
        if not _suspended(cluster.pipeline(name)):
            _say(name, "is not suspended")
            return
        _patch(cluster, name, {"spec": {"suspend": False}})
        _say(name, "goes on")
        if wait:
            _wait(cluster, name, lambda _, told: told.phase not in ("Suspended", "Suspending"))


def cancel(
    reach: Reach,
    name: PipelineName,
    wait: WaitOption = False,
) -> None:
    """End a pipeline. What it made stays in its storage, and `retry` continues there."""
    with reach.connect() as cluster:
        pipeline = cluster.pipeline(name)
        told = status_of(pipeline)
        if over(pipeline, told):
            raise PermanentError(f"pipeline '{name}' has ended ({told.phase}): there is nothing to cancel")
        _ask(cluster, name, "cancel", "-", wait=False)
        _say(name, "is being cancelled")
        if wait:
            _wait(cluster, name, over)


def retry(
    reach: Reach,
    name: PipelineName,
    first: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Run this stage and all after it again, from nothing."),
    ] = None,
    wait: WaitOption = False,
) -> None:
    """Run again what failed or was cancelled, continuing from its checkpoint; or everything from a stage on."""
    with reach.connect() as cluster:
        pipeline = cluster.pipeline(name)
        if reason := _no_retry(name, status_of(pipeline), first):
            raise PermanentError(reason)
        if _suspended(pipeline):
            print_error(f"it is suspended; `camel-ray resume {name}` lets it go on")
        _ask(cluster, name, "retry", first or "-", wait=wait)
        _say(name, f"runs again from stage '{first}'" if first else "runs again")


def _no_retry(name: str, told: PipelineStatus, first: str | None) -> str:
    """Why there is nothing to retry; empty if there is."""
    if first is not None:
        names = ", ".join(stage.name for stage in told.stages) or "none yet"
        stage = told.stage_named(first)
        if stage is None:
            return f"--from {first}: pipeline '{name}' has no such stage; there are {names}"
        if stage.phase == "Waiting":
            return f"--from {first}: stage '{first}' has not run yet; it will when the stages before it are done"
        return ""
    if any(stage.phase in ("Failed", "Cancelled", "Backoff") for stage in told.stages):
        return ""
    if told.phase == "Failed":  # nothing has started: the spec was refused
        return f"the spec of pipeline '{name}' was refused ({told.message}); mend the file and submit it again"
    if told.phase == "Succeeded":
        return f"all stages of pipeline '{name}' are done; `camel-ray retry {name} --from STAGE` runs one again"
    return (
        f"pipeline '{name}' is {told.phase} and nothing of it has failed; "
        f"`camel-ray retry {name} --from STAGE` runs a stage again"
    )


def _ask(cluster: Cluster, name: str, verb: str, target: str, *, wait: bool) -> None:
    """Write the request; with `wait` come back when the operator has taken it up."""
    from camel_ray.operator.names import REQUEST

    value = f"{verb} {target} {secrets.token_hex(4)}"
    _patch(cluster, name, {"metadata": {"annotations": {REQUEST: value}}})
    if wait:
        _wait(cluster, name, lambda _, told: told.handled_request == value)


def _patch(cluster: Cluster, name: str, patch: Mapping[str, Any]) -> None:
    from camel_ray.operator.kinds import CAMEL_PIPELINE

    cluster.client.patch(CAMEL_PIPELINE, name, cluster.namespace, patch)


def _wait(cluster: Cluster, name: str, done: Callable[[Object, PipelineStatus], bool]) -> None:
    with closing(follow(cluster, name, lost=print_error)) as pipelines:
        for pipeline in pipelines:
            told = status_of(pipeline)
            if (told.observed_generation or 0) >= pipeline["metadata"].get("generation", 0) and done(pipeline, told):
                _say(name, f"is {told.phase}")
                return


def _suspended(pipeline: Object) -> bool:
    return bool(pipeline.get("spec", {}).get("suspend"))


def _say(name: str, words: str) -> None:
    print(f"camelpipeline {name} {words}", flush=True)
