"""`camel-ray plan`: what the stages of a file need of devices and memory, before any cluster is asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from camel_ray.cli.console import DebugOption, PipelineFile, read_pipeline, terminal, training_libraries
from camel_ray.errors import SpecError

if TYPE_CHECKING:
    from rich.table import Table

    from camel_ray.runtime.plan import PlannedStage

_GIB = 2**30
_HEADINGS = {
    "weights": "WEIGHTS",
    "gradients": "GRADS",
    "optimizer": "OPTIM",
    "average": "EMA",
    "communication": "COMM",
    "activations": "ACTIV",
    "cache": "CACHE",
}


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(plan)


def plan(
    file: PipelineFile,
    stage: Annotated[str | None, typer.Option("--stage", metavar="NAME", help="Only this stage.")] = None,
    device_memory: Annotated[
        str | None,
        typer.Option("--device-memory", metavar="80Gi", help="Memory of a device, where the file does not say it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures, in bytes, as JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """Show which devices the stages need and what lies in their memory. Asks no cluster and loads no model."""
    pipeline, base_dir = read_pipeline(file)
    with training_libraries():
        from camel_ray.runtime.plan import plan as plan_of
        from camel_ray.runtime.plan import quantity

    try:
        device_bytes = None if device_memory is None else quantity(device_memory)
    except ValueError as error:
        raise typer.BadParameter(f"--device-memory: {error}") from error
    stages = plan_of(pipeline, base_dir=base_dir, stage=stage, device_bytes=device_bytes)
    if as_json:
        print(json.dumps({"stages": [planned.wire() for planned in stages]}, indent=2))
    else:
        for planned in stages:
            _print(planned)
    problems = [problem for planned in stages for problem in planned.problems]
    if problems:
        raise SpecError(*problems)


def _print(planned: PlannedStage) -> None:
    console = terminal()
    models = ", ".join(f"{name} {_parameters(count)}" for name, count in planned.models.items())
    console.print(f"[bold]{planned.name}[/] ({planned.kind}): {models}. GiB per device", soft_wrap=True)
    console.print(_table(planned))
    for sentence in planned.assumed:
        console.print(f"[dim]assumed for {sentence}[/]", soft_wrap=True)
    console.print()


def _table(planned: PlannedStage) -> Table:
    from rich.table import Table

    kinds = [k for k in _HEADINGS if any(r.get(k) for g in planned.groups for r in g.roles.values())]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("GROUP", overflow="fold")
    table.add_column("HOSTS", justify="right", no_wrap=True)
    table.add_column("ROLE", no_wrap=True)
    for kind in kinds:
        table.add_column(_HEADINGS[kind], justify="right", no_wrap=True)
    table.add_column("TOTAL", justify="right", no_wrap=True)
    table.add_column("HOST RAM", justify="right", no_wrap=True)
    table.add_column("VERDICT", overflow="fold")
    for group in planned.groups:
        where = next(iter(group.labels.values()), "any node") if group.labels else "any node"
        hosts = f"{group.hosts} x {group.devices if group.devices > 1 else ''}{'GPU' if group.on_gpu else 'CPU'}"
        for number, (role, parts) in enumerate(group.roles.items()):
            cells = [_gib(parts.get(kind, 0)) for kind in kinds]
            first = number == 0
            table.add_row(where if first else "", hosts if first else "", role, *cells, "", "", "")
        if group.device is None:
            verdict = "device not known"
        elif group.total <= group.device:
            verdict = f"[green]fits[/] {group.device / _GIB:.0f}"
        else:
            verdict = f"[red]does not fit[/] {group.device / _GIB:.0f}: {group.change}"
        blank = [""] * len(kinds)
        table.add_row(
            "", "", "[dim]at most[/]", *blank, f"[bold]{group.total / _GIB:.1f}[/]", _gib(group.host), verdict
        )
    return table


def _gib(count: int) -> str:
    """GiB with one digit; a dash for nothing."""
    if count == 0:
        return "-"
    return f"{count / _GIB:.1f}" if count >= _GIB // 20 else "<0.1"


def _parameters(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"
