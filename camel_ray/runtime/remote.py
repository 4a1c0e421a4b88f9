"""Where the code of a stage runs: here, or on a worker node of a Ray cluster.

The head of a cluster offers no CPU and has little memory, so preparing data, training tokenizers and evaluating go to
a worker node as one Ray task. Stages that train bring their own workers (`training/launch.py`, `ppo/groups.py`), and
their drivers stay with the attempt, which outlives a worker.
"""

from __future__ import annotations

import importlib
import os
import shutil
from dataclasses import replace

from camel_ray.errors import WorkerLost
from camel_ray.ray_session import ensure_ray, has_gpus, on_cluster, run_on_worker_node, spans_nodes
from camel_ray.runtime.process import available_cores, known_failures, prepare_process
from camel_ray.stages.contract import Output, StageContext

_MOVES = ("data", "tokenizer", "evaluate")
_RESTARTS = 2
"""How often a task whose node was lost begins again within an attempt."""


def run_stage(context: StageContext) -> list[Output]:
    """Run the stage where it belongs. Raises what the stage raises, or WorkerLost if its node is lost again and
    again.
    """
    if context.stage.kind not in _MOVES or not on_cluster():
        return _run(context)
    ensure_ray(cores=context.cores)
    if not spans_nodes():
        return _run(context)
    on_gpu = context.on_gpu
    gpu = context.stage.kind == "evaluate" and (has_gpus(context.stage.group) if on_gpu is None else on_gpu)
    what = f"stage '{context.stage.name}'"
    for restart in range(_RESTARTS + 1):
        try:
            return run_on_worker_node(
                _run_there, context, shared=context.work, group=context.stage.group, gpu=gpu, what=what
            )
        except WorkerLost as error:
            if restart == _RESTARTS:
                raise
            context.progress.note(f"{error}; it begins again", level="warning")
            shutil.rmtree(context.work / "output", ignore_errors=True)
    raise AssertionError("the loop has no other end")


def _run_there(context: StageContext) -> list[Output]:
    cores = available_cores()
    os.environ["OMP_NUM_THREADS"] = str(cores)  # Ray has set it to the one CPU that the task asks for
    prepare_process(cores=cores)
    with known_failures(context.stage.name):
        return _run(replace(context, cores=cores))


def _run(context: StageContext) -> list[Output]:
    made: list[Output] = importlib.import_module(f"camel_ray.stages.{context.stage.kind}").run(context)
    return made
