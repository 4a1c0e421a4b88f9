"""The Ray that a stage runs on: one that is already there, the cluster's, or a local one started on first use.

A local Ray costs about four seconds, so nothing starts one before it has to.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from camel_ray.errors import OutOfMemory, RetryableError, SpecError, WorkerLost

T = TypeVar("T")
START_SECONDS = "600"
"""How long workers may take to start: a cluster may have to start machines first."""
GROUP_LABEL = "camel-ray.dev/group"
"""Ray node label with the name of the worker group a node belongs to."""
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
    with _own_signals():
        if on_cluster():
            ray.init(address="auto", **options)
            return
        try:
            ray.init(address="local", num_cpus=cores, include_dashboard=False, **options)
        except Exception as error:  # Ray raises it bare
            if "timed out during startup" not in str(error):
                raise
            raise WorkerLost(
                "a local Ray did not start in time; close what else uses this machine and run again"
            ) from error


def spans_nodes() -> bool:
    """Whether a stage's work belongs on other nodes than this one: there are some, or this one offers no CPU and the
    others have yet to come (the head of a KubeRay cluster). `ensure_ray` comes first.
    """
    if not on_cluster():
        return False
    import ray

    own = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] != own or not node["Resources"].get("CPU") for node in _nodes())


def has_gpus(group: str | None) -> bool:
    """Whether a node of a worker group (None: any node) has a GPU now."""
    return any(
        node["Resources"].get("GPU", 0) > 0 and group in (None, (node.get("Labels") or {}).get(GROUP_LABEL))
        for node in _nodes()
    )


def cores_of_this_node() -> int:
    """CPUs that the Ray node of this process offers, at least 1."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return max([1, *(int(node["Resources"].get("CPU", 1)) for node in _nodes() if node["NodeID"] == own)])


def not_shared(what: str, path: Path) -> SpecError:
    """The error of a node that does not see the files of the others."""
    return SpecError(
        f"{what}: a worker node does not see {path}; on several nodes spec.storage has to be a volume that all pods "
        "mount (for object storage: set CAMEL_RAY_CACHE to such a volume, or use executor: Job)"
    )


def run_on_worker_node(
    function: Callable[..., T], *arguments: Any, shared: Path, group: str | None, gpu: bool, what: str
) -> T:
    """Run a function on a node of a worker group (None: on any) and return what it returns, or raise what it raises.

    `shared`: a directory that both nodes have to see. `what` names the stage in errors. Raises WorkerLost if the node
    is lost, RetryableError if none takes the work in time, OutOfMemory if Ray killed the process for memory. An
    interrupt ends the function.
    """
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

    mark = shared / f".started-{secrets.token_hex(8)}"
    mark.touch()
    labels = {GROUP_LABEL: group} if group is not None else None
    task = ray.remote(num_cpus=1, num_gpus=int(gpu), max_retries=0, label_selector=labels)(_call)
    ref = task.remote(mark, what, function, arguments)
    limit = float(os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_SECONDS))
    deadline = time.monotonic() + limit
    try:
        while not ray.wait([ref], timeout=1.0)[0]:
            if time.monotonic() > deadline and mark.exists():
                raise RetryableError(
                    f"{what}: no node{f' of group {group}' if group else ''} took the work within {limit:.0f} s; "
                    "look at the pods of the group"
                )
        result: T = ray.get(ref)
    except OutOfMemoryError as error:
        raise OutOfMemory(f"{what}: its process was killed for memory; give the group's pods more") from error
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise WorkerLost(f"{what}: the node or process that ran it is gone ({type(error).__name__})") from error
    except BaseException:
        ray.cancel(ref, force=True)
        raise
    finally:
        mark.unlink(missing_ok=True)
    return result


def _call(mark: Path, what: str, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    if not mark.exists():
        raise not_shared(what, mark.parent)
    mark.unlink()
    return function(*arguments)


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def shut_down_ray() -> None:
    """Stop a Ray that `ensure_ray` started; harmless if there is none."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handling of SIGTERM, which `ray.init` takes for itself: a stage asked to stop has to save its state."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
