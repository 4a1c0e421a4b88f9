"""A recorded round of a ppo stage once more: what `camel-ray ppo replay` calls."""

from __future__ import annotations

from pathlib import Path

import transformers

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.ppo.replay import Replayed
from camel_ray.runtime.process import available_cores, prepare_process
from camel_ray.runtime.runner import Runner
from camel_ray.stages import ppo


def replay_round(
    pipeline: CamelPipeline, stage: str, step: int, *, base_dir: Path, storage: str | None, debug: bool
) -> Replayed:
    """The training half of round `step` of a ppo stage, in this process. Nothing is written to storage."""
    prepare_process(cores=available_cores(), debug=debug)
    transformers.utils.logging.disable_progress_bar()
    context = Runner(pipeline, base_dir=base_dir, storage=storage).context_of(stage)
    return ppo.replay_round(context, step)
