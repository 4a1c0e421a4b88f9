"""What a stage is given and what it gives back (design: the stage contract).

`runtime` builds the context, calls `run(context)` of the stage's module, and commits the outputs: a stage only fills
directories. Nothing of an attempt that did not return is ever seen by another stage; `work` survives it, for
checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from camel_ray.api.pipeline import CamelPipeline, Stage
from camel_ray.progress import Progress


class ArtifactKind(StrEnum):
    """What a directory made by a stage holds."""

    DATASET = "dataset"
    TOKENIZER = "tokenizer"
    MODEL = "model"
    ADAPTER = "adapter"
    REWARD_MODEL = "reward-model"
    REPORT = "report"


@dataclass(frozen=True)
class Artifact:
    """A finished directory of an earlier stage, verified and on local disk."""

    kind: ArtifactKind
    stage: str
    path: Path
    digest: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Figures the producing stage stored with it."""


@dataclass(frozen=True)
class Output:
    """A directory a stage has filled; the runtime adds the manifest and publishes it."""

    kind: ArtifactKind
    path: Path
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Figures to keep with it (JSON values): the report and later stages read them."""


@dataclass(frozen=True)
class StageContext:
    """Everything a stage may use."""

    pipeline: CamelPipeline
    stage: Stage
    inputs: Mapping[str, Artifact]
    """Artifacts of all upstream stages by stage name, in pipeline order."""
    work: Path
    """The stage's own directory. It survives attempts: checkpoints, logs and caches live here."""
    base_dir: Path
    """Directory of the pipeline file, where relative paths in it start."""
    progress: Progress
    attempt: int
    """1 for the first attempt."""
    seed: int
    """Seed of this stage, derived from the pipeline's seed and the stage's name."""
    workers: int
    """Training processes."""
    cores: int
    """CPU cores the whole stage may use."""

    @property
    def on_gpu(self) -> bool | None:
        """Whether the nodes of the stage's worker group have GPUs; None: the file does not say."""
        groups = [g for g in self.pipeline.spec.cluster.groups if self.stage.group in (None, g.name)]
        return any(group.gpus > 0 for group in groups) if groups else None

    def output(self, kind: ArtifactKind) -> Path:
        """An empty directory to fill for an artifact of `kind`."""
        path = self.work / "output" / kind.value
        path.mkdir(parents=True, exist_ok=True)
        return path

    def newest(self, kind: ArtifactKind) -> Artifact | None:
        """The artifact of `kind` of the last upstream stage that made one."""
        matching = [a for a in self.inputs.values() if a.kind == kind]
        return matching[-1] if matching else None
