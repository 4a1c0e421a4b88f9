"""Commands about what storage holds: `stages` (what is done, what would run) and `report`."""

from __future__ import annotations

import shutil
import time
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from camel_ray.cli.console import DebugOption, PipelineFile, StorageOption, read_pipeline, terminal, training_libraries
from camel_ray.errors import PermanentError, StorageUnavailable

_STATE_STYLES = {"done": "green", "new": "", "changed": "yellow", "interrupted": "yellow", "upstream": "dim"}
_STATE_WORDS = {
    "done": "done",
    "new": "would run",
    "changed": "would run again",
    "interrupted": "would continue",
    "upstream": "would follow",
}


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(stages)
    app.command()(report)


def stages(file: PipelineFile, storage: StorageOption = None, debug: DebugOption = False) -> None:
    """Show what is done, and what `run` would do and why."""
    from rich.table import Table

    pipeline, base_dir = read_pipeline(file)
    with training_libraries():
        from camel_ray.runtime.runner import Runner

    runner = Runner(pipeline, base_dir=base_dir, storage=storage)
    if runner.storage.is_remote:
        runner.storage.open()
    plans = runner.plan()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("STAGE", "KIND", "STATE", "WHY", "WHEN", "ARTIFACT"):
        table.add_column(column, overflow="fold")
    for plan in plans:
        when = age(time.time() - plan.finished_at) if plan.finished_at is not None else ""
        artifact = _short(plan.artifact) if plan.artifact is not None else ""
        state = (
            f"[{style}]{_STATE_WORDS[plan.state]}[/]"
            if (style := _STATE_STYLES[plan.state])
            else _STATE_WORDS[plan.state]
        )
        table.add_row(plan.name, plan.kind, state, plan.reason, when, artifact)
    terminal().print(table)


def report(
    file: PipelineFile,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="HTML", help="Write the report here.")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Write the report of what has run so far, and print where it is."""
    pipeline, _ = read_pipeline(file)
    with training_libraries():
        from camel_ray.runtime.record import write_report
        from camel_ray.runtime.storage import Storage

    place = Storage(storage or pipeline.spec.storage, pipeline.metadata.name)
    if place.is_remote:
        place.open()
    if not (place.root / "stages").is_dir():
        raise PermanentError(
            f"nothing of '{pipeline.metadata.name}' has run in {place.uri}; start with `camel-ray run -f {file}`"
        )
    path = write_report(pipeline, place)
    place.push(path)
    if output is not None:
        try:
            path = Path(shutil.copyfile(path, output))
        except OSError as error:
            raise StorageUnavailable(
                f"{output} cannot be written ({error.strerror}); give another path to -o"
            ) from error
    print(path)
    if open_:
        webbrowser.open(path.resolve().as_uri())


def age(seconds: float) -> str:
    """How long ago something was, in one unit: `12 s ago`, `3 min ago`, `5 h ago`, `2 d ago`."""
    for limit, size, unit in ((90, 1, "s"), (90 * 60, 60, "min"), (36 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{max(0, seconds) / size:.0f} {unit} ago"
    return f"{seconds / 86400:.0f} d ago"


def _short(path: Path) -> str:
    """A path relative to the current directory where that is shorter."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
