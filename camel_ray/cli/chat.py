"""`camel-ray chat`: talk to a model a pipeline has made, or to any model directory.

On a terminal the answer appears token by token. From a pipe each input line is a turn and each answer one output
line, so the command also works in scripts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camel_ray.cli.console import DebugOption, StorageOption, print_error, read_pipeline, training_libraries
from camel_ray.errors import ModelError, PermanentError

if TYPE_CHECKING:
    from camel_ray.runtime.conversation import Conversation


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(chat)


def chat(
    file: Annotated[
        str | None, typer.Option("--file", "-f", metavar="FILE", help="Pipeline whose model to talk to.")
    ] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", help="Stage that made the model. Default: the last one.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="Model directory, instead of a pipeline.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    seed: Annotated[int | None, typer.Option(help="Makes sampled answers repeatable.")] = None,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Talk to a trained model. /reset starts over, /quit (or Ctrl-D) ends."""
    if (file is None) == (model is None):
        raise typer.BadParameter("give either -f FILE (and --stage), or --model DIR")
    with training_libraries():
        from camel_ray.runtime.process import available_cores, prepare_process

        prepare_process(cores=available_cores(), debug=debug)
        if model is None:
            assert file is not None
            directory = _trained(file, stage, storage)
        else:
            directory = model
        if not (directory / "config.json").is_file():
            raise ModelError(
                f"{directory} holds no model (there is no config.json); give a directory that a stage made"
            )
        from camel_ray.runtime.conversation import Conversation

        conversation = Conversation.load(directory, temperature=temperature, max_tokens=max_tokens, seed=seed)
    if sys.stdin.isatty():
        print(f"{directory}: /reset starts over, /quit ends", file=sys.stderr)
    for line in _lines():
        if line == "/quit":
            break
        if line == "/reset":
            conversation.reset()
        elif line.startswith("/"):
            print_error(f"there is no command {line}; there are /reset and /quit")
        elif line:
            _answer(conversation, line)


def _answer(conversation: Conversation, line: str) -> None:
    """Print the answer; one that is not possible leaves an empty line, so that lines in and out still match."""
    try:
        _print(conversation, line)
    except ModelError as error:
        print_error(str(error))
        print()


def _print(conversation: Conversation, line: str) -> None:
    if not sys.stdin.isatty():
        print(" ".join("".join(conversation.answer(line)).split()), flush=True)
        return
    try:
        for piece in conversation.answer(line):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" (cut)", end="")
    print()


def _lines() -> Iterator[str]:
    """Lines of standard input; on a terminal with a prompt and line editing."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.strip()
        return
    import readline  # noqa: F401 - importing it gives input() its history and editing

    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return


def _trained(file: str, stage: str | None, storage: str | None) -> Path:
    """Directory of the model that `stage` made, or the last stage that made one."""
    from camel_ray.api.graph import PRODUCES
    from camel_ray.runtime.storage import Storage
    from camel_ray.runtime.store import StageStore
    from camel_ray.stages.contract import ArtifactKind

    pipeline, _ = read_pipeline(file)
    makers = [s.name for s in pipeline.spec.stages if PRODUCES[s.kind] == "model"]
    if stage is not None and stage not in makers:
        raise PermanentError(
            f"--stage {stage}: no such stage makes a model; those that do are {', '.join(makers) or 'none'}"
        )
    place = Storage(storage or pipeline.spec.storage, pipeline.metadata.name)
    if place.is_remote:
        place.open()
    for name in [stage] if stage is not None else reversed(makers):
        store = StageStore(place, name)
        if store.state().phase == "done":
            found: list[Any] = [
                a.path for a in store.artifacts(contents=place.is_remote) if a.kind == ArtifactKind.MODEL
            ]
            if found:
                return Path(found[0])
    which = f"stage '{stage}' has not finished" if stage is not None else "no stage has made a model yet"
    raise PermanentError(f"{which} in {place.uri}; run `camel-ray run -f {file}` first")
