"""`camel-ray ppo`: look into a reinforcement-learning stage."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.cli.console import DebugOption, PipelineFile, StorageOption, read_pipeline, terminal, training_libraries
from camel_ray.errors import SpecError


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(help="Look into a ppo stage.", no_args_is_help=True)
    group.command()(replay)
    app.add_typer(group, name="ppo")


def replay(
    step: Annotated[int, typer.Argument(min=1, metavar="STEP", help="Round to train on again.")],
    file: PipelineFile,
    stage: Annotated[str | None, typer.Option("--stage", help="The ppo stage. Default: the only one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Run the training half of a recorded round again, in one process, and compare its figures with the run's.

    Needs `record` in the stage's spec, and a checkpoint from which all rounds up to STEP are recorded.
    """
    pipeline, base_dir = read_pipeline(file)
    name = _ppo_stage(pipeline, stage)
    with training_libraries():
        from camel_ray.runtime.replay import replay_round

        found = replay_round(pipeline, name, step, base_dir=base_dir, storage=storage, debug=debug)
    if as_json:
        figures = {f.name: {"recorded": f.recorded, "replayed": f.replayed} for f in found.figures}
        print(json.dumps({"step": step, "from_step": found.from_step, "figures": figures}))
        return
    begin = f"the checkpoint of round {found.from_step}" if found.from_step else "the first weights"
    from rich.table import Table

    table = Table("figure", "recorded", "replayed", "difference")
    for figure in found.figures:
        difference = figure.replayed - figure.recorded
        table.add_row(figure.name, f"{figure.recorded:.6g}", f"{figure.replayed:.6g}", f"{difference:.1e}")
    console = terminal()
    console.print(f"round {step} of stage {name}, from {begin}: {found.answers} answers, {found.tokens} tokens")
    console.print(table)


def _ppo_stage(pipeline: CamelPipeline, name: str | None) -> str:
    names = [stage.name for stage in pipeline.spec.stages if stage.ppo is not None]
    if name is not None and name not in names:
        raise SpecError(f"--stage {name}: there is no ppo stage of that name; there is {', '.join(names) or 'none'}")
    if name is None and len(names) != 1:
        raise SpecError(f"the pipeline has {len(names)} ppo stages; choose one with --stage ({', '.join(names)})")
    return name or names[0]
