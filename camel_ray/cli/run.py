"""`camel-ray run`: all stages of a pipeline on this machine, with bars on a terminal and a clean way out.

Ctrl-C once stops the run: the stage's checkpoints stay and the next `run` continues there. Ctrl-C twice ends the
process at once, which is also safe, because nothing counts as finished before its manifest is written.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from camel_ray.cli.console import (
    DebugOption,
    PipelineFile,
    StorageOption,
    print_error,
    read_pipeline,
    training_libraries,
)
from camel_ray.manifest import MANIFEST


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(run)


def run(
    file: PipelineFile,
    storage: StorageOption = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Run this stage again, and those that use it.")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="STAGE", help="Run no other stage than this one.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what is done and run all stages again.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="Plain lines instead of bars.")] = False,
    debug: DebugOption = False,
) -> None:
    """Run a pipeline on this machine. What is done is skipped, what was stopped continues."""
    from camel_ray.cli.display import PlainDisplay, TerminalDisplay

    pipeline, base_dir = read_pipeline(file)
    with training_libraries():
        from camel_ray.runtime.runner import Runner

    bars = sys.stdout.isatty() and not no_progress
    display = TerminalDisplay(pipeline.metadata.name) if bars else PlainDisplay()
    runner = Runner(
        pipeline, base_dir=base_dir, storage=storage, listener=display, first=first, only=only, fresh=fresh, debug=debug
    )
    try:
        with display, _second_interrupt_exits(), training_libraries():
            runner.run()
    except KeyboardInterrupt:
        command = shlex.join(["camel-ray", "run", "-f", file, *(["--storage", storage] if storage else [])])
        print_error(how_to_continue(command, display.stage, display.progress_path))
        raise typer.Exit(130) from None


def how_to_continue(command: str, stage: str | None, progress_path: Path | None) -> str:
    """The sentence after Ctrl-C: where the run stopped, what is saved of it, and the command that goes on from
    there.
    """
    if stage is None or progress_path is None:
        return f"stopped before a stage began; start again with `{command}`"
    saved = newest_checkpoint(progress_path.parent / "work" / "checkpoints")
    step = f"step {saved} is saved" if saved is not None else "it has no checkpoint yet and will start over"
    return f"stopped in stage '{stage}' ({step}); `{command}` continues with it and skips what is done"


def newest_checkpoint(directory: Path) -> int | None:
    """Step of the newest finished checkpoint in a stage's checkpoint directory (`checkpoint-40`, ...), or None."""
    steps = [path.parent.name.rpartition("-")[2] for path in directory.glob(f"*/{MANIFEST}")]
    return max((int(step) for step in steps if step.isdigit()), default=None)


@contextmanager
def _second_interrupt_exits() -> Iterator[None]:
    """Within it the first Ctrl-C (or SIGTERM, from a service manager) raises KeyboardInterrupt, and a second one
    ends the process where it stands.
    """
    count = 0

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            sys.stdout.write("\x1b[?25h" if sys.stdout.isatty() else "")  # the bars have hidden the cursor
            sys.stdout.flush()
            os._exit(130)
        print_error("stopping; press Ctrl-C again to end at once")
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
