"""The Ray that a stage runs on: one that is already there, the cluster's, or a local one started on first use.

A local Ray costs about four seconds, so nothing starts one before it has to.
"""

from __future__ import annotations

import logging
import os
import secrets
from typing import Any

from camel_ray.errors import WorkerLost

_ADDRESS = "RAY_ADDRESS"


def protect_local_ray() -> None:
    """Give a local Ray a secret of its own. Call it before anything imports ray, which reads the variables once.

    A local Ray listens on all interfaces, and who reaches it runs code as this user. Its processes inherit the secret;
    a cluster (RAY_ADDRESS) has its own, and settings of the user's win.
    """
    if not on_cluster() and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def on_cluster() -> bool:
    """Whether stages run on a Ray cluster (RAY_ADDRESS) rather than on a Ray of their own."""
    return bool(os.environ.get(_ADDRESS))


def ensure_ray(*, cores: int) -> None:
    """Make `ray` usable in this process. `cores`: CPUs a local Ray may hand out (ignored on a cluster).

    Joins the cluster of RAY_ADDRESS where that is set. A local Ray has no dashboard, and the prints of its workers do
    not reach the terminal: what a user should see goes through `Progress`.
    """
    protect_local_ray()
    import ray

    if ray.is_initialized():
        return
    # Accelerator variables stay as they are: a host without a GPU would otherwise be told to hide them, with a warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if on_cluster():
        ray.init(address="auto", **options)
    else:
        try:
            ray.init(address="local", num_cpus=cores, include_dashboard=False, **options)
        except Exception as error:  # Ray raises it bare
            if "timed out during startup" not in str(error):
                raise
            raise WorkerLost(
                "a local Ray did not start in time; close what else uses this machine and run again"
            ) from error


def shut_down_ray() -> None:
    """Stop a Ray that `ensure_ray` started; harmless if there is none."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
