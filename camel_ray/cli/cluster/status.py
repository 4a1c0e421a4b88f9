"""`camel-ray status`: where a pipeline stands, and with `-w` until its end.

On a terminal the tree of stages is drawn again as it changes; elsewhere each change is a line. Watching survives lost
connections and restarts of the API server; Ctrl-C ends the watching, never the pipeline.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camel_ray.cli.cluster.connection import Cluster, Object, PipelineName, Reach, add_command, status_of
from camel_ray.cli.cluster.watching import follow
from camel_ray.cli.console import print_error, terminal

if TYPE_CHECKING:
    from camel_ray.api.status import PipelineStatus


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    add_command(app, status)


def status(
    reach: Reach,
    name: PipelineName,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Follow it to its end; the exit code says how that was.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; with -w one object per change.")] = False,
) -> None:
    """Show the stages of a pipeline on a cluster: attempts, progress, figures, and what it waits for."""
    with reach.connect() as cluster:
        if watch:
            raise typer.Exit(show_until_the_end(cluster, name, as_json=as_json))
        pipeline = cluster.pipeline(name)
    if as_json:
        print(json.dumps(_document(pipeline), indent=2, ensure_ascii=False))
    else:
        _print_tree(pipeline)


def show_until_the_end(cluster: Cluster, name: str, *, as_json: bool = False) -> int:
    """Show every change until the pipeline has ended; returns the exit code that fits how it ended."""
    from camel_ray.cli.cluster.view import exit_code

    bars = sys.stdout.isatty() and not as_json
    try:
        with closing(_until_the_end(cluster, name)) as states:
            last = _draw(name, states) if bars else _tell(name, states, as_json=as_json)
    except KeyboardInterrupt:
        print_error(f"the pipeline goes on; `camel-ray status {name} -n {cluster.namespace} -w` shows it again")
        raise typer.Exit(130) from None
    return exit_code(last)


def over(pipeline: Object, told: PipelineStatus) -> bool:
    """Whether the pipeline has ended, and the operator has seen all that its user wants."""
    from camel_ray.api.status import TERMINAL
    from camel_ray.operator.names import REQUEST

    request = (pipeline["metadata"].get("annotations") or {}).get(REQUEST, "")
    seen = (told.observed_generation or 0) >= pipeline["metadata"].get("generation", 0)
    return told.phase in TERMINAL and seen and request in ("", told.handled_request)


def _until_the_end(cluster: Cluster, name: str) -> Generator[tuple[Object, PipelineStatus], None, None]:
    with closing(follow(cluster, name, lost=print_error)) as pipelines:
        for pipeline in pipelines:
            told = status_of(pipeline)
            yield pipeline, told
            if over(pipeline, told):
                return


def _tell(name: str, states: Iterator[tuple[Object, PipelineStatus]], *, as_json: bool) -> PipelineStatus:
    from camel_ray.cli.cluster.view import changes

    before: PipelineStatus | None = None
    for pipeline, now in states:
        if as_json:
            print(json.dumps(_document(pipeline), ensure_ascii=False), flush=True)
        else:
            for line in changes(before, now, name):
                print(line, flush=True)
        before = now
    assert before is not None
    return before


def _draw(name: str, states: Iterator[tuple[Object, PipelineStatus]]) -> PipelineStatus:
    from rich.live import Live

    from camel_ray.cli.cluster.view import tree

    pipeline, newest = next(states)

    def draw() -> Any:  # from the display's own thread, so that times go on while nothing else changes
        return tree(name, newest, datetime.now(UTC))

    with Live(get_renderable=draw, console=terminal(), refresh_per_second=2, transient=True):
        for state in states:
            pipeline, newest = state
    _print_tree(pipeline)
    return newest


def _print_tree(pipeline: Object) -> None:
    from camel_ray.cli.cluster.view import tree

    terminal().print(tree(pipeline["metadata"]["name"], status_of(pipeline), datetime.now(UTC)), soft_wrap=True)


def _document(pipeline: Object) -> dict[str, Any]:
    metadata = pipeline["metadata"]
    return {"name": metadata["name"], "namespace": metadata["namespace"], **status_of(pipeline).wire()}
