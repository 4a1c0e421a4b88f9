"""Commands about the file itself: `validate`, `schema`, `explain`. They import nothing that trains, so they answer at
once.
"""

from __future__ import annotations

import shutil
import sys
from typing import Annotated

import typer

from camel_ray.cli.console import STANDARD_INPUT, print_error, read_pipeline
from camel_ray.errors import SpecError


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(validate)
    app.command()(schema)
    app.command()(explain)


def validate(
    file: Annotated[
        list[str],
        typer.Option("--file", "-f", metavar="FILE", help="Pipeline YAML, or - for standard input; repeatable."),
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    more: Annotated[
        list[str], typer.Argument(metavar="[FILE]...", help="More files, so that a shell pattern works.")
    ] = [],  # noqa: B006
) -> None:
    """Check pipeline files, and report every mistake with its line, field and remedy."""
    files = [*file, *more]
    if not files:
        raise typer.BadParameter("name at least one file, for example `camel-ray validate -f pipeline.yaml`")
    problems = 0
    for name in files:
        try:
            pipeline, _ = read_pipeline(name)
        except SpecError as error:
            problems += len(error.problems)
            print_error(str(error))
        else:
            count = len(pipeline.spec.stages)
            print(f"{STANDARD_INPUT if name == '-' else name}: ok, {count} stage{'s' if count != 1 else ''}")
    if problems:
        raise typer.Exit(SpecError.exit_code)


def schema() -> None:
    """Print the JSON schema of a pipeline file, for editors."""
    from camel_ray.api.schema import schema_text

    print(schema_text(), end="")


def explain(
    path: Annotated[str, typer.Argument(help="Field, such as `ppo.roles`, `spec.storage` or `sft.learningRate`.")] = "",
) -> None:
    """Show what a field means: type, default, allowed values, and the fields below it."""
    from camel_ray.api.explain import explain as explanation

    width = min(shutil.get_terminal_size().columns, 110) if sys.stdout.isatty() else 110
    print(explanation(path, width=width))
