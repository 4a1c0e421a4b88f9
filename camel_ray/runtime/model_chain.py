"""Which model a stage works with, from the file alone: through the stages before it to a directory, hub id or config.

A stage names another stage whose model it takes, and that one a third; training does not change a model's size. The
defaults are those of `stages/inputs.py`, which needs artifacts that may not exist yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from camel_ray.api.graph import newest
from camel_ray.api.model import ModelSpec
from camel_ray.api.pipeline import CamelPipeline, Stage
from camel_ray.errors import ModelError
from camel_ray.models.size import ModelSize, model_size


@dataclass
class ModelChain:
    """Sizes of the models of a pipeline's stages."""

    pipeline: CamelPipeline
    base_dir: Path
    _known: dict[tuple[str, int | None, bool], ModelSize] = field(default_factory=dict, init=False)

    def size(self, stage: Stage, value: ModelSpec | str | None) -> ModelSize:
        """Size of the model that a field of `stage` means; None is the default: the newest model of an earlier stage,
        else the pipeline's. Raises ModelError where there is none, or nothing tells its size.
        """
        wire = [s.wire() for s in self.pipeline.spec.stages]
        index = next(i for i, s in enumerate(self.pipeline.spec.stages) if s.name == stage.name)
        spec = ModelSpec(source=value) if isinstance(value, str) else value
        if spec is None:
            earlier = newest(wire, index, "model")
            default = self.pipeline.spec.model
            spec = ModelSpec(source=earlier) if earlier else None
            if spec is None and default is not None:
                spec = ModelSpec(source=default) if isinstance(default, str) else default
        if spec is None:
            raise ModelError(f"stage '{stage.name}': there is no model to start from; set `model`")
        before = {s.name: s for s in self.pipeline.spec.stages[:index]}
        if spec.source in before:
            return self.size(before[spec.source], getattr(before[spec.source].spec, "model", None))
        return self._size(spec, self._vocabulary(stage, wire, index), masked=_is_masked(stage))

    def _size(self, spec: ModelSpec, vocabulary: int | None, *, masked: bool) -> ModelSize:
        if spec.source is not None:
            directory = (self.base_dir / Path(spec.source).expanduser()).resolve()
            if directory.is_dir():
                spec = spec.model_copy(update={"source": str(directory)})
        key = (spec.model_dump_json(), vocabulary, masked)
        if key not in self._known:
            self._known[key] = model_size(spec, vocabulary=vocabulary, masked=masked)
        return self._known[key]

    def _vocabulary(self, stage: Stage, wire: list[dict[str, object]], index: int) -> int | None:
        """Tokens of the tokenizer that a model from scratch is built for, where a stage trains it."""
        name = getattr(stage.spec, "tokenizer", None) or newest(wire, index, "tokenizer")
        found = next((s.tokenizer for s in self.pipeline.spec.stages[:index] if s.name == name), None)
        return found.vocab_size if found is not None and found.source is None else None


def _is_masked(stage: Stage) -> bool:
    return stage.pretrain is not None and stage.pretrain.objective == "masked"
