"""What all commands share: how a pipeline is read, and how words reach the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from camel_ray.api.load import load_pipeline, load_pipeline_text
from camel_ray.api.pipeline import CamelPipeline
from camel_ray.errors import PermanentError

if TYPE_CHECKING:
    from rich.console import Console

STANDARD_INPUT = "standard input"
"""What `-f -` is called in messages."""

PipelineFile = Annotated[
    str,
    typer.Option("--file", "-f", metavar="FILE", help="Pipeline YAML, or - for standard input.", show_default=False),
]
StorageOption = Annotated[
    str | None, typer.Option("--storage", metavar="URI", help="Path or URI to use instead of the file's spec.storage.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error and the libraries' logs.")]


def read_pipeline(file: str) -> tuple[CamelPipeline, Path]:
    """The pipeline in a file (or `-`: standard input), and the directory where its relative paths start."""
    if file == "-":
        data = sys.stdin.buffer.read() if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode()
        return load_pipeline_text(data.decode("utf-8", "surrogateescape"), STANDARD_INPUT), Path.cwd()
    return load_pipeline(file), Path(file).resolve().parent


def terminal() -> Console:
    """A rich console on standard output. Piped output is not cut to the width of a terminal that is not there."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def print_error(message: str) -> None:
    """One line per problem on stderr, in red where that is a terminal."""
    red, plain = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    for line in message.splitlines():
        print(f"{red}{line}{plain}", file=sys.stderr)


@contextmanager
def training_libraries() -> Iterator[None]:
    """Turn the absence of torch, ray and the like into a sentence that says how to install them.

    Raises PermanentError. The spec and its checks work without them.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("camel_ray"):
            raise
        raise PermanentError(
            f"the Python package '{error.name}' is not installed; `pip install 'camel-ray[train]'` installs it"
        ) from error
