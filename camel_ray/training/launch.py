"""Starts the training processes of a plan and brings back their figures.

On one machine a single worker trains in the calling process (Ray Train's in-process mode): starting a worker group
takes longer than a small stage. Several workers are Ray Train worker processes, on a Ray that is started when it is
first needed. On a cluster with worker nodes all training happens there, and nothing on the head. See docs/decisions.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from camel_ray.errors import CamelError, OutOfMemory, Preempted, RetryableError, Stopped, WorkerLost
from camel_ray.ray_session import (
    GROUP_LABEL,
    START_SECONDS,
    cores_of_this_node,
    ensure_ray,
    has_gpus,
    not_shared,
    on_cluster,
    spans_nodes,
)
from camel_ray.stop import StopRequest, heeding_stop_requests
from camel_ray.training.checkpoint import newest, wait_for_writers
from camel_ray.training.plan import TrainingPlan

_ORPHAN_SECONDS = 180.0
"""Ray notices within seconds that the driver of its workers is gone; a network file system gives up the locks of a
machine that is gone only after their lease (90 s with NFS)."""
_RESTARTS = 3
"""How often a cluster's lost workers are started again within an attempt. Machines come back, and a group of workers is
faster to start than all pods of a new attempt."""


def fit(plan: TrainingPlan) -> dict[str, Any]:
    """Run the plan to its end and return its figures; continues from the newest intact checkpoint.

    Raises what the training function raised, WorkerLost if a worker process died, OutOfMemory if it was killed for
    memory, Preempted if its machine was taken away. On a cluster lost workers are started again first.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_SECONDS)
    # Its cleaner of abandoned workers asks the dashboard for them, which a local Ray has not, and complains every
    # second.
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    if plan.workers > 1 or on_cluster():
        ensure_ray(cores=plan.cores)
    elsewhere = spans_nodes()
    lost: WorkerLost | Preempted | None = None
    with _own_interrupts(), heeding_stop_requests():
        for restart in range(_RESTARTS + 1):
            try:
                return _fit(plan, elsewhere=elsewhere)
            except _NoRoom as error:
                raise (lost or error) from None  # that a machine was taken away is the reason, and costs no retry
            except (WorkerLost, Preempted) as error:
                if not elsewhere or restart == _RESTARTS:
                    raise
                lost = error
            if StopRequest(plan.work).asked:
                raise Stopped(f"stage '{plan.stage}': stopped on request after it had lost a worker") from lost
            plan.progress.note(f"{lost}; its workers start again", level="warning")
    raise AssertionError("the loop has no other end")


class _NoRoom(RetryableError):
    """The cluster has no room for the workers: starting them again would wait as long again."""


def _fit(plan: TrainingPlan, *, elsewhere: bool) -> dict[str, Any]:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    plan.work.mkdir(parents=True, exist_ok=True)
    wait_for_writers(plan.work, seconds=_ORPHAN_SECONDS)
    plan.result.unlink(missing_ok=True)
    shutil.rmtree(plan.work / "ray", ignore_errors=True)  # Ray's own notes about earlier attempts
    resume = newest(plan.checkpoints, run=plan.digest, progress=plan.progress)
    if resume is not None:
        plan.progress.note(f"stage '{plan.stage}' continues at step {int(resume.name.rsplit('-', 1)[1])}")
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"plan": plan, "resume": resume, "elsewhere": elsewhere},
        scaling_config=ScalingConfig(**(_across_nodes(plan) if elsewhere else _on_this_machine(plan))),
        run_config=RunConfig(
            # A name of its own each time: under a known name Ray Train would bring back its own, older state.
            name=f"{plan.run_name}-{plan.stage}-{uuid.uuid4().hex[:8]}",
            storage_path=str(plan.work / "ray"),
            # Starting again is ours (`fit`): Ray would also repeat what users have to mend, and wait for ever for room.
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
        ),
    )
    try:
        trainer.fit()
    except CamelError:
        raise
    except Exception as error:
        cause = _cause(plan, error)
        if cause is error:
            raise
        raise cause from error
    figures: dict[str, Any] = json.loads(plan.result.read_text(encoding="utf-8"))
    return figures


def _worker(config: dict[str, Any]) -> None:
    import ray.train

    from camel_ray.training.loop import train
    from camel_ray.training.process import Rank

    plan: TrainingPlan = config["plan"]
    context = ray.train.get_context()
    threads = max(1, plan.cores // plan.workers)
    if config["elsewhere"]:
        if not plan.tokens.is_dir():
            raise not_shared(f"stage '{plan.stage}'", plan.work)
        threads = max(1, cores_of_this_node() // context.get_local_world_size())
    rank = Rank(context.get_world_rank(), context.get_local_rank(), context.get_world_size())
    train(plan, rank, config["resume"], threads=threads)


def _on_this_machine(plan: TrainingPlan) -> dict[str, Any]:
    """Ray Train's scaling: in this process, or workers beside it."""
    if plan.workers == 1:
        return {"num_workers": 0}
    import ray

    use_gpu = ray.cluster_resources().get("GPU", 0) >= plan.workers
    return {
        "num_workers": plan.workers,
        "use_gpu": use_gpu,
        "resources_per_worker": {"CPU": 1, "GPU": int(use_gpu)},
    }


def _across_nodes(plan: TrainingPlan) -> dict[str, Any]:
    """Ray Train's scaling: workers on the nodes of the plan's group, a single one too."""
    use_gpu = has_gpus(plan.group) if plan.on_gpu is None else plan.on_gpu
    return {
        "num_workers": plan.workers,
        "use_gpu": use_gpu,
        "resources_per_worker": {"CPU": 1, "GPU": int(use_gpu)},
        "label_selector": {GROUP_LABEL: plan.group} if plan.group is not None else None,
        # GPUs of one machine are near each other; workers without one want a machine's cores each.
        "placement_strategy": "PACK" if use_gpu else "SPREAD",
    }


def _cause(plan: TrainingPlan, error: Exception) -> BaseException:
    """What really went wrong in a worker, freed from Ray Train's wrappers."""
    import ray.exceptions
    from ray.train.v2.api.exceptions import PreemptionError

    found = [_unwrapped(failure) for failure in getattr(error, "worker_failures", {}).values()]
    for failure in found:
        if isinstance(failure, CamelError):
            return failure
    # The others then fail too, for want of the one that died: its death is what happened.
    dead = [failure for failure in found if isinstance(failure, ray.exceptions.RayError)]
    if isinstance(error, PreemptionError) or any(getattr(failure, "preempted", False) for failure in dead):
        return Preempted(
            f"stage '{plan.stage}': a worker's machine was taken away; run again, it continues from the last checkpoint"
        )
    if any(isinstance(failure, ray.exceptions.OutOfMemoryError) for failure in dead):
        return OutOfMemory(
            f"stage '{plan.stage}': a worker was killed for memory; use fewer workers, a smaller microBatchSize, "
            "or a higher zero"
        )
    if dead:
        return WorkerLost(
            f"stage '{plan.stage}': a training process died; run again, it continues from the last checkpoint"
        )
    if type(_unwrapped(error)).__name__.startswith("WorkerGroupStartup"):
        where = f" on group {plan.group}" if plan.group else ""
        return _NoRoom(
            f"stage '{plan.stage}': its {plan.workers} workers{where} did not start within "
            f"{os.environ['RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S']} s; look at the pods of the group"
        )
    return found[0] if found else error


def _unwrapped(failure: BaseException) -> BaseException:
    """What a worker raised, or Ray's word about its death, without the exceptions it is wrapped in."""
    for name in ("health_check_failure", "controller_failure", "cause", "_base_exc"):
        inner = getattr(failure, name, None)
        if isinstance(inner, BaseException):
            return _unwrapped(inner)
    return failure


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Give Ctrl-C back to the caller: Ray Train installs a handler and leaves it there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
