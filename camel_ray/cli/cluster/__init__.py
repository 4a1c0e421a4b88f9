"""Commands for pipelines on Kubernetes: submit, get, status, logs, suspend, resume, cancel, retry.

They need a kubeconfig and nothing else: what they show is the status that the operator writes, what they ask for is a
field or an annotation of the CamelPipeline. `kubectl` can do the same.
"""

from __future__ import annotations

import typer

from camel_ray.cli.cluster import control, get, logs, status, submit


def register(app: typer.Typer) -> None:
    """Add the commands of this folder."""
    submit.register(app)
    get.register(app)
    status.register(app)
    logs.register(app)
    control.register(app)
