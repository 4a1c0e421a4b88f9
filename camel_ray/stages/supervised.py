"""What the four supervised stages have in common: resolve, tokenise, train, hand over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from camel_ray.api.model import ModelSpec
from camel_ray.api.training import TrainingSpec
from camel_ray.data.dataset import PreparedDataset
from camel_ray.errors import SpecError
from camel_ray.manifest import json_digest
from camel_ray.models.load import check_length, load_config, load_tokenizer
from camel_ray.ray_session import ensure_ray, on_cluster, run_on_worker_node, spans_nodes
from camel_ray.stages.contract import ArtifactKind, Output, StageContext
from camel_ray.stages.inputs import resolve_model, resolve_tokenizer
from camel_ray.training.arguments import TrainingKind
from camel_ray.training.launch import fit
from camel_ray.training.plan import TrainingPlan
from camel_ray.training.tokens import RowMaker, tokenise
from camel_ray.training.zero import accumulation_steps

MakeRows = Callable[[PreTrainedTokenizerBase, PreparedDataset], RowMaker]


def train_stage(
    context: StageContext,
    kind: TrainingKind,
    spec: TrainingSpec,
    dataset: PreparedDataset,
    rows: MakeRows,
    *,
    makes: ArtifactKind = ArtifactKind.MODEL,
    reference: ModelSpec | None = None,
    extra: dict[str, Any] | None = None,
) -> list[Output]:
    """Train the stage's model on `dataset` and return it as an artifact.

    `rows` makes token rows for the tokenizer that goes with the model. `extra`: trainer arguments of the kind. Raises
    SpecError, DataError or ModelError with one sentence for whatever does not fit, before anything is trained.
    """
    try:
        accumulation_steps(batch_size=spec.batch_size, micro_batch_size=spec.micro_batch_size, workers=context.workers)
    except ValueError as error:
        raise SpecError(f"stage '{context.stage.name}', {kind}.batchSize: {error}") from error
    model = resolve_model(context, spec.model, field="model")
    source = resolve_tokenizer(context, spec.tokenizer, model)
    tokenizer = load_tokenizer(source, revision=model.revision, trust_remote_code=model.trust_remote_code)
    check_length(load_config(model, tokenizer), spec.max_length, field=f"stage '{context.stage.name}': maxLength")
    digest = run_digest(context, spec)
    tokens = context.work / "tokens" / digest[:16]
    _tokenise(context, tokens, dataset, rows(tokenizer, dataset))
    output = context.output(makes)
    metrics = fit(
        TrainingPlan(
            kind=kind,
            stage=context.stage.name,
            spec=spec,
            model=model,
            tokenizer=source,
            tokens=tokens,
            work=context.work,
            output=output,
            progress=context.progress,
            workers=context.workers,
            cores=context.cores,
            seed=context.seed,
            digest=digest,
            run_name=context.pipeline.metadata.name,
            tracking=context.pipeline.spec.tracking,
            group=context.stage.group,
            on_gpu=context.on_gpu,
            reference=reference,
            extra=extra or {},
        )
    )
    return [Output(makes, output, metrics)]


def _tokenise(context: StageContext, tokens: Path, dataset: PreparedDataset, rows: RowMaker) -> None:
    """Fill `tokens`, on a worker node where there are some: the head of a cluster has no CPU to spare."""
    work = partial(tokenise, tokens, dataset, rows, stage=context.stage.name, progress=context.progress)
    if on_cluster():
        ensure_ray(cores=context.cores)
    if not spans_nodes():
        work()
        return
    what = f"stage '{context.stage.name}'"
    run_on_worker_node(_call, work, shared=context.work, group=context.stage.group, gpu=False, what=what)


def _call(work: Callable[[], object]) -> None:
    """Not what it returns: the rows stay in storage."""
    work()


def run_digest(context: StageContext, spec: TrainingSpec) -> str:
    """Digest of everything the weights after a step depend on; how often the run saves or logs is not part of it."""
    fields = spec.wire()
    for free in ("checkpoint", "logEverySteps"):
        fields.pop(free, None)
    return json_digest(
        {
            "spec": fields,
            "model": context.pipeline.spec.wire().get("model"),
            "inputs": {name: artifact.digest for name, artifact in context.inputs.items()},
            "seed": context.seed,
            "workers": context.workers,
            "libraries": {name: version(name) for name in ("torch", "transformers", "trl", "deepspeed")},
        }
    )
