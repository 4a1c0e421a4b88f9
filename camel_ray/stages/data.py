"""Stage `data`: rows from a source, cleaned and split, as a `dataset` artifact."""

from __future__ import annotations

from camel_ray.api.stages.data import DataStageSpec
from camel_ray.data.prepare import prepare
from camel_ray.stages.contract import ArtifactKind, Output, StageContext


def run(context: StageContext) -> list[Output]:
    """Prepare the data set.

    Raises DataError if it cannot be used, StorageUnavailable if it cannot be reached or written.
    """
    spec = context.stage.spec
    assert isinstance(spec, DataStageSpec)
    dataset = prepare(spec, base_dir=context.base_dir, seed=context.seed, progress=context.progress)
    rejected = sum(dataset.report.rejected.values())
    if rejected:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dataset.report.rejected.items())
        context.progress.note(f"{rejected} of {dataset.report.rows_read} rows left out: {reasons}")
    if not len(dataset.validation):
        context.progress.note("there are no validation rows, so nothing will be measured on this data", level="warning")
    path = context.output(ArtifactKind.DATASET)
    dataset.save(path)
    return [Output(ArtifactKind.DATASET, path, dataset.report.metrics())]
