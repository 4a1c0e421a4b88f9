"""Reads what storage knows of a pipeline into a `RunRecord`, and writes its report.

Nothing but storage is asked, so the report of a finished, failed or still running pipeline can be made at any time by
anyone who can read the folder.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from camel_ray.api.graph import direct_needs
from camel_ray.api.pipeline import CamelPipeline
from camel_ray.evaluation.record import RunRecord, StageRecord, StageState
from camel_ray.evaluation.report import build_report
from camel_ray.manifest import read_manifest, write_atomically
from camel_ray.progress import ProgressReader
from camel_ray.runtime.process import available_cores
from camel_ray.runtime.storage import Storage
from camel_ray.runtime.store import Phase, StageStore
from camel_ray.stages.contract import ArtifactKind
from camel_ray.version import __version__

_STATES: Mapping[Phase, StageState] = {
    "new": "waiting",
    "running": "running",
    "done": "done",
    "failed": "failed",
    "interrupted": "waiting",
}
ENVIRONMENT = "environment.json"
"""File in the pipeline's folder with the `environment` of its last run."""
_LIBRARIES = ("torch", "transformers", "trl", "deepspeed", "ray", "datasets", "tokenizers")


def write_report(pipeline: CamelPipeline, storage: Storage) -> Path:
    """Write `report.html` into the pipeline's folder from what storage holds now, and return its path."""
    path = storage.root / "report.html"
    write_atomically(path, build_report(read_record(pipeline, storage)))
    return path


def read_record(pipeline: CamelPipeline, storage: Storage) -> RunRecord:
    """Everything storage knows of the pipeline."""
    raw = [stage.wire() for stage in pipeline.spec.stages]
    evaluation: Mapping[str, Any] | None = None
    samples: list[Mapping[str, Any]] = []
    stages = []
    for index, stage in enumerate(pipeline.spec.stages):
        store = StageStore(storage, stage.name)
        stages.append(_stage(store, stage.kind, direct_needs(raw, index)))
        report = store.directory / ArtifactKind.REPORT.value
        if stages[-1].state == "done" and (report / "evaluation.json").exists():
            evaluation = _json(report / "evaluation.json")
            samples = list(_json_lines(report / "samples.jsonl"))
    written = pipeline.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return RunRecord(
        name=pipeline.metadata.name,
        document=pipeline.wire(),
        yaml=yaml.safe_dump(written, sort_keys=False, width=100),
        stages=stages,
        storage=storage.uri,
        environment=_environment_of(storage),
        evaluation=evaluation,
        samples=samples,
    )


def _stage(store: StageStore, kind: str, needs: list[str]) -> StageRecord:
    state = store.state()
    manifests = {k: read_manifest(store.directory / k) or {} for k in state.artifacts}
    report = store.directory / ArtifactKind.DATASET.value / "report.json"
    return StageRecord(
        name=store.name,
        kind=kind,
        needs=needs,
        state=_STATES[state.phase],
        started=state.started,
        finished=state.finished,
        attempts=state.attempts,
        message=state.message,
        metrics={key: value for m in manifests.values() for key, value in m.get("metrics", {}).items()},
        events=ProgressReader(store.progress_path).new_events(),
        data_report=_json(report) if report.exists() else None,
        artifacts={k: str(store.directory / k) for k in manifests},
    )


def _environment_of(storage: Storage) -> Mapping[str, str]:
    """What the last run ran on; a report may be made elsewhere and later."""
    path = storage.root / ENVIRONMENT
    return _json(path) if path.exists() else environment()


def environment() -> dict[str, str]:
    """Versions and machine size of this process, label to value, in the order to show them."""
    found = {"camel-ray": __version__, "Python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["machine"] = f"{available_cores()} cores, {platform.machine()}, {platform.system()}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["accelerator"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return found


def _json(path: Path) -> Mapping[str, Any]:
    value: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)
