"""The tokenizer stage: trained on data stages and data described in place, or loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.data.tokenizer import CHATML, train_tokenizer
from camel_ray.errors import DataError, ModelError
from camel_ray.progress import Progress, ProgressReader
from camel_ray.stages import data, tokenizer
from camel_ray.stages.contract import Artifact, ArtifactKind, Output, StageContext

ROWS = {"name": "rows", "data": {"source": "rows.jsonl", "validation": 0.2}}


def run(tmp_path: Path, **spec: Any) -> Output:
    """Run a data stage and then a tokenizer stage with this spec."""
    text = [f'{{"prompt": "What is {i}?", "completion": "It is the number {i}."}}' for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(text))
    pipeline = CamelPipeline.model_validate(
        {"metadata": {"name": "p"}, "spec": {"stages": [ROWS, {"name": "words", "tokenizer": spec}]}}
    )
    inputs: dict[str, Artifact] = {}
    outputs: list[Output] = []
    for stage, module in zip(pipeline.spec.stages, (data, tokenizer), strict=True):
        progress = Progress(tmp_path / f"{stage.name}.jsonl")
        outputs = module.run(
            StageContext(pipeline, stage, dict(inputs), tmp_path / stage.name, tmp_path, progress, 1, 7, 1, 1)
        )
        inputs[stage.name] = Artifact(outputs[0].kind, stage.name, outputs[0].path, "", outputs[0].metrics)
    return outputs[0]


def test_a_tokenizer_is_trained_on_a_data_stage(tmp_path: Path) -> None:
    output = run(tmp_path, data="rows", vocabSize=300)
    assert output.kind == ArtifactKind.TOKENIZER
    assert output.metrics["vocab_size"] == 300
    assert 1.5 < output.metrics["bytes_per_token"] < 20
    loaded = AutoTokenizer.from_pretrained(output.path)
    assert (len(loaded), loaded.chat_template) == (300, CHATML)
    tasks = [
        event["task"] for event in ProgressReader(tmp_path / "words.jsonl").new_events() if event["event"] == "finish"
    ]
    assert tasks == ["train"]


def test_several_data_sets_may_be_named_or_described(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("zebra crossing " * 50)
    output = run(tmp_path, data=["rows", {"source": "more.txt", "validation": 0}], vocabSize=330)
    assert len(AutoTokenizer.from_pretrained(output.path)(" zebra")["input_ids"]) == 1


def test_too_little_text_for_the_vocabulary_warns(tmp_path: Path) -> None:
    output = run(tmp_path, data="rows", vocabSize=5000)
    assert output.metrics["vocab_size"] < 1000
    notes = [event for event in ProgressReader(tmp_path / "words.jsonl").new_events() if event["event"] == "note"]
    assert [note["level"] for note in notes] == ["warning"]
    assert "of 5000 vocabulary entries; add text or lower `vocabSize`" in notes[0]["message"]


def test_a_directory_is_loaded_and_extended(tmp_path: Path) -> None:
    train_tokenizer(["some text"], vocab_size=280).save_pretrained(tmp_path / "own")
    output = run(tmp_path, source="./own", specialTokens=["<tool>"], maxLength=64)
    loaded = AutoTokenizer.from_pretrained(output.path)
    assert loaded("<tool>")["input_ids"] == [len(loaded) - 1]
    assert loaded.model_max_length == 64
    assert output.metrics == {"vocab_size": len(loaded)}


def test_a_directory_without_tokenizer_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty"):
        run(tmp_path, source="./empty")


def test_a_vocabulary_too_small_for_its_special_tokens_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vocabSize 300 cannot hold"):
        run(tmp_path, data="rows", vocabSize=300, specialTokens=[f"<{i}>" for i in range(60)])
