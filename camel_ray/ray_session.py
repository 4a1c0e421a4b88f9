"""The Ray that a stage runs on: one that is already there, the cluster's, or a local one started on first use.

A local Ray costs about four seconds, so nothing starts one before it has to.
"""

from __future__ import annotations

import logging
import os
from typing import Any

_ADDRESS = "RAY_ADDRESS"


def ensure_ray(*, cores: int) -> None:
    """Make `ray` usable in this process. `cores`: CPUs a local Ray may hand out (ignored on a cluster).

    Joins the cluster of RAY_ADDRESS where that is set. A local Ray has no dashboard, and the prints of its workers do
    not reach the terminal: what a user should see goes through `Progress`.
    """
    import ray

    if ray.is_initialized():
        return
    # Accelerator variables stay as they are: a host without a GPU would otherwise be told to hide them, with a warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get(_ADDRESS):
        ray.init(address="auto", **options)
    else:
        # A local Ray talks to itself only; a token would have to be made and found first.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(address="local", num_cpus=cores, include_dashboard=False, **options)


def shut_down_ray() -> None:
    """Stop a Ray that `ensure_ray` started; harmless if there is none."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
