"""What a training process is told: one frozen value that travels from the stage to the workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camel_ray.api.model import ModelSpec
from camel_ray.api.pipeline import TrackingSpec
from camel_ray.api.training import TrainingSpec
from camel_ray.progress import Progress

if (
    TYPE_CHECKING
):  # plans also go to processes that have no use for transformers and TRL, Ray Train's controller for one
    from camel_ray.training.arguments import TrainingKind


@dataclass(frozen=True)
class TrainingPlan:
    """One training run."""

    kind: TrainingKind
    stage: str
    """Name of the stage, for messages and trackers."""
    spec: TrainingSpec
    model: ModelSpec
    """`source` is a directory, a hub id or None (built from `config`)."""
    tokenizer: str
    """Directory or hub id."""
    tokens: Path
    """Directory of the tokenised rows (see tokens.py)."""
    work: Path
    """Survives attempts: checkpoints, TensorBoard files and the untrained model's figures."""
    output: Path
    """Directory the trained model is written to."""
    progress: Progress
    workers: int
    cores: int
    """CPU cores of all workers together."""
    seed: int
    digest: str
    """Of everything the weights depend on. A checkpoint is resumed only by a plan with the same digest."""
    run_name: str
    tracking: TrackingSpec = TrackingSpec()
    group: str | None = None
    """Worker group of a cluster that trains; None: any nodes."""
    on_gpu: bool | None = None
    """Whether the group's nodes have GPUs; None: nothing says so, and the nodes decide."""
    reference: ModelSpec | None = None
    """Reference model of `dpo`."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Arguments of the trainer that the kind of stage adds, such as DPO's beta."""

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.work / "checkpoints"

    @property
    def result(self) -> Path:
        """File the first worker leaves its figures in."""
        return self.work / "training.json"
