"""The `camel-ray` command: its groups of commands, and how every failure ends.

A failure is one sentence on stderr and an exit code that says what to do about it (`camel_ray/errors.py`). Tracebacks
are for us: `--debug` shows them.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from camel_ray.cli import chat, cluster, plan, ppo, render, run, spec, stages, starter
from camel_ray.cli.console import print_error
from camel_ray.errors import CamelError
from camel_ray.version import __version__

EXIT_CODES = """\
Exit codes: 0 done · 2 wrong command line · 1 a bug in camel-ray · 130 stopped with Ctrl-C ·
10 the user has to act: 11 the YAML, 12 a data set, 13 a model or checkpoint, 14 a reward ·
20 may succeed later: 21 storage, 22 a lost worker, 23 memory, 24 preemption, 25 stopped on request."""

app = typer.Typer(
    name="camel-ray",
    help="Train language models from one YAML: data, tokenizer, pretraining, SFT, reward model, PPO, evaluation.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
run.register(app)
spec.register(app)
stages.register(app)
plan.register(app)
render.register(app)
chat.register(app)
ppo.register(app)
starter.register(app)
cluster.register(app)

# typer ships its own click and gives this class no public name of its own
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error and the libraries' logs.")
    ] = False,
) -> None:
    """Takes the options of all commands; `main` has read them already."""


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command line (default: this process's) and exit with its code."""
    given = sys.argv[1:] if arguments is None else arguments
    # looked for before anything is parsed: also what follows a failure of the parser needs to know
    debug = "--debug" in given
    try:
        result = app(args=given, prog_name="camel-ray", standalone_mode=False)
        sys.stdout.flush()
        code = result if isinstance(result, int) else 0
    except BrokenPipeError:
        # the reader went away (`camel-ray schema | head`): nothing is wrong, but the flush at exit would fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except SystemExit as leaving:
        # where the reader goes away while a command still prints, click sees it first and leaves with 1
        code = 0 if isinstance(leaving.__context__, BrokenPipeError) else int(leaving.code or 0)
    except Exception as error:
        if debug:
            traceback.print_exc()
        code = _report(error)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _report(error: Exception) -> int:
    """Say on stderr what went wrong, and return the exit code."""
    if isinstance(error, CamelError):
        print_error(str(error))
        return error.exit_code
    if isinstance(error, typer.Abort):
        return 130
    if isinstance(error, _UsageError):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "camel-ray"
        print_error(f"{error.format_message().rstrip('.')}; see `{command} --help`")  # type: ignore[attr-defined]
        return 2
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    print_error(
        f"bug in camel-ray: {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {text[:300]}; "
        "run again with --debug and report what it prints"
    )
    return 1
