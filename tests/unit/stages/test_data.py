"""The data stage: a saved data set, its figures, and what it tells the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.data.dataset import PreparedDataset
from camel_ray.errors import DataError
from camel_ray.progress import Progress, ProgressReader
from camel_ray.stages import data
from camel_ray.stages.contract import ArtifactKind, StageContext


def context(tmp_path: Path, **spec: object) -> StageContext:
    pipeline = CamelPipeline.model_validate(
        {"metadata": {"name": "p"}, "spec": {"stages": [{"name": "rows", "data": spec}]}}
    )
    progress = Progress(tmp_path / "progress.jsonl")
    return StageContext(pipeline, pipeline.spec.stages[0], {}, tmp_path / "work", tmp_path, progress, 1, 7, 1, 1)


def notes(tmp_path: Path) -> list[tuple[str, str]]:
    events = ProgressReader(tmp_path / "progress.jsonl").new_events()
    return [(event["level"], event["message"]) for event in events if event["event"] == "note"]


def test_rows_are_saved_with_their_figures(tmp_path: Path) -> None:
    lines = [f'{{"prompt": "q{i}", "completion": "a"}}' for i in range(40)] + ['{"prompt": 1, "completion": "a"}', "{"]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    [output] = data.run(context(tmp_path, source="rows.jsonl", validation=0.2))
    assert output.kind == ArtifactKind.DATASET
    saved = PreparedDataset.load(output.path)
    assert dict(output.metrics) == {
        "format": "prompt-completion",
        "rows_read": 42,
        "rows_train": len(saved.train),
        "rows_validation": len(saved.validation),
        "rejected": {"invalid JSON": 1, "wrong type": 1},
    }
    assert len(saved.train) + len(saved.validation) == 40
    assert notes(tmp_path) == [("info", "2 of 42 rows left out: 1 invalid JSON, 1 wrong type")]


def test_a_second_attempt_overwrites_what_the_first_left(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    first = data.run(context(tmp_path, source="rows.jsonl"))[0]
    contents = {path.name: path.read_bytes() for path in first.path.iterdir()}
    (first.path / "train.arrow").write_bytes(b"half")
    second = data.run(context(tmp_path, source="rows.jsonl"))[0]
    assert {path.name: path.read_bytes() for path in second.path.iterdir()} == contents


def test_a_data_set_without_validation_rows_warns(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    data.run(context(tmp_path, source="rows.jsonl", validation=0))
    assert notes(tmp_path) == [("warning", "there are no validation rows, so nothing will be measured on this data")]


def test_the_builtin_corpus_needs_no_file(tmp_path: Path) -> None:
    [output] = data.run(context(tmp_path, source="builtin://python-docs/instructions", limit=100))
    assert (output.metrics["format"], output.metrics["rows_train"]) == ("prompt-completion", 100)
    assert output.metrics["rows_validation"] in range(4, 9)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl does not exist"):
        data.run(context(tmp_path, source="rows.jsonl"))
