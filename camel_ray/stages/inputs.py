"""From what a spec field says ("base", "./model", {source: ...}, nothing) to the data set, model or tokenizer it means.

The order of defaults is the same for all stages: the field itself, then the newest artifact of an upstream stage,
then the pipeline's `model`. Everything returned is on local disk or a hub id.
"""

from __future__ import annotations

from pathlib import Path

from camel_ray.api.data import DataFormat, DataRef
from camel_ray.api.graph import newest
from camel_ray.api.model import ModelSpec
from camel_ray.data.dataset import PreparedDataset
from camel_ray.data.prepare import prepare
from camel_ray.errors import DataError, ModelError
from camel_ray.manifest import json_digest
from camel_ray.stages.contract import ArtifactKind, StageContext


def resolve_dataset(
    context: StageContext, ref: DataRef, *, field: str, accept: tuple[DataFormat, ...]
) -> PreparedDataset:
    """The data set a field names or describes. Raises DataError if its format is none of `accept`.

    One described in place is prepared once per stage and kept in the work directory, so a resumed attempt reads the
    same rows.
    """
    if isinstance(ref, str):
        dataset = PreparedDataset.load(context.inputs[ref].path)
        where = f"data stage '{ref}'"
    else:
        # The name states the content, so a half-written directory is never taken for a finished one.
        kept = context.work / "datasets" / json_digest(ref.wire())[:16]
        if not (kept / "complete").exists():
            dataset = prepare(ref, base_dir=context.base_dir, seed=context.seed, progress=context.progress)
            dataset.save(kept)
            (kept / "complete").touch()
        dataset = PreparedDataset.load(kept)
        where = f"{ref.source}"
    if dataset.format not in accept:
        raise DataError(
            f"stage '{context.stage.name}', field {field}: {where} has {dataset.format} rows, but {context.stage.kind} "
            f"takes {' or '.join(accept)} rows; name a fitting data set, or set its `format` and `columns`"
        )
    return dataset


def resolve_model(context: StageContext, value: ModelSpec | str | None, *, field: str) -> ModelSpec:
    """The model a field means, `source` being a local directory or a hub id (None: build it from `config`)."""
    spec = _as_spec(value)
    if spec is None:
        artifact = context.newest(ArtifactKind.MODEL)
        spec = ModelSpec(source=artifact.stage) if artifact else _as_spec(context.pipeline.spec.model)
    if spec is None:
        raise ModelError(f"stage '{context.stage.name}', field {field}: there is no model to start from; set `model`")
    return _local(context, spec, field)


def resolve_reward_model(context: StageContext, value: str | None, *, field: str) -> ModelSpec:
    """The reward model a field means; default: the newest one upstream."""
    if value is None:
        artifact = context.newest(ArtifactKind.REWARD_MODEL)
        if artifact is None:
            raise ModelError(
                f"stage '{context.stage.name}', field {field}: no earlier stage made a reward model; set it"
            )
        value = artifact.stage
    return _local(context, ModelSpec(source=value), field)


def resolve_tokenizer(context: StageContext, value: str | None, model: ModelSpec) -> str:
    """Directory or hub id of the tokenizer: the field, the one saved with the model, or the newest upstream."""
    if value is not None:
        return _local(context, ModelSpec(source=value), "tokenizer").source or value
    if model.source is not None and not (Path(model.source).is_dir() and not _has_tokenizer(Path(model.source))):
        return model.source
    artifact = context.newest(ArtifactKind.TOKENIZER)
    if artifact is None:
        raise ModelError(
            f"stage '{context.stage.name}': {model.source or 'a model from scratch'} comes without a tokenizer; "
            "set `tokenizer`, or add a tokenizer stage before"
        )
    return str(artifact.path)


def model_before(context: StageContext, stage_name: str) -> ModelSpec | None:
    """The model the stage called `stage_name` started from, or None if it was built from scratch or is not upstream."""
    stages = [s.wire() for s in context.pipeline.spec.stages]
    index = next((i for i, s in enumerate(stages) if s["name"] == stage_name), None)
    if index is None:
        return None
    own = _as_spec(getattr(context.pipeline.spec.stages[index].spec, "model", None))
    earlier = newest(stages, index, "model")
    spec = own or (ModelSpec(source=earlier) if earlier else _as_spec(context.pipeline.spec.model))
    if spec is None or spec.source is None or spec.source == stage_name:
        return None
    return _local(context, spec, "model")


def _as_spec(value: ModelSpec | str | None) -> ModelSpec | None:
    return ModelSpec(source=value) if isinstance(value, str) else value


def _local(context: StageContext, spec: ModelSpec, field: str) -> ModelSpec:
    """`spec` with a stage name or relative path replaced by an absolute directory; hub ids stay as they are."""
    if spec.source is None:
        return spec
    artifact = context.inputs.get(spec.source)
    if artifact is not None:
        return spec.model_copy(update={"source": str(artifact.path)})
    path = (context.base_dir / Path(spec.source).expanduser()).resolve()
    if path.is_dir():
        return spec.model_copy(update={"source": str(path)})
    if spec.source.startswith((".", "/", "~")) or spec.source.count("/") > 1:
        raise ModelError(f"stage '{context.stage.name}', field {field}: there is no directory {path}; check the path")
    return spec


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
