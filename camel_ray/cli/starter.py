"""`camel-ray init`: a commented pipeline to start from."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from camel_ray.errors import PermanentError
from camel_ray.manifest import disk_errors

STARTERS = Path(__file__).with_name("starters")
FILE_NAME = "pipeline.yaml"


class StarterKind(StrEnum):
    """What the pipeline is for; each is a file in `starters/`."""

    QUICKSTART = "quickstart"
    SFT = "sft"
    PPO = "ppo"


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(init)


def init(
    directory: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where to write it; made if it is missing.")
    ] = Path(),
    kind: Annotated[
        StarterKind,
        typer.Option(help="quickstart: the whole chain, tiny; sft: fine-tune a model; ppo: with reward model and PPO."),
    ] = StarterKind.QUICKSTART,
) -> None:
    """Write a commented pipeline.yaml to start from."""
    path = directory / FILE_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise PermanentError(
            f"{directory} cannot be made because a file stands in its way; give another directory"
        ) from None
    with disk_errors(path):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(starter_text(kind))
        except FileExistsError:
            raise PermanentError(f"{path} exists and is not overwritten; give another directory") from None
    print(f"wrote {path}; run it with `camel-ray run -f {path}`")


def starter_text(kind: StarterKind) -> str:
    """The YAML of a starter."""
    return (STARTERS / f"{kind.value}.yaml").read_text(encoding="utf-8")
